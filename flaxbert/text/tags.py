"""Tag schemes: a tag for every word of a sentence, and the entities that the tags mean.

Two ways of reading tags are in use, and both give the same entities as seqeval 1.2. `entity_spans` is its default mode
(that of CoNLL's script conlleval): every tag except O belongs to an entity, wherever it stands. `strict_entity_spans`
is its strict mode: only tags that the scheme allows there make an entity.
"""

import enum
import functools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

OUTSIDE = "O"
_TAG = re.compile(r"([BIES])-(\S+)")


class TagScheme(enum.Enum):
    """How tags mark where entities begin and end."""

    IOB1 = "iob1"
    """I- everywhere, B- only on the first word of an entity right after another of its type (CoNLL-2003's files)."""
    IOB2 = "iob2"
    """B- on the first word of every entity, I- on the others. Also called BIO."""
    BIOES = "bioes"
    """IOB2 with E- on the last word, and S- on the word of an entity of one. Also called IOBES."""


class EntitySpan(NamedTuple):
    """An entity: its words from `start` up to, not including, `end`, and its type."""

    start: int
    end: int
    type: str


@functools.lru_cache(maxsize=1024)
def parse_tag(tag: str) -> tuple[str, str]:
    """Prefix and type of a tag; those of O are "O" and "".

    Raises:
        ValueError: neither O nor one of B-, I-, E-, S- with a type.
    """
    if tag == OUTSIDE:
        return OUTSIDE, ""
    found = _TAG.fullmatch(tag)
    if found is None:
        raise ValueError(f"{tag[:80]!r} is no tag; allowed: O, and B-, I-, E- or S- with a type after it, as in B-PER")
    return found[1], found[2]


def entity_spans(tags: Sequence[str]) -> list[EntitySpan]:
    """The entities of a sentence, read leniently: an I- or E- that continues nothing begins an entity.

    Right for all three schemes. Raises ValueError as `parse_tag`.
    """
    found, start, before = [], 0, (OUTSIDE, "")
    for i, (prefix, kind) in enumerate([*map(parse_tag, tags), (OUTSIDE, "")]):
        begins = prefix in "BS" or before[0] in "OES" or kind != before[1]
        if begins or prefix == OUTSIDE:
            if before[0] != OUTSIDE:
                found.append(EntitySpan(start, i, before[1]))
            start = i
        before = prefix, kind
    return found


def strict_entity_spans(tags: Sequence[str], scheme: TagScheme) -> list[EntitySpan]:
    """The entities of a sentence that are tagged as the scheme wants; tags that are not mean nothing.

    Raises:
        ValueError: as `parse_tag`, and for a prefix that the scheme does not have.
    """
    parsed = [(OUTSIDE, ""), *map(parse_tag, tags), (OUTSIDE, "")]
    allowed = "OBIES" if scheme is TagScheme.BIOES else "OBI"
    for prefix, _ in parsed:
        if prefix not in allowed:
            raise ValueError(
                f"there is a tag with {prefix}-, which {scheme.name} does not have: {' '.join(tags)[:200]}"
            )
    found, i = [], 1
    while i < len(parsed):
        start, kind = i, parsed[i][1]
        i += 1
        if not _starts(parsed[start - 1], parsed[start], scheme):
            continue
        while parsed[i - 1][0] in "BI" and parsed[i][0] in "IE" and parsed[i][1] == kind:
            i += 1
        if _ends(parsed[i - 1], parsed[i], scheme):
            found.append(EntitySpan(start - 1, i - 1, kind))
    return found


def _starts(before: tuple[str, str], here: tuple[str, str], scheme: TagScheme) -> bool:
    if scheme is not TagScheme.IOB1:
        return here[0] in "BS"
    if here[0] == "B":
        return here[1] == before[1]
    return here[0] == "I" and (before[0] in "OB" or here[1] != before[1])


def _ends(last: tuple[str, str], after: tuple[str, str], scheme: TagScheme) -> bool:
    if scheme is TagScheme.BIOES:
        return last[0] in "ES"
    # In seqeval's table for IOB1 a B- before the B- of another type, which IOB1 does not have there, ends nothing.
    return scheme is TagScheme.IOB2 or (last[0], after[0]) != ("B", "B") or last[1] == after[1]


def encode_tags(entities: Iterable[EntitySpan], length: int, scheme: TagScheme) -> list[str]:
    """The tags of a sentence of `length` words in which these entities are.

    Raises:
        ValueError: an entity is empty, overlaps another, or goes beyond the sentence.
    """
    tags, before = [OUTSIDE] * length, EntitySpan(0, 0, "")
    for entity in sorted(entities):
        if not before.end <= entity.start < entity.end <= length:
            raise ValueError(f"{entity} does not fit into {length} words, behind {before}")
        touches = before.end == entity.start and before.type == entity.type
        first = "I" if scheme is TagScheme.IOB1 and not touches else "B"
        prefixes = [first] + ["I"] * (entity.end - entity.start - 1)
        if scheme is TagScheme.BIOES:
            prefixes[-1] = "E" if len(prefixes) > 1 else "S"
        tags[entity.start : entity.end] = [f"{prefix}-{entity.type}" for prefix in prefixes]
        before = entity
    return tags


def repair_tags(tags: Sequence[str], scheme: TagScheme) -> list[str]:
    """Tags of the scheme that mean what `tags`, of any scheme and read leniently, mean; valid tags stay as they are."""
    return encode_tags(entity_spans(tags), len(tags), scheme)


def detect_scheme(sentences: Iterable[Sequence[str]]) -> TagScheme:
    """The scheme in which sentences are tagged; IOB2 where nothing tells.

    An E- or S- tells BIOES. A B- where IOB1 has none tells IOB2, in which an I- that continues nothing is an error,
    then; without such a B-, it tells IOB1.
    """
    stray = False
    needless = False
    for tags in sentences:
        before = (OUTSIDE, "")
        for prefix, kind in map(parse_tag, tags):
            if prefix in "ES":
                return TagScheme.BIOES
            needless |= prefix == "B" and kind != before[1]
            stray |= prefix == "I" and kind != before[1]
            before = prefix, kind
    return TagScheme.IOB1 if stray and not needless else TagScheme.IOB2
