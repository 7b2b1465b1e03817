"""Single segments: whole sentences as long as they fit, or text cut where it is full."""

from bisect import bisect_right
from collections.abc import Iterable

import numpy as np

from train.data.corpus.store import TokenStore
from train.data.pretraining.examples import Examples
from train.data.pretraining.next_sentence import Part, Span
from train.data.pretraining.numbers import mixed


class _Single:
    """Examples of one segment each."""

    def __init__(self, store: TokenStore, *, max_length: int):
        """Makes examples of at most `max_length` tokens, [CLS] and [SEP]s included."""
        if max_length < 3:
            raise ValueError(f"max_length is {max_length}; an example needs at least 3 tokens")
        self._store, self._room = store, max_length - 2

    def __call__(self, parts: Iterable[Part], key: int) -> Examples:
        """The examples of some documents in this order."""
        found = self._spans(parts)
        return Examples.of(found, [0] * len(found), mixed(key, np.arange(len(found))))

    def _spans(self, parts: Iterable[Part]) -> list[list[Span]]:
        raise NotImplementedError


class FullSentences(_Single):
    """Sentences one after another, over the ends of documents too, as long as they fit (RoBERTa's FULL-SENTENCES).

    Between two documents stands [SEP]. Only a sentence that is longer than an example is cut.
    """

    def _spans(self, parts: Iterable[Part]) -> list[list[Span]]:
        found: list[list[Span]] = [[]]
        left = self._room
        for _, first, last in parts:
            starts = self._store.sentences[first : last + 1].tolist()
            place, count = 0, last - first
            while place < count:
                # As many sentences as there is room for, and for their [SEP]; the first [SEP] is in `_room`.
                room = left - (1 if found[-1] else 0)
                end = bisect_right(starts, starts[place] + room, place) - 1
                if end > place:
                    found[-1].append((starts[place], starts[end]))
                    left = room - (starts[end] - starts[place])
                    place = end
                elif found[-1]:
                    found.append([])
                    left = self._room
                else:
                    found[-1].append((starts[place], starts[place] + self._room))
                    starts[place] += self._room
                    left = 0
        return found if found[-1] else found[:-1]


class Stream(_Single):
    """Documents one after another, [SEP] between them, cut wherever an example is full: next to nothing is padded.

    An example is as long as it may be, or one token less where a document ends.
    """

    def _spans(self, parts: Iterable[Part]) -> list[list[Span]]:
        found: list[list[Span]] = [[]]
        left = self._room
        for _, first, last in parts:
            start, end = self._store.sentences[[first, last]].tolist()
            if found[-1]:
                left -= 1  # its [SEP]
            while start < end:
                if left <= 0:
                    found.append([])
                    left = self._room
                count = min(left, end - start)
                found[-1].append((start, start + count))
                start, left = start + count, left - count
        return found
