"""Tables of texts: the one reader of .tsv, .csv, .jsonl and .json files, and the column names known without a flag.

Both training and `flaxbert predict` read their files here, so a header that one understands the other does too.
"""

import csv
import dataclasses
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from flaxbert.text.messages import encoding_problem, quote_names

TABLE_FORMATS = {
    ".tsv": "a header, then fields between tabs; quotes are plain characters, as in GLUE's files",
    ".csv": "a header, then fields between commas, in double quotes where needed; a cell may span lines",
    ".jsonl": "one JSON object a line",
    ".json": "one JSON object a line",
    ".txt": "TNEWS, without a header: id_!_label_!_label_name_!_title_!_keywords",
}
"""The file extensions that `read_table` reads, each with a description for errors."""

_TNEWS_COLUMNS = ("id", "label", "label_name", "title", "keywords")

# Column names in common data sets, in lower case, the preferred ones first.
TEXT_PAIR_COLUMNS = (
    *(("sentence1", "sentence2"), ("text", "text_pair"), ("question1", "question2")),
    *(("premise", "hypothesis"), ("premise", "hypo"), ("question", "sentence"), ("question", "passage")),
    *(("#1 string", "#2 string"), ("sentence_a", "sentence_b"), ("text_a", "text_b")),
)
"""Columns of the two texts of a pair: (first, second)."""
# Without "question" alone: in multiple-choice files (COPA, Cosmos QA) it is only a part of the input.
TEXT_COLUMNS = ("sentence", "text", "sentence1", "content", "review", "title")
"""Columns of a text that is the whole input, or the first of a pair."""
LABEL_COLUMNS = (
    *("label", "labels", "gold_label", "class", "category", "target"),
    *("quality", "is_duplicate", "similarity", "similarity_score", "score"),
)
"""Columns of the label of a text or a pair."""


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of a table or a data set.

    Attributes:
        source: "path:line", lines counted from 1, or "datasets:name:index", counted from 0; for messages.
        cells: the values by column name; strings, except in JSON and data sets.
        problem: why the row cannot be read (`cells` is then empty); None if it can.
    """

    source: str
    cells: Mapping[str, object] = dataclasses.field(default_factory=dict)
    problem: str | None = None

    def require_cells(self) -> Mapping[str, object]:
        """Return the cells; raise a ValueError with the problem if the row cannot be read."""
        if self.problem is not None:
            raise ValueError(self.problem)
        return self.cells


class ColumnNames:
    """The column names of one table, looked up without regard to case; of names equal but for case the first counts."""

    def __init__(self, names: Iterable[str]):
        """Index the names of a header."""
        self._by_lower_case: dict[str, str] = {}
        for name in names:
            self._by_lower_case.setdefault(name.casefold(), name)

    def find(self, known: Iterable[str], *, excluded: Collection[str | None] = ()) -> str | None:
        """Return the first of the `known` (lower-case) names that the table has, as the table spells it."""
        names = (self._by_lower_case[name] for name in known if name in self._by_lower_case)
        return next((name for name in names if name not in excluded), None)

    def find_text(self, *, excluded: Collection[str | None] = ()) -> str | None:
        """Return the column of the text, or of the first text of a pair if the table holds both columns of the pair."""
        firsts = [first for first, second in TEXT_PAIR_COLUMNS if second in self._by_lower_case]
        return self.find([*firsts, *TEXT_COLUMNS], excluded=excluded)

    def find_second_text(self, text: str) -> str | None:
        """Return the column of the text that is usually paired with the column `text`."""
        return self.find(second for first, second in TEXT_PAIR_COLUMNS if first == text.casefold())


def read_table(path: Path, *, name: str, header: bool = True) -> Iterator[TableRow]:
    """Read the rows of a file one by one; blank lines at its end are ignored, a byte-order mark is skipped.

    Args:
        path: a file with one of the extensions of `TABLE_FORMATS`, in UTF-8.
        name: the name of the file in messages and in `TableRow.source`.
        header: whether the first line of a .tsv or .csv holds the column names; without it they are "0", "1", ...

    Raises:
        ValueError: the file is empty, or its header cannot be used. A row that cannot be read raises nothing: its
            `problem` says why.
    """
    extension = path.suffix.lower()
    lines = read_lines(path, expected=TABLE_FORMATS[extension])
    if extension in (".jsonl", ".json"):
        for number, line in enumerate(lines, 1):
            yield _json_row(f"{name}:{number}", line)
        return
    if extension == ".csv":
        records = _csv_records(lines)
    else:
        records = _split_records(lines, "\t" if extension == ".tsv" else "_!_")
    if extension == ".txt":
        columns: tuple[str, ...] = _TNEWS_COLUMNS
    else:
        first = next(records)
        columns = _header_columns(first, name, extension) if header else tuple(map(str, range(len(first.fields))))
        if not header:
            records = itertools.chain([first], records)
    for record in records:
        yield _delimited_row(f"{name}:{record.line}", record, columns)


def read_lines(path: Path, *, expected: str) -> Iterator[str]:
    r"""Read the lines of a UTF-8 file as an editor counts them: `str.splitlines` would also break at \x0c and \u2028.

    Blank lines at the end are left out. Bytes that are not UTF-8 become lone surrogates (see `encoding_problem`), so
    that the caller can report them with their line.

    Args:
        path: the file.
        expected: a description of the format, for the error about an empty file.

    Raises:
        ValueError: no line holds anything but blanks.
    """
    blank: list[str] = []
    empty = True
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as stream:
        for line in stream:
            line = line.removesuffix("\n").removesuffix("\r")
            blank.append(line)
            if line.strip(" "):
                yield from blank
                blank.clear()
                empty = False
    if empty:
        raise ValueError(f"{path} is empty; expected: {expected}")


@dataclasses.dataclass(frozen=True)
class _Record:
    """The fields of one record of a delimited file, the line where it begins, and why it cannot be read."""

    line: int
    fields: list[str]
    problem: str | None = None


def _json_row(source: str, line: str) -> TableRow:
    if problem := encoding_problem(line):
        return TableRow(source, problem=problem)
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        blank = not line.strip()
        return TableRow(source, problem="a blank line" if blank else f"not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 5,000 brackets
        return TableRow(source, problem=f"not readable as JSON: {error}")
    if not isinstance(values, dict):
        return TableRow(source, problem=f"{values!r:.40} is not an object")
    return TableRow(source, values)


def _split_records(lines: Iterable[str], separator: str) -> Iterator[_Record]:
    for number, line in enumerate(lines, 1):
        yield _Record(number, line.split(separator), encoding_problem(line))


def _csv_records(lines: Iterable[str]) -> Iterator[_Record]:
    raw: list[str] = []

    def feed() -> Iterator[str]:
        for line in lines:
            raw.append(line)
            yield line + "\n"

    reader = csv.reader(feed(), strict=True)
    while True:
        first = reader.line_num + 1
        raw.clear()
        fields: list[str] = []
        problem = None
        # The limit belongs to the whole process, and its default refuses texts over 128 KiB.
        limit = csv.field_size_limit(2**31 - 1)
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"not CSV up to line {reader.line_num}: {error}"
        finally:
            csv.field_size_limit(limit)
        yield _Record(first, fields, encoding_problem("\n".join(raw)) or problem)


def _header_columns(header: _Record, name: str, extension: str) -> tuple[str, ...]:
    if header.problem is not None:
        raise ValueError(
            f"{name}:{header.line}: {header.problem}. Expected in {extension}: {TABLE_FORMATS[extension]}."
        )
    columns = tuple(column.strip() for column in header.fields)
    repeated = {column for column in columns if column and columns.count(column) > 1}
    if repeated:
        raise ValueError(f"{name}:{header.line}: columns named twice: {quote_names(sorted(repeated))}; rename them")
    return columns


def _delimited_row(source: str, record: _Record, columns: tuple[str, ...]) -> TableRow:
    fields, problem = record.fields, record.problem
    if problem is None and len(fields) != len(columns):
        found = f"{len(fields)} fields" if any(fields) else "a blank line"
        problem = f"{found}, expected {len(columns)}: {quote_names(columns)}"
    if problem is not None:
        return TableRow(source, problem=problem)
    return TableRow(source, dict(zip(columns, fields, strict=True)))
