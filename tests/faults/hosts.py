"""Kill or stop one of two processes of a run: `python -m tests.faults.hosts --runs 20`.

Half of the runs lose a process by SIGKILL, half by SIGSTOP, in turns the first and the second one, at a random moment
while it joins, or trains. The other one must end within 30 s and name it, with exit code 3 for a process that is gone
and 75 for one that hangs. A phase that no signal has hit is a failure.
"""

import argparse
import collections
import contextlib
import dataclasses
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from tests.faults.progress import print_progress
from tests.runs import masked_lm_in
from tests.train.multihost.test_hosts import changed, launch

PHASES = ("joining", "training")
_LIMIT = 30.0  # seconds


def end_one(folder: Path, *, fault: signal.Signals, victim: int, phase: str, delay: float) -> tuple[float, str]:
    """Start a run of two processes and send one of them a signal; return (seconds, stderr) of the other.

    Raises:
        AssertionError: the other one did not end in time, with its exit code and the name of the first.
    """
    folder.mkdir()
    config = masked_lm_in(folder)
    config = changed(config, run={"steps": 10**6, "log_every": 1, "compilation_cache": False})
    processes = launch(config, folder, 2, devices=1)
    try:
        wait_for_phase(folder, processes, phase)
        time.sleep(delay)
        assert all(process.poll() is None for process in processes), (folder / "err0").read_text()
        processes[victim].send_signal(fault)
        start = time.monotonic()
        code = processes[1 - victim].wait(_LIMIT)
        seconds = time.monotonic() - start
    finally:
        for process in processes:
            process.kill()
            process.wait()
    errors = (folder / f"err{1 - victim}").read_text()
    assert code == (3 if fault is signal.SIGKILL else 75), (code, errors)
    assert re.search(rf"stopped: host {victim} \(\S+\) was lost", errors), errors
    return seconds, errors


def wait_for_phase(folder: Path, processes: list[subprocess.Popen[bytes]], phase: str) -> None:
    """Wait until both processes are connected, or until the first steps are reported."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and all(process.poll() is None for process in processes):
        if phase == "training" and re.search(r"step +[1-9]", (folder / "out0").read_text()):
            return
        if phase == "joining" and _connected(processes):
            return
        time.sleep(0.02)
    raise AssertionError(f"{phase} was not reached: {(folder / 'err0').read_text()}{(folder / 'err1').read_text()}")


def _connected(processes: list[subprocess.Popen[bytes]]) -> bool:
    """Return whether the second process has a connection over the loopback network."""
    sockets = set[str]()
    for link in Path(f"/proc/{processes[1].pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            sockets.add(os.readlink(link))
    table = Path(f"/proc/{processes[1].pid}/net/tcp").read_text().splitlines()[1:]
    return any(fields[3] == "01" and f"socket:[{fields[9]}]" in sockets for fields in map(str.split, table))


@dataclasses.dataclass(frozen=True)
class Case:
    """A fault to try."""

    fault: signal.Signals
    victim: int
    phase: str


def main(arguments: list[str]) -> int:
    """Try the faults, and print a table; return 1 if one did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args(arguments)
    cases = [Case(f, v, p) for p in PHASES for v in (0, 1) for f in (signal.SIGKILL, signal.SIGSTOP)]
    chance, times, failures = random.Random(settings.seed), collections.defaultdict(list), 0
    with tempfile.TemporaryDirectory() as root:
        for number in range(settings.runs):
            case = cases[number % len(cases)]
            delay = chance.uniform(0, 0.3 if case.phase == "joining" else 3.0)
            try:
                seconds, _ = end_one(Path(root) / str(number), **vars(case), delay=delay)
                times[case].append(seconds)
                result = f"the other one ended after {seconds:.1f} s"
            except (AssertionError, subprocess.TimeoutExpired) as error:
                failures += 1
                result = f"FAILED: {error}"
            place = f"{case.fault.name} of host {case.victim} {case.phase}"
            print_progress(number + 1, settings.runs, f"{place}: {result}")
    print("| signal | host | phase | runs | median seconds until the other ended | longest |")
    print("| --- " * 6 + "|")
    for case, seconds in times.items():
        figures = f"{len(seconds)} | {statistics.median(seconds):.1f} | {max(seconds):.1f}"
        print(f"| {case.fault.name} | {case.victim} | {case.phase} | {figures} |")
    never = [case for case in cases[: settings.runs] if case not in times]
    return 1 if failures or never else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
