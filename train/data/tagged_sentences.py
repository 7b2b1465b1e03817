"""Sentences of tagged words: from files of columns, from JSON lines, from the `datasets` library.

All files are UTF-8, a byte-order mark is skipped. A file whose name ends in neither .jsonl nor .json has columns: a
word a line, a blank line between sentences (CoNLL, WNUT, GermEval, UNER's .iob2).
"""

import dataclasses
import enum
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from flaxbert.text.messages import encoding_problem, quote_names, raise_problems
from flaxbert.text.tables import TableRow, read_lines, read_table
from flaxbert.text.tags import EntitySpan, TagScheme, encode_tags, parse_tag
from train.data.sources import dataset_rows, reject_split

_COLUMNS = "a word a line, its columns between tabs or blanks, a blank line between sentences"
_JSON = 'Expected: {"tokens": [...], "tags": [...]} (or "ner_tags"), or CLUENER\'s {"text": ..., "label": {...}}.'
_DOCUMENT = "-DOCSTART-"


class Separator(enum.Enum):
    """What stands between columns."""

    TAB = "tab"
    """One tab: a word may hold blanks."""
    BLANKS = "blanks"
    """One or more blanks or tabs."""


@dataclasses.dataclass(frozen=True)
class TagColumns:
    """Which columns of a file hold what, counted from 0, or from the last, -1."""

    word: int = 0
    """The word; 1 in UNER's and GermEval's own files, where a number stands first."""
    tag: int = -1
    """Its tag; 2 for UNER, and for GermEval's outer entities."""
    separator: Annotated[Separator | None, tyro.conf.EnumChoicesFromValues] = None
    """What stands between columns; a tab where the first line of a word has one."""


_FIRST_AND_LAST = TagColumns()


