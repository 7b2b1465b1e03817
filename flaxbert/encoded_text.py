"""Encoded texts and pairs of texts: their special tokens, and their truncation."""

from collections.abc import Sequence
from typing import NamedTuple


class EncodedText(NamedTuple):
    """The ids and token types of a text or of a pair of texts, with special tokens."""

    ids: list[int]
    type_ids: list[int]


class PairTemplate(NamedTuple):
    """The special tokens around a pair of texts, and the token types of both texts."""

    before: EncodedText
    between: EncodedText
    after: EncodedText
    first_type: int
    second_type: int

    @property
    def size(self) -> int:
        """Number of special tokens; 3 for BERT."""
        return len(self.before.ids) + len(self.between.ids) + len(self.after.ids)


def join_pair(template: PairTemplate, first: Sequence[int], second: Sequence[int]) -> EncodedText:
    """Put the special tokens of a template around the pieces of two texts."""
    before, between, after = template.before, template.between, template.after
    types = [
        *before.type_ids,
        *[template.first_type] * len(first),
        *between.type_ids,
        *[template.second_type] * len(second),
        *after.type_ids,
    ]
    return EncodedText([*before.ids, *first, *between.ids, *second, *after.ids], types)


def truncate(ids: Sequence[int], length: int, *, side: str) -> Sequence[int]:
    """Return `length` ids, cut off at the side "right" or "left"."""
    return ids[:length] if side == "right" else ids[len(ids) - length :]


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Return the lengths of two texts that are cut to `room` tokens together, as the `tokenizers` library cuts them.

    Only the longer text is cut as long as it stays the longer one. If both are cut, each gets half, and of an odd
    number the longer one (the second of two equal ones) gets the larger half.
    """
    if first + second <= room:
        return first, second
    shorter, longer = sorted((first, second))
    if shorter <= room and max(shorter, room - shorter) + shorter <= room:
        longer = room - shorter
    else:
        shorter, longer = room // 2, room - room // 2
    return (longer, shorter) if first > second else (shorter, longer)
