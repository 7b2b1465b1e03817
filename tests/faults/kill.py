"""Kill a training at random moments, start it again, and compare its end with that of an unbroken training.

    python -m tests.faults.kill [--kills 200] [--seed 0] [--target run] [--kills-per-run 1]

Each kill (SIGKILL) is aimed at a phase, at a random moment of it. One that lands elsewhere does not count and is
repeated. After the kills of a run it is started again and must end with the same bits of parameters, optimizer state,
exported model and ledger, without temporary files and without damaged checkpoints. Prints a line for each run and a
table, and exits with 1 if a run ends differently or if a phase was not hit.

The processes are forked from one that has imported everything. In them, functions around the phases are replaced; the
trainer itself knows nothing of this.
"""

import argparse
import collections
import contextlib
import dataclasses
import importlib
import json
import os
import re
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.flags import with_devices

os.environ["XLA_FLAGS"] = with_devices(1)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Small programs too: compiling them takes 3 s of a run's 7.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import numpy as np
import orbax.checkpoint  # noqa: F401 - imported here, so that no child has to

import train.checkpoint.folder
import train.checkpoint.store
import train.ledger
import train.loop
import train.summary
import train.tasks.sequence_classification
from tests.faults.progress import print_progress
from tests.faults.targets import STEPS, final_digest, train_run, train_state

TARGETS = {"state": train_state, "run": train_run}
PHASES = ("start", "step", "copy", "write", "rename", "delete")
PHASES_OF = {"state": PHASES, "run": (*PHASES, "ledger")}
TIMEOUT = 120.0  # seconds for one process
LEFTOVER = re.compile(r"\d+\.(partial|deleted|damaged.*)|\..+\.[a-z0-9_]{8}|.*orbax-checkpoint-tmp.*")


@dataclasses.dataclass(frozen=True)
class Aim:
    """A moment of a training: the `count`th time in a phase, and how far in it, from 0 to 1."""

    phase: str
    count: int
    moment: float


class Child:
    """The phases of a training in a forked process, written to a pipe as "+PHASE" and "-PHASE"."""

    def __init__(self, events: int, aim: Aim | None):
        self._events, self._aim, self._counts = events, aim, collections.Counter()

    def begin(self, phase: str) -> bool:
        """Report the begin of a phase; return whether the process is to be killed in it."""
        self._counts[phase] += 1
        write_event(self._events, f"+{phase}")
        return self._aim is not None and (self._aim.phase, self._aim.count) == (phase, self._counts[phase])

    def end(self, phase: str) -> None:
        write_event(self._events, f"-{phase}")

    def replace_functions(self) -> None:
        """Wrap the functions of the trainer that begin or end a phase."""
        rename, remove = os.rename, train.checkpoint.folder.remove
        copy, write = train.checkpoint.store.copy_on_cpu, train.checkpoint.store.Checkpoints._write
        moment = 0.0 if self._aim is None else self._aim.moment

        def reported_copy(state):
            self.begin("copy")
            return copy(state)

        def reported_write(*arguments):
            self.end("copy")
            self.begin("write")
            write(*arguments)

        def reported_rename(source, target):
            if str(source).endswith(".partial"):
                self.end("write")
            phase = {".partial": "rename", ".deleted": "delete"}.get(Path(source).suffix or Path(target).suffix)
            is_aim = phase is not None and self.begin(phase)
            if is_aim and moment < 0.4:
                wait_for_the_end()
            rename(source, target)
            if is_aim and (phase == "rename" or moment < 0.6):
                wait_for_the_end()
            if is_aim:
                delete_a_part(Path(target), moment)
                wait_for_the_end()
            if phase == "rename":
                self.end("rename")

        def reported_remove(folder):
            remove(folder)
            if folder.suffix == ".deleted":
                self.end("delete")

        def reported_append(ledger, line):
            is_aim = self.begin("ledger")
            if is_aim and moment < 0.4:
                wait_for_the_end()
            if is_aim and moment < 0.7:
                text = json.dumps(vars(line))
                with ledger.file.open("a") as file:
                    file.write(text[: round((moment - 0.4) / 0.3 * len(text))])
                wait_for_the_end()
            append(ledger, line)
            if is_aim:
                wait_for_the_end()
            self.end("ledger")

        append = train.ledger.Ledger._append
        for owner, name, function in (
            (os, "rename", reported_rename),
            (train.ledger.Ledger, "_append", reported_append),
            (train.checkpoint.store, "copy_on_cpu", reported_copy),
            (train.checkpoint.store.Checkpoints, "_write", reported_write),
            (train.checkpoint.folder, "remove", reported_remove),
        ):
            setattr(owner, name, function)

    def started(self) -> None:
        self.end("start")

    def step_of(self, step: Callable) -> Callable:
        import jax

        def reported(*arguments):
            self.begin("step")
            result = jax.block_until_ready(step(*arguments))
            self.end("step")
            return result

        return reported


