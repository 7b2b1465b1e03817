"""BERT pretraining compiled for slices of 16 to 1024 chips by `python -m train.aot`."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed; pip install -e '.[tpu]'", allow_module_level=True)

ROOT = Path(__file__).parents[2]
# What is asserted depends neither on the depth nor on how well the compiler optimizes, which takes it minutes.
FAST = {"JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "-1.0"}
LAYERS = 2


def compiled(name, topology, preset, rows):
    config = f"configs/pretrain_{name}.py"
    flags = ["--topology", topology, "--preset", preset, "--rows-per-device", str(rows), "--json"]
    command = [sys.executable, "-m", "train.aot", config, *flags, "--model.sizes.num-hidden-layers", str(LAYERS)]
    # A process of its own: the compiler has been seen to crash.
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | FAST)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def axes_of(found, *kinds):
    return {tuple(sent["axes"]) for sent in found["estimated"]["collectives"] if sent["kind"] in kinds}


@pytest.mark.parametrize(
    ("name", "topology", "preset", "rows", "mesh"),
    [
        ("base_128", "v6e:16x16", "replicated", 20, (256, 1, 1)),
        ("large_512", "v5e:16x16", "fsdp", 5, (16, 16, 1)),
        ("large_128", "v5e:4x4", "fsdp+tensor", 20, (1, 8, 2)),
        ("base_128", "v5p:8x8x16", "fsdp+tensor", 20, (32, 16, 2)),
    ],
)
@pytest.mark.slow  # test_aot_compile.py looks at the same in a small model on a small slice
def test_pretraining_is_laid_out_as_asked(name, topology, preset, rows, mesh):
    found = compiled(name, topology, preset, rows)
    data, fsdp, tensor = mesh
    assert found["mesh"] == {"data": data, "fsdp": fsdp, "tensor": tensor}
    estimated = found["estimated"]
    assert estimated["fits"]
    assert estimated["tokens"] == rows * data * fsdp * tensor * int(name.split("_")[1])
    assert estimated["parameters_gathered_beyond_fsdp"] == []
    assert estimated["whole_batches"] == []
    # All else that is sent: gradients, and with `tensor` the sums of what heads and units have each computed.
    assert axes_of(found, "all-gather") == ({("fsdp",)} if fsdp > 1 else set())
    assert axes_of(found, "all-to-all") == set()
    summed = axes_of(found, "all-reduce", "reduce-scatter")
    assert {axis for axes in summed for axis in axes} == {axis for axis, size in found["mesh"].items() if size > 1}
    # Of the word table, by far the largest array: its share on one device.
    words = 4 * 30592 * {"base": 768, "large": 1024}[name.split("_")[0]] / (fsdp * tensor)
    assert words < estimated["memory_bytes"]["parameters"] < 2.5 * words
