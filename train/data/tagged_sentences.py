"""Sentences of tagged words: from files of columns, from JSON lines, from the `datasets` library.

All files are UTF-8; a byte-order mark is skipped. A file whose extension is neither .jsonl nor .json has columns: a
word a line, a blank line between sentences (CoNLL, WNUT, GermEval, UNER's .iob2).
"""

import dataclasses
import enum
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from flaxbert.text.messages import encoding_problem, list_cell, quote_names, raise_problems
from flaxbert.text.tables import TableRow, read_lines, read_table
from flaxbert.text.tags import EntitySpan, TagScheme, encode_tags, parse_tag
from flaxbert.text.word_columns import DOCUMENT_MARK, is_remark, split_columns
from train.data.bad_rows import SKIP_REMEDY, BadRow, BadRowList, BadRows, ReadRows
from train.data.sources import SourceRows, dataset_rows, is_dataset, parse_rows, reject_split

_COLUMNS_EXPECTED = "a word a line, its columns between tabs or blanks, a blank line between sentences"
_JSON_EXPECTED = (
    'Expected: {"tokens": [...], "tags": [...]} (or "ner_tags"), or CLUENER\'s {"text": ..., "label": {...}}.'
)
# Columns of lists in common data sets, in lower case, the preferred ones first.
_WORD_COLUMNS, _TAG_COLUMNS = ("tokens", "words"), ("tags", "ner_tags", "labels", "ner")
_OTHER_PREFIXES = {"L": "E", "U": "S", "M": "I"}  # of BILOU and BMES


class Separator(enum.Enum):
    """The separator of columns."""

    TAB = "tab"
    """One tab: a word may hold blanks."""
    BLANKS = "blanks"
    """One or more blanks or tabs."""


@dataclasses.dataclass(frozen=True)
class TagColumns:
    """The columns of a file, counted from 0, or from the last, -1."""

    word: int = 0
    """The word; 1 in UNER's and GermEval's own files, where a number stands first."""
    tag: int = -1
    """The tag of the word; 2 for UNER, and for GermEval's outer entities."""
    separator: Annotated[Separator | None, tyro.conf.EnumChoicesFromValues] = None
    """The separator of columns; a tab if the first line of a word has one."""


_FIRST_AND_LAST = TagColumns()


