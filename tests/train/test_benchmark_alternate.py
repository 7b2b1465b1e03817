import sys
import time

import pytest

from train.benchmark.alternate import alternate, main

# Appends its name to a file every 10 ms until it has run for long enough by its own CPU clock.
PROGRAM = """
import sys, time
name, file, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
while time.process_time() < seconds:
    with open(file, "a") as out:
        out.write(name)
    end = time.perf_counter() + 0.01
    while time.perf_counter() < end:
        pass
"""


def command(name, file, seconds):
    return [sys.executable, "-c", PROGRAM, name, str(file), str(seconds)]


def test_commands_take_turns_and_their_own_seconds_count(tmp_path):
    file = tmp_path / "order"
    begin = time.perf_counter()
    seconds = alternate([command("a", file, 1.0), command("b", file, 2.0)], turn=0.25)
    total = time.perf_counter() - begin
    assert seconds[0] + seconds[1] == pytest.approx(total, abs=0.2)
    assert seconds[0] > 1.0 and seconds[1] > 2.0
    order = file.read_text()
    turns = 1 + sum(one != other for one, other in zip(order, order[1:], strict=False))
    assert 4 <= turns <= total / 0.25 + 2  # not one after the other, and not mixed
    assert order.endswith("b" * 20)


def test_a_failure_ends_the_other(tmp_path):
    file = tmp_path / "order"
    with pytest.raises(RuntimeError, match="ended with status 3"):
        alternate([command("a", file, 60.0), [sys.executable, "-c", "raise SystemExit(3)"]], turn=0.2)
    written = len(file.read_text())
    time.sleep(0.1)
    assert len(file.read_text()) == written


def test_one_command_is_nothing_to_compare(capsys):
    assert main(["true"]) == 2
    assert "python -m train.benchmark.alternate 'python -m train configs/sst2.py'" in capsys.readouterr().err
