"""Labels of texts: read from cells, missing ones recognised, and turned into numbers."""

import dataclasses
import decimal
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from flaxbert.text.messages import MAX_SHOWN, encoding_problem, list_cell, quote_names, raise_problems, text_cell
from train.data.bad_rows import SKIP_REMEDY, BadRow, ReadRows, with_other_name

_MAX_RATINGS = 20  # half stars are classes; more distinct decimals than that are measurements
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)
TABLE_MARKS = ("#N/A", "N/A", "NA", "n/a", "<NA>", "NULL", "null", "None")
"""Words in a .csv or .tsv that pandas, and so the `datasets` library, takes for an empty cell."""
NUMBERS_REMEDY = (
    "A regression's labels are finite numbers. Correct these rows, name other marks: --task.unlabelled, " + SKIP_REMEDY
)
_PLAIN_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d*)?", re.ASCII)  # 01 is a code


@dataclasses.dataclass(frozen=True)
class LabelledText:
    """A text, or a pair of texts, to classify.

    The label is spelled as in the file (JSON numbers and booleans as in JSON), several are joined by the separator; it
    is None if the text has no label.
    """

    text: str
    text_pair: str | None
    label: str | None
    source: str


def read_label(
    cells: Mapping[str, object], column: str, *, separator: str | None, vector_names: Sequence[str] | None
) -> str | None:
    """Return the label of a row, None if its cell is absent, empty, null or NaN.

    Args:
        cells: the row.
        column: the column of the label.
        separator: the text between several labels, which may also be in a list; None where each row has one label.
        vector_names: the names of the labels, if a row has a vector with 0 or 1 for each of them.

    Raises:
        ValueError: the cell holds something else.
    """
    value = cells.get(column)
    if isinstance(value, str):
        if problem := encoding_problem(value):
            raise ValueError(f"{column!r}: {problem}")
        value = value.strip()
        if not value:
            return None if separator is None else ""
    listed = list_cell(value)
    if listed is None:
        if separator is not None and isinstance(value, str) and value.startswith("[") and value.endswith("]"):
            raise ValueError(f"{column!r} is {value!r:.40}, which is no list that can be read")
        missing = value is None or str(value).casefold() == "nan"
        return None if missing else text_cell({column: value}, column, allow_numbers=True)
    if separator is None:
        hint = "a row with several labels is for --task.problem-type multi_label_classification"
        raise ValueError(f"{column!r} is the list {value!r:.40}; {hint}")
    if vector_names is None:
        labels = [text_cell({column: item}, column, allow_numbers=True).strip() for item in listed]
    elif len(listed) == len(vector_names):
        labels = [name for name, item in zip(vector_names, listed, strict=True) if item]
    else:
        raise ValueError(f"{column!r} has {len(listed)} numbers; there are {len(vector_names)} labels")
    ambiguous = [label for label in labels if separator in label]
    if ambiguous:
        raise ValueError(
            f"{column!r} has the label {ambiguous[0]!r:.40}, with the separator {separator!r} in it; give another "
            "--task.separator"
        )
    return separator.join(labels)


def vector_length(cells: Iterable[object]) -> int | None:
    """Return the length of the vectors of 0 and 1 that the cells of a column hold, None if they hold other labels.

    Vectors are lists of one length with nothing but the numbers 0 and 1, such as [1.0, 0.0, 0.0]; a list of one whole
    number is the number of a class.
    """
    lists = [list_cell(cell) for cell in cells if cell is not None]
    vectors = [own for own in lists if own is not None and all(item in (0, 1) for item in own)]
    if not vectors or len(vectors) < len(lists) or len({len(own) for own in vectors}) > 1:
        return None
    length = len(vectors[0])
    return length if length > 1 or isinstance(vectors[0][0] if length else None, float) else None


def label_key(label: str) -> str:
    """Return a key that all spellings of a label share: "1" for 1, +1 and 1.0; "true" for JSON's and Python's spelling.

    Decomposed characters are composed.
    """
    key = unicodedata.normalize("NFC", label.strip())
    if key in ("True", "False"):
        return key.lower()
    if not _PLAIN_NUMBER.fullmatch(key):
        return key
    key = key.removeprefix("+")
    key = key.rstrip("0").rstrip(".") if "." in key else key
    return "0" if key == "-0" else key


def missing_keys(
    labels: Collection[str], *, known: Iterable[str], train: Collection[str] | None, marks: Collection[str] = ()
) -> set[str]:
    """Return the keys of labels that mean that a row has none: "-" (SNLI), and -1 where it cannot be a label.

    -1 is a label if it is `known`, one of the training set, or if there are other negative numbers. Else it means that
    there is none in a set other than `train`, in a set without other labels (GLUE's and STS-B's test sets), beside
    words, and beside numbers above 1; beside 0 and 1 alone it is a label.

    Args:
        labels: the labels of a set.
        known: labels that the user names.
        train: the labels of the training set, if this is another set.
        marks: more labels that mean it, unless they are known.
    """
    found, others = {label_key(label) for label in labels}, {label_key(label) for label in train or ()}
    all_keys, known_keys = found | others, {label_key(label) for label in known} | others
    keys = ({"-", *marks} if "+" not in all_keys else {*marks}) & found - known_keys
    numbers = [float(key) for key in all_keys - {"-1"} if _NUMBER.fullmatch(key)]
    only = len(all_keys - {"-", "-1"}) == 0
    words = len(all_keys - {"-", "-1"}) > len(numbers)
    evident = train is not None or only or words or max(numbers) > 1
    if "-1" in found - known_keys and evident and min(numbers, default=0) >= 0:
        keys.add("-1")
    return keys


