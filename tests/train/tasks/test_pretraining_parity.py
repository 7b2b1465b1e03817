"""200 steps of pretraining give the loss curve of the same steps in PyTorch's `transformers`."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxbert import BertConfig, save_pretrained
from flaxbert.losses import IGNORE
from tests.train import corpora
from train.config import Config, Model, Run
from train.distributed import Placement
from train.optim import Optim, make_optimizer, schedule
from train.step import compile_step, create_state, state_shardings
from train.tasks.pretraining import Pretraining

STEPS = 200
SEED = np.uint32(0)
SIZES = BertConfig(
    vocab_size=205,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=48,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
OPTIM = Optim(learning_rate=2e-3, warmup=0.1, weight_decay=0.01)


def uneven(count: int) -> list[list[str]]:
    """Documents with something to learn: some words come much more often than others, and each document has its own."""
    chance = np.random.default_rng(0)
    texts = []
    for _ in range(count):
        words = (chance.geometric(0.1, 60) + 10 * chance.integers(15)) % 200
        texts.append([" ".join(f"w{word}" for word in words[i : i + 6]) for i in range(0, 60, 6)])
    return texts


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "text.txt").write_text("\n".join(corpora.lines(uneven(300))))
    corpora.tokenizer().save(tmp_path / "words", max_length=48)
    task = Pretraining(str(tmp_path / "text.txt"), tokenizer=tmp_path / "words", max_length=48)
    run = Run(folder=tmp_path / "run", batch_size=8, steps=STEPS)
    return Config(task, run, Model(sizes=SIZES), OPTIM)


def of_pytorch(folder, batches, rates):
    """The loss of every step."""
    import torch
    import transformers

    model = transformers.BertForPreTraining.from_pretrained(folder).train()
    named = list(model.named_parameters())
    plain = [p for name, p in named if name.endswith("bias") or "LayerNorm" in name]
    decayed = [p for name, p in named if not (name.endswith("bias") or "LayerNorm" in name)]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    algorithm = OPTIM.algorithm
    how = {"betas": (algorithm.beta1, algorithm.beta2), "eps": algorithm.epsilon}
    optimizer = torch.optim.AdamW(groups, lr=1.0, **how)
    found = []
    for batch, rate in zip(batches, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        labels = np.full(batch["input_ids"].shape, IGNORE, np.int64)
        row, slot = np.nonzero(batch["masked_lm_labels"] != IGNORE)
        labels[row, batch["masked_lm_positions"][row, slot]] = batch["masked_lm_labels"][row, slot]
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = {name: torch.tensor(batch[name], dtype=torch.long) for name in names}
        pairs = torch.tensor(batch["next_sentence_labels"], dtype=torch.long)
        loss = model(**inputs, labels=torch.tensor(labels), next_sentence_label=pairs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return np.array(found)


LARGER = SIZES.replace(hidden_size=64, num_hidden_layers=3, intermediate_size=128)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
    ("row_length", "sizes", "rows", "fall"),
    [
        (96, SIZES, 8, 0.3),
        pytest.param(96, LARGER, 16, 0.7, marks=pytest.mark.slow),
        pytest.param(None, LARGER, 16, 0.7, marks=pytest.mark.slow),
    ],
)
def test_the_loss_curve_of_pytorch(config, row_length, sizes, rows, fall, tmp_path):
    run = dataclasses.replace(config.run, batch_size=rows)
    config = dataclasses.replace(config, model=Model(sizes=sizes), run=run)
    alone = config.task.prepare(config)
    task = dataclasses.replace(config.task, row_length=row_length).prepare(config) if row_length else alone
    placement = Placement.of(config.mesh, jax.devices()[:1])
    model = task.architecture(task.config, **config.model.attributes)
    optimizer = make_optimizer(OPTIM, STEPS)
    shardings = state_shardings(model, optimizer, placement)
    state = create_state(model, optimizer, shardings, seed=3)
    save_pretrained(tmp_path / "start", model, state.params)
    step = compile_step(lambda p, b, key: task.loss(model, p, b, None), optimizer, placement, shardings)
    batches = [task.train[i] for i in range(STEPS)]
    ours = []
    for batch in batches:
        state, metrics = step(state, placement.batch(batch), SEED)
        ours.append(metrics["loss"])
    ours = np.array(jax.device_get(ours))
    rate = schedule(OPTIM, STEPS)
    unpacked = batches if row_length is None else [unpack(batch) for batch in batches]
    theirs = of_pytorch(tmp_path / "start", unpacked, [float(rate(i)) for i in range(STEPS)])
    assert np.abs(ours - theirs).max() < 1e-3
    assert theirs[-20:].mean() < theirs[0] - fall  # and both have learnt something


def unpack(batch):
    """Each example of packed rows in a row of its own, as PyTorch takes them."""
    rows = []
    segments = batch["segment_ids"]
    for row in range(len(segments)):
        for slot in range(segments[row].max()):
            here = np.flatnonzero(segments[row] == slot + 1)
            size = 48 - len(here)
            positions, labels = batch["masked_lm_positions"][row], batch["masked_lm_labels"][row]
            mine = (labels != IGNORE) & (positions >= here[0]) & (positions <= here[-1])
            rows.append(
                {
                    "input_ids": np.pad(batch["input_ids"][row, here], (0, size)),
                    "token_type_ids": np.pad(batch["token_type_ids"][row, here], (0, size)),
                    "attention_mask": np.pad(np.ones(len(here), int), (0, size)),
                    "masked_lm_positions": np.where(mine, positions - here[0], 0),
                    "masked_lm_labels": np.where(mine, labels, IGNORE),
                    "next_sentence_labels": batch["next_sentence_labels"][row, slot],
                }
            )
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
