"""Entities as spans of characters, as CLUENER has them, turned into a tag for every character."""

from collections.abc import Mapping
from typing import Any

from flaxbert.text.tags import EntitySpan, TagScheme, encode_tags


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