def infer_labels(rows: Sequence[LabelledText], *, separator: str | None = None) -> tuple[str, ...]:
    """Return the classes that a data set declares, else the distinct labels in order, numbers by their values.

    A label that occurs only in another file is missed (TNEWS: 114): give a known list of labels instead.

    Raises:
        ValueError: there are no rows, a row has no label, or the labels are many numbers with decimals, for which
            regression is the task.
    """
    if not rows:
        raise ValueError("rows is empty, so there are no labels to infer; give the training rows")
    if isinstance(rows, ReadRows) and rows.columns and "label" not in rows.columns:
        raise ValueError(f"{rows[0].source}: no column known as a label; name it: --task.columns.label")
    unlabelled = [f"{row.source}: no label" for row in rows if row.label is None]
    raise_problems(unlabelled, len(rows), "Labels can be inferred from labelled rows only.")
    if isinstance(rows, ReadRows) and rows.classes:
        return rows.classes
    spellings: dict[str, set[str]] = {}
    for row in rows:
        for name in _split_labels(row.label or "", separator):
            spellings.setdefault(label_key(name), set()).add(name)
    # One spelling stays as it is; of several the shortest is taken, 1 of 1 and 1.0.
    labels = [min(own, key=lambda name: (len(name), name)) for own in spellings.values()]
    decimals = [label for label in labels if re.fullmatch(r"[+-]?\d*\.\d*[1-9]\d*", label, re.ASCII)]
    if decimals and len(labels) > _MAX_RATINGS:
        raise ValueError(
            f"labels such as {min(decimals)!r} are measures, not classes: give --task.problem-type regression, "
            "or name all classes: --task.labels"
        )
    if not labels:
        raise ValueError("no row has a label; name them all: --task.labels")
    if separator is None and len(labels) == 1:
        raise ValueError(f"all rows have the label {labels[0]!r:.40}; name all labels: --task.labels")
    if all(_NUMBER.fullmatch(label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (decimal.Decimal(label), label)))
    return tuple(sorted(labels))


def label_ids(rows: Sequence[LabelledText], labels: Sequence[str]) -> list[int]:
    """Return the index of each row's label in `labels`; raise a ValueError that quotes rows with other labels."""
    return [ids[0] for ids in _label_ids(rows, labels, separator=None)]


def label_indicators(rows: Sequence[LabelledText], labels: Sequence[str], *, separator: str) -> np.ndarray:
    """Return int32 [rows, labels]: 1 where a row has the label; raise a ValueError that quotes rows with others."""
    indicators = np.zeros((len(rows), len(labels)), np.int32)
    for row, ids in enumerate(_label_ids(rows, labels, separator=separator)):
        indicators[row, ids] = 1
    return indicators


def label_numbers(rows: Sequence[LabelledText]) -> np.ndarray:
    """Return the labels as numbers [rows]; raise a ValueError that quotes rows whose label is not a finite number."""
    raise_problems(list(map(str, rows_without_number(rows))), len(rows), NUMBERS_REMEDY)
    return np.array([float(row.label or "") for row in rows])


def rows_without_number(rows: Iterable[LabelledText]) -> list[BadRow]:
    """Return the rows whose label is not a finite number."""
    bad = []
    for row in rows:
        try:
            finite = math.isfinite(float(row.label or ""))
        except ValueError:
            finite = False
        if not finite:
            bad.append(BadRow(row.source, "no label" if row.label is None else f"label {row.label[:80]!r}"))
    return bad


def rows_with_other_labels(
    rows: Iterable[LabelledText], labels: Sequence[str], *, separator: str | None
) -> list[BadRow]:
    """Return the rows without a label, or with one that is not among `labels`."""
    index = _label_index(labels)
    bad = []
    for row in rows:
        names = [] if row.label is None else _split_labels(row.label, separator)
        other = next((name for name in names if label_key(name) not in index), None)
        if row.label is None:
            bad.append(BadRow(row.source, "no label"))
        elif other is not None:
            bad.append(with_other_name(row.source, "label", other, labels, shown=len(bad) < MAX_SHOWN))
    return bad


def labels_remedy(labels: Sequence[str]) -> str:
    """Return the end of an error about rows with other labels."""
    training = "give all labels: --task.labels (without a value: those of the training data)"
    return f"Allowed labels: {quote_names(labels)}. Correct these rows, {training}, {SKIP_REMEDY}"


def _label_ids(rows: Sequence[LabelledText], labels: Sequence[str], *, separator: str | None) -> list[list[int]]:
    """Return the indices in `labels` of each row's labels: one, or any number if there is a separator."""
    index = _label_index(labels)
    bad = rows_with_other_labels(rows, labels, separator=separator)
    raise_problems(list(map(str, bad)), len(rows), labels_remedy(labels))
    return [[index[label_key(name)] for name in _split_labels(row.label or "", separator)] for row in rows]


def _label_index(labels: Sequence[str]) -> dict[str, int]:
    index = {label_key(label): i for i, label in enumerate(labels)}
    if not labels or len(index) != len(labels):
        raise ValueError(f"labels must be distinct and at least one, got {quote_names(labels)}")
    return index


def _split_labels(label: str, separator: str | None) -> list[str]:
    return [label] if separator is None else [name.strip() for name in label.split(separator) if name.strip()]
