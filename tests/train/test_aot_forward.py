"""Estimates of forward passes: the report by hand-made figures, and real programs where libtpu is installed."""

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flaxbert import BertConfig, length_adaptive
from train.aot.__main__ import main
from train.aot.forward import ForwardEstimate, estimate_forward, forward_json, forward_table
from train.aot.topology import slice_devices
from train.command import load_config
from train.config import Model, Run
from train.distributed import MeshShape, Placement
from train.flops import V5E

CONFIG = Path(__file__).parents[2] / "configs/pretrain_base_128.py"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed; pip install -e '.[tpu]'"
)


def estimate(**values):
    figures = {"seconds": 0.5, "flops": 1e12, "mfu": 0.25, "memory_bytes": 2**30, "costliest": []}
    about = {"output": "embeddings", "length_config": None, "texts": 800, "length": 100, "chips": 4.0}
    return ForwardEstimate(**about | figures | values)


def test_cost_is_that_of_the_chips_time():
    found = estimate()
    assert found.texts_per_second == 400  # 800 texts in half a second on four chips
    # A million texts keep one chip busy for 2500 s.
    assert found.cost_per_million_texts(7.2) == pytest.approx(5.0)


def test_the_table_has_shares_of_the_full_model():
    short = estimate(length_config=(50, 25), seconds=0.3, flops=5e11)
    table = forward_table([estimate(), short], "v5e:2x2", price=7.2).splitlines()
    first, _, full, half = table[-4:]
    assert first.startswith("| output |") and first.endswith("a million texts at 7.2 an hour |")
    assert [cell.strip() for cell in full.strip("|").split("|")] == [
        *("embeddings", "all", "1.000e+12", "500.00 ms", "400", "40,000", "25.0%", "1.0 GiB", "5.000")
    ]
    assert "| 50 25 | 5.000e+11 (0.50) | 300.00 ms (0.60) |" in half
    assert "hour" not in forward_table([short, estimate()], "v5e:2x2")
    (line,) = json.loads(forward_json([estimate()], "v5e:2x2", price=7.2))["estimated"]
    assert line["cost_per_million_texts"] == pytest.approx(5.0) and line["texts_per_second_per_chip"] == 400


@pytest.mark.parametrize("flags", [["--price-per-chip-hour", "1.2"], ["--length-config", "4", "2"]])
def test_flags_of_forward_passes_alone_are_refused(flags, capsys):
    assert main([str(CONFIG), "--topology", "v5e:2x2", *flags]) == 2
    assert capsys.readouterr().err == f"error: {flags[0]} is for forward passes; give --forward too\n"


@pytest.fixture
def small():
    sizes = BertConfig.tiny().replace(num_hidden_layers=2)
    config = load_config(CONFIG)
    task = dataclasses.replace(config.task, max_length=64, max_predictions=4)
    run = Run(config.run.folder, batch_size=8, steps=10)
    return dataclasses.replace(config, task=task, run=run, model=Model(sizes=sizes, dtype="bfloat16"))


def test_inputs_that_are_no_tokens_are_refused():
    spec = SimpleNamespace(batch={"points": np.zeros((8, 5, 2))}, config=BertConfig.tiny())
    config: Any = SimpleNamespace(task=SimpleNamespace(train_spec=lambda config: spec))
    with pytest.raises(ValueError, match="--forward estimates encoders of rows of tokens"):
        estimate_forward(config, Placement.of(MeshShape()), V5E)


@needs_libtpu
def test_both_outputs_of_a_program_for_a_tpu(small):
    chip, devices = slice_devices("v5e:2x2")
    found = estimate_forward(small, Placement.of(MeshShape(), devices), chip, length_config=[40, 20])
    assert [(it.output, it.length_config) for it in found] == [
        ("embeddings", None),
        ("sequence classification", None),
        ("embeddings", (40, 20)),
        ("sequence classification", (40, 20)),
    ]
    cost = functools.partial(length_adaptive.flops, BertConfig.tiny().replace(num_hidden_layers=2), 64)
    assert [it.flops for it in found] == [
        8 * cost(),
        8 * cost(first_position_only=True),
        8 * cost([40, 20]),
        8 * cost([40, 20], first_position_only=True),
    ]
    assert all(it.seconds > 0 and it.texts == 8 and it.chips == 4 and 0 < it.mfu < 1 for it in found)
