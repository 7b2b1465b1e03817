"""Two commands timed against each other on a machine whose speed wanders.

    python -m train.benchmark.alternate 'python -m train configs/sst2.py' \\
        'python -m train.benchmark.torch_classifier configs/sst2.py'

They take turns of some seconds, the other one stopped meanwhile (SIGSTOP, SIGCONT), until both have ended: each has
the whole machine in its turns, and what slows the machine down slows both. Both get the malloc settings
that `python -m train` asks for. Prints the seconds that each ran.
"""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from train.environment import restart_with_malloc_settings

TURN = 10.0  # seconds; long against the milliseconds that caches take to fill again
_TICK = 0.02


def alternate(commands: Sequence[Sequence[str]], *, turn: float = TURN) -> list[float]:
    """Runs the commands in turns; the seconds of each from its start to its end, without those it was stopped for.

    Raises:
        RuntimeError: a command failed; the others are ended.
    """
    seconds = [0.0] * len(commands)
    running: dict[int, subprocess.Popen[bytes]] = {}
    try:
        # Each begins with its own turn: a session of its own, so that its threads and children stop with it.
        waiting = list(range(len(commands)))
        while waiting:
            number = waiting.pop(0)
            begin = time.perf_counter()
            if number in running:
                _signal(running[number], signal.SIGCONT)
            else:
                running[number] = subprocess.Popen(commands[number], start_new_session=True)
            # The last one left needs no turns.
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
    """Times the commands, each one argument."""
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