@dataclasses.dataclass(frozen=True)
class TaggedSentence:
    """Words, and the tag of each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]  # O, or B-, I-, E- or S- with a type
    source: str  # "path:line" of the first word, lines counted from 1, or "datasets:name:index", counted from 0
    left_out: int = 0  # entities that overlap others (see `character_tags`) and therefore have no tags


def read_tagged_sentences(
    source: str | os.PathLike[str],
    *,
    columns: TagColumns = _FIRST_AND_LAST,
    split: str | None = None,
    labels: Sequence[str] = (),
    bad_rows: BadRows = BadRows.ERROR,
) -> ReadRows[TaggedSentence]:
    """Read all sentences of a file or data set; the form of each tag is checked, but not their order.

    `labels` are the tags by their numbers, for lists of numbers. In files of columns a sentence with a malformed line
    is a bad row.
    """
    name = os.fspath(source)
    path = Path(name).expanduser()
    if is_dataset(name):
        found = dataset_rows(name, split, lists=True)
    elif not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a file of columns or JSON lines, or `datasets:NAME`")
    else:
        reject_split(split, path)
        if path.suffix.lower() == ".csv":
            raise ValueError(f"{path}: a .csv is not read; expected: {_COLUMNS_EXPECTED}, or .jsonl. {_JSON_EXPECTED}")
        if path.suffix.lower() not in (".jsonl", ".json"):
            return _from_columns(list(read_lines(path, expected=_COLUMNS_EXPECTED)), name, columns, bad_rows)
        found = SourceRows(list(read_table(path, name=name)), _JSON_EXPECTED, {})
    return _from_rows(found, name, labels, bad_rows)


def character_tags(text: str, label: Mapping[str, object]) -> tuple[list[str], int]:
    """Convert CLUENER's entities to (IOB2 tags of the characters, number of entities that are left out).

    Of entities that overlap the longest is kept, of equally long ones the first, then the first by type.

    Args:
        text: each of its characters, blanks too, is a word.
        label: {type: {surface: [[first, last], ...]}}, offsets of characters from 0, the last one included.

    Raises:
        ValueError: an entity is malformed, or does not stand at its offsets.
    """
    spans = set()
    for kind, surfaces in label.items():
        if not isinstance(surfaces, dict) or not kind or any(map(str.isspace, kind)):
            raise ValueError(f"label {kind!r:.40} must be a word, with an object of surfaces and offsets")
        for surface, offsets in surfaces.items():
            if not isinstance(offsets, list):
                raise ValueError(f"{surface!r:.40}: offsets are {offsets!r:.40}, expected [[first, last], ...]")
            spans |= {_character_span(text, kind, surface, pair) for pair in offsets}
    kept: list[EntitySpan] = []
    for span in sorted(spans, key=lambda span: (span.start - span.end, span)):
        if all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    return encode_tags(kept, len(text), TagScheme.IOB2), len(spans) - len(kept)


def _character_span(text: str, kind: str, surface: str, offsets: object) -> EntitySpan:
    if not isinstance(offsets, list) or len(offsets) != 2 or any(type(number) is not int for number in offsets):
        raise ValueError(f"{surface!r:.40}: offsets {offsets!r:.40} are not [first, last]")
    first, last = offsets
    if not 0 <= first <= last < len(text):
        raise ValueError(f"{surface!r:.40}: offsets {offsets} lie outside the text, which has {len(text)} characters")
    if text[first : last + 1] != surface:
        raise ValueError(f"{surface!r:.40}: at {offsets} stands {text[first : last + 1]!r:.40}")
    return EntitySpan(first, last + 1, kind)


def _from_rows(found: SourceRows, name: str, labels: Sequence[str], bad_rows: BadRows) -> ReadRows[TaggedSentence]:
    def parse(row: TableRow) -> TaggedSentence:
        cells = row.require_cells()
        words, tags = _list_columns(cells)
        if words and tags:
            return _sentence(_strings(cells[words], words), _tags(cells[tags], tags, labels), row.source)
        text, label = cells.get("text"), cells.get("label")
        if isinstance(text, str) and isinstance(label, dict):
            if problem := encoding_problem(text):
                raise ValueError(f"'text': {problem}")
            own, left_out = character_tags(text, label)
            return dataclasses.replace(_sentence(list(text), own, row.source), left_out=left_out)
        raise ValueError(f"neither 'tokens' with 'tags' nor 'text' with 'label', but {quote_names(cells)}")

    if not found.rows:
        raise ValueError(f"{name}: no sentences. {_JSON_EXPECTED}")
    bad = BadRowList(bad_rows, len(found.rows))
    remedy = f"{_JSON_EXPECTED} Correct or remove these rows, {SKIP_REMEDY}"
    sentences = parse_rows(found.rows, parse, bad, remedy)
    words, tags = _list_columns(found.columns)
    used = {"words": words, "tags": tags} if words and tags else {"text": "text", "tags": "label"}
    classes = found.classes.get(used["tags"], ())
    return ReadRows(sentences, columns=used, classes=classes, bad=bad)


def _list_columns(names: Collection[str]) -> tuple[str, str]:
    """Return the columns of words and of tags; "" for one that is not there."""
    words = next((name for name in _WORD_COLUMNS if name in names), "")
    return words, next((name for name in _TAG_COLUMNS if name in names), "")


def _tags(values: object, name: str, labels: Sequence[str]) -> Sequence[str]:
    """Return tags, given as strings or as their numbers."""
    values = list_cell(values) or values
    if not isinstance(values, list) or not any(isinstance(value, int) for value in values):
        return _strings(values, name)
    if not labels:
        raise ValueError(f"{name!r} holds numbers; name all tags in the order of their numbers: --task.labels")
    tags, last = [], len(labels) - 1
    for value in values:
        if not isinstance(value, int) or not 0 <= value <= last:
            raise ValueError(f"{name!r} holds {value!r:.40}; the numbers of {len(labels)} tags are 0 to {last}")
        tags.append(labels[value])
    return tags


def _strings(values: object, name: str) -> list[str]:
    listed = list_cell(values)
    if listed is None:
        raise ValueError(f"{name!r} is {values!r:.40}, expected a list of strings")
    words = []
    for i, value in enumerate(listed):
        if not isinstance(value, str):
            raise ValueError(f"{name!r} has {value!r:.40} at index {i}, expected a string")
        if problem := encoding_problem(value):
            raise ValueError(f"{name!r}, index {i}: {problem}")
        words.append(value)
    return words


def _sentence(words: Sequence[str], tags: Sequence[str], source: str) -> TaggedSentence:
    if len(words) != len(tags):
        raise ValueError(f"{len(words)} words, but {len(tags)} tags")
    if not words:
        raise ValueError("no words")
    return TaggedSentence(tuple(words), tuple(map(_valid_tag, tags)), source)


def _valid_tag(tag: str) -> str:
    """Return a tag with the prefixes of BIOES, also for those of BILOU and BMES; raise a ValueError for others."""
    if tag[1:2] == "-" and tag[0] in _OTHER_PREFIXES:
        tag = _OTHER_PREFIXES[tag[0]] + tag[1:]
    parse_tag(tag)
    return tag


def _from_columns(lines: Sequence[str], name: str, columns: TagColumns, bad_rows: BadRows) -> ReadRows[TaggedSentence]:
    filled = (n for n, line in enumerate(lines) if line.strip(" \t"))
    first = next((n for n in filled if not is_remark(lines[n]) and not lines[n].startswith(DOCUMENT_MARK)), None)
    if first is None:
        raise ValueError(f"{name}: no words; expected: {_COLUMNS_EXPECTED}")
    separator = columns.separator or (Separator.TAB if "\t" in lines[first] else Separator.BLANKS)
    head = split_columns(lines[first], at_tabs=separator is Separator.TAB)
    _check_columns(columns, head, f"{name}:{first + 1}")
    sentences, bad = [], []
    bad_lines: list[str] = []
    word_lines = 0
    words: list[tuple[str, str]] = []  # with their tags
    begin: int | None = None  # the first line of the sentence; None between sentences
    problem: BadRow | None = None  # of the sentence
    for n, line in enumerate([*lines, ""], start=1):
        if not line.strip(" \t") or line.startswith(DOCUMENT_MARK):
            if problem is not None:
                bad.append(problem)
            elif begin is not None:
                sentences.append(TaggedSentence(*zip(*words, strict=True), source=f"{name}:{begin}"))
            words, begin, problem = [], None, None
            continue
        cells = split_columns(line, at_tabs=separator is Separator.TAB)
        # "# O" is a word in GermEval's files; a remark rarely has as many columns.
        if is_remark(line) and len(cells) != len(head):
            continue
        word_lines += 1
        begin = begin or n
        try:
            words.append(_tagged_word(line, cells, len(head), columns))
        except ValueError as error:
            bad_lines.append(f"{name}:{n}: {error}")
            problem = problem or BadRow(f"{name}:{n}", str(error))
    remedy = f"Expected: {_COLUMNS_EXPECTED}; {len(head)} of them, as on line {first + 1}. Correct these lines, name"
    flags = "--task.columns.word, --task.columns.tag, --task.columns.separator"
    remedy += f" the columns: {flags}, {SKIP_REMEDY}"
    if bad_rows is BadRows.ERROR:
        raise_problems(bad_lines, word_lines, remedy)
    found = BadRowList(bad_rows, len(sentences) + len(bad))
    found.add(bad, remedy)
    used = {"word": columns.word % len(head), "tag": columns.tag % len(head)}
    parts = {part: f"{number} of {len(head)}" for part, number in used.items()}
    return ReadRows(sentences, columns=parts, bad=found)


def _tagged_word(line: str, cells: Sequence[str], count: int, columns: TagColumns) -> tuple[str, str]:
    if problem := encoding_problem(line):
        raise ValueError(problem)
    if len(cells) != count:
        raise ValueError(f"{len(cells)} columns ({quote_names(cells)}), expected {count}")
    if not cells[columns.word]:
        raise ValueError("no word")
    return cells[columns.word], _valid_tag(cells[columns.tag].strip(" "))


def _check_columns(columns: TagColumns, head: Sequence[str], source: str) -> None:
    count, chosen = len(head), (columns.word, columns.tag)
    if count == 1:
        raise ValueError(
            f"{source}: one column, {quote_names(head)}, so words without tags; expected: {_COLUMNS_EXPECTED}. "
            "`flaxbert predict tag` gives tags to texts"
        )
    if not all(-count <= number < count for number in chosen) or len({number % count for number in chosen}) < 2:
        raise ValueError(
            f"{source}: word is column {columns.word}, tag is column {columns.tag}; found {count} columns: "
            f"{quote_names(head)}. They must be two of 0 to {count - 1}, or -{count} to -1"
        )
