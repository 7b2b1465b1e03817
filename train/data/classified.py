"""Labelled token sequences as batches whose length follows their longest row, in a reproducible order."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from flaxbert.losses import IGNORE

Batch = dict[str, np.ndarray]

# A batch is padded to the first of these that holds its longest row. Each length compiles once (some seconds), so they
# grow by about a third: finer ones cost more compiling on short data than they save in padding.
_BUCKETS = (6, 8, 11, 16, 22, 32, 44, 64, 96, 128, 192, 256, 384, 512)

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

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence."""
        return np.fromiter(map(len, self.ids), np.int64, len(self.ids))

    def batch(self, rows: Sequence[int] | np.ndarray, *, size: int, pad_id: int, max_length: int) -> Batch:
        """The rows as arrays [size, T]; rows beyond them are padding of weight 0, which no loss or metric counts."""
        length = bucket(max(len(self.ids[row]) for row in rows), max_length)
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


def bucket(length: int, max_length: int) -> int:
    """The length that a batch with a longest row of `length` is padded to."""
    return min(next((size for size in _BUCKETS if size >= length), max_length), max_length)


@dataclasses.dataclass
class TrainBatches:
    """Batch `i` of a training run, for any i: a pure function of (seed, epoch, place in the epoch)."""

    examples: Examples
    size: int
    pad_id: int
    max_length: int
    seed: int
    _last_epoch: tuple[int, list[np.ndarray]] | None = dataclasses.field(default=None, init=False, repr=False)

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch; the last may be filled up with rows of weight 0."""
        return -(-len(self.examples) // self.size)

    def __getitem__(self, index: int) -> Batch:
        epoch, place = divmod(index, self.per_epoch)
        rows = self._rows(epoch)[place]
        return self.examples.batch(rows, size=self.size, pad_id=self.pad_id, max_length=self.max_length)

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
            yield self.examples.batch(rows, size=self.size, pad_id=self.pad_id, max_length=self.max_length)

    @property
    def rows(self) -> list[np.ndarray]:
        """Example numbers of each batch, in the batches' order."""
        order = np.argsort(self.examples.lengths, kind="stable")
        return [order[start : start + self.size] for start in range(0, len(order), self.size)]
