"""Short forms of the fault harnesses; the commands in their files run the long ones."""

import re
import subprocess
import sys
from pathlib import Path

from tests.faults.mutate import run_mutations

ROOT = Path(__file__).parents[2]
OUTCOMES = {"previous", "refused", "unharmed"}


def test_no_damaged_checkpoint_is_loaded():
    outcomes = run_mutations(200, seed=0)
    assert {outcome for counts in outcomes.values() for outcome in counts} <= OUTCOMES
    assert len(outcomes) == 10 and sum(counts.total() for counts in outcomes.values()) == 200


def test_killed_trainings_end_as_an_unbroken_one():
    """In a process of its own, which forks before jax has started threads."""
    command = [sys.executable, "-m", "tests.faults.kill", "--kills", "20", "--target", "state", "--kills-per-run", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, _, _, numbers = done.stdout.strip().splitlines()
    assert re.fullmatch(r"20/20 killed in \w+(, \w+)*: same bits", lines[-1])
    in_phases = [int(number) for number in numbers.split("|")[1:7]]
    assert sum(in_phases) == 20 and min(in_phases) >= 3
