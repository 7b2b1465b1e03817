"""Rows of data that cannot be used: an error, or skipped and listed."""

import copy
import dataclasses
import difflib
import enum
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from flaxbert.files import atomic_write
from flaxbert.text.messages import quote_names, raise_problems

SKIP_REMEDY = "or skip and list them: --task.bad-rows skip."
"""The last words of an error about bad rows."""

BAD_ROWS_FILE = "bad_rows.jsonl"


class BadRows(enum.Enum):
    """Treatment of rows that cannot be used: not readable, without a text or label, or contradicting themselves."""

    ERROR = "error"
    """Refuse the data; the message names file, line and reason."""
    SKIP = "skip"
    """Leave them out, count them, and list them in the run's folder. Data without any other row is still refused."""


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A row that is skipped."""

    source: str  # as of `TableRow`: "path:line", lines counted from 1
    reason: str

    def __str__(self):
        return f"{self.source}: {self.reason}"


def with_other_name(source: str, kind: str, name: str, allowed: Sequence[str], *, shown: bool) -> BadRow:
    """Return a row with a name, such as a label, that is not an allowed one; only if it is shown, with similar names.

    The search for these is slow.
    """
    near = difflib.get_close_matches(name[:80], allowed) if shown else []
    names = f"; near names: {quote_names(near)}" if near else ""
    return BadRow(source, f"{kind} {name[:80]!r} is not allowed{names}")


@dataclasses.dataclass
class BadRowList:
    """The bad rows of one file or data set."""

    policy: BadRows = BadRows.ERROR
    total: int = 0  # rows of the file, with the bad ones
    rows: list[BadRow] = dataclasses.field(default_factory=list)

    def add(self, bad: Sequence[BadRow], remedy: str) -> None:
        """Skip rows.

        Raises:
            ValueError: the policy is that bad rows are an error, or no other row is left. The message counts them,
                quotes five and ends with the remedy.
        """
        if self.policy is BadRows.ERROR:
            raise_problems(list(map(str, bad)), self.total, remedy)
        self.rows += bad
        if bad and len(self.rows) >= self.total:
            raise_problems(list(map(str, self.rows)), self.total, f"None is left. {remedy}")


Row = TypeVar("Row")
Rows = TypeVar("Rows", bound="ReadRows")


class ReadRows(list[Row]):
    """The rows of a file or data set, and how they were read."""

    def __init__(
        self,
        rows: Iterable[Row] = (),
        *,
        columns: Mapping[str, str] | None = None,
        classes: Sequence[str] = (),
        bad: BadRowList | None = None,
    ):
        """Hold rows.

        Args:
            rows: the rows.
            columns: the column of each part of a row.
            classes: names of all classes, by id, if the data set declares them.
            bad: the rows that are left out, and the treatment of those that prove bad later.
        """
        super().__init__(rows)
        self.columns, self.classes = columns or {}, tuple(classes)
        self.bad = BadRowList(total=len(self)) if bad is None else bad

    @property
    def left_out(self) -> int:
        """The number of bad rows that were skipped."""
        return len(self.bad.rows)

    def without(self: Rows, bad: Sequence[BadRow], remedy: str) -> Rows:
        """Return the rows without bad ones, which are recognised by their sources; raises as `BadRowList.add`."""
        if not bad:
            return self
        kept = copy.copy(self)
        kept.bad = dataclasses.replace(self.bad, rows=[*self.bad.rows])
        kept.bad.add(bad, remedy)
        sources = {row.source for row in bad}
        kept[:] = [row for row in self if row.source not in sources]
        return kept


def bad_row_facts(bad_rows: Mapping[str, Sequence[BadRow]]) -> dict[str, str | float | int]:
    """Return the number of bad rows of each set that has some, for the first line and the summary of a run."""
    return {f"{name} bad rows skipped": len(rows) for name, rows in bad_rows.items() if rows}


def write_bad_rows(folder: Path, bad_rows: Mapping[str, Sequence[BadRow]]) -> None:
    """Write a line with set, source and reason for each bad row, in the order of the data; no file without any."""
    lines = [
        {"set": name, **dataclasses.asdict(row)} for name, rows in bad_rows.items() for row in sorted(rows, key=_place)
    ]
    if lines:
        with atomic_write(folder / BAD_ROWS_FILE) as aside:
            text = "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines)
            aside.write_text(text, encoding="utf-8")


def _place(row: BadRow) -> list[str | int]:
    """Return the parts of a source, texts and numbers in turns, so that line 10 comes after line 9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", row.source)]
