"""Tables of texts: the one reader of .tsv, .csv, .jsonl and .json files, and the column names known without a flag.

Both training and `flaxbert predict` read their files here, so a header that one understands the other does too.
"""

import codecs
import collections
import csv
import dataclasses
import io
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from flaxbert.files import require_downloaded
from flaxbert.text.messages import encoding_problem, quote_names
from flaxbert.text.strict_json import RepeatedKey, find_repeated_key, parse_json

TABLE_FORMATS = {
    ".tsv": "a header, then fields between tabs; quotes are plain characters, as in GLUE's files",
    ".csv": "a header, then fields between commas, in double quotes where needed; a cell may span lines",
    ".jsonl": "one JSON object a line",
    ".json": 'one JSON object a line, one array of objects, or one object with such an array as "data"',
    ".txt": "TNEWS, without a header: id_!_label_!_label_name_!_title_!_keywords",
}
"""The file extensions that `read_table` reads, each with a description for errors."""

_MAX_LINE = 2**26  # characters; a longer row is a damaged file, or several rows without line ends
_LINE_END_BYTES = 2**16  # of the start of a file, in which its kind of line end is looked for

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
_ALL_TEXT_COLUMNS = frozenset(
    [*TEXT_COLUMNS, "question", "context", *(name for pair in TEXT_PAIR_COLUMNS for name in pair)]
)
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


def is_header(row: TableRow, text_columns: Iterable[str]) -> bool:
    """Return whether a row of a table without a header has names of text columns in these columns."""
    cells = [row.cells.get(name) for name in text_columns]
    return all(isinstance(cell, str) and cell.strip().casefold() in _ALL_TEXT_COLUMNS for cell in cells)


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
        if "paragraphs" in self._by_lower_case:  # an article of SQuAD's format, whose title is not its text
            return None
        firsts = [first for first, second in TEXT_PAIR_COLUMNS if second in self._by_lower_case]
        return self.find([*firsts, *TEXT_COLUMNS], excluded=excluded)

    def find_second_text(self, text: str) -> str | None:
        """Return the column of the text that is usually paired with the column `text`."""
        return self.find(second for first, second in TEXT_PAIR_COLUMNS if first == text.casefold())


def table_format(path: Path) -> str | None:
    """Return the entry of `TABLE_FORMATS` for a file; None if there is none.

    A regular file without extension whose first character is "{" has JSON lines, as wikiextractor's `wiki_00`.
    """
    extension = path.suffix.lower()
    if not extension and path.is_file():
        with path.open("rb") as stream:
            return ".jsonl" if stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{" else None
    return extension if extension in TABLE_FORMATS else None


def read_table(path: Path, *, name: str, header: bool = True) -> Iterator[TableRow]:
    """Read the rows of a file one by one; skip empty rows before the header and at the end, and a byte-order mark.

    Args:
        path: a file for which `table_format` knows a format, in UTF-8.
        name: the name of the file in messages and in `TableRow.source`.
        header: whether the first line of a .tsv or .csv holds the column names; without it they are "0", "1", ..., and
            rows may have different numbers of fields.

    Raises:
        ValueError: the file is empty, or its header cannot be used. A row that cannot be read raises nothing: its
            `problem` says why.
    """
    extension = table_format(path)
    if extension is None:
        raise ValueError(
            f"{path}: ending {path.suffix!r} is none of {quote_names(TABLE_FORMATS)}; rename or convert it"
        )
    lines = read_lines(path, expected=TABLE_FORMATS[extension])
    if extension in (".jsonl", ".json"):
        yield from _json_rows(lines, name, document=extension == ".json")
        return
    if extension == ".csv":
        records = _csv_records(lines)
    else:
        records = _split_records(lines, "\t" if extension == ".tsv" else "_!_")
    columns: _Columns | None = None
    if extension == ".txt":
        columns = _Columns(_TNEWS_COLUMNS)
    elif header:
        columns = _header_columns(records, name, extension)
    for record in _without_empty_end(records):
        yield _delimited_row(f"{name}:{record.line}", record, columns)


def read_lines(path: Path, *, expected: str) -> Iterator[str]:
    r"""Read the lines of a UTF-8 file as an editor counts them: `str.splitlines` would also break at \x0c and \u2028.

    Lines end with \n, \r\n or, in a file without \n, \r. Blank lines at the end are left out. Bytes that are not UTF-8
    become lone surrogates (see `encoding_problem`), so that the caller can report them with their line.

    Args:
        path: the file.
        expected: a description of the format, for the error about an empty file.

    Raises:
        ValueError: no line holds anything but blanks, or the file is a pointer of git-lfs or a web page.
    """
    with io.BufferedReader(io.FileIO(path), _LINE_END_BYTES) as raw:
        opening = raw.peek(_LINE_END_BYTES)  # without reading it, because a pipe cannot be read twice
        require_downloaded(path, opening)
        line_end = "\r" if b"\r" in opening and b"\n" not in opening else "\n"
        empty = True
        with io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline=line_end) as lines:
            for line in without_blank_end(lines):
                yield line
                empty = False
    if empty:
        raise ValueError(f"{path} is empty; expected: {expected}")


