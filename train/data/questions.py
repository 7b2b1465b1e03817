"""Questions about texts, from files in SQuAD's format or from the `datasets` library.

A file is JSON: articles below "data" with "paragraphs" of a "context" and "qas" (SQuAD 1.1 and 2.0, XQuAD, CMRC
2018), or one question an entry, as the hub has them: below "data", in a list, or one a line.
"""

import collections
import copy
import dataclasses
import enum
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flaxbert.files import require_downloaded
from flaxbert.text.messages import quote_names, text_cell
from flaxbert.text.strict_json import RepeatedKey, find_repeated_key, parse_json
from flaxbert.text.tables import TableRow, read_table
from train.data.bad_rows import SKIP_REMEDY, BadRow, BadRowList, BadRows, ReadRows
from train.data.sources import dataset_structures, is_blank, is_dataset, parse_rows, reject_split
from train.metrics.squad import normalise_answer

_MAX_OFFSET_ERROR = 2  # characters; Hugging Face's scripts repair offsets of published files that are wrong by as much
_EXPECTED = (
    'Expected: SQuAD\'s format, {"data": [{"title", "paragraphs": [{"context", "qas": [...]}]}]}, or one question a '
    'line, {"id", "context", "question", "answers": {"text": [...], "answer_start": [...]}}.'
)


class WrongOffsets(enum.Enum):
    """Treatment of an answer that does not stand at its offset in the context, nor within two characters of it."""

    REPAIR = "repair"
    """Use the nearest occurrence of its text; if there is none, treat it as `DROP` does."""
    DROP = "drop"
    """Do not train on it; evaluation, which compares texts, still uses it."""
    REFUSE = "refuse"
    """Treat the question as a bad row."""


@dataclasses.dataclass(frozen=True)
class SquadAnswer:
    """The text of an answer, and the index of its first character in the context; None if it is not known."""

    text: str
    start: int | None

    @property
    def spans(self) -> list[tuple[int, int]]:
        """The characters of the answer in its context, and those without the marks at its ends; none if not located.

        An uncased tokenizer strips combining marks, and all drop what is invisible, so tokens may not reach there.
        """
        if self.start is None:
            return []
        visible = [i for i, char in enumerate(self.text) if unicodedata.category(char) not in ("Mn", "Cf", "Cc")]
        whole = (self.start, self.start + len(self.text))
        return [whole, (self.start + visible[0], self.start + visible[-1] + 1)] if visible else [whole]


@dataclasses.dataclass(frozen=True)
class SquadQuestion:
    """A question about a context."""

    id: str  # unique in the file
    question: str
    context: str
    title: str  # the title of the article; "" if the file has none
    answers: tuple[SquadAnswer, ...]
    impossible: bool  # whether the context holds no answer
    source: str


@dataclasses.dataclass(frozen=True)
class SquadQuestions:
    """The questions of a file, and the numbers of their answers with wrong offsets."""

    rows: ReadRows[SquadQuestion]
    repaired: int = 0  # answers whose offset was wrong and is repaired
    not_located: int = 0  # answers whose offset is wrong and not repaired
    numbered: bool = False  # the file has no ids: they are the numbers of the questions, from 1

    @property
    def left_out(self) -> int:
        """The number of bad rows that were skipped."""
        return self.rows.left_out

    @property
    def labelled(self) -> bool:
        """True if the answers are known."""
        return any(row.answers or row.impossible for row in self.rows)

    @property
    def impossible(self) -> int:
        """The number of questions without an answer in their context."""
        return sum(row.impossible for row in self.rows)


def read_squad(
    source: str | os.PathLike[str],
    *,
    wrong_offsets: WrongOffsets = WrongOffsets.REFUSE,
    split: str | None = None,
    bad_rows: BadRows = BadRows.ERROR,
) -> SquadQuestions:
    """Read all questions of a file, or of a data set.

    A question without answers is impossible if "is_impossible" says so, if others in the file have "is_impossible", if
    the version of the file is 2 or more, or if its lists of texts and offsets are empty (the hub's form); if no
    question of a file has an answer or is impossible, all are unlabelled. Other questions without answers are bad rows,
    as are those without a context. A blank answer at -1 or nowhere is none. In a file without ids, questions are
    numbered. Answers keep their order; blanks around a question or an answer are removed.
    """
    name = os.fspath(source)
    if is_dataset(name):
        version, records = "", dataset_structures(name, split)
    else:
        reject_split(split, Path(name))
        version, records = _read_file(Path(name).expanduser())
    if not records:
        raise ValueError(f"{name}: no questions. {_EXPECTED}")
    numbered = all(record.problem is not None or record.cells.get("id") is None for record in records)
    if numbered:
        records = [dataclasses.replace(row, cells={**row.cells, "id": i}) for i, row in enumerate(records, 1)]
    remedy = f"Correct or remove these questions, {SKIP_REMEDY} {_EXPECTED}"
    bad = BadRowList(bad_rows, len(records))
    given = ReadRows(parse_rows(records, _question, bad, remedy), bad=bad)
    given = given.without(list(_repeated_ids(given)), remedy)
    labelled = any(question.answers or question.impossible for question in given)
    if labelled:
        given = given.without(list(_incomplete_questions(version, records, given)), remedy)
    located = {question.source: _locate_answers(question, wrong_offsets) for question in given}
    if wrong_offsets is WrongOffsets.REFUSE:
        repair = "move answers to the nearest place with their text: --task.wrong-offsets repair"
        misplaced = [bad for question in given for bad in _misplaced_answers(question, located[question.source])]
        given = given.without(misplaced, f"Correct the offsets, {repair}, {SKIP_REMEDY}")
    rows = copy.copy(given)
    rows[:] = [located[question.source] for question in given]
    changed = sum(answer not in old.answers for new, old in zip(rows, given, strict=True) for answer in new.answers)
    not_located = sum(map(_count_not_located, rows))
    rows[:] = [dataclasses.replace(q, impossible=q.impossible or (labelled and not q.answers)) for q in rows]
    return SquadQuestions(rows, repaired=changed - not_located, not_located=not_located, numbered=numbered)