def import_for(target: str) -> None:
    """Import what a training imports on demand, which takes longer than the run itself and needs the rights to read it.

    The names are those that a training in another process has imported at its end.
    """
    with tempfile.TemporaryDirectory() as temporary:
        names, folder = Path(temporary) / "names", Path(temporary) / "run"
        folder.mkdir()
        process = os.fork()
        if process == 0:
            TARGETS[target](folder, lambda: None, lambda step: step)
            names.write_text("\n".join(sys.modules))
            os._exit(0)
        os.waitpid(process, 0)
        for name in names.read_text().splitlines():
            with contextlib.suppress(Exception):  # modules that are not found by their name
                importlib.import_module(name)


def wait_for_the_end() -> None:
    """Wait until the other process kills this one."""
    time.sleep(TIMEOUT)


def delete_a_part(folder: Path, moment: float) -> None:
    """Delete the first files of a folder, as a deletion does that is killed."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for file in files[: 1 + round((moment - 0.6) / 0.4 * (len(files) - 1))]:
        file.unlink()


@contextlib.contextmanager
def forked(target: str, folder: Path, aim: Aim | None, *, user: int | None = None) -> Iterator[tuple[int, int]]:
    """Start a training in another process, of another user if one is given; yield its id and its pipe's reading end.

    Its last event is "=" with the digest of the result, or "!" with an error meant for the user.
    """
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.close(reading)
            if user is not None:
                os.setuid(user)
            child = Child(writing, aim)
            child.begin("start")
            child.replace_functions()
            TARGETS[target](folder, child.started, child.step_of)
            write_event(writing, f"={final_digest(folder)}")
        except (OSError, ValueError) as error:
            write_event(writing, f"!{error}")
            os._exit(2)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(writing)
    try:
        yield process, reading
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(reading)


def write_event(writing: int, event: str) -> None:
    """Write a line for `read_events`."""
    os.write(writing, f"{time.monotonic()} {' '.join(event.split())}\n".encode())


def read_events(reading: int, seconds: float) -> Iterator[tuple[str, float]]:
    """Yield the events that a process writes, with their times, until it ends or nothing comes for too long."""
    text = b""
    while select.select([reading], [], [], seconds)[0]:
        block = os.read(reading, 4096)
        if not block:
            return
        *lines, text = (text + block).split(b"\n")
        for line in lines:
            moment, _, event = line.decode().partition(" ")
            yield event, float(moment)
    raise TimeoutError(f"no event for {seconds} s")


def run_to_end(target: str, folder: Path, *, user: int | None = None) -> tuple[str, dict[str, list[float]]]:
    """Train to the end; return the digest of the result or the error, and the seconds of each phase."""
    begun, seconds, digest = {}, collections.defaultdict(list), ""
    with forked(target, folder, None, user=user) as (_, reading):
        for event, moment in read_events(reading, TIMEOUT):
            kind, phase = event[0], event[1:]
            if kind == "+":
                begun[phase] = moment
            elif kind == "-" and phase in begun:
                seconds[phase].append(moment - begun.pop(phase))
            elif kind in "=!":
                digest = phase
    return digest, dict(seconds)


def kill_once(target: str, folder: Path, aim: Aim, typical: float) -> bool:
    """Start a training and kill it; return whether it was killed in the phase that was aimed at."""
    running = collections.Counter[str]()
    with forked(target, folder, aim) as (process, reading):
        count, events = 0, read_events(reading, TIMEOUT)
        for event, _ in events:
            running[event[1:]] += 1 if event[0] == "+" else -1
            count += event == f"+{aim.phase}"
            if count == aim.count:
                break
        else:
            return False
        # Kills in a rename or a deletion need no exact time: the process waits for them.
        time.sleep(0.0 if aim.phase in ("rename", "delete", "ledger") else typical * aim.moment)
        os.kill(process, signal.SIGKILL)
        for event, _ in events:
            running[event[1:]] += 1 if event[0] == "+" else -1
    return running[aim.phase] > 0


def leftovers(folder: Path) -> list[str]:
    """Return temporary files and folders, and damaged checkpoints."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if LEFTOVER.fullmatch(path.name)]


