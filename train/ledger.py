"""Ledger of a run: every few steps a line with digests of the data and the parameters, chained to the line before.

Two runs are compared by `python -m train.ledger compare RUN_A RUN_B`; `python -m train.ledger verify RUN` checks that
no line was altered, left out or added.
"""

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from flaxbert.files import atomic_write
from train.multihost.hosts import SINGLE_HOST, HostGroup

if TYPE_CHECKING:
    from train.distributed import HostBatch, HostShard, TrainSet

_log = logging.getLogger(__name__)

LEDGER_FILE = "ledger.jsonl"
_MODULUS = 2**128  # digests of batches are added: sums of any division into lines, steps and hosts agree


@dataclasses.dataclass(frozen=True)
class LedgerLine:
    """A line of a ledger: the state of a run after `step`."""

    step: int
    data: str  # digest of the batches since the line before, 32 hexadecimal digits
    parameters: str  # `TreeDigest.text`
    chain: str  # SHA-256 of the chain of the line before and of the other fields

    @classmethod
    def after(cls, before: str, *, step: int, data: str, parameters: str) -> "LedgerLine":
        """Return the line that follows on a line with the chain `before`; empty for the first."""
        content = json.dumps([before, step, data, parameters])
        return cls(step, data, parameters, hashlib.sha256(content.encode()).hexdigest())

    def follows(self, before: "LedgerLine | None") -> bool:
        """Return whether this line was made to follow on another; None: to be the first."""
        fields = {name: value for name, value in vars(self).items() if name != "chain"}
        in_order = before is None or before.step < self.step
        return in_order and self == LedgerLine.after("" if before is None else before.chain, **fields)


class Ledger:
    """The ledger of a run that goes on.

    Attributes:
        file: of the ledger.
    """

    def __init__(self, folder: Path, *, every: int, step: int, parameters: str, host_group: HostGroup = SINGLE_HOST):
        """Continue the ledger in the run's folder after the line of `step`, or begin one.

        Later lines are deleted: a run that was killed has made them after its last checkpoint.

        Args:
            folder: of the run.
            every: steps between lines.
            step: from which the run goes on; at 0 a new ledger begins.
            parameters: the digest of the parameters at that step.
            host_group: of which host 0 writes the file.

        Raises:
            ValueError: the ledger is damaged, lacks this step, or has other parameters there.
            OSError: it cannot be written.
        """
        self.file, self._every, self._host_group, self._data = folder / LEDGER_FILE, every, host_group, 0
        self._step, self._chain = step, host_group.share(lambda: self._open(step, parameters))

    def add(self, batch_digest: int) -> None:
        """Take the digest of the batch of one more step, of this host's part."""
        self._data = (self._data + batch_digest) % _MODULUS

    def is_due(self, step: int) -> bool:
        """Return whether `step` is one that has a line at least."""
        return step % self._every == 0

    def write(self, step: int, digest_parameters: Callable[[], str]) -> None:
        """Write the line of a step to the disk, unless it is there; only then are the parameters digested.

        Raises:
            OSError: it cannot be written.
        """
        if step == self._step:
            return
        data = f"{sum(self._host_group.exchange(self._data)) % _MODULUS:032x}"
        line = LedgerLine.after(self._chain, step=step, data=data, parameters=digest_parameters())
        if self._host_group.index == 0:
            self._append(line)
        self._step, self._chain, self._data = step, line.chain, 0

    def _open(self, step: int, parameters: str) -> str:
        """Check and cut the file; return the chain of its last line."""
        begun = LedgerLine.after("", step=step, data=f"{0:032x}", parameters=parameters)
        exists = self.file.is_file()
        if step and not exists:
            _log.warning(
                "warning: %s is missing: a new ledger begins at step %d, and proves nothing of the steps before",
                self.file,
                step,
            )
        if step == 0 or not exists:
            if exists and (lost := _last_step(self.file)):
                _log.warning(
                    "warning: %s: the run had come to step %d, and no checkpoint of it is there: it begins anew",
                    self.file.parent,
                    lost,
                )
            self._replace([begun])
            return begun.chain
        lines = read_ledger(self.file.parent)
        kept = [line for line in lines if line.step <= step]
        if (number := broken_line(lines)) is not None:
            raise ValueError(
                f"{self.file}: line {number} is altered, or does not follow on the one before; put back a copy of the "
                f"ledger, or delete the ledger: then a new one begins at step {step}"
            )
        if not kept or kept[-1].step != step:
            raise ValueError(
                f"{self.file}: has no line of step {step}, from which the run goes on; if a former version has "
                f"trained until there, delete the file, and a new ledger begins at step {step}"
            )
        if kept[-1].parameters != parameters:
            raise ValueError(
                f"{self.file}: the parameters of the checkpoint of step {step} are not those of this run: their "
                f"digest is {parameters}, and {kept[-1].parameters} in the ledger; put back the run's own checkpoint, "
                "or choose another --run.folder"
            )
        self._replace(kept)
        return kept[-1].chain

    def _replace(self, lines: Sequence[LedgerLine]) -> None:
        with atomic_write(self.file) as aside:
            aside.write_text("".join(map(_as_text, lines)), encoding="utf-8")

    def _append(self, line: LedgerLine) -> None:
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(_as_text(line))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(
                f"{self.file}: the line of step {line.step} cannot be written: {error.strerror}; make room or give "
                "back the access, and start the run again: it goes on from its last checkpoint"
            ) from None


