"""Documents to examples: pairs of segments for next-sentence prediction, whole sentences, or a stream of tokens."""

import dataclasses
import functools
import random
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from train.data.pretraining.masking import random_bits
from train.data.pretraining.store import TokenStore

# Longer documents are divided over several blocks: otherwise all examples of a book would be in one block.
_SPAN_TOKENS = 2**14

FOLLOWS, RANDOM = 0, 1
"""Labels of the second segment: it follows the first, or is a random one."""
TokenRange = tuple[int, int]
"""A range of a store's tokens: the first, and one past the last."""


@dataclasses.dataclass(frozen=True)
class PretrainingExamples:
    """Examples without their tokens; [CLS] stands before the first range of each, [SEP] after every range."""

    spans: np.ndarray  # the first token of each range in the store, and one past its last [S, 2]
    firsts: np.ndarray  # the index of the first range of each example, and S at the end [E + 1]
    labels: np.ndarray  # FOLLOWS or RANDOM [E]; 0 in examples of one segment
    keys: np.ndarray  # the random key of each example, uint64 [E]

    def __len__(self) -> int:
        return len(self.labels)

    def spans_of(self, example: int) -> list[list[int]]:
        """Return the ranges of an example, each as [first token, one past the last]."""
        return self.spans[self.firsts[example] : self.firsts[example + 1]].tolist()

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, with [CLS] and [SEP]s [E]."""
        tokens = np.concatenate([[0], np.cumsum(self.spans[:, 1] - self.spans[:, 0])])
        return np.diff(tokens[self.firsts]) + np.diff(self.firsts) + 1

    @classmethod
    def of(
        cls, ranges: Sequence[Sequence[TokenRange]], labels: Sequence[int], keys: np.ndarray
    ) -> "PretrainingExamples":
        """Return examples, given the ranges of each."""
        spans = np.array([span for example in ranges for span in example], np.int64).reshape(-1, 2)
        firsts = np.concatenate([[0], np.cumsum([len(example) for example in ranges], dtype=np.int64)])
        return cls(spans, firsts, np.asarray(labels, np.int32), keys)


@dataclasses.dataclass(frozen=True)
class DocumentSpan:
    """Sentences `first` to `end - 1` of a document: all of it, or a part."""

    document: int
    first: int
    end: int


def document_spans(store: TokenStore, documents: np.ndarray) -> np.ndarray:
    """Return the documents, long ones in parts [N, 3]: number, first sentence, one past the last sentence."""
    first, last = store.documents[documents], store.documents[documents + 1]
    starts, ends = store.sentences[first], store.sentences[last]
    counts = np.maximum(1, np.rint((ends - starts) / _SPAN_TOKENS).astype(np.int64))
    whole = np.stack([documents, first, last], axis=1)[counts == 1]
    divided = []
    for i in np.flatnonzero(counts > 1).tolist():
        bounds = starts[i] + np.arange(1, counts[i]) * ((ends[i] - starts[i]) / counts[i])
        cuts = np.unique([first[i], *np.searchsorted(store.sentences, bounds).clip(first[i], last[i]), last[i]])
        divided.append(np.stack([np.full(len(cuts) - 1, documents[i]), cuts[:-1], cuts[1:]], axis=1))
    return np.concatenate([whole, *divided])


def as_spans(spans: np.ndarray) -> list[DocumentSpan]:
    """Return rows of `document_spans` as objects."""
    return [DocumentSpan(document, first, end) for document, first, end in spans.tolist()]


ExampleBuilder = Callable[[Iterable[DocumentSpan], int], PretrainingExamples]
"""Builds the examples of some documents; the random choices are a function of the key, the second argument."""


class NextSentencePairs:
    """Pairs of segments, half of them random (create_pretraining_data.py of google-research/bert)."""

    def __init__(self, store: TokenStore, documents: np.ndarray, *, max_length: int, short: float):
        """Prepare to build pairs of at most `max_length` tokens, with [CLS] and [SEP]s.

        Random segments are drawn from `documents`; a fraction `short` of documents is cut into shorter pairs.
        """
        if len(documents) < 2:
            raise ValueError(
                "next-sentence prediction takes random segments from other documents, and there is only one document "
                "to train on; put blank lines between documents, or train without next-sentence prediction"
            )
        if max_length < 5:
            raise ValueError(f"max_length is {max_length}; a pair needs at least 5 tokens")
        self._store, self._documents = store, documents
        self._room, self._short = max_length - 3, short

    def __call__(self, spans: Iterable[DocumentSpan], key: int) -> PretrainingExamples:
        """Build the pairs of some documents; the random choices are a function of the key alone.

        As in Google's code: sentences are gathered up to a target length (the maximum, or for a fraction `short` of
        documents a shorter one) and cut at a random sentence. For every other pair, and where there is one sentence
        only, the second segment is replaced by sentences of another document from a random one on, and goes into the
        next pair. Pairs that are too long lose tokens from either end of the longer segment.
        """
        chance = random.Random(key)
        pairs: list[tuple[TokenRange, TokenRange]] = []
        labels: list[int] = []
        for span in spans:
            self._add_pairs(span, chance, pairs, labels)
        return PretrainingExamples.of(pairs, labels, random_bits(key, np.arange(len(pairs))))

    def _add_pairs(
        self, span: DocumentSpan, chance: random.Random, pairs: list[tuple[TokenRange, TokenRange]], labels: list[int]
    ) -> None:
        starts = self._store.sentences[span.first : span.end + 1].tolist()
        count, target = span.end - span.first, self._room
        if chance.random() < self._short:
            target = _random_integer(chance, 2, self._room)
        sentence = 0
        while sentence < count:
            end = min(bisect_left(starts, starts[sentence] + target, sentence + 1), count)
            cut = sentence + (1 if end - sentence == 1 else _random_integer(chance, 1, end - sentence - 1))
            first = (starts[sentence], starts[cut])
            if end - sentence == 1 or chance.random() < 0.5:
                second = self._random_segment(span.document, target - (first[1] - first[0]), chance)
                labels.append(RANDOM)
                sentence = cut
            else:
                second = (starts[cut], starts[end])
                labels.append(FOLLOWS)
                sentence = end
            pairs.append(_truncate_pair(first, second, self._room, chance))

    def _random_segment(self, document: int, min_tokens: int, chance: random.Random) -> TokenRange:
        """Return sentences of another document, from a random one on, until they have `min_tokens` or it ends."""
        while True:
            other = int(self._documents[_random_integer(chance, 0, len(self._documents) - 1)])
            if other != document:
                break
        first, last = self._store.documents[other : other + 2].tolist()
        begin = _random_integer(chance, first, last - 1)
        starts = self._store.sentences[begin : min(last, begin + max(min_tokens, 1)) + 1].tolist()
        return starts[0], starts[min(bisect_left(starts, starts[0] + min_tokens, 1), len(starts) - 1)]


def _random_integer(chance: random.Random, lowest: int, highest: int) -> int:
    """Return a whole number, both ends included.

    Of the methods of `random.Random`, `random` alone is promised never to change.
    """
    return lowest + int(chance.random() * (highest - lowest + 1))


def _truncate_pair(a: TokenRange, b: TokenRange, room: int, chance: random.Random) -> tuple[TokenRange, TokenRange]:
    """Take tokens one by one from the longer segment (the second, if both are as long), at a random end."""
    excess = (a[1] - a[0]) + (b[1] - b[0]) - room
    if excess <= 0:
        return a, b
    difference = (a[1] - a[0]) - (b[1] - b[0])
    first = min(excess, abs(difference))
    rest = excess - first
    from_a = (first if difference > 0 else 0) + rest // 2
    return _truncate(a, from_a, chance), _truncate(b, excess - from_a, chance)


def _truncate(span: TokenRange, count: int, chance: random.Random) -> TokenRange:
    front = sum(chance.random() < 0.5 for _ in range(count))
    return span[0] + front, span[1] - (count - front)


class _SingleSegments:
    """Examples of one segment each."""

    def __init__(self, store: TokenStore, *, max_length: int):
        """Prepare to build examples of at most `max_length` tokens, with [CLS] and [SEP]s."""
        if max_length < 3:
            raise ValueError(f"max_length is {max_length}; an example needs at least 3 tokens")
        self._store, self._room = store, max_length - 2

    def __call__(self, spans: Iterable[DocumentSpan], key: int) -> PretrainingExamples:
        """Build the examples of some documents in this order."""
        ranges = self._ranges(spans)
        return PretrainingExamples.of(ranges, [0] * len(ranges), random_bits(key, np.arange(len(ranges))))

    def _ranges(self, spans: Iterable[DocumentSpan]) -> list[list[TokenRange]]:
        raise NotImplementedError


class FullSentenceExamples(_SingleSegments):
    """As many whole sentences as fit, across the ends of documents too (RoBERTa's FULL-SENTENCES).

    [SEP] stands between two documents. Only a sentence that is longer than an example is cut.
    """

    def _ranges(self, spans: Iterable[DocumentSpan]) -> list[list[TokenRange]]:
        ranges: list[list[TokenRange]] = [[]]
        left = self._room
        for span in spans:
            starts = self._store.sentences[span.first : span.end + 1].tolist()
            sentence, count = 0, span.end - span.first
            while sentence < count:
                # As many sentences as there is room for, and for their [SEP]; the first [SEP] is in `_room`.
                room = left - (1 if ranges[-1] else 0)
                end = bisect_right(starts, starts[sentence] + room, sentence) - 1
                if end > sentence:
                    ranges[-1].append((starts[sentence], starts[end]))
                    left = room - (starts[end] - starts[sentence])
                    sentence = end
                elif ranges[-1]:
                    ranges.append([])
                    left = self._room
                else:
                    ranges[-1].append((starts[sentence], starts[sentence] + self._room))
                    starts[sentence] += self._room
                    left = 0
        return ranges if ranges[-1] else ranges[:-1]


class StreamExamples(_SingleSegments):
    """Documents one after another with [SEP] between them, cut wherever an example is full: almost no padding.

    An example has the maximum length, or one token less if a document ends there.
    """

    def _ranges(self, spans: Iterable[DocumentSpan]) -> list[list[TokenRange]]:
        ranges: list[list[TokenRange]] = [[]]
        left = self._room
        for span in spans:
            start, end = self._store.sentences[[span.first, span.end]].tolist()
            if ranges[-1]:
                left -= 1  # the [SEP] of the next range
            while start < end:
                if left <= 0:
                    ranges.append([])
                    left = self._room
                count = min(left, end - start)
                ranges[-1].append((start, start + count))
                start, left = start + count, left - count
        return ranges