@dataclasses.dataclass
class Result:
    """Kills that landed in each phase, those that did not land, and what went wrong."""

    landed: collections.Counter[str]
    missed: int
    runs: int
    problems: list[str]


def run_kills(kills: int, seed: int, *, target: str, kills_per_run: int) -> Result:
    """Kill trainings `kills` times, the same number of times in each phase."""
    warnings.filterwarnings("ignore", message=".*fork.*", category=RuntimeWarning)  # jax, of a fork after its import
    import_for(target)
    result = Result(collections.Counter(), 0, 0, [])
    random = np.random.default_rng(seed)
    phases = PHASES_OF[target]
    aims = [phases[number % len(phases)] for number in range(kills)]
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary) / "base"
        base.mkdir()
        wanted, seconds = run_to_end(target, base)
        if not wanted:
            raise RuntimeError("the unbroken training failed")
        while aims and result.missed <= 2 * kills:
            folder = Path(temporary) / f"run-{result.runs}"
            folder.mkdir()
            if (base / "compiled").is_dir():
                shutil.copytree(base / "compiled", folder / "compiled")
            killed = []
            for _ in range(min(kills_per_run, len(aims))):
                phase = aims[0]
                highest = 1 if phase == "start" else STEPS // kills_per_run
                aim = Aim(phase, int(random.integers(1, highest + 1)), float(random.random()))
                if kill_once(target, folder, aim, float(np.median(seconds[phase]))):
                    result.landed[phase] += 1
                    killed.append(aims.pop(0))
                else:
                    result.missed += 1
            found, _ = run_to_end(target, folder)
            result.runs += 1
            is_good = found == wanted and not leftovers(folder)
            if not is_good:
                result.problems.append(f"run {result.runs}: digest {found} instead of {wanted}; {leftovers(folder)}")
            place = f"killed in {', '.join(killed)}" if killed else "killed in another phase, does not count"
            print_progress(result.landed.total(), kills, f"{place}: {'same bits' if is_good else result.problems[-1]}")
            shutil.rmtree(folder)
    return result


def main() -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS, default="run")
    parser.add_argument("--kills-per-run", type=int, default=1)
    arguments = parser.parse_args()
    result = run_kills(arguments.kills, arguments.seed, target=arguments.target, kills_per_run=arguments.kills_per_run)
    phases = PHASES_OF[arguments.target]
    print(f"| {' | '.join(phases)} | all | aimed at a phase and missed it | runs with the same end |")
    print(f"|{' --- |' * (len(phases) + 3)}")
    numbers = [*(result.landed[phase] for phase in phases), result.landed.total(), result.missed]
    print(f"| {' | '.join(map(str, numbers))} | {result.runs - len(result.problems)} of {result.runs} |")
    print("\n".join(result.problems), file=sys.stderr)
    return int(bool(result.problems) or result.landed.total() < arguments.kills)


if __name__ == "__main__":
    sys.exit(main())
