"""Rows of one or several texts, for the command: from its arguments, from lines, from tables of text."""

import csv
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ENDINGS = {
    ".txt": "one row a line, its texts between tabs",
    ".tsv": "a header, then fields between tabs; quotes are plain characters, as in GLUE's files",
    ".csv": "a header, then fields between commas, in double quotes where needed",
    ".jsonl": "one JSON object a line; a list is several texts",
}
_SHOWN = 5
# What columns are called in practice, where none are named; the most telling first.
_PAIRS = [("sentence1", "sentence2"), ("text", "text_pair"), ("text_a", "text_b"), ("question1", "question2")]
_PAIRS += [("premise", "hypothesis"), ("question", "sentence"), ("question", "passage"), ("question", "context")]
_SINGLES = ["text", "sentence", "content", "review", "title"]
_PROMPT, _CHOICES = "prompt", "choice"

# Where a row stands; then its texts, or, a string, why it cannot be used.
Found = tuple[str, tuple[str, ...] | str]


@dataclasses.dataclass(frozen=True)
class Shape:
    """How many texts make a row, what they are called in errors, and what else may be wrong with them."""

    least: int
    most: int | None
    what: str
    problem: Callable[[Sequence[str]], str] = lambda texts: ""

    def wrong(self, texts: Sequence[str]) -> str:
        """What keeps texts from being a row, "" where nothing does."""
        if len(texts) < self.least or (self.most is not None and len(texts) > self.most):
            return f"{len(texts)} texts; expected {self.what}"
        if not all(text.strip() for text in texts):
            return "an empty text" if any(text.strip() for text in texts) else "empty"
        if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
            return "not UTF-8"
        return self.problem(texts)


def line_rows(lines: Iterable[str], name: str, shape: Shape) -> Iterator[Found]:
    """The rows of lines; where a row is one text, tabs are blanks like any other."""
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\n").removesuffix("\r")
        texts = (line,) if shape.most == 1 else tuple(line.split("\t"))
        yield f"{name}:{number}", shape.wrong(texts) or texts


def file_rows(path: Path, shape: Shape, columns: Sequence[str] = ()) -> Iterator[Found]:
    """The rows of a file whose ending is in `ENDINGS`, read as they are asked for.

    Args:
        path: the file, in UTF-8; a byte-order mark is skipped.
        shape: of the rows.
        columns: of a table that hold the texts, in their order; found by their usual names where none are named.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another ending, or a table without such columns.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{path}: ending {ending!r} is none of {', '.join(ENDINGS)}")
    if columns and ending == ".txt":
        raise ValueError(f"{path}: a .txt has no columns; name them for .tsv, .csv and .jsonl")
    # A byte that is no UTF-8 passes as a lone surrogate, so that it is reported with its line.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
        if ending == ".txt":
            yield from line_rows(lines, str(path), shape)
            return
        records = _objects(lines) if ending == ".jsonl" else _cells(lines, ending)
        for number, values in records:
            if isinstance(values, str):
                yield f"{path}:{number}", values
                continue
            names = columns or _usual(list(values), shape, path)
            lacking = [column for column in names if column not in values]
            if lacking:
                said = f"no {', '.join(map(repr, lacking))} beside {', '.join(map(repr, values))}"
                yield f"{path}:{number}", said
                continue
            texts = _texts([values[column] for column in names], several=shape.most is None)
            yield f"{path}:{number}", texts if isinstance(texts, str) else shape.wrong(texts) or texts


def counted(rows: Iterable[Found]) -> int:
    """How many there are.

    Raises:
        ValueError: some cannot be used: it counts them and shows the first five; or there are none.
    """
    count, problems = 0, []
    for place, texts in rows:
        count += 1
        if isinstance(texts, str):
            problems.append(f"{place}: {texts}")
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" * (len(problems) > _SHOWN)
        shown = "\n  ".join(problems[:_SHOWN])
        raise ValueError(f"{len(problems)} of {count} rows can't be used:\n  {shown}{more}")
    if not count:
        raise ValueError("there are no rows")
    return count


def usable(rows: Iterable[Found]) -> Iterator[tuple[str, ...]]:
    """The texts of each row; raises ValueError at the first that cannot be used."""
    for place, texts in rows:
        if isinstance(texts, str):
            raise ValueError(f"{place}: {texts}")
        yield texts


def _objects(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield number, f"not JSON: {error}"
            continue
        yield number, values if isinstance(values, dict) else f"{values!r:.40} is not an object"


def _cells(lines: Iterable[str], ending: str) -> Iterator[tuple[int, dict[str, str] | str]]:
    records = _csv(lines) if ending == ".csv" else _tsv(lines)
    _, header = next(records, (0, []))
    if isinstance(header, str):
        raise ValueError(f"the header is not readable: {header}")
    for number, fields in records:
        if isinstance(fields, str):
            yield number, fields
        elif len(fields) != len(header):
            yield number, f"{len(fields)} fields; the header has {len(header)}"
        else:
            yield number, dict(zip(header, fields, strict=True))


def _tsv(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, 1):
        yield number, line.removesuffix("\n").removesuffix("\r").split("\t")


def _csv(lines: Iterable[str]) -> Iterator[tuple[int, list[str] | str]]:
    reader = csv.reader(lines, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            yield first, next(reader)
        except csv.Error as error:
            yield first, f"not CSV: {error}"
        except StopIteration:
            return


def _usual(names: Sequence[str], shape: Shape, path: Path) -> list[str]:
    """The columns by their usual names: a prompt and its choices, a pair, or one text."""
    choices = [name for name in names if name.startswith(_CHOICES)]
    pair = next((list(pair) for pair in _PAIRS if set(pair) <= set(names)), [])
    single = [name for name in _SINGLES if name in names][:1]
    if shape.most is None:
        found = [_PROMPT, *choices] if _PROMPT in names and choices else []
    else:
        found = pair if shape.most == 2 and pair else single if shape.least == 1 else []
    if not found:
        raise ValueError(
            f"{path}: columns found: {', '.join(map(repr, names))}; none known as {shape.what}. Name them: --columns"
        )
    return found


def _texts(cells: Sequence[Any], *, several: bool) -> tuple[str, ...] | str:
    """The cells as texts; a list of JSON is several, and where there may be several an empty cell is none."""
    texts = [text for cell in cells for text in (cell if isinstance(cell, list) else [cell])]
    strange = [text for text in texts if not isinstance(text, str)]
    if strange:
        return f"{strange[0]!r:.40} is no string"
    return tuple(text for text in texts if text or not several)
