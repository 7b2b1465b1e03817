"""Texts, or pairs of texts, with their labels: read from files or data sets, and the labels turned into numbers.

`flaxbert.text.tables.TABLE_FORMATS` describes the files. A .tsv or .csv without a header (GLUE's CoLA) is read by
giving the columns as numbers from 0: `Columns(text="3", label="1")`.
"""

import dataclasses
import decimal
import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np

from flaxbert.text.messages import MAX_SHOWN, quote_names, raise_problems, text_cell
from flaxbert.text.tables import LABEL_COLUMNS, ColumnNames, TableRow
from train.data.sources import DATASET_PREFIX, parse_rows, read_source

_MAX_RATINGS = 20  # half stars are classes; more distinct decimals than that are measurements
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a table of texts; None: found by its usual name, "": not used, numbers: there is no header.

    A complete pair (sentence1 and sentence2, question and sentence, ...) is preferred to a text alone, and
    `text_pair` is found beside `text` also where `text` is given by name.
    """

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


_USUAL_COLUMNS = Columns()


@dataclasses.dataclass(frozen=True)
class LabelledText:
    """A text, or a pair of texts, to classify.

    The label is spelled as in the file (JSON numbers and booleans as in JSON), several are joined by the separator; it
    is None if the file has no label column.
    """

    text: str
    text_pair: str | None
    label: str | None
    source: str


def read_labelled_texts(
    source: str | os.PathLike[str],
    *,
    columns: Columns = _USUAL_COLUMNS,
    split: str | None = None,
    separator: str | None = None,
) -> list[LabelledText]:
    """Read all rows of a file or data set. Nothing that is read is executed.

    Args:
        split: the split of a data set; None for files. A split of a single class -1 is unlabelled.
        separator: what stands between the labels of a row, which may then have several (in JSON also as a list) or
            none; None where each row has one.

    Raises:
        FileNotFoundError: there is no such file or data set.
        ValueError: the columns cannot be used, or some rows cannot be read: they are counted, the first five quoted.
    """
    numbered = any(re.fullmatch("[0-9]+", name or "") for name in dataclasses.astuple(columns))
    found = read_source(source, split=split, header=not numbered, lists=separator is not None)
    # Columns of all rows: were a label missing in the first, the whole file would pass for unlabelled.
    names = found.columns
    used = columns
    if any(row.problem is None for row in found.rows):
        used = _resolve_columns(os.fspath(source).removeprefix(DATASET_PREFIX), names, columns)

    def parse(row: TableRow) -> LabelledText:
        cells = row.require_cells()
        text = text_cell(cells, used.text or "")
        pair = text_cell(cells, used.text_pair) if used.text_pair else None
        label = _label_cell(cells, used.label, separator) if used.label else None
        return LabelledText(text=text, text_pair=pair, label=label, source=row.source)

    return parse_rows(found.rows, parse, f"{found.expectation} Correct or remove these rows.")


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
    numbers, problems = [], []
    for row in rows:
        try:
            numbers.append(float(row.label or ""))
            if not math.isfinite(numbers[-1]):
                raise ValueError
        except ValueError:
            problems.append(f"{row.source}: " + ("no label" if row.label is None else f"label {row.label[:80]!r}"))
    raise_problems(problems, len(rows), "A regression's labels are finite numbers. Correct or remove these rows.")
    return np.array(numbers)


def infer_labels(rows: Sequence[LabelledText], *, separator: str | None = None) -> tuple[str, ...]:
    """Return the distinct labels in order, numbers in the order of their values.

    A label that occurs only in another file is missed (TNEWS: 114): give a known list of labels instead.

    Raises:
        ValueError: there are no rows, a row has no label, or the labels are many numbers with decimals, for which
            regression is the task.
    """
    if not rows:
        raise ValueError("rows is empty, so there are no labels to infer; give the training rows")
    unlabelled = [f"{row.source}: no label" for row in rows if row.label is None]
    raise_problems(unlabelled, len(rows), "Labels can be inferred from labelled rows only.")
    labels = {name for row in rows if row.label is not None for name in _split_labels(row.label, separator)}
    decimals = [label for label in labels if re.fullmatch(r"[+-]?\d*\.\d*[1-9]\d*", label, re.ASCII)]
    if decimals and len(labels) > _MAX_RATINGS:
        raise ValueError(
            f"labels such as {min(decimals)!r} are measures, not classes: give --task.problem-type regression, "
            "or name all classes: --task.labels"
        )
    if not labels:
        raise ValueError("no row has a label; name them all: --task.labels")
    if all(_NUMBER.fullmatch(label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (decimal.Decimal(label), label)))
    return tuple(sorted(labels))


def _resolve_columns(source: str, names: Sequence[str], given: Columns) -> Columns:
    """Return the columns to read; the pair and the label stay "" or None if there are none."""
    known = ColumnNames(names)
    text, pair, label = given.text, given.text_pair, given.label
    if text is None:
        text = known.find_text(excluded=(pair, label))
    if pair is None and text:
        pair = known.find_second_text(text)
    if label is None:
        label = known.find(LABEL_COLUMNS, excluded=(text, pair))
    used = [name for name in (text, pair, label) if name]
    wrong = [name for name in used if name not in names or used.count(name) > 1]
    if not text or wrong:
        problem = f"{quote_names(wrong)} must be there, for one use each" if wrong else "none known as a text"
        raise ValueError(
            f"{source}: columns found: {quote_names(names)}; {problem}. Name them: --task.columns.text, "
            "--task.columns.text-pair, --task.columns.label; in a .tsv or .csv without a header by number from 0, "
            "as --task.columns.text 3 --task.columns.label 1"
        )
    return Columns(text, pair, label)


def _label_cell(cells: Mapping[str, object], column: str, separator: str | None) -> str:
    if separator is None:
        return text_cell(cells, column, allow_numbers=True)
    value = cells.get(column)
    if isinstance(value, list):
        labels = [text_cell({column: item}, column, allow_numbers=True) for item in value]
        ambiguous = [label for label in labels if separator in label]
        if ambiguous:
            raise ValueError(f"{column!r} has the label {ambiguous[0]!r:.40}, with the separator {separator!r} in it")
        return separator.join(labels)
    return "" if value == "" else text_cell(cells, column, allow_numbers=True)


def _label_ids(rows: Sequence[LabelledText], labels: Sequence[str], *, separator: str | None) -> list[list[int]]:
    """Return the indices in `labels` of each row's labels: one, or any number if there is a separator."""
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(f"labels must be distinct and at least one, got {quote_names(labels)}")
    index = {label: i for i, label in enumerate(labels)}
    problems, result = [], []
    for row in rows:
        if row.label is None:
            problems.append(f"{row.source}: no label")
            continue
        names = _split_labels(row.label, separator)
        result.append([index[name] for name in names if name in index])
        for name in names:
            if name not in index:
                near = difflib.get_close_matches(name[:80], labels) if len(problems) < MAX_SHOWN else []
                problems.append(f"{row.source}: label {name[:80]!r}, near names: {quote_names(near)}")
    raise_problems(problems, len(rows), f"Allowed labels: {quote_names(labels)}. Correct the rows or the labels given.")
    return result


def _split_labels(label: str, separator: str | None) -> list[str]:
    return [label] if separator is None else [name.strip() for name in label.split(separator) if name.strip()]
