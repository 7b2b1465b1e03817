import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from train.aot import pods
from train.aot.pods import PodCase, PodEstimate, main, pod_cases, pods_table, read_pod_estimates
from train.aot.topology import Preset

GIB = 2**30


def line(topology="v5e:16x16", preset="fsdp", *, seconds=0.1, devices=256, rows=64, **found):
    estimated = {
        "step_seconds": seconds,
        "mfu": 0.25,
        "memory_bytes": {"total": 5 * GIB, "capacity": 16 * GIB},
        "seconds": {"waiting_links": 0.002},
        "collectives": [{"seconds": 0.003}, {"seconds": 0.001}],
        "parameters_gathered_beyond_fsdp": [],
        "whole_batches": [],
    }
    estimate = {"devices": devices, "estimated": estimated | found}
    about = {"config": "base_128", "topology": topology, "preset": preset, "rows": rows, "error": None}
    return PodEstimate(
        key=f"{topology} {preset}", versions="jax 1, libtpu 2", date="2026-01-01", estimate=estimate, **about
    )


def cells(text, number):
    return [cell.strip() for cell in text.splitlines()[2 + number].strip("|").split("|")]


def test_every_kind_of_chip_is_estimated_alone_before_its_slices():
    found = list(pod_cases(["base_128", "large_512"], ["v5e:4x4", "v5e:16x16", "v5p:8x8x16"], list(Preset)))
    assert [(case.topology, case.preset.value) for case in found[:8]] == [
        ("v5e:1x1", "replicated"),
        *[(topology, preset.value) for topology in ("v5e:4x4", "v5e:16x16") for preset in Preset],
        ("v5p:1x1x1", "replicated"),
    ]
    assert len(found) == 2 * (2 + 3 * 3)
    assert found[11].config == "large_512"


def test_rows_grow_with_the_memory_of_a_device():
    topologies = ("v5e:4x4", "v4:4x4x8", "v6e:1x1", "v5p:1x1x1", "tpu7x:4x4x4")
    rows = [PodCase("large_512", name, Preset.FSDP).rows for name in topologies]
    assert rows == [20, 40, 40, 80, 80]  # of 16, 32, 32, 95, and for each device of a chip 96 GiB
    assert "--rows-per-device 40 --json" in PodCase("large_512", "v4:4x4x8", Preset.FSDP).key


def test_weak_scaling_is_against_one_chip_of_the_kind_with_the_same_rows():
    alone = line("v5e:1x1", "replicated", seconds=0.09, devices=1)
    other = line("v6e:1x1", "replicated", seconds=0.01, devices=1)
    text = pods_table([alone, other, line(), line(rows=32), line("v6e:16x16")])
    assert cells(text, 0)[-1] == ""
    assert cells(text, 2) == [
        *("base_128", "v5e:16x16", "256", "fsdp", "64", "5.0 of 16 GiB"),
        *("100.0 ms", "4.00 ms, 2.00 not hidden", "25.0%", "90.0%"),
    ]
    assert cells(text, 3)[-1] == ""
    assert cells(text, 4)[-1] == "10.0%"
    assert "Estimated with jax 1, libtpu 2, 2026-01-01." in text


def test_unexpected_arrays_are_listed_below_the_table():
    text = pods_table([line(), line(whole_batches=None)])
    assert "Parameters gathered beyond fsdp: none of 2 programs." in text
    assert "Whole batches: none of 1 programs (1 unknown)." in text
    array = {"shape": {"dtype": "bf16", "dims": [768, 3072]}, "axes": ["data"]}
    text = pods_table([line(parameters_gathered_beyond_fsdp=[array])])
    assert "Parameters gathered beyond fsdp: 1 of 1 programs." in text
    assert "- base_128 on v5e:16x16, fsdp: bf16[768, 3072] over data" in text


def test_a_step_without_a_program_says_why():
    absent = dataclasses.replace(line("v5e:1x1"), estimate=None, error="the step does not fit")
    text = pods_table([absent, line()])
    assert cells(text, 0)[5] == "the step does not fit"
    assert cells(text, 1)[-1] == ""  # nothing to be held against


def test_an_interrupted_table_is_continued(tmp_path, monkeypatch, capsys):
    made = []

    def estimate_case(case):
        made.append(case.topology)
        return dataclasses.replace(line(case.topology), key=case.key)

    monkeypatch.setattr(pods, "estimate_case", estimate_case)
    file = tmp_path / "lines"
    flags = ["--json", str(file), "--configs", "base_128", "--presets", "fsdp"]
    assert main([*flags, "--topologies", "v5e:4x4"]) == 0
    assert main([*flags, "--topologies", "v5e:4x4", "v5e:16x16"]) == 0
    assert made == ["v5e:1x1", "v5e:4x4", "v5e:16x16"]
    assert [json.loads(text)["topology"] for text in file.read_text().splitlines()] == made
    capsys.readouterr()
    assert main(["--json", str(file), "--table"]) == 0
    assert capsys.readouterr().out == pods_table(read_pod_estimates(file)) + "\n"
    assert main([*flags, "--topologies", "v5e:5x5"]) == 2
    assert "the topology is 'v5e:5x5'" in capsys.readouterr().err


def test_the_documented_table_is_that_of_the_lines_beside_it():
    docs = Path(__file__).parents[2] / "docs"
    assert pods_table(read_pod_estimates(docs / "pods.jsonl")) in (docs / "pods.md").read_text()


def test_a_mistake_of_the_process_is_passed_on(monkeypatch):
    monkeypatch.setattr(PodCase, "command", ["-c", "import sys; sys.exit('error: no such thing')"])
    with pytest.raises(ValueError, match="ended with 1: error: no such thing"):
        pods.estimate_case(PodCase("base_128", "v5e:1x1", Preset.FSDP))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: '.[tpu]'")
def test_a_crash_of_the_compiler_is_recorded_as_the_reason(monkeypatch):
    monkeypatch.setattr(PodCase, "command", ["-c", "import os; os.kill(os.getpid(), 11)"])
    assert pods.estimate_case(PodCase("base_128", "v5e:1x1", Preset.FSDP)).error == "the compiler crashed (signal 11)"
