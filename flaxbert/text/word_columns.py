"""Files of a word a line, with its tag and others in columns, and a blank line between sentences (CoNLL)."""

import dataclasses
import re
from collections.abc import Iterator, Sequence

from flaxbert.text.messages import encoding_problem

DOCUMENT_MARK = "-DOCSTART-"
_TAG = re.compile(r"O|[BIESLUM]-\S+")  # L, U and M of BILOU and BMES


@dataclasses.dataclass(frozen=True)
class WordSentence:
    """Words of a sentence, the line of the first one, and why they cannot be read; None if they can."""

    line: int
    words: tuple[str, ...]
    problem: str | None


def is_remark(line: str) -> bool:
    """Return whether a line begins with "# " and a text, or marks a document of CoNLL-2012, as remarks do."""
    return re.match(r"#[ \t]+[^ \t]|#(begin|end) document", line) is not None


def split_columns(line: str, *, at_tabs: bool) -> list[str]:
    """Split a line at each tab, or at one or more blanks or tabs."""
    return line.split("\t") if at_tabs else re.split("[ \t]+", line.strip(" \t"))


def has_tag_column(lines: Sequence[str]) -> bool:
    """Return whether some column holds a tag (O, B-PER, ...) in every line that has columns."""
    filled = [line for line in lines if _is_word_line(line)]
    tags = None
    for line in filled:
        cells = split_columns(line, at_tabs="\t" in filled[0])
        own = {index for index, cell in enumerate(cells) if _TAG.fullmatch(cell)}
        tags = own if tags is None else tags & own
    return bool(tags)


def read_words(lines: Sequence[str], column: int) -> Iterator[WordSentence]:
    """Yield the words of each sentence; `column` is counted from 0."""
    head = next((line for line in lines if _is_word_line(line)), "")
    at_tabs = "\t" in head
    count = len(split_columns(head, at_tabs=at_tabs))
    words, begin, problem = [], 0, None
    for number, line in enumerate([*lines, ""], 1):
        if not line.strip(" \t") or line.startswith(DOCUMENT_MARK):
            if words:
                yield WordSentence(begin, tuple(words), problem)
            words, problem = [], None
            continue
        cells = split_columns(line, at_tabs=at_tabs)
        # "# O" is a word in GermEval's files; a remark rarely has as many columns.
        if is_remark(line) and len(cells) != count:
            continue
        begin = begin if words else number
        if len(cells) != count or column >= count or not cells[column].strip():
            found = f"no word in column {column}, counted from 0; {len(cells)} columns, line {number}"
            problem = problem or encoding_problem(line) or found
        words.append(cells[min(column, len(cells) - 1)])


def _is_word_line(line: str) -> bool:
    return bool(line.strip(" \t")) and not is_remark(line) and not line.startswith(DOCUMENT_MARK)
