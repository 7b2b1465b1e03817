"""Comparison of the run times of two commands on a machine whose speed varies.

    python -m train.benchmark.alternate 'python -m train configs/sst2.py' \\
        'python -m train.benchmark.torch_classifier configs/sst2.py'

The commands run in turns of some seconds while the other one is stopped (SIGSTOP, SIGCONT), until both have ended: each
has the whole machine during its turns, and a slow phase of the machine affects both. Both get the malloc settings of
`python -m train`. Prints the seconds that each command ran.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from train.environment import restart_with_malloc_settings

TURN = 10.0  # seconds; long compared with the milliseconds that caches need to fill again
_TICK = 0.02


def alternate(commands: Sequence[Sequence[str]], *, turn: float = TURN) -> list[float]:
    """Run the commands in turns; return the seconds of each, without the time that it was stopped.

    Raises:
        RuntimeError: a command failed; the others are killed.
    """
    seconds = [0.0] * len(commands)
    running: dict[int, subprocess.Popen[bytes]] = {}
    try:
        # Each command gets its own session, so that its threads and child processes are stopped with it.
        waiting = list(range(len(commands)))
        while waiting:
            number = waiting.pop(0)
            begin = time.perf_counter()
            if number in running:
                _signal(running[number], signal.SIGCONT)
            else:
                running[number] = subprocess.Popen(commands[number], start_new_session=True)
            # The last remaining command needs no turns.
            while running[number].poll() is None and (not waiting or time.perf_counter() - begin < turn):
                time.sleep(_TICK)
            status = running[number].poll()
            if status is None:
                _signal(running[number], signal.SIGSTOP)
                waiting.append(number)
            elif status != 0:
                raise RuntimeError(f"{shlex.join(commands[number])} ended with status {status}")
            seconds[number] += time.perf_counter() - begin
    finally:
        for process in running.values():
            if process.poll() is None:
                _signal(process, signal.SIGKILL)
                process.wait()
    return seconds


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    os.killpg(process.pid, number)


def main(arguments: list[str]) -> int:
    """Time the commands, each given as one argument; return 0, or 2 without two commands."""
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    commands = [shlex.split(argument) for argument in arguments]
    for command, seconds in zip(commands, alternate(commands), strict=True):
        print(f"{seconds:8.1f} s  {shlex.join(command)}")
    return 0


if __name__ == "__main__":
    restart_with_malloc_settings()  # here, so that neither command restarts itself and imports everything twice
    sys.exit(main(sys.argv[1:]))
