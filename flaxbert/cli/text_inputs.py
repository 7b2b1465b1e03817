"""Inputs of `flaxbert predict`: one or several texts each, from arguments, from lines or from the rows of a table."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from flaxbert.text.choices import ChoiceColumns, combine_choices, resolve_choice_columns
from flaxbert.text.messages import encoding_problem, quote_names, raise_problems
from flaxbert.text.tables import TEXT_COLUMNS, ColumnNames, read_table

# .txt has an input a line, its texts between tabs; the others are those of `flaxbert.text.tables`.
_INPUT_FORMATS = (".txt", ".tsv", ".csv", ".jsonl", ".json")

# Not for training: a file of multiple-choice questions (Cosmos QA) would pass for one of labelled pairs.
_QUESTION_AND_CONTEXT = ("question", "context")


@dataclasses.dataclass(frozen=True)
class InputShape:
    """The texts that make an input of a task.

    Attributes:
        maximum: the greatest number of texts; None for a prompt with any number of choices.
        description: of an input, for errors.
        check: returns what else is wrong with the texts of an input, "" if nothing is.
    """

    minimum: int
    maximum: int | None
    description: str
    check: Callable[[Sequence[str]], str] = lambda texts: ""


@dataclasses.dataclass(frozen=True)
class TextInput:
    """The texts of an input, where they stand ("file:line", from 1), and why they cannot be used; None if they can."""

    source: str
    texts: tuple[str, ...]
    problem: str | None = None


def line_inputs(lines: Iterable[str], name: str, shape: InputShape) -> Iterator[TextInput]:
    """Return an input for each line, with tabs between its texts; if an input is one text, a tab is a blank."""
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\n").removesuffix("\r")
        texts = (line,) if shape.maximum == 1 else tuple(line.split("\t"))
        yield TextInput(f"{name}:{number}", texts, _problem(texts, shape))


def file_inputs(path: Path, shape: InputShape, columns: Sequence[str] = ()) -> Iterator[TextInput]:
    """Read the inputs of a file one by one.

    Args:
        path: a file with one of the extensions of `_INPUT_FORMATS`, in UTF-8; a byte-order mark is skipped.
        shape: the texts of an input.
        columns: the columns of a table that hold the texts, in order; if none are given, those with usual names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the extension is another one, or the table is empty or has no such columns.
    """
    extension = path.suffix.lower()
    if extension not in _INPUT_FORMATS:
        raise ValueError(f"{path}: ending {extension!r} is none of {', '.join(_INPUT_FORMATS)}")
    if extension == ".txt":
        if columns:
            raise ValueError(f"{path}: a .txt has no columns; name them for .tsv, .csv and .jsonl")
        # Bytes that are not UTF-8 become lone surrogates, so that they are reported with their line.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
            yield from line_inputs(lines, str(path), shape)
        return
    for row in read_table(path, name=str(path)):
        if row.problem is not None:
            yield TextInput(row.source, (), row.problem)
            continue
        used = columns or _usual_columns(path, list(row.cells), shape)
        try:
            texts = _texts(row.cells, used, shape)
            yield TextInput(row.source, texts, _problem(texts, shape))
        except ValueError as error:
            yield TextInput(row.source, (), str(error))


def count_inputs(inputs: Iterable[TextInput]) -> int:
    """Return the number of inputs.

    Raises:
        ValueError: some cannot be used (they are counted, the first five quoted), or there are none.
    """
    count, problems = 0, []
    for item in inputs:
        count += 1
        if item.problem is not None:
            problems.append(f"{item.source}: {item.problem}")
    raise_problems(problems, count)
    if not count:
        raise ValueError("there are no rows")
    return count


def usable_texts(inputs: Iterable[TextInput]) -> Iterator[tuple[str, ...]]:
    """Return the texts of each input; raise a ValueError at the first that cannot be used."""
    for item in inputs:
        if item.problem is not None:
            raise ValueError(f"{item.source}: {item.problem}")
        yield item.texts


def _problem(texts: Sequence[str], shape: InputShape) -> str | None:
    if len(texts) < shape.minimum or (shape.maximum is not None and len(texts) > shape.maximum):
        return f"{len(texts)} texts; expected {shape.description}"
    if not all(text.strip() for text in texts):
        return "an empty text" if any(text.strip() for text in texts) else "empty"
    problems = (encoding_problem(text) for text in texts)
    return next((problem for problem in problems if problem), None) or shape.check(texts) or None


def _usual_columns(path: Path, names: Sequence[str], shape: InputShape) -> Sequence[str] | ChoiceColumns:
    """Return the columns with usual names: of a prompt and its choices, of a pair, or of one text."""
    known = ColumnNames(names)
    if shape.maximum is None:
        try:
            return resolve_choice_columns(names, ChoiceColumns(label=""))
        except ValueError:
            pass
    elif shape.maximum == 2:
        first = known.find_text()
        second = known.find_second_text(first) if first else None
        if first and second:
            return first, second
        if {*_QUESTION_AND_CONTEXT} <= {*names}:
            return _QUESTION_AND_CONTEXT
        if first and shape.minimum == 1:
            return (first,)
    else:
        # A text named as the first of two is not the whole input.
        half = "sentence1" if known.find(["sentence2"]) else None
        text = known.find(name for name in TEXT_COLUMNS if name != half)
        if text:
            return (text,)
    raise ValueError(
        f"{path}: columns found: {quote_names(names)}; none known as {shape.description}. Name them: --columns"
    )


def _texts(cells: Mapping[str, object], columns: Sequence[str] | ChoiceColumns, shape: InputShape) -> tuple[str, ...]:
    """Return the texts of a row; a list in JSON is several texts."""
    if isinstance(columns, ChoiceColumns):
        question = combine_choices(cells, columns, minimum=1)
        return question.context, *question.choices
    missing = [name for name in columns if name not in cells]
    if missing:
        raise ValueError(f"no {', '.join(map(repr, missing))} beside {quote_names(cells)}")
    texts = []
    for name in columns:
        cell = cells[name]
        for value in cell if isinstance(cell, list) else [cell]:
            if not isinstance(value, str):
                raise ValueError(f"{value!r:.40} is not a string")
            texts.append(value)
    # Questions of one table may have different numbers of choices: empty cells are none.
    return tuple(text for text in texts if text or shape.maximum is not None)
