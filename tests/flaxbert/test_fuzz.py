"""Ten thousand mutated checkpoints: each is read or refused by a word, and nothing else happens."""

import json
import subprocess
import sys
from pathlib import Path


def test_mutated_checkpoints_are_read_or_refused():
    # A process of its own: what is watched there (files that are opened, memory) is then the readers' alone.
    script = Path(__file__).parent / "fuzz_readers.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=600)
    report = json.loads(done.stdout)
    assert report["wrong"] == [] and done.returncode == 0
    assert report["mutations"] >= 10_000
    for name, counts in report["readers"].items():
        assert counts["refused"] > 0 and counts["read"] > 0, name
    assert report["grown_kilobytes"] < 200_000  # of files of some kilobytes; what they claim to hold is terabytes