def without_blank_end(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines without their line ends, and without the blank ones at the end of all."""
    blank: list[str] = []
    for line in lines:
        line = line.removesuffix("\n").removesuffix("\r")
        blank.append(line)
        if line.strip(" \t"):
            yield from blank
            blank.clear()


@dataclasses.dataclass(frozen=True)
class _Record:
    """The fields of one record of a delimited file, the line where it begins, and why it cannot be read."""

    line: int
    fields: list[str]
    problem: str | None = None

    @property
    def is_empty(self) -> bool:
        """True if all fields are blank, as in rows that spreadsheets add."""
        return self.problem is None and not any(field.strip() for field in self.fields)


@dataclasses.dataclass(frozen=True)
class _Columns:
    """The names of the columns of a delimited file, and the line of its header; None without one."""

    names: tuple[str, ...]
    line: int | None = None

    def __str__(self):
        header = "" if self.line is None else f" (the header, line {self.line})"
        return f"{len(self.names)}: {quote_names(self.names)}{header}"


def _json_rows(lines: Iterator[str], name: str, *, document: bool) -> Iterator[TableRow]:
    """Read an object a line; with `document` also one array of objects, or one object with such an array as "data"."""
    if document:
        first, second = next(lines), next(lines, None)
        lines = itertools.chain([first] if second is None else [first, second], lines)
        if second is None or not (first.lstrip().startswith("{") and first.rstrip().endswith("}")):
            content = list(lines)
            entries, repeated = _document_entries("\n".join(content), name)
            if entries is not None:
                for index, entry in enumerate(entries):
                    yield _object_row(f"{name}[{index}]", entry, repeated_keys=repeated)
                return
            lines = iter(content)
    for number, line in enumerate(lines, 1):
        yield parse_json_row(f"{name}:{number}", line)


def _document_entries(content: str, name: str) -> tuple[list[object] | None, bool]:
    """Return (entries of a JSON document, None if it is none; whether an object of it has a key twice)."""
    try:
        values, repeated = parse_json(content)
    except (ValueError, RecursionError) as error:
        if content.lstrip().startswith("["):
            raise ValueError(f"{name}: not readable as JSON: {error}") from None
        return None, False
    if isinstance(values, RepeatedKey):
        raise ValueError(f"{name}: {values.problem}")
    entries = values.get("data") if isinstance(values, dict) else values
    return entries if isinstance(entries, list) else None, repeated


def parse_json_row(source: str, line: str) -> TableRow:
    """Parse a JSON object on a line."""
    if problem := _line_problem(line):
        return TableRow(source, problem=problem)
    try:
        values, repeated = parse_json(line)
    except json.JSONDecodeError as error:
        blank = not line.strip()
        return TableRow(source, problem="a blank line" if blank else f"not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 5,000 brackets
        return TableRow(source, problem=f"not readable as JSON: {error}")
    return _object_row(source, values, repeated_keys=repeated)


def _object_row(source: str, values: object, *, repeated_keys: bool) -> TableRow:
    if not isinstance(values, dict):
        return TableRow(source, problem=f"{values!r:.40} is not an object")
    if repeated_keys and (repeated := find_repeated_key(values)) is not None:
        return TableRow(source, problem=repeated.problem)
    return TableRow(source, values)


def _line_problem(line: str) -> str | None:
    if len(line) > _MAX_LINE:
        return f"a line of {len(line):,} characters; at most {_MAX_LINE:,} are read"
    return encoding_problem(line)


def _split_records(lines: Iterable[str], separator: str) -> Iterator[_Record]:
    for number, line in enumerate(lines, 1):
        yield _Record(number, line.split(separator), _line_problem(line))


def _csv_records(lines: Iterable[str]) -> Iterator[_Record]:
    """Split lines into records; after a malformed one, such as an unclosed quote, go on with the next line."""
    lines = iter(lines)
    again: collections.deque[str] = collections.deque()  # lines that a malformed record took, to be read once more
    taken: list[str] = []  # the lines of the record

    def feed() -> Iterator[str]:
        size = 0
        while size < _MAX_LINE and (line := again.popleft() if again else next(lines, None)) is not None:
            size = len(line) + (size if taken else 0)
            taken.append(line)
            yield line + "\n"

    reader, first = csv.reader(feed(), strict=True), 1
    while True:
        taken.clear()
        fields: list[str] = []
        problem = None
        # The limit belongs to the whole process, and its default refuses texts over 128 KiB.
        limit = csv.field_size_limit(2**31 - 1)
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"not CSV up to line {first + len(taken) - 1}: {error}"
            again.extendleft(reversed(taken[1:]))
            del taken[1:]
            reader = csv.reader(feed(), strict=True)
        finally:
            csv.field_size_limit(limit)
        yield _Record(first, fields, _line_problem("\n".join(taken)) or problem)
        first += len(taken)


def _header_columns(records: Iterator[_Record], name: str, extension: str) -> _Columns:
    header = next((record for record in records if not record.is_empty), None)
    if header is None:
        raise ValueError(f"{name}: no line holds anything. Expected in {extension}: {TABLE_FORMATS[extension]}.")
    if header.problem is not None:
        raise ValueError(
            f"{name}:{header.line}: {header.problem}. Expected in {extension}: {TABLE_FORMATS[extension]}."
        )
    columns = tuple(column.strip().removeprefix("\ufeff").strip() for column in header.fields)
    repeated = {column for column in columns if column and columns.count(column) > 1}
    if repeated:
        raise ValueError(f"{name}:{header.line}: columns named twice: {quote_names(sorted(repeated))}; rename them")
    return _Columns(columns, header.line)


def _without_empty_end(records: Iterable[_Record]) -> Iterator[_Record]:
    """Leave out the empty records at the end."""
    empty: list[_Record] = []
    for record in records:
        empty.append(record)
        if not record.is_empty:
            yield from empty
            empty.clear()


def _delimited_row(source: str, record: _Record, columns: _Columns | None) -> TableRow:
    """Return the row with these columns; with None its columns are numbered."""
    fields, problem = record.fields, record.problem
    if problem is None and columns is None and not any(fields):
        problem = "a blank line"
    if problem is None and columns is not None and len(fields) != len(columns.names):
        found = f"{len(fields)} fields" if any(fields) else "a blank line"
        problem = f"{found}, expected {columns}"
    if problem is not None:
        return TableRow(source, problem=problem)
    names = map(str, range(len(fields))) if columns is None else columns.names
    return TableRow(source, dict(zip(names, fields, strict=True)))
