"""Take the disk from a training: fill it, forbid writing, or delete its checkpoints, at a random moment.

    python -m tests.faults.disk [--faults 20] [--seed 0] [--target run]

Needs root, for file systems in memory. The training must end with an error for the user, after at most one further step
has begun and ended, without temporary files, and with the checkpoints that were complete intact. Started again with the
disk as before, it must end as an unbroken training does. Prints a line for each fault and a table, and exits with 1 if
one of this fails.
"""

import argparse
import collections
import contextlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tests.faults.kill import TARGETS, TIMEOUT, forked, import_for, leftovers, read_events, run_to_end
from tests.faults.progress import print_progress
from tests.faults.targets import STEPS
from train.checkpoint.folder import checkpoint_steps
from train.checkpoint.manifest import find_damage

USER = 65534  # nobody: root may write everywhere
MAX_STEPS = 2  # begun after the fault: the write of the first one fails beside the second
DISK = "32m"


def fill(disk: Path) -> None:
    """Write zeros until the disk is full."""
    with (disk / "ballast").open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def forbid(disk: Path) -> None:
    """Make the folder of checkpoints read-only."""
    (disk / "run" / "checkpoints").chmod(0o555)


def delete(disk: Path) -> None:
    """Delete the folder of checkpoints; what is being written into it may make it again for a moment."""
    aside = disk / "deleted"
    os.rename(disk / "run" / "checkpoints", aside)
    shutil.rmtree(aside, ignore_errors=True)


MOMENTS = ("+step", "-step", "+copy", "+write", "+rename")  # + as a phase begins, - as it ends
UNCOUNTED = ("late", "no fault")
FAULTS: dict[str, Callable[[Path], None]] = {"full": fill, "read-only": forbid, "deleted": delete}


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a file system in memory, with a folder `run` that USER owns."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "none", folder], check=True)
    try:
        (folder / "run").mkdir()
        os.chown(folder / "run", USER, USER)
        os.chown(folder, USER, USER)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def outcome_of(kind: str, disk: Path, *, target: str, event: str, count: int, wanted: str) -> str:
    """Train until the fault and to the end after it; return "good", or what went wrong."""
    run, seen, steps, error, happened = disk / "run", 0, 0, "", math.inf
    with forked(target, run, None, user=USER) as (_, reading):
        for line, moment in read_events(reading, TIMEOUT):
            seen += line == event
            steps += moment > happened and line == "+step"
            if seen == count and happened == math.inf:
                FAULTS[kind](disk)
                happened = time.monotonic()  # filling a disk takes a while, in which the training goes on
            error = line[1:] if line[0] in "!=" else error
    if happened == math.inf:
        return "no fault"
    if error == wanted:
        return "late"  # after the last write
    problems = [] if error else ["no error for the user"]
    if steps > MAX_STEPS:
        problems.append(f"{steps} steps after the fault")
    if kind != "deleted":
        (run / "checkpoints").chmod(0o755)
        problems += [f"left {name}" for name in leftovers(run)] if kind == "full" else []
        found = (find_damage(run / "checkpoints" / str(step)) for step in checkpoint_steps(run / "checkpoints"))
        problems += [problem for problem in found if problem is not None]
    (disk / "ballast").unlink(missing_ok=True)
    found, _ = run_to_end(target, run, user=USER)
    problems += [] if found == wanted else [f"ends with {found}"]
    problems += [f"left {name} at the end" for name in leftovers(run)]
    return "; ".join([*problems, error]) if problems else "good"


def run_faults(faults: int, seed: int, *, target: str) -> dict[tuple[str, str], collections.Counter[str]]:
    """Return how often each fault had each outcome at each moment; those after the last write are repeated."""
    import_for(target)
    random, outcomes = np.random.default_rng(seed), collections.defaultdict(collections.Counter)
    with tempfile.TemporaryDirectory() as temporary:
        Path(temporary).chmod(0o755)
        with small_disk(Path(temporary) / "base") as disk:
            wanted, _ = run_to_end(target, disk / "run", user=USER)
        for kind in FAULTS:
            number = done = 0
            while done < faults and number < 3 * faults:
                event = MOMENTS[int(random.integers(len(MOMENTS)))]
                with small_disk(Path(temporary) / f"{kind}-{number}") as disk:
                    outcome = outcome_of(
                        kind, disk, target=target, event=event, count=int(random.integers(1, STEPS)), wanted=wanted
                    )
                outcomes[kind, event][outcome] += 1
                number += 1
                done += outcome not in UNCOUNTED
                print_progress(done, faults, f"{kind} at {event}: {outcome}")
    return dict(outcomes)


def main() -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS, default="run")
    arguments = parser.parse_args()
    outcomes = run_faults(arguments.faults, arguments.seed, target=arguments.target)
    print("| folder becomes | at the begin (+) or end (-) of | faults | good | wrong |")
    print("| --- | --- | --- | --- | --- |")
    totals, good = collections.Counter(), collections.Counter()
    for (kind, moment), counts in sorted(outcomes.items()):
        total = counts.total() - sum(counts[name] for name in UNCOUNTED)
        totals[kind] += total
        good[kind] += counts["good"]
        print(f"| {kind} | {moment} | {total} | {counts['good']} | {total - counts['good']} |")
    print(", ".join(f"{kind}: {good[kind]} of {total} good" for kind, total in totals.items()))
    return int(any(good[kind] != total or total < arguments.faults for kind, total in totals.items()))


if __name__ == "__main__":
    sys.exit(main())