@dataclasses.dataclass(frozen=True)
class DigestedBatches:
    """Batches by number, each with its digest, which is the same for every mesh once it is summed over hosts."""

    train_set: "TrainSet"
    host_shard: "HostShard"
    is_first_host: bool

    def __getitem__(self, index: int) -> "tuple[HostBatch, int]":
        """Return batch `index` and the digest of this host's part of it.

        It is taken of the numbers of the batch's examples where the set numbers them, because the rows into which they
        are packed depend on the mesh; else of the bytes of all arrays, row by row.
        """
        batch = self.train_set[index]
        members = getattr(self.train_set, "members", None)
        if members is None:
            return batch, _digest_rows(batch, index, self.host_shard)
        numbers = np.asarray(members(index), np.int64)
        return batch, xxhash.xxh3_128_intdigest(numbers.tobytes(), seed=index) if self.is_first_host else 0


def _digest_rows(batch: "HostBatch", index: int, shard: "HostShard") -> int:
    total = 0
    for name, values in batch.items():
        header = f"{index} {name} {values.dtype} {values.shape[1:]}"
        seed, values = xxhash.xxh3_64_intdigest(header.encode()), np.ascontiguousarray(values)
        for row, number in zip(values, shard.rows(len(values) * shard.count // len(shard.shards)), strict=True):
            total += xxhash.xxh3_128_intdigest(row.tobytes(), seed=(seed + int(number)) % 2**64)
    return total % _MODULUS


def _last_step(file: Path) -> int:
    """Return the step of the last line of a ledger that may be damaged; 0 if there is none."""
    try:
        return max((line.step for line in read_ledger(file.parent)), default=0)
    except (OSError, ValueError):
        return 0


def read_ledger(folder: Path) -> list[LedgerLine]:
    """Return the lines of a run's ledger; a last line that a killed run has not completed is left out.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a line is damaged.
    """
    file = folder / LEDGER_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such ledger; give the folder of a run")
    *complete, _ = file.read_bytes().split(b"\n")
    lines = []
    for number, text in enumerate(complete, 1):
        try:
            values: Any = json.loads(text)
            lines.append(LedgerLine(**values))
            if [type(value) for value in vars(lines[-1]).values()] != [int, str, str, str]:
                raise TypeError("another type of value")
        except (ValueError, TypeError, RecursionError):
            raise ValueError(f"{file}: line {number} is damaged; put back a copy of the file") from None
    return lines


def broken_line(lines: Sequence[LedgerLine]) -> int | None:
    """Return the number, from 1, of the first line that does not follow on the one before; None if all do."""
    pairs = itertools.pairwise([None, *lines])
    return next((number for number, (before, line) in enumerate(pairs, 1) if line and not line.follows(before)), None)


def compare(first: Sequence[LedgerLine], second: Sequence[LedgerLine]) -> tuple[str, bool]:
    """Compare two ledgers at the steps of which both have a line; return a sentence, and whether they agree.

    The data is compared from one of these steps to the next, whatever other lines are between them.
    """
    common = sorted({line.step for line in first} & {line.step for line in second})
    if not common:
        return "no step has a line in both ledgers", False
    parameters = [{line.step: line.parameters for line in lines} for lines in (first, second)]
    before = common[0]  # nothing is known of the data before it
    for step in common:
        differ = []
        if len({_data_between(lines, before, step) for lines in (first, second)}) > 1:
            differ.append("data")
        if len({lines[step] for lines in parameters}) > 1:
            differ.append("parameters")
        if differ:
            equal = f"equal up to step {before}" if step > before else "no step is equal"
            return f"first difference at step {step}, in {' and '.join(differ)}; {equal}", False
        before = step
    unknown = f"; the data before step {common[0]} was not compared" if common[0] else ""
    return f"equal up to step {common[-1]}, at all {len(common)} steps that both ledgers have{unknown}", True


def _data_between(lines: Sequence[LedgerLine], before: int, step: int) -> int:
    return sum(int(line.data, 16) for line in lines if before < line.step <= step) % _MODULUS


def _as_text(line: LedgerLine) -> str:
    return json.dumps(vars(line)) + "\n"


# -- command ---------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Compare the ledgers of two runs, or verify that of one; print a line.

    Returns:
        0: equal, or intact. 1: two intact ledgers differ, or the one to verify is altered. 2: there is no ledger, one
            of two is altered, or the arguments are wrong.
    """
    usage = "usage: python -m train.ledger compare RUN_A RUN_B | verify RUN (folders of runs)"
    if list(arguments) in (["--help"], ["-h"]):
        print(usage)
        return 0
    command, folders = (arguments[0], arguments[1:]) if arguments else ("", [])
    if {"compare": 2, "verify": 1}.get(command) != len(folders):
        print(usage, file=sys.stderr)
        return 2
    altered = 1 if command == "verify" else 2
    try:
        ledgers = [read_ledger(Path(folder).expanduser()) for folder in folders]
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return altered
    numbers = [broken_line(lines) for lines in ledgers]
    for folder, number in zip(folders, numbers, strict=True):
        if number is not None:
            print(f"{folder}: line {number} of {LEDGER_FILE} is altered, or does not follow on the one before")
            return altered
    for folder, lines in zip(folders, ledgers, strict=True):
        if not lines:
            print(f"{folder}: {LEDGER_FILE} has no complete line")
            return altered
    if command == "verify":
        (lines,) = ledgers
        steps = f"from step {lines[0].step} to step {lines[-1].step}"
        print(f"{folders[0]}: {len(lines)} lines, {steps}, each follows on the one before")
        return 0
    sentence, equal = compare(*ledgers)
    print(sentence)
    return int(not equal)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
