"""Multiple-choice questions in tables: finding their columns, and composing a context and its choices."""

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from flaxbert.text.messages import list_cell, quote_names, text_cell
from flaxbert.text.tables import ColumnNames

# Column names in COPA, SWAG, Cosmos QA and RACE, in lower case, in this order.
_CONTEXT_COLUMNS = ("premise", "sent1", "context", "article", "passage", "prompt", "ctx")
_QUESTION_COLUMNS = ("question", "question_stem", "sent2")
_LIST_COLUMNS = ("choices", "options", "endings", "answers")
_LABEL_COLUMNS = ("label", "answer", "gold", "answer_idx", "answerkey")
_NUMBERED_COLUMN = re.compile(r"(choice|ending|answer|option)_?([0-9]+)", re.ASCII)
# COPA asks with one word, which says little to a model.
_COPA_QUESTIONS = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


@dataclasses.dataclass(frozen=True)
class ChoiceColumns:
    """The columns of a table of questions; None: found by its usual name, "": not used."""

    context: str | None = None
    """A text that all choices share; without one the question is the context."""
    question: str | None = None
    """Stands before each choice."""
    choices: tuple[str, ...] = ()
    """A column for each choice, or one of lists."""
    label: str | None = None
    """The number of the right choice, counted from `first_label`, or its letter."""


@dataclasses.dataclass(frozen=True)
class ContextAndChoices:
    """The text that all choices share, each choice after the question, and the names of the choices, if any."""

    context: str
    choices: tuple[str, ...]
    names: tuple[str, ...] = ()


def resolve_choice_columns(names: Collection[str], given: ChoiceColumns) -> ChoiceColumns:
    """Return the columns to read, with "" instead of None for the context, question or label that the table lacks.

    Args:
        names: the names of all columns.
        given: the columns that the user has chosen.

    Raises:
        ValueError: a chosen column is missing or has two uses, or there are no choices, or no context or question.
    """
    known = ColumnNames(names)
    choices = given.choices or _numbered_columns(names) or _list_columns(names, known)

    def find(chosen: str | None, usual: Sequence[str], excluded: Collection[str] = ()) -> str:
        return chosen if chosen is not None else known.find(usual, excluded=excluded) or ""

    context, question = find(given.context, _CONTEXT_COLUMNS), find(given.question, _QUESTION_COLUMNS)
    label = find(given.label, _LABEL_COLUMNS, excluded=choices)
    used = [name for name in (context, question, label, *choices) if name]
    wrong = [name for name in used if name not in names or used.count(name) > 1]
    if wrong:
        raise ValueError(f"columns found: {quote_names(names)}; {quote_names(wrong)} must be there, for one use each")
    if not choices:
        raise ValueError(f"columns found: {quote_names(names)}; none known as choices: name their columns")
    if not (context or question):
        raise ValueError(
            f"columns found: {quote_names(names)}; none known as a context or a question: name one of them"
        )
    return ChoiceColumns(context, question, choices, label)


def combine_choices(cells: Mapping[str, object], columns: ChoiceColumns, *, minimum: int = 2) -> ContextAndChoices:
    """Return the context and choices of one row; the question is put before each choice, or is the context itself.

    Empty cells after the last choice are ignored, so rows may have different numbers of choices.

    Args:
        cells: the row, by column name.
        columns: the result of `resolve_choice_columns`.
        minimum: choices that a row must have.

    Raises:
        ValueError: a cell is missing or holds no text, there are too few choices, or an empty one before another.
    """
    context = text_cell(cells, columns.context) if columns.context else ""
    question = text_cell(cells, columns.question) if columns.question else ""
    question = _COPA_QUESTIONS.get(question, question)
    choices = _choices(cells, columns.choices, minimum)
    names = _choice_names(cells.get(columns.choices[0]))
    if not context:
        return ContextAndChoices(question, choices, names)
    return ContextAndChoices(context, tuple(f"{question} {choice}".strip() for choice in choices), names)


def _numbered_columns(names: Iterable[str]) -> tuple[str, ...]:
    """Return choice1, choice2, ... or, for lack of them, answer0, ... in the order of their numbers."""
    matches = ((_NUMBERED_COLUMN.fullmatch(name.casefold()), name) for name in names)
    numbered = sorted((match[1], int(match[2]), name) for match, name in matches if match)
    return tuple(name for kind, _, name in numbered if kind == numbered[0][0])


def _list_columns(names: Iterable[str], known: ColumnNames) -> tuple[str, ...]:
    column = known.find(_LIST_COLUMNS)
    return (column,) if column else tuple(name for name in names if name.casefold().startswith("choice"))


def _choice_names(value: object) -> tuple[str, ...]:
    """Return the names of the choices in a cell with texts and names, in two lists or one object a choice."""
    if isinstance(value, Mapping):
        names = value.get("label")
    else:
        names = [entry.get("label") for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else ()
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def _choices(cells: Mapping[str, object], columns: Sequence[str], minimum: int) -> tuple[str, ...]:
    value = cells.get(columns[0])
    if isinstance(value, Mapping):  # texts and names, as in ARC and CommonsenseQA
        value = value.get("text")
    elif isinstance(value, list):
        value = [entry.get("text") if isinstance(entry, Mapping) else entry for entry in value]
    listed = list_cell(value)
    if len(columns) == 1 and listed is not None:
        cells = {f"{columns[0]}[{i}]": value for i, value in enumerate(listed)}
        columns = list(cells)
    filled = [name for name in columns if cells.get(name) not in ("", None)]
    if filled != list(columns)[: len(filled)]:
        raise ValueError(f"an empty choice before {filled[-1]!r}; leave empty only the last ones")
    if len(filled) < minimum:
        raise ValueError(f"{len(filled)} choice(s) in {quote_names(columns)}; there must be at least {minimum}")
    return tuple(text_cell(cells, name) for name in filled)
