"""Pairs of segments, half of them strangers (create_pretraining_data.py of google-research/bert)."""

import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterable

import numpy as np

from train.data.corpus.store import TokenStore
from train.data.pretraining.examples import FOLLOWS, RANDOM, PretrainingExamples, mixed

TokenRange = tuple[int, int]
DocumentSpan = tuple[int, int, int]
"""A document, or a part of one: its number, its first sentence and one past its last."""


class NextSentencePairs:
    """Makes pairs of at most `max_length` tokens, [CLS] and [SEP]s included."""

    def __init__(self, store: TokenStore, documents: np.ndarray, *, max_length: int, short: float):
        """Draws strangers from `documents` alone; `short` is the share of documents cut into shorter pairs.

        Raises:
            ValueError: fewer than two documents, or no room for two tokens.
        """
        if len(documents) < 2:
            raise ValueError(
                "next-sentence prediction takes strangers from other documents, and there is only one to train on; "
                "put blank lines between documents, or train without it"
            )
        if max_length < 5:
            raise ValueError(f"max_length is {max_length}; a pair needs at least 5 tokens")
        self._store, self._documents = store, documents
        self._room, self._short = max_length - 3, short

    def __call__(self, parts: Iterable[DocumentSpan], key: int) -> PretrainingExamples:
        """The pairs of some documents, or parts of documents; chance is a function of the key alone.

        As in Google's code: sentences are gathered up to a target length (that of the example; for a share `short` of
        documents a shorter one) and cut at a random place; the second half is replaced, for every other pair and
        wherever there is one sentence only, by sentences of another document from a random one on, and then goes into
        the next pair. What is too long loses tokens from either end of the longer segment.
        """
        chance = random.Random(key)
        pairs: list[tuple[TokenRange, TokenRange]] = []
        labels: list[int] = []
        for part in parts:
            self._add_pairs(part, chance, pairs, labels)
        return PretrainingExamples.of(pairs, labels, mixed(key, np.arange(len(pairs))))

    def _add_pairs(
        self, part: DocumentSpan, chance: random.Random, pairs: list[tuple[TokenRange, TokenRange]], labels: list[int]
    ) -> None:
        document, first, last = part
        starts = self._store.sentences[first : last + 1].tolist()
        count, target = last - first, self._room
        if chance.random() < self._short:
            target = _whole(chance, 2, self._room)
        place = 0
        while place < count:
            end = min(bisect_left(starts, starts[place] + target, place + 1), count)
            cut = place + (1 if end - place == 1 else _whole(chance, 1, end - place - 1))
            ours = (starts[place], starts[cut])
            if end - place == 1 or chance.random() < 0.5:
                pair = ours, self._stranger(document, target - (ours[1] - ours[0]), chance)
                labels.append(RANDOM)
                place = cut
            else:
                pair = ours, (starts[cut], starts[end])
                labels.append(FOLLOWS)
                place = end
            pairs.append(_truncated(*pair, self._room, chance))

    def _stranger(self, document: int, wanted: int, chance: random.Random) -> TokenRange:
        """Sentences of another document, from a random one on, until they have as many tokens as wanted."""
        while True:
            other = int(self._documents[_whole(chance, 0, len(self._documents) - 1)])
            if other != document:
                break
        first, last = self._store.documents[other : other + 2].tolist()
        begin = _whole(chance, first, last - 1)
        starts = self._store.sentences[begin : min(last, begin + max(wanted, 1)) + 1].tolist()
        return starts[0], starts[min(bisect_left(starts, starts[0] + wanted, 1), len(starts) - 1)]


def _whole(chance: random.Random, lowest: int, highest: int) -> int:
    """A whole number, both ends included. Of `random`'s methods this one alone is promised never to change."""
    return lowest + int(chance.random() * (highest - lowest + 1))


def _truncated(a: TokenRange, b: TokenRange, room: int, chance: random.Random) -> tuple[TokenRange, TokenRange]:
    """One token after another from the longer segment (from the second, where both are as long), at either end."""
    too_many = (a[1] - a[0]) + (b[1] - b[0]) - room
    if too_many <= 0:
        return a, b
    difference = (a[1] - a[0]) - (b[1] - b[0])
    first = min(too_many, abs(difference))
    rest = too_many - first
    from_a = (first if difference > 0 else 0) + rest // 2
    return _shortened(a, from_a, chance), _shortened(b, too_many - from_a, chance)


def _shortened(span: TokenRange, count: int, chance: random.Random) -> TokenRange:
    front = sum(chance.random() < 0.5 for _ in range(count))
    return span[0] + front, span[1] - (count - front)


class _Single:
    """Examples of one segment each."""

    def __init__(self, store: TokenStore, *, max_length: int):
        """Makes examples of at most `max_length` tokens, [CLS] and [SEP]s included."""
        if max_length < 3:
            raise ValueError(f"max_length is {max_length}; an example needs at least 3 tokens")
        self._store, self._room = store, max_length - 2

    def __call__(self, parts: Iterable[DocumentSpan], key: int) -> PretrainingExamples:
        """The examples of some documents in this order."""
        found = self._spans(parts)
        return PretrainingExamples.of(found, [0] * len(found), mixed(key, np.arange(len(found))))

    def _spans(self, parts: Iterable[DocumentSpan]) -> list[list[TokenRange]]:
        raise NotImplementedError


class FullSentenceExamples(_Single):
    """Sentences one after another, over the ends of documents too, as long as they fit (RoBERTa's FULL-SENTENCES).

    Between two documents stands [SEP]. Only a sentence that is longer than an example is cut.
    """

    def _spans(self, parts: Iterable[DocumentSpan]) -> list[list[TokenRange]]:
        found: list[list[TokenRange]] = [[]]
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


class StreamExamples(_Single):
    """Documents one after another, [SEP] between them, cut wherever an example is full: next to nothing is padded.

    An example is as long as it may be, or one token less where a document ends.
    """

    def _spans(self, parts: Iterable[DocumentSpan]) -> list[list[TokenRange]]:
        found: list[list[TokenRange]] = [[]]
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
