"""Texts, or pairs of texts, with their labels, read from files or data sets.

`flaxbert.text.tables.TABLE_FORMATS` describes the files. A .tsv or .csv without a header (GLUE's CoLA) is read by
giving the columns as numbers from 0: `Columns(text="3", label="1")`.
"""

import dataclasses
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from flaxbert.text.messages import quote_names, text_cell
from flaxbert.text.tables import LABEL_COLUMNS, ColumnNames, TableRow, is_header
from train.data.bad_rows import SKIP_REMEDY, BadRow, BadRowList, BadRows, ReadRows
from train.data.labels import TABLE_MARKS, LabelledText, label_key, missing_keys, read_label, vector_length
from train.data.sources import DATASET_PREFIX, SourceRows, is_blank, parse_rows, read_source

_TEXT, _PAIR, _LABEL = "text", "second text", "label"


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


class LabelledTexts(ReadRows[LabelledText]):
    """Labelled texts, and whether their labels were vectors of 0 and 1."""

    def __init__(
        self,
        rows: Iterable[LabelledText],
        *,
        columns: Mapping[str, str],
        classes: Sequence[str],
        bad: BadRowList,
        vectors: bool,
    ):
        """Hold rows; other arguments as of `ReadRows`."""
        super().__init__(rows, columns=columns, classes=classes, bad=bad)
        self.vectors = vectors


def read_labelled_texts(
    source: str | os.PathLike[str],
    *,
    columns: Columns = _USUAL_COLUMNS,
    split: str | None = None,
    separator: str | None = None,
    labels: Sequence[str] = (),
    unlabelled: Sequence[str] | None = None,
    bad_rows: BadRows = BadRows.ERROR,
    train: LabelledTexts | None = None,
) -> LabelledTexts:
    """Read all rows of a file or data set. Nothing that is read is executed.

    Where all labels are missing, the set is unlabelled; where only some are, rows without one are bad.

    Args:
        source: a file or data set.
        columns: the columns to read.
        split: the split of a data set; None for files.
        separator: the text between the labels of a row, which may then have several or none, also as a list, or as a
            vector with 0 or 1 for every label; None where each row has one.
        labels: all labels, if they are known.
        unlabelled: labels that mean that a row has none; None for those that `missing_keys` finds.
        bad_rows: treatment of rows that cannot be read, or lack a text or label.
        train: the training set, if this is another one, which has the same columns but may lack that of labels.

    Raises:
        FileNotFoundError: there is no such file or data set.
        ValueError: the columns cannot be used, or there are bad rows: they are counted, the first five quoted.
    """
    found, columns = _read_rows(source, columns, split=split, lists=separator is not None, train=train)
    used = {_TEXT: ""}
    if any(row.problem is None for row in found.rows):
        # Columns of all rows: were a label missing in the first, the whole file would pass for unlabelled.
        used = _resolve_columns(os.fspath(source).removeprefix(DATASET_PREFIX), found.columns, columns, train)
    if _PAIR in used and all(is_blank(row.cells.get(used[_PAIR])) for row in found.rows):
        raise ValueError(
            f"{os.fspath(source)}: all second texts, in {used[_PAIR]!r}, are missing; if the texts are no pairs, "
            "give --task.columns.text-pair ''"
        )
    names = None if separator is None else _vector_names(found, used, labels, train)
    remedy = f"{found.expectation} Correct or remove these rows, {SKIP_REMEDY}"
    texts = [column for part, column in used.items() if part != _LABEL]
    bad = BadRowList(bad_rows, len(found.rows))

    def parse(row: TableRow) -> LabelledText:
        cells = row.require_cells()
        first, second = [*(text_cell(cells, column) for column in texts), None][:2]
        label = read_label(cells, used[_LABEL], separator=separator, vector_names=names) if _LABEL in used else None
        return LabelledText(str(first), second, label, row.source)

    rows = parse_rows(found.rows, parse, bad, remedy)
    if unlabelled is None:
        marks = TABLE_MARKS if os.fspath(source).lower().endswith((".csv", ".tsv")) else ()
        of_train = None if train is None else _labels(train)
        missing = missing_keys(_labels(rows), known=labels, train=of_train, marks=marks)
    else:
        missing = {label_key(label) for label in unlabelled}
    rows, without_label = _mark_missing(rows, missing)
    classes = found.classes.get(used.get(_LABEL, ""), ()) if names is None else names
    read = LabelledTexts(rows, columns=used, classes=classes, bad=bad, vectors=names is not None)
    if len(without_label) == len(rows):  # a set without any label is an unlabelled one
        return read
    if missing:
        remedy += f" Where {quote_names(missing)} is a label, give --task.unlabelled without a value."
    return read.without(without_label, remedy)


