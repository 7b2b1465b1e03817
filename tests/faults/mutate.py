"""Damage checkpoints at random and go on from them.

    python -m tests.faults.mutate [--mutations 10000] [--seed 0]

Of two checkpoints the newer one is damaged, or both are. Opening them must end in the state of the newer one, bit for
bit, if the change touches none of its numbers; in the state of the older one, with a warning that names the damage; or
in a ValueError, if no intact one is left. Prints the outcomes by kind of damage as a table. Exits with 1 after any
other outcome: other numbers, another exception, more than 20 s, or more than 1 GiB of memory.
"""

import argparse
import collections
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.faults.progress import print_progress
from tests.faults.states import digest_of, restored, state_of, write_states
from train.checkpoint.store import Checkpoints

STEPS = [6, 12]
TIMEOUT = 20  # seconds
MAX_GROWTH = 2**30  # bytes
Generator = np.random.Generator


def files_of(folder: Path) -> list[Path]:
    """Return all regular files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _change_bytes(folder: Path, random: Generator, change: Callable[[bytearray, int], object]) -> None:
    file = random.choice(np.asarray(files_of(folder), object))
    content = bytearray(file.read_bytes())
    change(content, int(random.integers(max(1, len(content)))))
    file.write_bytes(content)


def flip_bit(folder: Path, random: Generator) -> None:
    """Flip one bit of a file."""

    def flip(content: bytearray, at: int) -> None:
        content[at] ^= 1 << int(random.integers(8))

    _change_bytes(folder, random, flip)


def zero_block(folder: Path, random: Generator) -> None:
    """Overwrite up to 4096 bytes of a file with zeros."""

    def zero(content: bytearray, at: int) -> None:
        end = min(len(content), at + int(random.integers(1, 4097)))
        content[at:end] = bytes(end - at)

    _change_bytes(folder, random, zero)


def truncate(folder: Path, random: Generator) -> None:
    """Cut a file at a random length."""
    _change_bytes(folder, random, lambda content, at: content.__delitem__(slice(at, None)))


def append(folder: Path, random: Generator) -> None:
    """Add random bytes to a file."""
    _change_bytes(folder, random, lambda content, at: content.extend(random.bytes(1 + at % 64)))


def delete(folder: Path, random: Generator) -> None:
    """Delete a file, or a folder with its files."""
    paths = sorted(folder.rglob("*"))
    path = paths[int(random.integers(len(paths)))]
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def add(folder: Path, random: Generator) -> None:
    """Add a file beside another, with its content and another name."""
    file = random.choice(np.asarray(files_of(folder), object))
    shutil.copy(file, file.with_name(random.bytes(8).hex()))


def swap(folder: Path, random: Generator) -> None:
    """Exchange the contents of two files."""
    first, second = random.choice(np.asarray(files_of(folder), object), 2, replace=False)
    contents = first.read_bytes(), second.read_bytes()
    second.write_bytes(contents[0])
    first.write_bytes(contents[1])


def mix(folder: Path, random: Generator) -> None:
    """Replace files by those of the other checkpoint, or the whole checkpoint."""
    other = folder.with_name(str(STEPS[STEPS[0] == int(folder.name)]))
    if random.random() < 0.3:
        shutil.rmtree(folder)
        shutil.copytree(other, folder)
        return
    sources = files_of(other)
    for source in random.choice(np.asarray(sources, object), int(random.integers(1, len(sources))), replace=False):
        target = folder / source.relative_to(other)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def link(folder: Path, random: Generator) -> None:
    """Replace a file or a folder by a link to a copy of it elsewhere, or to nothing, or to itself."""
    paths = sorted(folder.rglob("*"))
    path = paths[int(random.integers(len(paths)))]
    elsewhere = folder.parent.parent / "elsewhere" / random.bytes(8).hex()
    elsewhere.parent.mkdir(exist_ok=True)
    os.rename(path, elsewhere)
    path.symlink_to((elsewhere, "nowhere", path)[int(random.integers(3))])


def special(folder: Path, random: Generator) -> None:
    """Replace a file by a named pipe, or by a folder."""
    file = random.choice(np.asarray(files_of(folder), object))
    file.unlink()
    os.mkfifo(file) if random.random() < 0.5 else file.mkdir()


KINDS = [flip_bit, flip_bit, flip_bit, zero_block, truncate, append, delete, add, swap, mix, link, special]
# How often each is drawn; most bits are flipped, because they are the hardest to notice.


class _TooLongError(Exception):
    pass


class _Warnings(logging.Handler):
    def __init__(self):
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def outcome_of(folder: Path, warnings: _Warnings, digests: dict[int, str]) -> str:
    """Go on from the checkpoints in a folder; return "unharmed", "previous", "refused", or what went wrong."""
    warnings.messages.clear()
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT)
    try:
        with Checkpoints(folder, keep=2) as checkpoints:
            latest = checkpoints.latest
            if latest is None:
                return "WRONG: starts from the beginning"
            found = digest_of(restored(checkpoints))
    except ValueError as error:
        known = "no checkpoint is left that is not damaged" in str(error) and len(warnings.messages) == len(STEPS)
        return "refused" if known else f"WRONG: {error}"
    except _TooLongError:
        return "WRONG: hangs"
    except Exception:
        return "WRONG: " + traceback.format_exc(limit=-3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    if found != digests[latest]:
        return f"WRONG: other numbers than those of step {latest}"
    if latest == STEPS[-1]:
        # The older one may be damaged, and named by a warning.
        own = [message for message in warnings.messages if f"step {STEPS[-1]} " in message]
        return "unharmed" if not own else f"WRONG: {own}"
    return "previous" if len(warnings.messages) == 1 and str(STEPS[-1]) in warnings.messages[0] else "WRONG: no warning"


def run_mutations(count: int, seed: int) -> dict[str, collections.Counter[str]]:
    """Return how often each kind of damage had each outcome; the first ones are the same for every count."""

    def give_up(*_: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, give_up)
    warnings, logger = _Warnings(), logging.getLogger("train")
    logger.addHandler(warnings)
    logger.propagate = False
    outcomes = collections.defaultdict(collections.Counter)
    digests = {step: digest_of(state_of(step)) for step in STEPS}
    try:
        with tempfile.TemporaryDirectory() as temporary:
            base = write_states(Path(temporary) / "base", STEPS)
            for number in range(count):
                random = np.random.default_rng([seed, number])
                folder = Path(temporary) / str(number) / "checkpoints"
                shutil.copytree(base, folder)
                kind = KINDS[int(random.integers(len(KINDS)))]
                damaged = STEPS if random.random() < 0.1 else STEPS[-1:]
                for step in damaged:
                    kind(folder / str(step), random)
                outcome = outcome_of(folder, warnings, digests)
                outcomes[kind.__name__][outcome.partition("\n")[0][:60]] += 1
                if outcome.startswith("WRONG"):
                    print(f"mutation {number} ({kind.__name__} of {damaged}): {outcome}", file=sys.stderr, flush=True)
                shutil.rmtree(folder.parent)
                if (number + 1) % 100 == 0:
                    totals = sum(outcomes.values(), collections.Counter())
                    counts = ", ".join(f"{outcome}: {total}" for outcome, total in totals.items())
                    print_progress(number + 1, count, counts)
    finally:
        signal.signal(signal.SIGALRM, before)
        logger.removeHandler(warnings)
        logger.propagate = True
    return dict(outcomes)


def main() -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = run_mutations(arguments.mutations, arguments.seed)
    names = ["previous", "refused", "unharmed"]
    print("| damage | mutations | previous checkpoint used | none left, refused | no number changed | wrong |")
    print("| --- | --- | --- | --- | --- | --- |")
    wrong = 0
    for kind, counts in sorted(outcomes.items()):
        bad = counts.total() - sum(counts[name] for name in names)
        wrong += bad
        numbers = [counts.total(), *(counts[name] for name in names), bad]
        print(f"| {kind.replace('_', ' ')} | {' | '.join(map(str, numbers))} |")
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(f"wrong: {wrong}; memory grew by {growth / 2**20:.0f} MiB")
    return int(wrong > 0 or growth > MAX_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
