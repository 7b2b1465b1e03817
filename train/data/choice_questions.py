"""Multiple-choice questions with the number of the right choice, from files and data sets (SWAG, COPA, RACE, ...)."""

import dataclasses
import json
import os
import re
from collections.abc import Iterable

from flaxbert.text.choices import ChoiceColumns, ContextAndChoices, combine_choices, resolve_choice_columns
from flaxbert.text.messages import quote_names
from flaxbert.text.tables import TableRow
from train.data.bad_rows import SKIP_REMEDY, BadRow, BadRowList, BadRows, ReadRows
from train.data.sources import parse_rows, read_source

_USUAL_COLUMNS = ChoiceColumns()


@dataclasses.dataclass(frozen=True)
class ChoiceQuestion:
    """A context and two or more continuations of it."""

    context: str  # the text that all choices share
    choices: tuple[str, ...]
    label: int | None  # the index of the right one, from 0; None if it is not known
    source: str  # "path:line", lines counted from 1, or "datasets:name:index", counted from 0


def read_choice_questions(
    source: str | os.PathLike[str],
    *,
    columns: ChoiceColumns = _USUAL_COLUMNS,
    split: str | None = None,
    first_label: int = 0,
    bad_rows: BadRows = BadRows.ERROR,
    training: bool = True,
) -> ReadRows[ChoiceQuestion]:
    """Read all questions of a file or data set, which may have different numbers of choices.

    `first_label` is the number of the first choice in the label column; classes of a data set count from 0. Where bad
    rows are skipped and some questions have a label, those without one are bad. Only a set for `training` must have the
    column of labels that `columns` names.
    """
    found = read_source(source, split=split, lists=True)
    if not training and columns.label not in found.columns and columns.label is not None:
        columns = dataclasses.replace(columns, label="")
    try:
        used = resolve_choice_columns(found.columns, columns)
    except ValueError as error:
        raise ValueError(
            f"{os.fspath(source)}: {error}. Name them: --task.columns.context, "
            "--task.columns.question, --task.columns.choices, --task.columns.label"
        ) from None

    label_column = used.label or ""
    classes = found.classes.get(label_column)

    def parse(row: TableRow) -> ChoiceQuestion:
        cells = row.require_cells()
        texts = combine_choices(cells, used)
        value = cells.get(label_column)
        if classes and value is not None:  # the name of a class, such as "choice1"
            label = list(classes).index(str(value))
        else:
            label = _label(value, label_column, texts, first_label)
        return ChoiceQuestion(texts.context, texts.choices, label, row.source)

    remedy = f"{found.expectation} Correct or remove these rows, {SKIP_REMEDY}"
    bad = BadRowList(bad_rows, len(found.rows))
    rows = parse_rows(found.rows, parse, bad, remedy)
    parts = {"context": used.context, "question": used.question, "label": label_column}
    columns_read = {part: column for part, column in parts.items() if column} | {"choices": ", ".join(used.choices)}
    questions = ReadRows(rows, columns=columns_read, bad=bad)
    unlabelled = rows_without_label(questions)
    some = 0 < len(unlabelled) < len(questions)
    return questions.without(unlabelled, remedy) if some and bad_rows is BadRows.SKIP else questions


def rows_without_label(questions: Iterable[ChoiceQuestion]) -> list[BadRow]:
    """Return the questions whose right choice is not known."""
    return [BadRow(row.source, "no label") for row in questions if row.label is None]


def _label(value: object, column: str, texts: ContextAndChoices, first: int) -> int | None:
    """Return the index of the right choice, from 0; None if the value says that it is not known."""
    text = value.strip() if isinstance(value, str) else json.dumps(value)
    text = re.sub(r"^(-?[0-9]+)\.0*$", r"\1", text)  # pandas writes 1 as 1.0 where others are missing
    if value is None or text in ("", "-", "-1") or text.casefold() == "nan":  # -1: unlabelled data sets on the hub
        return None
    count = len(texts.choices)
    if len(texts.names) == count:
        if text not in texts.names:
            raise ValueError(f"{column!r} is {text:.40}; the choices are named {quote_names(texts.names)}")
        return texts.names.index(text)
    if re.fullmatch("[A-Za-z]", text):
        index = ord(text.upper()) - ord("A")
    elif re.fullmatch("[0-9]{1,9}", text):
        index = int(text) - first
    else:
        index = -1
    if not 0 <= index < count:
        last = f"{first} to {first + count - 1}, or A to {chr(ord('A') + count - 1)}"
        raise ValueError(
            f"{column!r} is {text:.40}; of {count} choices it must be {last} (--task.first-label is the first number)"
        )
    return index