def _read_rows(
    source: str | os.PathLike[str], columns: Columns, *, split: str | None, lists: bool, train: LabelledTexts | None
) -> tuple[SourceRows, Columns]:
    """Return the rows, and the columns to read.

    Where columns have numbers, a set other than `train` may have a header (CoLA's test set): its columns are then those
    of usual names.

    Raises:
        ValueError: the training set has a header, and columns have numbers.
    """
    numbered = any(re.fullmatch("[0-9]+", name or "") for name in dataclasses.astuple(columns))
    found = read_source(source, split=split, header=not numbered, lists=lists)
    if not numbered or columns.text is None:
        return found, columns
    first = found.rows[0]
    has_header = is_header(first, [name for name in (columns.text, columns.text_pair) if name])
    if has_header and train is None and str(first.cells.get(columns.label or "")).casefold() in LABEL_COLUMNS:
        raise ValueError(
            f"{first.source}: a header, {quote_names(map(str, first.cells.values()))}; give the "
            "columns by name instead of by number: --task.columns.text NAME --task.columns.label NAME"
        )
    if train is not None and (has_header or columns.text not in found.columns):
        by_name = read_source(source, split=split, lists=lists)
        known = ColumnNames(by_name.columns)
        if known.find_text() is not None:
            return by_name, Columns(label=known.find(LABEL_COLUMNS))
    return found, columns


def _vector_names(
    found: SourceRows, used: Mapping[str, str], labels: Sequence[str], train: LabelledTexts | None
) -> Sequence[str] | None:
    """Return the names of the labels if rows have vectors of 0 and 1, else None; without names LABEL_0, LABEL_1, ..."""
    length = vector_length(row.cells.get(used.get(_LABEL, "")) for row in found.rows)
    if not (train.vectors if train is not None else length is not None):
        return None
    return labels or (train.classes if train is not None else [f"LABEL_{i}" for i in range(length or 0)])


def _labels(rows: Sequence[LabelledText]) -> set[str]:
    return {row.label for row in rows if row.label is not None}


def _mark_missing(rows: Sequence[LabelledText], missing: Collection[str]) -> tuple[list[LabelledText], list[BadRow]]:
    """Return (the rows with None for missing labels, the rows without a label as bad ones)."""
    marked, problems = [], []
    for row in rows:
        is_missing = row.label is not None and label_key(row.label) in missing
        marked.append(dataclasses.replace(row, label=None) if is_missing else row)
        if marked[-1].label is None:
            problems.append(BadRow(row.source, "no label" + (f" ({row.label!r})" if is_missing else "")))
    return marked, problems


def _resolve_columns(source: str, names: Sequence[str], given: Columns, train: LabelledTexts | None) -> dict[str, str]:
    """Return the column of each part of a row; without a second text or a label if there are none."""
    known = ColumnNames(names)
    text, pair, label = given.text, given.text_pair, given.label
    if train is not None:  # the same columns, where the set has them
        same = all(column in names for part, column in train.columns.items() if part != _LABEL)
        text, pair = (train.columns[_TEXT], train.columns.get(_PAIR, "")) if same else (text, pair)
        label = "" if label is not None and label not in names else label
        if label is None:  # no other column, which may hold something else
            own_label = train.columns.get(_LABEL, "")
            label = own_label if own_label in names else ""
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
    parts = {_TEXT: text, _PAIR: pair, _LABEL: label}
    return {part: column for part, column in parts.items() if column}
