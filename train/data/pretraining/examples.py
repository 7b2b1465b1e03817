"""What an example is: spans of a store's tokens, with [CLS] before and [SEP] after each."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

FOLLOWS, RANDOM = 0, 1
"""Labels of the second segment."""


@dataclasses.dataclass(frozen=True)
class PretrainingExamples:
    """Examples without their tokens.

    Attributes:
        spans: [S, 2], first and one past the last token of each span in the store.
        firsts: [E + 1], the first span of each example; the last entry is S.
        labels: [E], whether the second span follows the first or is random; 0 where nobody asks.
        keys: uint64 [E], of the random numbers of each.
    """

    spans: np.ndarray
    firsts: np.ndarray
    labels: np.ndarray
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def spans_of(self, example: int) -> list[list[int]]:
        """First and one past the last token of each of its spans."""
        return self.spans[self.firsts[example] : self.firsts[example + 1]].tolist()

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """[E], tokens of each, [CLS] and [SEP]s included."""
        tokens = np.concatenate([[0], np.cumsum(self.spans[:, 1] - self.spans[:, 0])])
        return np.diff(tokens[self.firsts]) + np.diff(self.firsts) + 1

    @classmethod
    def of(cls, found: Sequence[Sequence[tuple[int, int]]], labels: Sequence[int], keys: np.ndarray) -> "Examples":
        """Of each example's spans."""
        spans = np.array([span for example in found for span in example], np.int64).reshape(-1, 2)
        firsts = np.concatenate([[0], np.cumsum([len(example) for example in found], dtype=np.int64)])
        return cls(spans, firsts, np.asarray(labels, np.int32), keys)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mixed(*keys: int | np.ndarray) -> np.ndarray:
    """64 random bits for every combination of keys, which broadcast against each other.

    Keys in another order, or one more of them, give unrelated bits.
    """
    bits = np.zeros(1, np.uint64)  # an array: NumPy warns of scalars that wrap around, as these do on purpose
    for key in keys:
        bits = _mix(bits + _GOLDEN + np.asarray(key).astype(np.uint64))
    return bits


def key_of(*keys: int) -> int:
    """`mixed` for plain numbers."""
    return int(mixed(*keys)[0])


def uniform(bits: np.ndarray) -> np.ndarray:
    """Random bits as numbers, evenly between 0 (included) and 1."""
    return (bits >> np.uint64(11)) * 2.0**-53


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
