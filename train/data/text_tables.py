"""The records of .tsv, .csv, .jsonl and TNEWS files, each with its place in the file."""

import codecs
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.data.messages import listed, unreadable

ENDINGS = {
    ".tsv": "a header, then fields between tabs; quotes are plain characters, as in GLUE's files",
    ".csv": "a header, then fields between commas, in double quotes where needed; a cell may span lines",
    ".jsonl": "one JSON object a line",
    ".json": "one JSON object a line",
    ".txt": "TNEWS, without a header: id_!_label_!_label_name_!_title_!_keywords",
}

_TNEWS = ["id", "label", "label_name", "title", "keywords"]

# Where a row stands; then its cells by column, or, a string, why it can't be read.
Record = tuple[str, Mapping[str, Any] | str]


def text_records(path: Path, where: str, *, numbered: bool) -> list[Record]:
    """The records of a file whose ending is in `ENDINGS`, their places under the name `where`.

    `numbered`: a .tsv or .csv has no header, and its columns are called "0", "1", ...
    """
    ending = path.suffix.lower()
    lines = file_lines(path, expected=ENDINGS[ending])
    if ending in (".jsonl", ".json"):
        return [(f"{where}:{n}", unreadable(line) or _json_cells(line)) for n, line in enumerate(lines, 1)]
    return _delimited_records(where, lines, ending, numbered=numbered)


def file_lines(path: Path, *, expected: str) -> list[str]:
    r"""The lines as an editor counts them: `str.splitlines` would also break at \x0c, \x85 and \u2028.

    Blank ones at the end are left out. Raises ValueError, which says what was `expected`, where there are no others.
    """
    # A byte that is no UTF-8 passes as a lone surrogate, so that it can be reported with its line.
    text = path.read_bytes().removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip(" "):
        lines.pop()
    if not lines:
        raise ValueError(f"{path} is empty; expected: {expected}")
    return lines


def _json_cells(line: str) -> dict[str, Any] | str:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at column {error.colno}" if line.strip() else "a blank line"
    except (ValueError, RecursionError) as error:  # a number of 5000 digits, 5000 brackets
        return f"not readable as JSON: {error}"
    return values if isinstance(values, dict) else f"{values!r:.40} is not an object"


def _delimited_records(where: str, lines: Sequence[str], ending: str, *, numbered: bool) -> list[Record]:
    if ending == ".csv":
        table = _csv_fields(lines)
    else:
        separator = "\t" if ending == ".tsv" else "_!_"
        table = [(n, unreadable(line) or line.split(separator)) for n, line in enumerate(lines, 1)]
    first, header = table[0]
    if ending == ".txt":
        names = _TNEWS
    elif isinstance(header, str):
        raise ValueError(f"{where}:{first}: {header}. Expected in {ending}: {ENDINGS[ending]}.")
    elif numbered:
        names = [str(i) for i in range(len(header))]
    else:
        names = [name.strip() for name in header]
        twice = {name for name in names if name and names.count(name) > 1}
        if twice:
            raise ValueError(f"{where}:{first}: columns named twice: {listed(sorted(twice))}; rename them")
        del table[0]
    return [(f"{where}:{n}", _cells(names, fields)) for n, fields in table]


def _cells(names: Sequence[str], fields: Sequence[str] | str) -> dict[str, str] | str:
    if isinstance(fields, str):
        return fields
    if len(fields) == len(names):
        return dict(zip(names, fields, strict=True))
    found = f"{len(fields)} fields" if any(fields) else "a blank line"
    return f"{found}, expected {len(names)}: {listed(names)}"


def _csv_fields(lines: Sequence[str]) -> list[tuple[int, list[str] | str]]:
    """The first line of each record with its fields, or with why it has none."""
    table = []
    # The limit belongs to the whole process, and its default refuses texts over 128 KiB.
    limit = csv.field_size_limit(2**31 - 1)
    try:
        reader = csv.reader((line + "\n" for line in lines), strict=True)
        while reader.line_num < len(lines):
            first = reader.line_num + 1
            try:
                fields = next(reader)
            except csv.Error as error:
                fields = f"not CSV up to line {reader.line_num}: {error}"
            raw = "\n".join(lines[first - 1 : reader.line_num])
            table.append((first, unreadable(raw) or fields))
    finally:
        csv.field_size_limit(limit)
    return table
