"""The benchmarks of checks and of saves run to their end, on small models."""

import pytest

from train.benchmark.checking import CheckingBenchmark
from train.benchmark.checking import measure as measure_checks
from train.benchmark.saving import SavingBenchmark
from train.benchmark.saving import measure as measure_saves


@pytest.mark.slow  # compiles a train step with BERT's vocabulary
def test_checks_are_timed(tmp_path, capsys):
    settings = CheckingBenchmark(hidden_size=64, layers=1, rows=8, length=16, blocks=1, steps=2)
    found = measure_checks(settings, tmp_path)
    assert found["step, verify-every 1"] > found["step, no checks"] > 0 and found["digest of the parameters"] > 0
    assert "block 1 of 1: step, verify-every 1: " in capsys.readouterr().err


@pytest.mark.slow  # writes half a gigabyte
def test_saves_are_timed(tmp_path):
    found = measure_saves(SavingBenchmark(tmp_path, hidden_size=64, runs=1))
    assert 0 < found["digests / synchronous"] < 1 and found["digest of the parameters"] > 0
