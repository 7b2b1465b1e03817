"""Labelled token sequences as batches whose length follows their longest row, in a reproducible order."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from flaxbert.losses import IGNORE

Batch = dict[str, np.ndarray]

# What one more length to compile for costs, in positions of padding of one batch: seven seconds against 0.015, measured
# with MiniLM and batches of 32 on two CPU cores. Only how much is padded hangs on it.
_COMPILING = 450
# XLA takes up to half as long again to compile odd lengths, and vector units are made for even ones.
_MULTIPLE = 4

# Rows are sorted by length within windows of this many batches, so that a batch's rows are alike in length but
# which rows meet still changes every epoch.
_WINDOW = 64


@dataclasses.dataclass(frozen=True)
class Examples:
    """Token sequences of different lengths, with one label each (-100: unlabelled)."""

    ids: list[np.ndarray]
    types: list[np.ndarray]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence."""
        return np.fromiter(map(len, self.ids), np.int64, len(self.ids))

    def longest(self, batches: Sequence[np.ndarray]) -> np.ndarray:
        """The length of the longest of each batch's rows."""
        return np.array([self.lengths[rows].max() for rows in batches])

    def batch(self, rows: np.ndarray, *, size: int, pad_id: int, lengths: Sequence[int]) -> Batch:
        """The rows as arrays [size, T]; rows beyond them are padding of weight 0, which no loss or metric counts.

        T is the first of `lengths` (ascending) that holds the longest row.
        """
        (longest,) = self.longest([rows])
        length = next(length for length in lengths if length >= longest)
        batch = {
            "input_ids": np.full((size, length), pad_id, np.int32),
            "attention_mask": np.zeros((size, length), np.int32),
            "token_type_ids": np.zeros((size, length), np.int32),
            "labels": np.full(size, IGNORE, np.int32),
            "weight": np.zeros(size, np.float32),
        }
        for i, row in enumerate(rows):
            count = len(self.ids[row])
            batch["input_ids"][i, :count] = self.ids[row]
            batch["attention_mask"][i, :count] = 1
            batch["token_type_ids"][i, :count] = self.types[row]
        batch["labels"][: len(rows)] = self.labels[rows]
        batch["weight"][: len(rows)] = 1.0
        return batch


def bucket_lengths(longest: np.ndarray, max_length: int, *, compiling: float = _COMPILING) -> tuple[int, ...]:
    """The lengths to pad batches to, ascending, for which padding and compiling together cost least.

    Every length compiles anew: too few and short batches are mostly padding, too many and the run compiles more than
    it trains. Solved exactly, by dynamic programming over the multiples of four that hold the batches.

    Args:
        longest: the longest row of every batch; one of the lengths always holds the largest.
        max_length: no length goes beyond it.
        compiling: cost of one more length, in positions of one batch.
    """
    longest = np.minimum(-(-longest // _MULTIPLE) * _MULTIPLE, max_length)
    found, counts = np.unique(longest, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])  # batches shorter than found[k]
    best, start = np.zeros(len(found) + 1), np.zeros(len(found) + 1, np.int64)
    for k in range(1, len(found) + 1):
        # Batches of found[j] to found[k - 1] share the last of these lengths. Their own positions are the same
        # whatever is chosen, so all that are computed may stand for those of padding.
        costs = best[:k] + compiling + found[k - 1] * (before[k] - before[:k])
        start[k] = np.argmin(costs)
        best[k] = costs[start[k]]
    chosen, k = [], len(found)
    while k:
        chosen.append(int(found[k - 1]))
        k = int(start[k])
    return tuple(reversed(chosen))


@dataclasses.dataclass
class TrainBatches:
    """Batch `i` of a training run, for any i: a pure function of (seed, epoch, place in the epoch)."""

    examples: Examples
    size: int
    pad_id: int
    max_length: int
    seed: int
    total_steps: Callable[[int], int]  # of the run, given those of an epoch
    _last_epoch: tuple[int, list[np.ndarray]] | None = dataclasses.field(default=None, init=False, repr=False)

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch; the last may be filled up with rows of weight 0."""
        return -(-len(self.examples) // self.size)

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """The lengths that batches are padded to."""
        # Other epochs mix the rows anew, but the longest one is in each of them.
        longest = self.examples.longest(self._rows(0))
        compiling = _COMPILING * self.per_epoch / self.total_steps(self.per_epoch)
        return bucket_lengths(longest, self.max_length, compiling=compiling)

    def __getitem__(self, index: int) -> Batch:
        epoch, place = divmod(index, self.per_epoch)
        return self.examples.batch(self._rows(epoch)[place], size=self.size, pad_id=self.pad_id, lengths=self.lengths)

    def _rows(self, epoch: int) -> list[np.ndarray]:
        """The rows of every batch of an epoch: shuffled, sorted by length within windows, batches shuffled again."""
        if self._last_epoch is not None and self._last_epoch[0] == epoch:
            return self._last_epoch[1]
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.examples))
        lengths = self.examples.lengths
        window = _WINDOW * self.size
        windows = [order[start : start + window] for start in range(0, len(order), window)]
        order = np.concatenate([rows[np.argsort(lengths[rows], kind="stable")] for rows in windows])
        batches = [order[start : start + self.size] for start in range(0, len(order), self.size)]
        shuffled = [batches[i] for i in generator.permutation(len(batches))]
        self._last_epoch = (epoch, shuffled)  # the next batch almost always wants it again
        return shuffled


@dataclasses.dataclass(frozen=True)
class EvaluationBatches:
    """Every example once, longest rows together; `rows` says which example each row of a batch is."""

    examples: Examples
    size: int
    pad_id: int
    max_length: int

    def __len__(self) -> int:
        return -(-len(self.examples) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.rows:
            yield self.examples.batch(rows, size=self.size, pad_id=self.pad_id, lengths=self.lengths)

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """The lengths that batches are padded to."""
        return bucket_lengths(self.examples.longest(self.rows), self.max_length)

    @functools.cached_property
    def rows(self) -> list[np.ndarray]:
        """Example numbers of each batch, in the batches' order."""
        order = np.argsort(self.examples.lengths, kind="stable")
        return [order[start : start + self.size] for start in range(0, len(order), self.size)]
