"""Entity tags: tag schemes, entities to tags, and tags to entities.

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
    """Tag prefixes that mark where entities begin and end."""

    IOB1 = "iob1"
    """I- everywhere; B- only on the first word of an entity directly after another of its type (CoNLL-2003's files)."""
    IOB2 = "iob2"
    """B- on the first word of every entity, I- on the others. Also called BIO."""
    BIOES = "bioes"
    """IOB2 with E- on the last word, and S- on the word of an entity of one word. Also called IOBES."""


class EntitySpan(NamedTuple):
    """Entity of the words `start` to `end` - 1, with its type."""

    start: int
    end: int
    type: str


class ParsedTag(NamedTuple):
    """Prefix and type of a tag; "O" and an empty type for O."""

    prefix: str
    type: str


_OUTSIDE = ParsedTag(OUTSIDE, "")


@functools.lru_cache(maxsize=1024)
def parse_tag(tag: str) -> ParsedTag:
    """Split a tag into prefix and type.

    Raises:
        ValueError: the tag is neither O nor one of B-, I-, E-, S- with a type.
    """
    if tag == OUTSIDE:
        return _OUTSIDE
    match = _TAG.fullmatch(tag)
    if match is None:
        raise ValueError(f"{tag[:80]!r} is no tag; allowed: O, and B-, I-, E- or S- with a type after it, as in B-PER")
    return ParsedTag(match[1], match[2])


def entity_spans(tags: Sequence[str]) -> list[EntitySpan]:
    """Return the entities of a sentence, read leniently: an I- or E- that continues no entity begins one.

    Correct for all three schemes.

    Raises:
        ValueError: from `parse_tag`.
    """
    spans, start, previous = [], 0, _OUTSIDE
    for i, tag in enumerate([*map(parse_tag, tags), _OUTSIDE]):
        begins = tag.prefix in "BS" or previous.prefix in "OES" or tag.type != previous.type
        if begins or tag.prefix == OUTSIDE:
            if previous.prefix != OUTSIDE:
                spans.append(EntitySpan(start, i, previous.type))
            start = i
        previous = tag
    return spans


def strict_entity_spans(tags: Sequence[str], scheme: TagScheme) -> list[EntitySpan]:
    """Return the entities of a sentence that are tagged as the scheme requires; other tags are ignored.

    Raises:
        ValueError: from `parse_tag`, or for a prefix that the scheme does not have.
    """
    parsed = [_OUTSIDE, *map(parse_tag, tags), _OUTSIDE]
    allowed = "OBIES" if scheme is TagScheme.BIOES else "OBI"
    for tag in parsed:
        if tag.prefix not in allowed:
            raise ValueError(
                f"there is a tag with {tag.prefix}-, which {scheme.name} does not have: {' '.join(tags)[:200]}"
            )
    spans, i = [], 1
    while i < len(parsed):
        start, kind = i, parsed[i].type
        i += 1
        if not _starts(parsed[start - 1], parsed[start], scheme):
            continue
        while parsed[i - 1].prefix in "BI" and parsed[i].prefix in "IE" and parsed[i].type == kind:
            i += 1
        if _ends(parsed[i - 1], parsed[i], scheme):
            spans.append(EntitySpan(start - 1, i - 1, kind))
    return spans


def _starts(previous: ParsedTag, tag: ParsedTag, scheme: TagScheme) -> bool:
    if scheme is not TagScheme.IOB1:
        return tag.prefix in "BS"
    if tag.prefix == "B":
        return tag.type == previous.type
    return tag.prefix == "I" and (previous.prefix in "OB" or tag.type != previous.type)


def _ends(last: ParsedTag, following: ParsedTag, scheme: TagScheme) -> bool:
    if scheme is TagScheme.BIOES:
        return last.prefix in "ES"
    if scheme is TagScheme.IOB2:
        return True
    # In seqeval's table for IOB1 a B- before the B- of another type, which IOB1 does not have there, ends no entity.
    return (last.prefix, following.prefix) != ("B", "B") or last.type == following.type


def encode_tags(entities: Iterable[EntitySpan], length: int, scheme: TagScheme) -> list[str]:
    """Return the tags of a sentence of `length` words that contains these entities.

    Raises:
        ValueError: an entity is empty, overlaps another, or exceeds the sentence.
    """
    tags, previous = [OUTSIDE] * length, EntitySpan(0, 0, "")
    for entity in sorted(entities):
        if not previous.end <= entity.start < entity.end <= length:
            raise ValueError(f"{entity} does not fit into {length} words, behind {previous}")
        adjacent = previous.end == entity.start and previous.type == entity.type
        first = "I" if scheme is TagScheme.IOB1 and not adjacent else "B"
        prefixes = [first] + ["I"] * (entity.end - entity.start - 1)
        if scheme is TagScheme.BIOES:
            prefixes[-1] = "E" if len(prefixes) > 1 else "S"
        tags[entity.start : entity.end] = [f"{prefix}-{entity.type}" for prefix in prefixes]
        previous = entity
    return tags


def repair_tags(tags: Sequence[str], scheme: TagScheme) -> list[str]:
    """Return valid tags of `scheme` for the entities that `entity_spans` reads from `tags`.

    Tags that are valid in the scheme stay as they are; `tags` may be of any scheme.
    """
    return encode_tags(entity_spans(tags), len(tags), scheme)


def detect_scheme(sentences: Iterable[Sequence[str]]) -> TagScheme:
    """Return the scheme of tagged sentences; IOB2 if the tags allow several.

    E- or S- means BIOES. B- where IOB1 has none means IOB2; an I- that continues no entity is then an error. Such an I-
    without such a B- means IOB1.
    """
    stray_inside = False
    needless_begin = False
    for tags in sentences:
        previous = _OUTSIDE
        for tag in map(parse_tag, tags):
            if tag.prefix in "ES":
                return TagScheme.BIOES
            needless_begin |= tag.prefix == "B" and tag.type != previous.type
            stray_inside |= tag.prefix == "I" and tag.type != previous.type
            previous = tag
    return TagScheme.IOB1 if stray_inside and not needless_begin else TagScheme.IOB2
