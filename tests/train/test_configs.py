"""Every file in configs/ builds a config, and its docstring has commands that are understood."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from train.command import load_config, parse_flags
from train.distributed import MeshShape, Placement
from train.tasks.pretraining import Pretraining

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_config(file):
    config = load_config(file)
    documentation = ast.get_docstring(ast.parse(file.read_text()))
    assert documentation is not None and f"python -m train configs/{file.name}" in documentation
    commands = re.findall(r"^ +python -m train (configs/\S+\.py)(.*)", documentation, re.MULTILINE)
    assert commands
    for path, flags in commands:
        if " ..." not in flags:
            parse_flags(load_config(ROOT / path), shlex.split(flags))
    # Flags of its own fields are understood, and it divides over the devices of one host.
    assert parse_flags(config, ["--run.seed", "7"]).run.seed == 7
    for name in ("batch_size", "evaluation_batch_size"):
        rows = getattr(config.run, name) or config.run.batch_size
        micro = config.run.gradient_accumulation_steps if name == "batch_size" else 1
        Placement.of(MeshShape()).check_rows(name, rows, gradient_accumulation_steps=micro)


@pytest.mark.parametrize(
    "file", [file for file in CONFIGS if isinstance(load_config(file).task, Pretraining)], ids=lambda file: file.stem
)
def test_what_a_config_of_pretraining_would_compile(file):
    config = load_config(file)
    spec = config.task.train_spec(config)
    task, batch = config.task, spec.batch
    assert batch["input_ids"].shape == (config.run.batch_size, task.row_length or task.max_length)
    assert ("next_sentence_labels" in batch) == task.two_segments
    assert spec.token_counts(batch).predictions <= batch["masked_lm_labels"].size
