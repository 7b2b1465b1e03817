"""Questions about texts, from files in SQuAD's format or from the `datasets` library.

A file is JSON: articles below "data" with "paragraphs" of a "context" and "qas" (SQuAD 1.1 and 2.0, XQuAD, CMRC
2018), or one question an entry of "data", as the `datasets` library has them.
"""

import collections
import dataclasses
import enum
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flaxbert.files import read_json
from flaxbert.text.messages import quote_names, raise_problems, text_cell
from train.data.sources import dataset_structures, reject_split
from train.metrics.squad import normalised

_NEAR = 2  # characters by which offsets of published files are wrong; Hugging Face's scripts repair as many
_EXPECTED = 'Expected: SQuAD\'s format, {"data": [{"title", "paragraphs": [{"context", "qas": [...]}]}]}.'


class WrongOffsets(enum.Enum):
    """What becomes of an answer that is not at its place in the context, nor up to two characters from there."""

    REPAIR = "repair"
    """It is taken to be where its text occurs nearest; one that occurs nowhere is as with `DROP`."""
    DROP = "drop"
    """Nothing is learnt from it; it still counts in an evaluation, which compares texts."""
    REFUSE = "refuse"
    """The file is refused."""


@dataclasses.dataclass(frozen=True)
class SquadAnswer:
    """An answer's text, and its first character in the context: None where it is not known."""

    text: str
    start: int | None


@dataclasses.dataclass(frozen=True)
class SquadQuestion:
    """A question about a context.

    Without `answers` and not `impossible` it is unlabelled. `source` is the path and the place in the file.
    """

    id: str
    question: str
    context: str
    title: str
    answers: tuple[SquadAnswer, ...]
    impossible: bool
    source: str


@dataclasses.dataclass(frozen=True)
class SquadQuestions:
    """The questions of a file, and how many of their answers had a wrong offset that was repaired, or was not."""

    rows: list[SquadQuestion]
    repaired: int = 0
    lost: int = 0

    @property
    def labelled(self) -> bool:
        """Whether their answers are known."""
        return any(row.answers or row.impossible for row in self.rows)

    @property
    def impossible(self) -> int:
        """How many have no answer in their context."""
        return sum(row.impossible for row in self.rows)


def read_squad(
    source: str | os.PathLike[str],
    *,
    wrong_offsets: WrongOffsets = WrongOffsets.REPAIR,
    split: str | None = None,
) -> SquadQuestions:
    """All questions of a file, or of a data set: `datasets:NAME[:CONFIG]`, or its folder.

    A question without answers is impossible where it says so ("is_impossible"), or where it does not say but others
    in the file do, or the version is 2 or more; where no question of a file has an answer, all are unlabelled. Several
    answers are kept in their order; blanks around a question or an answer are taken away.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file; or it counts the malformed questions and shows the first five. Nothing read is
            executed.
    """
    where = os.fspath(source)
    if where.startswith("datasets:") or Path(where).expanduser().is_dir():
        name = where.removeprefix("datasets:")
        version, entries = "", dataset_structures(name, split)
        records = [(f"datasets:{name}:{i}", entry) for i, entry in enumerate(entries)]
    else:
        reject_split(split, Path(where))
        version, records = _file_records(Path(where).expanduser())
    if not records:
        raise ValueError(f"{where}: no questions. {_EXPECTED}")
    raw, problems = [], []
    for place, record in records:
        try:
            raw.append(_question(place, record))
        except ValueError as error:
            problems.append(f"{place}: {error}")
    labelled = any(question.answers or says for question, says in raw)
    problems += _contradictions(raw, version, labelled=labelled)
    found = [_placed(question, wrong_offsets) for question, _ in raw]
    if wrong_offsets is WrongOffsets.REFUSE:
        problems += [f"{q.source}: an answer is not at its 'answer_start'" for q in found if _lost(q)]
    raise_problems(problems, len(records), f"Correct or remove these questions. {_EXPECTED}")
    moved = sum(answer not in old.answers for new, (old, _) in zip(found, raw, strict=True) for answer in new.answers)
    lost = sum(map(_lost, found))
    rows = [dataclasses.replace(q, impossible=q.impossible or (labelled and not q.answers)) for q in found]
    return SquadQuestions(rows, moved - lost, lost)


# A question as it is written, and whether it says of itself that it has no answer.
_Raw = tuple[SquadQuestion, bool | None]


