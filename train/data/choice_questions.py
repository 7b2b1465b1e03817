"""Multiple-choice questions with the number of the right choice, from files and data sets (SWAG, COPA, RACE, ...)."""

import dataclasses
import json
import os
import re

from flaxbert.text.choices import ChoiceColumns, combine_choices, resolve_choice_columns
from flaxbert.text.tables import TableRow
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
) -> list[ChoiceQuestion]:
    """Read all questions of a file or data set, which may have different numbers of choices.

    `first_label` is the number of the first choice in the label column.
    """
    found = read_source(source, split=split, lists=True)
    try:
        used = resolve_choice_columns(found.columns, columns)
    except ValueError as error:
        raise ValueError(
            f"{os.fspath(source)}: {error}. Name them: --task.columns.context, "
            "--task.columns.question, --task.columns.choices, --task.columns.label"
        ) from None

    def parse(row: TableRow) -> ChoiceQuestion:
        cells = row.require_cells()
        texts = combine_choices(cells, used)
        label = _label(cells.get(used.label), used.label, len(texts.choices), first_label) if used.label else None
        return ChoiceQuestion(texts.context, texts.choices, label, row.source)

    return parse_rows(found.rows, parse, f"{found.expectation} Correct or remove these rows.")


def _label(value: object, column: str, count: int, first: int) -> int | None:
    """Return the index of the right choice, from 0; None if the value says that it is not known."""
    if value in (None, "", -1, "-1"):  # -1: unlabelled data sets on the hub
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    if re.fullmatch("[A-Z]", text):
        index = ord(text) - ord("A")
    elif re.fullmatch("[0-9]{1,9}", text):
        index = int(text) - first
    else:
        index = -1
    if not 0 <= index < count:
        last = f"{first} to {first + count - 1}, or A to {chr(ord('A') + count - 1)}"
        raise ValueError(f"{column!r} is {text:.40}; of {count} choices it must be {last}")
    return index
