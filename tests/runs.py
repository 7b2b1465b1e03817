"""Fixtures: configs of small runs, and a finished run that tests share."""

import contextlib
import functools
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from types import SimpleNamespace

import jax
import pytest
from filelock import FileLock
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from flaxbert import BertConfig
from train.config import Config, Model, Run
from train.data.pretraining.datasets import Segments
from train.loop import run as train_run
from train.optim import Optim
from train.tasks.pretraining import Pretraining
from train.tasks.sequence_classification import SequenceClassification

SMALL = BertConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=40,
)


def masked_lm_in(folder: Path) -> Config:
    """Return the config of a masked-LM run below `folder`, on eight pages of Python's language reference."""
    file = folder / "text.txt"
    pages = [topics[name] for name in ("assignment", "if", "while", "for", "try", "with", "function", "class")]
    file.write_text("\n\n".join(page.replace("\n\n", "\n") for page in pages))
    task = Pretraining(
        text=str(file),
        segments=Segments.STREAM,
        vocab_size=300,
        max_length=32,
        heldout=0.2,
        prompts=("the [MASK] statement",),
    )
    run = Run(folder=folder / "run", batch_size=8, steps=12, log_every=4, checkpoint_every=6)
    return Config(task, run, Model(sizes=SMALL), Optim(learning_rate=1e-3))


@pytest.fixture
def no_cache():
    """Switch off the tests' own compilation cache, which `compilation_cache` would leave in use."""
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (None, 0.0), strict=True):
        jax.config.update(name, value)
    reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


@pytest.fixture
def optimized(monkeypatch: pytest.MonkeyPatch):
    """Compile with LLVM's optimization, for runs of more than a hundred steps.

    A step of 8 rows of 96 tokens then takes 15 ms instead of 63, and its compilation 4 s instead of 1.3.
    """
    jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
    monkeypatch.setattr(jax, "jit", jit)


@pytest.fixture
def masked_lm(tmp_path: Path) -> Config:
    return masked_lm_in(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A finished masked-LM run that no test may change: its config, folder and printed lines."""

    def make(place: Path) -> SimpleNamespace:
        config = masked_lm_in(place)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            folder = train_run(config)
        return SimpleNamespace(config=config, folder=folder, printed=printed.getvalue())

    return made_once(tmp_path_factory, "finished", make)


def made_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], SimpleNamespace]
) -> SimpleNamespace:
    """Return the result of `make`, called by the first worker alone, with a folder of that name."""
    place = shared_folder(tmp_path_factory)
    with FileLock(place / f"{name}.lock"):
        kept = place / f"{name}.pickle"
        if not kept.exists():
            (place / name).mkdir(exist_ok=True)
            kept.write_bytes(pickle.dumps(make(place / name)))
        return pickle.loads(kept.read_bytes())


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the temporary folder of this test session, which all workers share."""
    place = tmp_path_factory.getbasetemp()
    return place.parent if "PYTEST_XDIST_WORKER" in os.environ else place


@pytest.fixture
def classification(tmp_path: Path) -> Config:
    """A config that classifies sentences as long or short: 22 rows in batches of 8, so the last batch is incomplete."""
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    lines = [
        f"{' '.join(words[(i + k) % 6] for k in range(3 + i // 2))}\t{'long' if i > 10 else 'short'}" for i in range(22)
    ]
    for name, rows in (("train", lines), ("dev", lines[::3]), ("test", lines[::5])):
        (tmp_path / f"{name}.tsv").write_text("sentence\tlabel\n" + "\n".join(rows) + "\n")
    task = SequenceClassification(
        train=str(tmp_path / "train.tsv"),
        dev=str(tmp_path / "dev.tsv"),
        test=str(tmp_path / "test.tsv"),
        tokenizer=tmp_path / "vocab.txt",
        max_length=32,
    )
    run = Run(folder=tmp_path / "run", batch_size=8, epochs=2, log_every=2)
    return Config(task, run, Model(sizes=SMALL, dropout=0.0), Optim(learning_rate=1e-3))
