"""`import flaxbert` is cheap: nothing heavy comes with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "datasets", "orbax", "grain", "tokenizers", "tensorflow", "train")


def fresh_process(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_brings_nothing_heavy():
    code = "import sys, json, flaxbert; print(json.dumps([flaxbert.__file__, *sys.modules]))"
    file, *modules = json.loads(fresh_process(code))
    assert Path(file).is_relative_to(ROOT)
    assert {name for name in modules if name.split(".")[0] in HEAVY} == set()


def test_import_costs_less_than_a_second_and_a_half_beyond_flax():
    # Processor time: the clock on the wall measures what else the machine does.
    code = "import time; start = time.process_time(); import {}; print(time.process_time() - start)"
    flax, ours = (min(float(fresh_process(code.format(name))) for _ in range(3)) for name in ("flax", "flaxbert"))
    assert ours - flax < 1.5


def test_public_names_exist_and_are_all_there_is():
    code = "import flaxbert; print([n for n in flaxbert.__all__ if not hasattr(flaxbert, n)], len(flaxbert.__all__))"
    missing, count = fresh_process(code).split()
    assert missing == "[]" and int(count) >= 19
