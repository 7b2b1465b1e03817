"""Labelled text rows for sequence classification, from a file or from the `datasets` library.

`ENDINGS` says how a file is read; all are UTF-8, a byte-order mark is skipped. A .tsv or .csv without a
header (GLUE's CoLA) is read by giving the columns as numbers from 0: `Columns(text="3", label="1")`.
"""

import codecs
import csv
import dataclasses
import decimal
import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ENDINGS = {
    ".tsv": "a header, then fields between tabs; quotes are plain characters, as in GLUE's files",
    ".csv": "a header, then fields between commas, in double quotes where needed; a cell may span lines",
    ".jsonl": "one JSON object a line",
    ".json": "one JSON object a line",
    ".txt": "TNEWS, without a header: id_!_label_!_label_name_!_title_!_keywords",
}

# What columns are called in practice, most telling first; compared without regard to case. A lone "question" is
# not among the texts: in multiple-choice files (COPA, Cosmos QA) it would pass unseen for the whole input.
_PAIRS = [("sentence1", "sentence2"), ("text", "text_pair"), ("question1", "question2")]
_PAIRS += [("premise", "hypothesis"), ("question", "sentence"), ("question", "passage")]
_PAIRS += [("#1 string", "#2 string"), ("sentence_a", "sentence_b"), ("text_a", "text_b")]
_TEXTS = ["sentence", "text", "sentence1", "content", "review", "title"]
_LABELS = ["label", "labels", "gold_label", "class", "category", "target"]
_LABELS += ["quality", "is_duplicate", "similarity", "similarity_score", "score"]
_TNEWS = ["id", "label", "label_name", "title", "keywords"]

