"""Small trainings that the harnesses interrupt: of a state without a model, and a whole run."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.config import Config

STEPS = 6


def train_state(folder: Path, started: Callable[[], None], step_of: Callable[[Callable], Callable]) -> None:
    """Update a small state and save it after each step; go on from the newest checkpoint.

    Args:
        folder: of the run.
        started: called before the first step.
        step_of: wraps the train step.
    """
    import jax

    from tests.faults.states import restored, state_of
    from train.checkpoint.store import Checkpoints
    from train.step import TrainState

    def next_state(state: TrainState) -> TrainState:
        params, moments = jax.tree.map(lambda array: array * 0.9 + 0.1, (state.params, state.opt_state))
        return TrainState(state.step + 1, params, moments)

    update = step_of(jax.jit(next_state, donate_argnums=0))
    with Checkpoints(folder / "checkpoints", keep=1, scored=True) as checkpoints:
        first = checkpoints.latest or 0
        state = restored(checkpoints) if first else state_of(0)
        started()
        for step in range(first + 1, STEPS + 1):
            state = update(state)
            checkpoints.check()
            checkpoints.save(state, step, score=1.0 if step == 2 else 0.0)


def small_run(folder: Path, **settings: Any) -> "Config":
    """Return the config of a run on a few sentences, which are written beside its folder; `settings` are of `Run`."""
    from flaxbert import BertConfig
    from train.config import Config, Model, Run
    from train.optim import Optim
    from train.tasks.sequence_classification import SequenceClassification

    data = folder.with_name("data")
    if not data.is_dir():
        write_sentences(data)
    sizes = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=32
    )
    task = SequenceClassification(
        train=str(data / "train.tsv"), dev=str(data / "dev.tsv"), tokenizer=data / "vocab.txt", max_length=16
    )
    return Config(task, Run(folder, batch_size=8, **settings), Model(sizes=sizes), Optim(learning_rate=1e-3))


def train_run(folder: Path, started: Callable[[], None], step_of: Callable[[Callable], Callable]) -> None:
    """Run the trainer on a few sentences, with dropout, evaluations and a checkpoint after each step."""
    import contextlib
    import os

    import train.loop
    import train.training_loop as loop

    config = small_run(
        folder, steps=STEPS, log_every=1, checkpoint_every=1, evaluate_every=2, best="loss", keep=1, ledger_every=1
    )
    prefetch = loop.prefetch

    def prefetch_after_start(*arguments):
        started()
        return prefetch(*arguments)

    class Observed(loop.Precompiled):
        def __call__(self, *arguments):
            return step_of(super().__call__)(*arguments)

    loop.Precompiled, loop.prefetch = Observed, prefetch_after_start
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        train.loop.run(config)


def write_sentences(folder: Path) -> None:
    """Write a vocabulary and two sets of labelled sentences."""
    folder.mkdir(parents=True)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    lines = [f"{' '.join(words[(i + k) % 6] for k in range(3 + i // 2))}\t{i > 10:d}" for i in range(22)]
    for name, rows in (("train", lines), ("dev", lines[::3])):
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")


def final_digest(folder: Path) -> str:
    """Return the SHA-256 of all arrays of the newest checkpoint, and of the exported model and ledger, if there are."""
    import jax
    import orbax.checkpoint as ocp
    from etils import epath

    from train.checkpoint.folder import checkpoint_steps

    newest = folder / "checkpoints" / str(checkpoint_steps(folder / "checkpoints")[-1])
    arrays = jax.device_get(ocp.StandardCheckpointHandler().restore(epath.Path(newest / "default")))
    digest = hashlib.sha256(newest.name.encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
    for file in (folder / "model" / "model.safetensors", folder / "ledger.jsonl"):
        digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()
