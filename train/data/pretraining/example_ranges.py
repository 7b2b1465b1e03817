"""Pretraining examples as ranges of a store's tokens, and the counter-based random numbers that they are drawn with."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

FOLLOWS, RANDOM = 0, 1
"""Labels of the second segment: it follows the first, or is a random one."""

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)


@dataclasses.dataclass(frozen=True)
class PretrainingExamples:
    """Examples without their tokens; [CLS] stands before the first range of each, [SEP] after every range.

    Attributes:
        spans: the first token of each range in the store, and one past its last [S, 2].
        firsts: the index of the first range of each example, and S at the end [E + 1].
        labels: FOLLOWS or RANDOM [E]; 0 in examples of one segment.
        keys: the random key of each example, uint64 [E].
    """

    spans: np.ndarray
    firsts: np.ndarray
    labels: np.ndarray
    keys: np.ndarray

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
        cls, ranges: Sequence[Sequence[tuple[int, int]]], labels: Sequence[int], keys: np.ndarray
    ) -> "PretrainingExamples":
        """Return examples, given the ranges of each as (first token, one past the last)."""
        spans = np.array([span for example in ranges for span in example], np.int64).reshape(-1, 2)
        firsts = np.concatenate([[0], np.cumsum([len(example) for example in ranges], dtype=np.int64)])
        return cls(spans, firsts, np.asarray(labels, np.int32), keys)


def random_bits(*keys: int | np.ndarray) -> np.ndarray:
    """Return 64 random bits, uint64, for every combination of keys, which broadcast against each other.

    The bits are a function of the keys alone, so those of a token depend neither on its batch nor on the order.
    Keys in another order, or one more of them, give unrelated bits. This is SplitMix64 (Steele, Lea and Flood, 2014) in
    counter form: its output function applied to a key and a counter.
    """
    bits = np.zeros(1, np.uint64)  # an array: NumPy warns of scalars that overflow, and overflow is intended here
    for key in keys:
        bits = _mix(bits + _GOLDEN_GAMMA + np.asarray(key).astype(np.uint64))
    return bits


def random_key(*keys: int) -> int:
    """Return `random_bits` of plain numbers as one number."""
    return int(random_bits(*keys)[0])


def uniform(bits: np.ndarray) -> np.ndarray:
    """Return random bits as float64, uniform over [0, 1)."""
    return (bits >> np.uint64(11)) * 2.0**-53


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