_UNREADABLE = re.compile(r"[\x00\ud800-\udfff]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)
_SHOWN = 5

# Where a row stands; then its cells by column, or, a string, why it can't be read.
_Record = tuple[str, Mapping[str, Any] | str]


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns hold what: None is found by convention, "" is not used, numbers mean: no header.

    By convention a complete pair (sentence1 and sentence2, question and sentence, ...) goes before a text
    alone, and `text_pair` is the natural partner of `text`, also where `text` is given by name.
    """

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


_BY_CONVENTION = Columns()


@dataclasses.dataclass(frozen=True)
class Row:
    """One text, or pair of texts, to classify.

    `label` is as written in the file (JSON numbers and booleans in JSON's spelling), None where the file has
    no label column. `source` is "path:line", from 1 as editors count, or "datasets:name:index", from 0.
    """

    text: str
    text_pair: str | None
    label: str | None
    source: str


def read_rows(
    source: str | os.PathLike[str], *, columns: Columns = _BY_CONVENTION, split: str | None = None
) -> list[Row]:
    """All rows of a file, or of a data set: `datasets:NAME[:CONFIG]`, its folder, or a name that is no path.

    `split` is for data sets only; their class numbers become names, and a split with class -1 throughout (the
    hub's test sets) is unlabelled. Raises FileNotFoundError, or a ValueError that counts the malformed rows
    and shows the first five. Nothing read is executed.
    """
    where = os.fspath(source)
    path = Path(where).expanduser()
    ending = path.suffix.lower()
    is_path = ending in ENDINGS or path.exists() or path.is_absolute() or where.startswith((".", "~"))
    if where.startswith("datasets:") or path.is_dir() or not is_path:
        name = where.removeprefix("datasets:")
        return _rows(name, _dataset_records(name, split), columns, "Expected: strings, and scalar labels.")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; {_beside(path)}")
    if ending not in ENDINGS:
        raise ValueError(f"{path}: ending {ending!r} is none of {_listed(ENDINGS)}; rename or convert the file")
    if split is not None:
        raise ValueError(f"split={split!r} is for data sets; {path} is a file: name the split's own file")
    lines = _lines(path)
    if ending in (".jsonl", ".json"):
        records = [(f"{where}:{n}", _unreadable(line) or _json_cells(line)) for n, line in enumerate(lines, 1)]
    else:
        numbered = any(re.fullmatch("[0-9]+", name or "") for name in dataclasses.astuple(columns))
        records = _delimited_records(where, lines, ending, numbered=numbered)
    return _rows(where, records, columns, f"Expected in {ending}: {ENDINGS[ending]}.")


def label_ids(rows: Sequence[Row], labels: Sequence[str]) -> list[int]:
    """The position of each row's label in `labels`; ValueError shows the rows whose label is not there."""
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(f"labels must be distinct and at least one, got {_listed(labels)}")
    ids = {label: i for i, label in enumerate(labels)}
    problems = []
    for row in rows:
        if row.label is None:
            problems.append(f"{row.source}: no label")
        elif row.label not in ids:
            near = difflib.get_close_matches(row.label[:80], labels) if len(problems) < _SHOWN else []
            problems.append(f"{row.source}: label {row.label[:80]!r}, near names: {_listed(near)}")
    _refuse(problems, len(rows), f"Allowed labels: {_listed(labels)}. Correct the rows or the labels given.")
    return [ids[row.label] for row in rows if row.label is not None]


def infer_labels(rows: Sequence[Row]) -> tuple[str, ...]:
    """The distinct labels in order, numbers by value; ValueError for no rows and for an unlabelled row.

    A label that occurs only in another file is missed (TNEWS: 114), so write a known label set out instead.
    """
    if not rows:
        raise ValueError("rows is empty, so there are no labels to infer; give the training rows")
    unlabelled = [f"{row.source}: no label" for row in rows if row.label is None]
    _refuse(unlabelled, len(rows), "Labels can be inferred from labelled rows only.")
    labels = {row.label for row in rows if row.label is not None}
    if all(_NUMBER.fullmatch(label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (decimal.Decimal(label), label)))
    return tuple(sorted(labels))


def _lines(path: Path) -> list[str]:
    r"""The lines as an editor counts them: `str.splitlines` would also break at \x0c, \x85 and \u2028."""
    # A byte that is no UTF-8 passes as a lone surrogate, so that it can be reported with its line.
    text = path.read_bytes().removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip(" "):
        lines.pop()
    if not lines:
        raise ValueError(f"{path} is empty; expected: {ENDINGS[path.suffix.lower()]}")
    return lines


def _json_cells(line: str) -> dict[str, Any] | str:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at column {error.colno}" if line.strip() else "a blank line"
    except (ValueError, RecursionError) as error:  # a number of 5000 digits, 5000 brackets
        return f"not readable as JSON: {error}"
    return values if isinstance(values, dict) else f"{values!r:.40} is not an object"


def _delimited_records(where: str, lines: Sequence[str], ending: str, *, numbered: bool) -> list[_Record]:
    if ending == ".csv":
        table = _csv_fields(lines)
    else:
        separator = "\t" if ending == ".tsv" else "_!_"
        table = [(n, _unreadable(line) or line.split(separator)) for n, line in enumerate(lines, 1)]
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
            raise ValueError(f"{where}:{first}: columns named twice: {_listed(sorted(twice))}; rename them")
        del table[0]
    return [(f"{where}:{n}", _cells(names, fields)) for n, fields in table]


def _cells(names: Sequence[str], fields: Sequence[str] | str) -> dict[str, str] | str:
    if isinstance(fields, str):
        return fields
    if len(fields) == len(names):
        return dict(zip(names, fields, strict=True))
    found = f"{len(fields)} fields" if any(fields) else "a blank line"
    return f"{found}, expected {len(names)}: {_listed(names)}"


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
            table.append((first, _unreadable(raw) or fields))
    finally:
        csv.field_size_limit(limit)
    return table


def _dataset_records(name: str, split: str | None) -> list[_Record]:
    import datasets  # a second of import that files don't need
    from datasets.exceptions import DatasetsError

    path = Path(name).expanduser()
    try:
        if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            data = datasets.load_from_disk(str(path))
            if isinstance(data, datasets.Dataset):
                data = datasets.DatasetDict({str(data.split or "train"): data})
        else:
            repository, _, config = (str(path), "", "") if path.exists() else name.partition(":")
            data = datasets.load_dataset(repository, config or None, split=split)
    except (OSError, ValueError, DatasetsError) as error:
        message = f"{name!r} is no file ({_listed(ENDINGS)}) and no data set that can be loaded: {error}"
        raise (FileNotFoundError if isinstance(error, OSError) else ValueError)(message) from error
    if isinstance(data, datasets.DatasetDict):
        chosen = str(next(iter(data)) if split is None and len(data) == 1 else split)
        if chosen not in data:
            raise ValueError(f"{name}: split={split!r} is none of {_listed(map(str, data))}; give one of them")
        data = data[chosen]
    assert isinstance(data, datasets.Dataset)
    # Scalars only: decoding an image beside the text costs time.
    scalars = {n: f for n, f in data.features.items() if isinstance(f, datasets.Value | datasets.ClassLabel)}
    classes = {n: dict(enumerate(f.names)) for n, f in scalars.items() if isinstance(f, datasets.ClassLabel)}
    names = [n for n in scalars if n not in classes or set(data[n]) != {-1}]
    table = data.select_columns(names).to_list()
    for values in table:
        values.update({n: classes[n].get(values[n]) for n in names if n in classes})
    return [(f"datasets:{name}:{i}", values) for i, values in enumerate(table)]


def _rows(where: str, records: Sequence[_Record], columns: Columns, remedy: str) -> list[Row]:
    if not records:
        raise ValueError(f"{where}: a header but no rows. {remedy}")
    readable = [values for _, values in records if not isinstance(values, str)]
    # Of all rows: were a label missing in the first, the whole file would pass for unlabelled.
    names = list(dict.fromkeys(name for values in readable for name in values))
    text, pair, label = _choose(where, names, columns) if readable else ("", None, None)
    rows, problems = [], []
    for source, values in records:
        try:
            if isinstance(values, str):
                raise ValueError(values)
            first = _cell(values, text)
            second = _cell(values, pair) if pair else None
            given = _cell(values, label, numbers=True) if label else None
            rows.append(Row(text=first, text_pair=second, label=given, source=source))
        except ValueError as error:
            problems.append(f"{source}: {error}")
    _refuse(problems, len(records), f"{remedy} Correct or remove these rows.")
    return rows


def _choose(where: str, names: Sequence[str], columns: Columns) -> tuple[str, str | None, str | None]:
    """The columns of the text, its partner and the label, the last two "" or None where there is none."""
    text, pair, label = columns.text, columns.text_pair, columns.label
    folded = {name.casefold(): name for name in reversed(names)}
    if text is None:
        known = [a for a, b in _PAIRS if b in folded] + _TEXTS
        text = next((folded[a] for a in known if a in folded and folded[a] not in (pair, label)), None)
    if pair is None and text:
        pair = next((folded[b] for a, b in _PAIRS if a == text.casefold() and b in folded), None)
    if label is None:
        label = next((folded[a] for a in _LABELS if a in folded and folded[a] not in (text, pair)), None)
    used = [name for name in (text, pair, label) if name]
    wrong = [name for name in used if name not in names or used.count(name) > 1]
    if not text or wrong:
        what = f"{_listed(wrong)} must be there, for one use each" if wrong else "none known as a text"
        raise ValueError(
            f"{where}: columns found: {_listed(names)}; {what}. Name them: Columns(text=..., text_pair=..., "
            'label=...); in a .tsv or .csv without a header by number from 0: Columns(text="3", label="1")'
        )
    return text, pair, label


def _cell(values: Mapping[str, Any], name: str, *, numbers: bool = False) -> str:
    if name not in values:
        raise ValueError(f"no {name!r} beside {_listed(values)}")
    value = values[name]
    if numbers and isinstance(value, int | float):
        return json.dumps(value, allow_nan=False)
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is {value!r:.40}, expected a string" + " or a number" * numbers)
    if problem := "nothing but blanks" if not value.strip() else _unreadable(value):
        raise ValueError(f"{name!r}: {problem}")
    return value


def _unreadable(text: str) -> str:
    """What keeps a string from being text, "" where nothing does."""
    found = _UNREADABLE.search(text)
    if found is None:
        return ""
    code, before = ord(found[0]), text[: found.start()].split("\n")
    place = f"at character {len(before[-1]) + 1}" + f" of its line {len(before)}" * (len(before) > 1)
    if 0xDC80 <= code <= 0xDCFF:
        return f"byte 0x{code - 0xDC00:02x} {place} is not UTF-8; save the file as UTF-8"
    return f"a {'lone surrogate' if code else 'NUL character (UTF-16, or no text file?)'} {place}"


def _listed(names: Iterable[str]) -> str:
    shown = [f"{name[:40]!r}" for name in names]
    return ", ".join(shown[:50]) + f" and {len(shown) - 50} more" * (len(shown) > 50) or "none"


def _refuse(problems: Sequence[str], total: int, remedy: str) -> None:
    if problems:
        more = f"\n  and {len(problems) - _SHOWN} more" * (len(problems) > _SHOWN)
        shown = "\n  ".join(problems[:_SHOWN])
        raise ValueError(f"{len(problems)} of {total} rows can't be used:\n  {shown}{more}\n{remedy}")


def _beside(path: Path) -> str:
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    files = sorted(entry.name for entry in folder.iterdir())
    shown = difflib.get_close_matches(path.name, files) or files[:10]
    return f"{folder} holds {_listed(shown)}: give one of its files, or `datasets:NAME`"
