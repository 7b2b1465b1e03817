"""Paragraphs cut into sentences, by rule."""

import re
from collections.abc import Iterator

# Marks with the quotes and brackets that close after them, and blanks. It takes all there are and never goes back: else
# a line of full stops would take hours.
_END = re.compile(r"[.!?…؟।。！？]++[\"'’”»)\]」』）》]*+(\s*+)")
_NEEDS_NO_BLANK = "。！？"
_OPENING = "\"'‘“«(["
# What a full stop after it does not end a sentence, whatever follows; and what it does not before a number.
_TITLES = frozenset(
    ["mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "rev", "hon", "gen", "col", "capt", "lt", "sgt", "gov", "sen"]
    + ["rep", "pres", "mt", "ft", "vs", "cf", "al", "eg", "ie", "viz", "ed", "eds", "dept", "inc", "ltd", "co", "corp"]
    + ["bros", "univ", "ph.d"]
)
_BEFORE_NUMBERS = frozenset(
    ["approx", "ca", "est", "no", "nos", "vol", "vols", "p", "pp", "fig", "figs", "art", "jan", "feb", "mar", "apr"]
    + ["jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec"]
)
_INITIALS = re.compile(r"(?:[a-z]\.)+[a-z]")  # u.s, e.g


def split_sentences(paragraph: str) -> Iterator[str]:
    """The sentences of a paragraph, blanks around them left out; at least one of a paragraph that is not blank.

    A sentence ends with . ! ? … ؟ । before a blank that no small letter follows, but for full stops after initials and
    common English abbreviations; and with 。！？, whatever follows. Where the text of a language without such marks is
    to be cut, give it one sentence a line.
    """
    start = 0
    for found in _END.finditer(paragraph):
        end = found.end()
        if end < len(paragraph) and (found[1] or found[0][0] in _NEEDS_NO_BLANK) and _ends(paragraph, start, found):
            yield paragraph[start:end].strip()
            start = end
    if rest := paragraph[start:].strip():
        yield rest


def _ends(text: str, start: int, found: re.Match[str]) -> bool:
    mark = text[found.start()]
    if mark in _NEEDS_NO_BLANK:
        return True
    if text[found.end() : found.end() + 4].lstrip(_OPENING)[:1].islower():
        return False
    if mark != "." or not text[found.start() + 1].isspace():
        return True
    before = text[max(start, found.start() - 20) : found.start()]
    word = before[before.rfind(" ") + 1 :].lstrip(_OPENING)
    if len(word) == 1 and word.isupper():
        return False
    if len(word) > 6:
        return True
    word = word.lower()
    if word in _BEFORE_NUMBERS:
        return not text[found.end()].isdigit()
    return not (word in _TITLES or ("." in word and _INITIALS.fullmatch(word)))
