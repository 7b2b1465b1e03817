"""Token sequences of different lengths, what is to be learnt of each, and how some of them become a batch."""

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from tokenizers import Encoding

from flaxbert.losses import IGNORE
from train.data.host_shard import WHOLE_BATCH, HostShard

HostBatch = Mapping[str, np.ndarray]
"""The arrays of a batch by name, in the memory of the host."""


@dataclasses.dataclass(frozen=True)
class SequenceExamples(abc.ABC):
    """Token sequences of different lengths; subclasses know what is to be learnt of each."""

    ids: list[np.ndarray]
    types: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence."""
        return np.fromiter(map(len, self.ids), np.int64, len(self.ids))

    def longest(self, batches: Sequence[np.ndarray]) -> np.ndarray:
        """The length of the longest of each batch's rows."""
        return np.array([self.lengths[rows].max() for rows in batches])

    def batch(
        self, rows: np.ndarray, *, size: int, pad_id: int, lengths: Sequence[int], host_shard: HostShard = WHOLE_BATCH
    ) -> HostBatch:
        """The rows as arrays [size, T]; rows beyond them are padding of weight 0, which no loss or metric counts.

        T is the first of `lengths` (ascending) that holds the longest row. Of the arrays only `host_shard` is built.
        """
        (longest,) = self.longest([rows])
        length = next(length for length in lengths if length >= longest)
        places = host_shard.rows(size)
        own = rows[places[places < len(rows)]]  # padding comes last, here too
        weight = np.zeros(len(places), np.float32)
        weight[: len(own)] = 1.0
        how = len(places), length
        return {**self.inputs(own, *how, pad_id), "weight": weight, **self.targets(own, *how)}

    def inputs(self, rows: np.ndarray, size: int, length: int, pad_id: int) -> HostBatch:
        """What the model is given: arrays [size, length], padding after the last of the rows."""
        return pad_sequences([self.ids[row] for row in rows], [self.types[row] for row in rows], size, length, pad_id)

    @abc.abstractmethod
    def targets(self, rows: np.ndarray, size: int, length: int) -> HostBatch:
        """What is to be learnt of these rows, as arrays of `size` rows; those beyond them count in no loss."""


@dataclasses.dataclass(frozen=True)
class LabelledSequences(SequenceExamples):
    """Sequences with a label each: its id [N] (-100: unlabelled), or numbers, [N] or [N, labels] (NaN: unlabelled)."""

    labels: np.ndarray

    @classmethod
    def of(cls, encodings: Sequence[Encoding], labels: np.ndarray) -> "Labelled":
        """Of tokenised texts."""
        return cls(*encoding_arrays(encodings), labels)

    @functools.cached_property
    def labelled(self) -> np.ndarray:
        """Which of them have a label, [N]."""
        if np.issubdtype(self.labels.dtype, np.integer):
            return self.labels != IGNORE
        return np.asarray(np.isfinite(self.labels.reshape(len(self.labels), -1)).all(axis=1))

    def targets(self, rows: np.ndarray, size: int, length: int) -> HostBatch:
        """`labels`, and `weight`: 0 where there is none."""
        labels, weight = self.blank((size,)), np.zeros(size, np.float32)
        own = np.flatnonzero(self.labelled[rows])
        labels[own], weight[own] = self.labels[rows[own]], 1.0
        return {"labels": labels, "weight": weight}

    def blank(self, shape: tuple[int, ...]) -> np.ndarray:
        """Labels for so many sequences that have none."""
        whole = np.issubdtype(self.labels.dtype, np.integer)
        return np.full((*shape, *self.labels.shape[1:]), IGNORE if whole else 0, self.labels.dtype)


@dataclasses.dataclass(frozen=True)
class ChoiceSequences(SequenceExamples):
    """Questions with several token sequences each, of which one is right; `ids` and `types` hold those of all.

    Attributes:
        starts: which sequence is each question's first, and at the end how many there are, [N + 1].
        width: the most sequences of a question.
        labels: which is right [N]; -100: not told.
    """

    starts: np.ndarray
    width: int
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of the longest sequence of each question."""
        each = np.fromiter(map(len, self.ids), np.int64, len(self.ids))
        return np.maximum.reduceat(each, self.starts[:-1])

    def inputs(self, rows: np.ndarray, size: int, length: int, pad_id: int) -> HostBatch:
        """Arrays [size, width, length]; of choices that there are not, nothing is attended to."""
        ids, types = [], []
        for row in rows:
            own = slice(self.starts[row], self.starts[row + 1])
            missing = [np.zeros(0, np.int32)] * (self.width - (own.stop - own.start))
            ids += [*self.ids[own], *missing]
            types += [*self.types[own], *missing]
        arrays = pad_sequences(ids, types, size * self.width, length, pad_id)
        return {name: values.reshape(size, self.width, length) for name, values in arrays.items()}

    def targets(self, rows: np.ndarray, size: int, length: int) -> HostBatch:
        """`labels`, and `weight`: 0 where it is not told."""
        labels = np.full(size, IGNORE, np.int32)
        labels[: len(rows)] = self.labels[rows]
        return {"labels": labels, "weight": (labels != IGNORE).astype(np.float32)}


@dataclasses.dataclass(frozen=True)
class SpanSequences(SequenceExamples):
    """Sequences that hold an answer: the positions of its first and its last token, [N, 2]."""

    positions: np.ndarray

    def targets(self, rows: np.ndarray, size: int, length: int) -> HostBatch:
        """`start_positions` and `end_positions` [size]; of filling beyond the sequence, where no loss counts them."""
        positions = np.full((size, 2), length, np.int32)
        positions[: len(rows)] = self.positions[rows]
        return {"start_positions": positions[:, 0], "end_positions": positions[:, 1]}


@dataclasses.dataclass(frozen=True)
class TaggedSequences(SequenceExamples):
    """Sequences with a label for every token: its id, [T] for each sequence, -100 where nothing is to be learnt."""

    labels: list[np.ndarray]

    def targets(self, rows: np.ndarray, size: int, length: int) -> HostBatch:
        """`labels` [size, length], -100 in padding."""
        labels = np.full((size, length), IGNORE, np.int32)
        for row, number in enumerate(rows):
            labels[row, : len(self.labels[number])] = self.labels[number]
        return {"labels": labels}


def encoding_arrays(encodings: Sequence[Encoding]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The ids and the token types of tokenised texts."""
    ids = [np.asarray(encoding.ids, np.int32) for encoding in encodings]
    return ids, [np.asarray(encoding.type_ids, np.int32) for encoding in encodings]


def pad_sequences(
    ids: Sequence[np.ndarray], types: Sequence[np.ndarray], size: int, length: int, pad_id: int
) -> HostBatch:
    """Sequences, one a row, as the arrays [size, length] that a model is given."""
    batch = {
        "input_ids": np.full((size, length), pad_id, np.int32),
        "attention_mask": np.zeros((size, length), np.int32),
        "token_type_ids": np.zeros((size, length), np.int32),
    }
    for row, (tokens, kinds) in enumerate(zip(ids, types, strict=True)):
        batch["input_ids"][row, : len(tokens)] = tokens
        batch["attention_mask"][row, : len(tokens)] = 1
        batch["token_type_ids"][row, : len(tokens)] = kinds
    return batch