def _file_records(path: Path) -> tuple[str, list[tuple[str, Any]]]:
    """The version of a file; the place and the content of each of its questions."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty. {_EXPECTED}")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise ValueError(f'{path}: no list "data" at its top. {_EXPECTED}')
    records = []
    for i, entry in enumerate(content["data"]):
        place = f"{path}: data[{i}]"
        if not isinstance(entry, dict):
            raise ValueError(f"{place} is {entry!r:.40}, not an object. {_EXPECTED}")
        records.extend(_article(place, entry) if "paragraphs" in entry else [(place, entry)])
    return str(content.get("version", "")), records


def _article(place: str, article: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for j, paragraph in enumerate(_list(place, article, "paragraphs")):
        inner = f"{place}.paragraphs[{j}]"
        if not isinstance(paragraph, dict):
            raise ValueError(f"{inner} is {paragraph!r:.40}, not an object. {_EXPECTED}")
        above = {"title": article.get("title", "")} | {k: v for k, v in paragraph.items() if k == "context"}
        for k, question in enumerate(_list(inner, paragraph, "qas")):
            yield f"{inner}.qas[{k}]", {**question, **above} if isinstance(question, dict) else question


def _list(place: str, record: dict[str, Any], name: str) -> list[Any]:
    if not isinstance(record.get(name), list):
        raise ValueError(f"{place}: no list {name!r} beside {quote_names(record)}. {_EXPECTED}")
    return record[name]


def _question(place: str, record: Any) -> _Raw:
    if not isinstance(record, dict):
        raise ValueError(f"{record!r:.40} is not an object")
    number = record.get("id")
    impossible = record.get("is_impossible")
    if impossible is not None and not isinstance(impossible, bool):
        raise ValueError(f"'is_impossible' is {impossible!r:.40}, expected true or false")
    answers = tuple(_answers(record.get("answers")))
    if impossible and answers:
        raise ValueError("'is_impossible' is true, and yet there are 'answers'")
    if impossible is False and not answers:
        raise ValueError("'is_impossible' is false, and yet there are no 'answers'")
    question = SquadQuestion(
        id=str(number) if isinstance(number, int) else text_cell(record, "id"),
        question=text_cell(record, "question", allow_blank=True).strip(),  # CMRC 2018 has two
        context=text_cell(record, "context"),
        title=str(record.get("title") or ""),
        answers=answers,
        impossible=bool(impossible),
        source=place,
    )
    return question, impossible


def _answers(given: Any) -> Iterator[SquadAnswer]:
    """Answers as SQuAD has them, or as two lists, "text" and "answer_start"."""
    if isinstance(given, dict):
        texts, starts = given.get("text"), given.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise ValueError("'answers' is an object without lists 'text' and 'answer_start' of the same length")
        given = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if given is not None and not isinstance(given, list):
        raise ValueError(f"'answers' is {given!r:.40}, expected a list")
    for entry in given or ():
        if not isinstance(entry, dict):
            raise ValueError(f"an answer is {entry!r:.40}, expected an object")
        text, start = text_cell(entry, "text"), entry.get("answer_start")
        if not isinstance(start, int) or isinstance(start, bool):
            raise ValueError(f"'answer_start' is {start!r:.40}, expected a whole number")
        yield SquadAnswer(text.strip(), start + len(text) - len(text.lstrip()))


def _contradictions(raw: Sequence[_Raw], version: str, *, labelled: bool) -> Iterator[str]:
    """What is wrong with questions in view of the others: an id that is there twice, answers that only some have."""
    second = version.lstrip("vV")[:1] >= "2" or any(says is not None for _, says in raw)
    times = collections.Counter(question.id for question, _ in raw)
    for question, _ in raw:
        if times[question.id] > 1:
            yield f"{question.source}: the id {question.id[:80]!r} is there {times[question.id]} times"
        elif labelled and not question.answers and not second:
            yield f"{question.source}: no 'answers', and nothing says that there is none"


def _lost(question: SquadQuestion) -> int:
    return sum(answer.start is None for answer in question.answers)


def _placed(question: SquadQuestion, policy: WrongOffsets) -> SquadQuestion:
    """The question, and of its answers the places where they are."""
    context, answers = question.context, []
    for answer in question.answers:
        start = answer.start
        if start is not None and (start < 0 or not context.startswith(answer.text, start)):
            places = _occurrences(context, answer.text)
            nearest = min(places, key=lambda place, given=start: abs(place - given), default=None)
            near = nearest is not None and (policy is WrongOffsets.REPAIR or abs(nearest - start) <= _NEAR)
            start = nearest if near else None
        answers.append(SquadAnswer(answer.text, start))
    return dataclasses.replace(question, answers=tuple(answers))


def _occurrences(context: str, text: str) -> Iterator[int]:
    place = context.find(text)
    while place >= 0:
        yield place
        place = context.find(text, place + 1)


def exclude_questions(rows: Sequence[SquadQuestion], others: Sequence[SquadQuestion]) -> list[SquadQuestion]:
    """The questions that are not also among the others: about the same context, the same words."""
    known = {_key(question) for question in others}
    return [question for question in rows if _key(question) not in known]


def trainable_questions(rows: Sequence[SquadQuestion], *, impossible: bool) -> list[SquadQuestion]:
    """Those with an answer whose place is known, and where `impossible` those that have none."""
    return [
        question
        for question in rows
        if (question.impossible and impossible) or any(answer.start is not None for answer in question.answers)
    ]


def _key(question: SquadQuestion) -> tuple[str, str]:
    return normalised(question.question), question.context.strip()
