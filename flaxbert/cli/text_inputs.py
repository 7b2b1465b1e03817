"""Inputs of `flaxbert predict`: one or several texts each, from arguments, from lines or from the rows of a table."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from flaxbert.text.choices import ChoiceColumns, combine_choices, resolve_choice_columns
from flaxbert.text.messages import encoding_problem, quote_names, raise_problems, text_cell
from flaxbert.text.tables import (
    TEXT_COLUMNS,
    ColumnNames,
    TableRow,
    is_header,
    read_lines,
    read_table,
    table_format,
)
from flaxbert.text.word_columns import has_tag_column, read_words

_INPUT_FORMATS = (".txt", ".tsv", ".csv", ".jsonl", ".json")
_LINES_EXPECTED = "an input a line, tabs between its texts"
_WORDS_EXPECTED = "a word a line, its columns between tabs or blanks, a blank line between sentences"
_TNEWS_SEPARATORS = 4  # "_!_" in each line of TNEWS, the .txt for training

_WORD_LISTS = ("tokens", "words")


@dataclasses.dataclass(frozen=True)
class InputShape:
    """The texts that make an input of a task.

    Attributes:
        maximum: the greatest number of texts; None for a prompt with any number of choices.
        description: of an input, for errors.
        check: returns what else is wrong with the texts of an input, "" if nothing is.
        may_be_words: files of words and tags are read too, as sentences.
    """

    minimum: int
    maximum: int | None
    description: str
    check: Callable[[Sequence[str]], str] = lambda texts: ""
    may_be_words: bool = False


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
    """Read the inputs of a file one by one; a file for training is read as training reads it.

    Args:
        path: a .txt of lines, a table (see `TABLE_FORMATS`), SQuAD's JSON for pairs, or for tags a file of words; all
            in UTF-8, where a byte-order mark is skipped.
        shape: the texts of an input.
        columns: the columns of a table that hold the texts, in order: names, or numbers from 0 where it has no header.
            If none are given, those with usual names. For a file of words the number of their column, by default 0.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the extension is another one, or the table is empty or has no such columns.
    """
    if shape.may_be_words and _holds_words(path, columns):
        yield from _word_inputs(path, shape, columns)
        return
    extension = table_format(path)
    if extension is None:
        words = "; for a file with a word a line give --columns 0" if shape.may_be_words else ""
        raise ValueError(
            f"{path}: ending {path.suffix!r} is none of {', '.join(_INPUT_FORMATS)}; rename or convert it{words}"
        )
    if extension == ".txt":
        lines = read_lines(path, expected=_LINES_EXPECTED)
        first = next(lines)
        if first.count("_!_") != _TNEWS_SEPARATORS:
            if columns:
                raise ValueError(f"{path}: a .txt has no columns; name them for .tsv, .csv and .jsonl")
            yield from line_inputs(itertools.chain([first], lines), str(path), shape)
            return
    yield from _table_inputs(path, shape, columns)


def _table_inputs(path: Path, shape: InputShape, columns: Sequence[str]) -> Iterator[TextInput]:
    header = not any(re.fullmatch("[0-9]+", name) for name in columns)
    first = columns
    for number, row in enumerate(read_table(path, name=str(path), header=header)):
        if number == 0 and not header and is_header(row, columns):
            raise ValueError(
                f"{row.source}: a header, {quote_names(map(str, row.cells.values()))}; give --columns by "
                "name instead of by number"
            )
        if row.problem is not None:
            yield TextInput(row.source, (), row.problem)
        elif "paragraphs" in row.cells and shape.maximum == 2 and not columns:
            yield from _squad_inputs(row, shape)
        else:
            used = columns or _usual_columns(path, list(row.cells), shape)
            try:
                if not isinstance(used, ChoiceColumns):
                    first = first or used
                    if used != first:  # objects of JSON may have different names
                        raise ValueError(f"the texts are in {quote_names(used)}, those before in {quote_names(first)}")
                texts = _texts(row.cells, used, shape)
                yield TextInput(row.source, texts, _problem(texts, shape))
            except ValueError as error:
                yield TextInput(row.source, (), str(error))


def _squad_inputs(article: TableRow, shape: InputShape) -> Iterator[TextInput]:
    """Return the questions and contexts of an article of SQuAD's format."""
    paragraphs = article.cells["paragraphs"]
    for i, paragraph in enumerate(paragraphs if isinstance(paragraphs, list) else [paragraphs]):
        paragraph = paragraph if isinstance(paragraph, dict) else {}
        questions = paragraph.get("qas")
        source = f"{article.source}.paragraphs[{i}]"
        if not isinstance(questions, list):
            yield TextInput(source, (), f"no list 'qas' beside {quote_names(paragraph)}")
            continue
        for j, question in enumerate(questions):
            cells = {**paragraph, **question} if isinstance(question, dict) else {}
            try:
                texts = text_cell(cells, "question"), text_cell(cells, "context")
                yield TextInput(f"{source}.qas[{j}]", texts, _problem(texts, shape))
            except ValueError as error:
                yield TextInput(f"{source}.qas[{j}]", (), str(error))


def _holds_words(path: Path, columns: Sequence[str]) -> bool:
    """Return whether a file has a word a line: one with tags, or one of unknown ending for which a column is given."""
    extension = table_format(path)
    if extension not in (None, ".txt", ".tsv") or not path.is_file():
        return False
    return bool(extension is None and columns) or has_tag_column(list(read_lines(path, expected=_WORDS_EXPECTED)))


def _word_inputs(path: Path, shape: InputShape, columns: Sequence[str]) -> Iterator[TextInput]:
    if len(columns) > 1 or not all(re.fullmatch("[0-9]{1,4}", name) for name in columns):
        raise ValueError(f"{path}: a word a line; give the number of the column of words, from 0, as --columns 1")
    column = int(columns[0]) if columns else 0
    for sentence in read_words(list(read_lines(path, expected=_WORDS_EXPECTED)), column):
        texts = (" ".join(sentence.words),)
        yield TextInput(f"{path}:{sentence.line}", texts, sentence.problem or _problem(texts, shape))


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
        # Not for training: a file of multiple-choice questions (Cosmos QA) would pass for one of labelled pairs.
        question, context = known.find(["question"]), known.find(["context"])
        if question and context:
            return question, context
        if first and shape.minimum == 1:
            return (first,)
    else:
        # A text named as the first of two is not the whole input.
        half = "sentence1" if known.find(["sentence2"]) else None
        usual = [name for name in TEXT_COLUMNS if name != half]
        text = known.find([*_WORD_LISTS, *usual] if shape.may_be_words else usual)
        if text and "paragraphs" not in names:
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
        if shape.may_be_words and isinstance(cell, list) and all(isinstance(word, str) for word in cell):
            cell = " ".join(cell)
        for value in cell if isinstance(cell, list) else [cell]:
            if not isinstance(value, str):
                raise ValueError(f"{value!r:.40} is not a string")
            texts.append(value)
    # Questions of one table may have different numbers of choices: empty cells are none.
    return tuple(text for text in texts if text or shape.maximum is not None)
