"""Mutated checkpoints of every format are read, or refused with an error that names the file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def fuzz(mutations):
    # In a process of its own, whose opened files and memory are the readers' alone.
    script = Path(__file__).parent / "fuzz_readers.py"
    command = [sys.executable, str(script), "--mutations", str(mutations)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    report = json.loads(done.stdout)
    assert report["wrong"] == [] and done.returncode == 0
    assert report["mutations"] >= mutations
    assert report["grown_kilobytes"] < 200_000  # the files hold some kilobytes and announce terabytes
    return report["readers"]


def test_mutated_checkpoints_are_read_or_refused():
    for name, outcomes in fuzz(1_000).items():
        assert outcomes.get("refused", 0) > 0 or sum(outcomes.values()) < 10, name


@pytest.mark.slow
def test_all_mutated_checkpoints_are_read_or_refused():
    for name, outcomes in fuzz(12_300).items():
        assert outcomes["refused"] > 0 and outcomes["read"] > 0, name