@dataclasses.dataclass(frozen=True)
class TaggedSentence:
    """Words, and the tag of each.

    `source` is "path:line" of the first word, from 1 as editors count, or "datasets:name:index", from 0. `left_out`
    counts entities that overlap others (see `character_spans`), for which tags have no room.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    source: str
    left_out: int = 0


def read_tagged_sentences(
    source: str | os.PathLike[str], *, columns: TagColumns = _FIRST_AND_LAST, split: str | None = None
) -> list[TaggedSentence]:
    """All sentences of a file, or of a data set: `datasets:NAME[:CONFIG]`, or its folder.

    Every tag is O, or B-, I-, E- or S- with a type; whether they follow one another as they should is not looked at.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the malformed rows are counted, the first five shown. Nothing read is executed.
    """
    where = os.fspath(source)
    path = Path(where).expanduser()
    if where.startswith("datasets:") or path.is_dir():
        return _of_records(dataset_rows(where.removeprefix("datasets:"), split, lists=True), where)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a file of columns or JSON lines, or `datasets:NAME`")
    reject_split(split, path)
    if path.suffix.lower() in (".jsonl", ".json"):
        return _of_records(list(read_table(path, name=where)), where)
    return _of_columns(list(read_lines(path, expected=_COLUMNS)), where, columns)


def _of_records(records: Sequence[TableRow], where: str) -> list[TaggedSentence]:
    sentences, problems = [], []
    for row in records:
        try:
            sentences.append(_of_record(row.source, row.require_cells()))
        except ValueError as error:
            problems.append(f"{row.source}: {error}")
    raise_problems(problems, len(records), f"{_JSON} Correct or remove these rows.")
    if not sentences:
        raise ValueError(f"{where}: no sentences. {_JSON}")
    return sentences


def _of_record(source: str, values: Mapping[str, Any]) -> TaggedSentence:
    tags = next((name for name in ("tags", "ner_tags") if name in values), None)
    if "tokens" in values and tags is not None:
        return _sentence(_strings(values, "tokens"), _strings(values, tags), source)
    if isinstance(values.get("text"), str) and isinstance(values.get("label"), dict):
        if problem := encoding_problem(values["text"]):
            raise ValueError(f"'text': {problem}")
        found, left_out = tagged_characters(values["text"], values["label"])
        return dataclasses.replace(_sentence(list(values["text"]), found, source), left_out=left_out)
    raise ValueError(f"neither 'tokens' with 'tags' nor 'text' with 'label', but {quote_names(values)}")


def _strings(values: Mapping[str, Any], name: str) -> list[str]:
    cells = values[name]
    if not isinstance(cells, list):
        raise ValueError(f"{name!r} is {cells!r:.40}, expected a list of strings")
    for i, cell in enumerate(cells):
        if not isinstance(cell, str):
            raise ValueError(f"{name!r} has {cell!r:.40} at place {i}, expected a string")
        if problem := encoding_problem(cell):
            raise ValueError(f"{name!r}, place {i}: {problem}")
    return cells


def _sentence(words: Sequence[str], tags: Sequence[str], source: str) -> TaggedSentence:
    if len(words) != len(tags):
        raise ValueError(f"{len(words)} words, but {len(tags)} tags")
    if not words:
        raise ValueError("no words")
    for tag in tags:
        parse_tag(tag)
    return TaggedSentence(tuple(words), tuple(tags), source)


def _of_columns(lines: Sequence[str], where: str, columns: TagColumns) -> list[TaggedSentence]:
    places = [n for n, line in enumerate(lines) if line.strip(" \t")]
    first = next((n for n in places if not _remark(lines[n]) and not lines[n].startswith(_DOCUMENT)), None)
    if first is None:
        raise ValueError(f"{where}: no words; expected: {_COLUMNS}")
    separator = columns.separator or (Separator.TAB if "\t" in lines[first] else Separator.BLANKS)
    head = _cells(lines[first], separator)
    _check_columns(columns, head, f"{where}:{first + 1}")
    sentences, problems, total = [], [], 0
    rows: list[tuple[int, str, str]] = []
    for n, line in enumerate([*lines, ""], start=1):
        if not line.strip(" \t") or line.startswith(_DOCUMENT):
            if rows:
                numbers, words, tags = zip(*rows, strict=True)
                sentences.append(TaggedSentence(words, tags, f"{where}:{numbers[0]}"))
            rows = []
            continue
        cells = _cells(line, separator)
        # "# O" is a word in GermEval's files; a remark has not as many columns, unless by chance.
        if _remark(line) and len(cells) != len(head):
            continue
        total += 1
        try:
            rows.append((n, *_row(line, cells, len(head), columns)))
        except ValueError as error:
            problems.append(f"{where}:{n}: {error}")
    remedy = f"Expected: {_COLUMNS}; {len(head)} of them, as on line {first + 1}. Correct these lines, or name the"
    raise_problems(
        problems, total, f"{remedy} columns: --task.columns.word, --task.columns.tag, --task.columns.separator."
    )
    return sentences


def _row(line: str, cells: Sequence[str], count: int, columns: TagColumns) -> tuple[str, str]:
    """Word and tag of a line."""
    if problem := encoding_problem(line):
        raise ValueError(problem)
    if len(cells) != count:
        raise ValueError(f"{len(cells)} columns ({quote_names(cells)}), expected {count}")
    if not cells[columns.word]:
        raise ValueError("no word")
    parse_tag(cells[columns.tag])
    return cells[columns.word], cells[columns.tag]


def _remark(line: str) -> bool:
    return re.match(r"#[ \t]+[^ \t]", line) is not None


def _cells(line: str, separator: Separator) -> list[str]:
    return line.split("\t") if separator is Separator.TAB else re.split("[ \t]+", line.strip(" \t"))


def _check_columns(columns: TagColumns, head: Sequence[str], where: str) -> None:
    count, chosen = len(head), (columns.word, columns.tag)
    if not all(-count <= number < count for number in chosen) or len({number % count for number in chosen}) < 2:
        raise ValueError(
            f"{where}: word is column {columns.word}, tag is column {columns.tag}; found {count} columns: "
            f"{quote_names(head)}. They must be two of 0 to {count - 1}, or -{count} to -1"
        )


def tagged_characters(text: str, label: Mapping[str, Any]) -> tuple[list[str], int]:
    """IOB2 tags of the characters, and how many entities were left out.

    Of entities that overlap the longest stays, of two as long the one that begins first, then the first by type.

    Args:
        text: whose every character, blanks too, is a word.
        label: {type: {surface: [[first, last], ...]}}, places of characters from 0, the last one included.

    Raises:
        ValueError: what is wrong with a span.
    """
    given = set()
    for kind, surfaces in label.items():
        if not isinstance(surfaces, dict) or not kind or any(map(str.isspace, kind)):
            raise ValueError(f"label {kind!r:.40} must be a word, with an object of surfaces and places")
        for surface, places in surfaces.items():
            if not isinstance(places, list):
                raise ValueError(f"{surface!r:.40}: places are {places!r:.40}, expected [[first, last], ...]")
            given |= {_span(text, kind, surface, place) for place in places}
    kept: list[EntitySpan] = []
    for span in sorted(given, key=lambda span: (span.start - span.end, span)):
        if all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    return encode_tags(kept, len(text), TagScheme.IOB2), len(given) - len(kept)


def _span(text: str, kind: str, surface: str, place: Any) -> EntitySpan:
    if not isinstance(place, list) or len(place) != 2 or any(type(number) is not int for number in place):
        raise ValueError(f"{surface!r:.40}: place {place!r:.40} is not [first, last]")
    first, last = place
    if not 0 <= first <= last < len(text):
        raise ValueError(f"{surface!r:.40}: place {place} lies outside the text, which has {len(text)} characters")
    if text[first : last + 1] != surface:
        raise ValueError(f"{surface!r:.40}: at {place} stands {text[first : last + 1]!r:.40}")
    return EntitySpan(first, last + 1, kind)
