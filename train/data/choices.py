"""Multiple-choice questions from files: SWAG, Cosmos QA, COPA, RACE, and what is laid out like one of them."""

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from train.data.messages import listed, refuse, text_in
from train.data.sources import read_records
from train.data.text_tables import Record

# What columns are called, compared without regard to case: in COPA, SWAG, Cosmos QA and RACE, in this order.
_CONTEXTS = ("premise", "sent1", "context", "article", "passage")
_QUESTIONS = ("question", "sent2")
_LISTS = ("choices", "options", "endings", "answers")
_LABELS = ("label", "answer", "gold", "answer_idx")
_NUMBERED = re.compile(r"(choice|ending|answer|option)_?([0-9]+)", re.ASCII)
# COPA asks with one word, which says little to a model.
_COPA = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


@dataclasses.dataclass(frozen=True)
class ChoiceColumns:
    """Which columns hold what: None is found by convention, "" is not used."""

    context: str | None = None
    """A text that all choices share; without one the question takes its place."""
    question: str | None = None
    """Stands before each choice."""
    choices: tuple[str, ...] = ()
    """A column for each choice, or one of lists."""
    label: str | None = None
    """The number of the right choice, from `first_label`, or its letter."""


_BY_CONVENTION = ChoiceColumns()


@dataclasses.dataclass(frozen=True)
class Question:
    """A context, two or more continuations of it, and which is right (from 0; None: not told)."""

    context: str
    choices: tuple[str, ...]
    label: int | None
    source: str


def read_questions(
    source: str | os.PathLike[str],
    *,
    columns: ChoiceColumns = _BY_CONVENTION,
    split: str | None = None,
    first_label: int = 0,
) -> list[Question]:
    """All questions of a file or data set, of which `sources.read_records` says what they may be.

    Choices may be unequal in number: empty cells at the end are none. Raises FileNotFoundError, or a ValueError that
    counts the malformed rows and shows the first five.
    """
    records, remedy = read_records(source, split=split, lists=True)
    readable = [values for _, values in records if not isinstance(values, str)]
    names = list(dict.fromkeys(name for values in readable for name in values))
    used = _choose(os.fspath(source), names, columns)
    questions, problems = [], []
    for record in records:
        try:
            questions.append(_question(record, used, first_label))
        except ValueError as error:
            problems.append(f"{record[0]}: {error}")
    refuse(problems, len(records), f"{remedy} Correct or remove these rows.")
    return questions


def _choose(where: str, names: Sequence[str], columns: ChoiceColumns) -> ChoiceColumns:
    """The columns to read; "" for those that there are not."""
    folded = {name.casefold(): name for name in reversed(names)}

    def found(given: str | None, known: Sequence[str]) -> str:
        return given if given is not None else next((folded[name] for name in known if name in folded), "")

    numbered = [(match[1], int(match[2]), name) for name in names if (match := _NUMBERED.fullmatch(name.casefold()))]
    lists = [folded[name] for name in _LISTS if name in folded]
    kinds = sorted(item for item in numbered if item[0] == min(numbered)[0])
    choices = columns.choices or tuple(name for *_, name in kinds) or tuple(lists[:1])
    context, question = found(columns.context, _CONTEXTS), found(columns.question, _QUESTIONS)
    label = found(columns.label, [name for name in _LABELS if folded.get(name) not in choices])
    named = [name for name in (context, question, label, *choices) if name]
    wrong = [name for name in named if name not in names or named.count(name) > 1]
    if wrong or not choices or not (context or question):
        what = f"{listed(wrong)} must be there, for one use each" if wrong else "no choices, or nothing to choose for"
        raise ValueError(
            f"{where}: columns found: {listed(names)}; {what}. Name them: --task.columns.context, "
            "--task.columns.question, --task.columns.choices, --task.columns.label"
        )
    return ChoiceColumns(context, question, choices, label)


def _question(record: Record, columns: ChoiceColumns, first_label: int) -> Question:
    source, values = record
    if isinstance(values, str):
        raise ValueError(values)
    context = text_in(values, columns.context) if columns.context else ""
    question = text_in(values, columns.question) if columns.question else ""
    question = _COPA.get(question, question)
    choices = _choices(values, columns.choices)
    label = _label(values, columns.label, len(choices), first_label) if columns.label else None
    if not context:
        return Question(question, choices, label, source)
    return Question(context, tuple(f"{question} {choice}".strip() for choice in choices), label, source)


def _choices(values: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    several = values.get(names[0])
    if len(names) == 1 and isinstance(several, list):
        values = {f"{names[0]}[{i}]": value for i, value in enumerate(several)}
        names = list(values)
    there = [name for name in names if values.get(name) not in ("", None)]
    if there != list(names)[: len(there)]:
        raise ValueError(f"an empty choice before {there[-1]!r}; leave empty only the last ones")
    if len(there) < 2:
        raise ValueError(f"{len(there)} choice(s) in {listed(names)}; there must be at least two")
    return tuple(text_in(values, name) for name in there)


def _label(values: Mapping[str, Any], name: str, count: int, first: int) -> int | None:
    given = values.get(name)
    if given in (None, "", -1, "-1"):  # the hub's way to say that it is not told
        return None
    text = given if isinstance(given, str) else json.dumps(given)
    if re.fullmatch("[A-Z]", text):
        number = ord(text) - ord("A")
    elif re.fullmatch("[0-9]{1,9}", text):
        number = int(text) - first
    else:
        number = -1
    if not 0 <= number < count:
        last = f"{first} to {first + count - 1}, or A to {chr(ord('A') + count - 1)}"
        raise ValueError(f"{name!r} is {text:.40}; of {count} choices it must be {last}")
    return number