def exclude_questions(rows: Sequence[SquadQuestion], others: Sequence[SquadQuestion]) -> list[SquadQuestion]:
    """Return the questions that are not among the others: the same normalised question about the same context."""
    excluded = {_identity(question) for question in others}
    return [question for question in rows if _identity(question) not in excluded]


def trainable_questions(rows: Sequence[SquadQuestion], *, impossible: bool) -> list[SquadQuestion]:
    """Return the questions with an answer whose offset is known and, if `impossible`, those without an answer."""
    return [
        question
        for question in rows
        if (question.impossible and impossible) or any(answer.start is not None for answer in question.answers)
    ]


def _read_file(path: Path) -> tuple[str, list[TableRow]]:
    """Return (version, questions) of a file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty. {_EXPECTED}")
    try:
        content, repeated = parse_json(path.read_bytes())
    except (ValueError, RecursionError) as error:  # ValueError includes bad UTF-8
        require_downloaded(path)
        if path.suffix.lower() in (".jsonl", ".json") and _begins_with_object(path):
            return "", list(read_table(path, name=str(path)))
        raise ValueError(f"{path}: not a JSON file ({error}). {_EXPECTED}") from None
    if isinstance(content, RepeatedKey):
        raise ValueError(f"{path}: {content.problem}. {_EXPECTED}")
    if isinstance(content, dict) and "data" not in content and "question" in content:
        content = [content]  # a file of one line
    entries, top = (content, "") if isinstance(content, list) and content else (None, "data")
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        entries = content["data"]
    if entries is None:
        raise ValueError(f'{path}: no list "data" at its top. {_EXPECTED}')
    records = [row for i, entry in enumerate(entries) for row in _entry_questions(f"{path}: {top}[{i}]", entry)]
    if repeated:
        records = [_without_repeated_keys(record) for record in records]
    return str(content.get("version", "")) if isinstance(content, dict) else "", records


def _without_repeated_keys(record: TableRow) -> TableRow:
    found = find_repeated_key(record.cells)
    return record if found is None else TableRow(record.source, problem=found.problem)


def _major_version(version: str) -> int:
    """Return 2 for "v2.0", 1 for "KorQuAD_v1.0_train", and 0 where there is no version."""
    found = re.fullmatch(r"[vV]?(\d+)", version) or re.search(r"(\d+)\.\d", version)
    return int(found[1]) if found else 0


def _begins_with_object(path: Path) -> bool:
    """Return whether the first line of a file is a JSON object of its own."""
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        try:
            return isinstance(json.loads(stream.readline()), dict)
        except (ValueError, RecursionError):
            return False


def _entry_questions(source: str, entry: object) -> Iterator[TableRow]:
    """Return the question that an entry is, or the questions of the article that it is."""
    if isinstance(entry, dict) and "paragraphs" not in entry:
        yield TableRow(source, entry)
        return
    paragraphs = _inner_list(entry, "paragraphs")
    if isinstance(paragraphs, str):
        yield TableRow(source, problem=paragraphs)
        return
    title = entry.get("title", "") if isinstance(entry, dict) else ""
    for j, paragraph in enumerate(paragraphs):
        inner, questions = f"{source}.paragraphs[{j}]", _inner_list(paragraph, "qas")
        if isinstance(questions, str):
            yield TableRow(inner, problem=questions)
            continue
        shared = {"title": title} | {k: v for k, v in paragraph.items() if k == "context"}
        for k, question in enumerate(questions):
            row = f"{inner}.qas[{k}]"
            if isinstance(question, RepeatedKey):
                yield TableRow(row, problem=question.problem)
            elif isinstance(question, dict):
                yield TableRow(row, {**question, **shared})
            else:
                yield TableRow(row, problem=f"{question!r:.40} is not an object")


def _inner_list(record: object, name: str) -> list[Any] | str:
    """Return a list in a record, or why there is none."""
    if isinstance(record, RepeatedKey):
        return record.problem
    if not isinstance(record, dict):
        return f"{record!r:.40} is not an object"
    values = record.get(name)
    return values if isinstance(values, list) else f"no list {name!r} beside {quote_names(record)}"


def _question(record: TableRow) -> SquadQuestion:
    content = record.require_cells()
    number = content.get("id")
    impossible = content.get("is_impossible")
    if impossible is not None and not isinstance(impossible, bool):
        raise ValueError(f"'is_impossible' is {impossible!r:.40}, expected true or false")
    answers = tuple(_answers(content.get("answers")))
    if impossible and answers:
        raise ValueError("'is_impossible' is true, and yet there are 'answers'")
    return SquadQuestion(
        id=str(number) if isinstance(number, int) else text_cell(content, "id"),
        question=text_cell(content, "question", allow_blank=True).strip(),  # two of CMRC 2018 are blank
        context=text_cell(content, "context"),
        title=str(content.get("title") or ""),
        answers=answers,
        impossible=bool(impossible),
        source=record.source,
    )


def _answers(value: object) -> Iterator[SquadAnswer]:
    """Return answers as SQuAD has them, or from two lists, "text" and "answer_start"."""
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise ValueError("'answers' is an object without lists 'text' and 'answer_start' of the same length")
        value = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if value is not None and not isinstance(value, list):
        raise ValueError(f"'answers' is {value!r:.40}, expected a list")
    for entry in value or ():
        if not isinstance(entry, dict):
            raise ValueError(f"an answer is {entry!r:.40}, expected an object")
        start = entry.get("answer_start")
        if start in (None, -1) and is_blank(entry.get("text")):  # unlabelled test sets have such answers
            continue
        text = text_cell(entry, "text")
        if isinstance(start, float) and start.is_integer():
            start = int(start)
        if not isinstance(start, int) or isinstance(start, bool):
            raise ValueError(f"'answer_start' is {start!r:.40}, expected a whole number")
        yield SquadAnswer(text.strip(), start + len(text) - len(text.lstrip()))


def _incomplete_questions(
    version: str, records: Sequence[TableRow], questions: Sequence[SquadQuestion]
) -> Iterator[BadRow]:
    """Return the questions without answers of which the file does not say that they have none."""
    says_so = _major_version(version) >= 2 or any(row.cells.get("is_impossible") is not None for row in records)
    cells = {record.source: record.cells for record in records}
    for question in questions:
        own = cells[question.source]
        if question.answers or question.impossible:
            continue
        if own.get("is_impossible") is False:
            yield BadRow(question.source, "'is_impossible' is false, and yet there are no 'answers'")
        elif not says_so and not isinstance(own.get("answers"), dict):
            yield BadRow(question.source, "no 'answers', and no 'is_impossible' that says so")


def _repeated_ids(questions: Sequence[SquadQuestion]) -> Iterator[BadRow]:
    """Return all questions whose id is not their own."""
    times = collections.Counter(question.id for question in questions)
    for question in questions:
        if times[question.id] > 1:
            yield BadRow(question.source, f"the id {question.id[:80]!r} is there {times[question.id]} times")


def _misplaced_answers(given: SquadQuestion, located: SquadQuestion) -> Iterator[BadRow]:
    """Return the question as a bad row if an answer is neither at its offset nor near it."""
    pairs = zip(given.answers, located.answers, strict=True)
    wrong = next((old for old, new in pairs if old.start is not None and new.start is None), None)
    if wrong is not None:
        there = given.context[max(0, wrong.start or 0) :][: len(wrong.text)]
        reason = (
            f"an answer is not at its 'answer_start', {wrong.start}: there is {there!r:.40}, not {wrong.text!r:.40}"
        )
        yield BadRow(given.source, reason)


def _count_not_located(question: SquadQuestion) -> int:
    return sum(answer.start is None for answer in question.answers)


def _locate_answers(question: SquadQuestion, policy: WrongOffsets) -> SquadQuestion:
    """Return the question with corrected offsets of its answers; None for those that are not located."""
    answers = []
    for answer in question.answers:
        start = answer.start
        if start is not None and (start < 0 or not question.context.startswith(answer.text, start)):
            matches = re.finditer(f"(?={re.escape(answer.text)})", question.context)  # they may overlap
            starts = [match.start() for match in matches]
            nearest = min(starts, key=lambda found, wrong=start: abs(found - wrong), default=None)
            near = nearest is not None and (policy is WrongOffsets.REPAIR or abs(nearest - start) <= _MAX_OFFSET_ERROR)
            start = nearest if near else None
        answers.append(SquadAnswer(answer.text, start))
    return dataclasses.replace(question, answers=tuple(answers))


def _identity(question: SquadQuestion) -> tuple[str, str]:
    return normalise_answer(question.question), question.context.strip()
