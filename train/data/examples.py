"""Token sequences of different lengths with their targets, and batches padded to one length."""

import abc
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from flaxbert.encoded_text import EncodedText
from flaxbert.losses import IGNORE
from train.data.packing import LENGTH_MULTIPLE
from train.distributed import WHOLE_BATCH, HostBatch, HostShard


@dataclasses.dataclass(frozen=True)
class SequenceExamples(abc.ABC):
    """Token sequences of different lengths; subclasses hold the targets."""

    ids: list[np.ndarray]
    types: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each example [N]."""
        return np.fromiter(map(len, self.ids), np.int64, len(self.ids))

    def longest(self, batches: Sequence[np.ndarray]) -> np.ndarray:
        """Return the length of the longest example of each batch, given the indices of its examples."""
        return np.array([self.lengths[members].max() for members in batches])

    def batch(
        self,
        members: np.ndarray,
        *,
        size: int,
        pad_id: int,
        lengths: Sequence[int],
        host_shard: HostShard = WHOLE_BATCH,
    ) -> HostBatch:
        """Return the arrays of a batch, with `weight` 0 for rows of padding, which no loss or metric counts.

        Args:
            members: the indices of the examples, at most `size`.
            lengths: allowed lengths of rows, ascending; the first that holds the longest example is taken.
        """
        (longest,) = self.longest([members])
        length = next(length for length in lengths if length >= longest)
        rows = host_shard.rows(size)
        own = members[rows[rows < len(members)]]  # padding comes last in the shard, too
        weight = np.zeros(len(rows), np.float32)
        weight[: len(own)] = 1.0
        inputs = self.inputs(own, size=len(rows), length=length, pad_id=pad_id)
        return {**inputs, "weight": weight, **self.targets(own, size=len(rows), length=length)}

    def inputs(self, members: np.ndarray, *, size: int, length: int, pad_id: int) -> HostBatch:
        """Return the model's inputs [size, length]; rows after the examples are padding."""
        ids, types = [self.ids[i] for i in members], [self.types[i] for i in members]
        return pad_sequences(ids, types, size=size, length=length, pad_id=pad_id)

    @abc.abstractmethod
    def targets(self, members: np.ndarray, *, size: int, length: int) -> HostBatch:
        """Return the targets, arrays of `size` rows; no loss counts the rows after the examples."""


@dataclasses.dataclass(frozen=True)
class LabelledSequences(SequenceExamples):
    """Sequences with a label each."""

    labels: np.ndarray  # class ids [N] (-100: unlabelled), or numbers, [N] or [N, labels] (NaN: unlabelled)

    @classmethod
    def of(cls, encodings: Sequence[EncodedText], labels: np.ndarray) -> "LabelledSequences":
        """Return the examples of tokenised texts."""
        return cls(*encoding_arrays(encodings), labels)

    @functools.cached_property
    def labelled(self) -> np.ndarray:
        """Boolean for each example: it has a label [N]."""
        if np.issubdtype(self.labels.dtype, np.integer):
            return self.labels != IGNORE
        return np.asarray(np.isfinite(self.labels.reshape(len(self.labels), -1)).all(axis=1))

    def targets(self, members: np.ndarray, *, size: int, length: int) -> HostBatch:
        """Return `labels`, and `weight`: 0 for rows without a label."""
        labels, weight = self.blank_labels((size,)), np.zeros(size, np.float32)
        own = np.flatnonzero(self.labelled[members])
        labels[own], weight[own] = self.labels[members[own]], 1.0
        return {"labels": labels, "weight": weight}

    def blank_labels(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array of labels for unlabelled examples, -100 for class ids and 0 for numbers."""
        integer = np.issubdtype(self.labels.dtype, np.integer)
        return np.full((*shape, *self.labels.shape[1:]), IGNORE if integer else 0, self.labels.dtype)


@dataclasses.dataclass(frozen=True)
class ChoiceSequences(SequenceExamples):
    """Questions with several sequences each, one of which is right; `ids` and `types` hold those of all questions."""

    starts: np.ndarray  # the index of each question's first sequence, and the number of all at the end [N + 1]
    width: int  # the largest number of sequences of a question, C
    labels: np.ndarray  # the index of the right choice [N]; -100 if it is not known

    def __len__(self) -> int:
        return len(self.labels)

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of the longest sequence of each question [N]."""
        each = np.fromiter(map(len, self.ids), np.int64, len(self.ids))
        return np.maximum.reduceat(each, self.starts[:-1])

    def inputs(self, members: np.ndarray, *, size: int, length: int, pad_id: int) -> HostBatch:
        """Return the model's inputs [size, C, length]; choices that a question lacks are padding."""
        ids, types = [], []
        for question in members:
            own = slice(self.starts[question], self.starts[question + 1])
            missing = [np.zeros(0, np.int32)] * (self.width - (own.stop - own.start))
            ids += [*self.ids[own], *missing]
            types += [*self.types[own], *missing]
        arrays = pad_sequences(ids, types, size=size * self.width, length=length, pad_id=pad_id)
        return {name: values.reshape(size, self.width, length) for name, values in arrays.items()}

    def targets(self, members: np.ndarray, *, size: int, length: int) -> HostBatch:
        """Return `labels` [size], and `weight`: 0 where the right choice is not known."""
        labels = np.full(size, IGNORE, np.int32)
        labels[: len(members)] = self.labels[members]
        return {"labels": labels, "weight": (labels != IGNORE).astype(np.float32)}


@dataclasses.dataclass(frozen=True)
class SpanSequences(SequenceExamples):
    """Sequences with a span to find in each."""

    positions: np.ndarray  # first and last position of the span [N, 2]; beyond the sequence if no loss is to count it

    def targets(self, members: np.ndarray, *, size: int, length: int) -> HostBatch:
        """Return `start_positions` and `end_positions` [size]; those of padding lie beyond the sequence."""
        positions = np.full((size, 2), length, np.int32)
        positions[: len(members)] = self.positions[members]
        return {"start_positions": positions[:, 0], "end_positions": positions[:, 1]}


@dataclasses.dataclass(frozen=True)
class TaggedSequences(SequenceExamples):
    """Sequences with a label for each token."""

    labels: list[np.ndarray]  # class ids [T] of each sequence; -100 for tokens that no loss counts

    def targets(self, members: np.ndarray, *, size: int, length: int) -> HostBatch:
        """Return `labels` [size, length], -100 in padding."""
        labels = np.full((size, length), IGNORE, np.int32)
        for row, number in enumerate(members):
            labels[row, : len(self.labels[number])] = self.labels[number]
        return {"labels": labels}


@dataclasses.dataclass(frozen=True)
class TargetSequences(SequenceExamples):
    """Source sequences, each with the tokens of its target.

    The length of an example is that of both together. All batches of one length have one shape: sources and targets are
    as wide as the longest of all examples up to this length, so that one with a long target widens few batches.
    """

    labels: list[np.ndarray]  # tokens of each target, with that of its end
    max_lengths: tuple[int, int]  # no batch has longer sources, or longer targets

    def part(self, chosen: slice) -> "TargetSequences":
        """Return some of the examples."""
        return dataclasses.replace(self, ids=self.ids[chosen], types=self.types[chosen], labels=self.labels[chosen])

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each source and its target [N]."""
        return self._own_lengths.sum(axis=0)

    def inputs(self, members: np.ndarray, *, size: int, length: int, pad_id: int) -> HostBatch:
        """Return the encoder's inputs [size, X]; rows after the examples are padding."""
        return super().inputs(members, size=size, length=self._widths(length)[0], pad_id=pad_id)

    def targets(self, members: np.ndarray, *, size: int, length: int) -> HostBatch:
        """Return `labels` [size, T], -100 in padding."""
        labels = np.full((size, self._widths(length)[1]), IGNORE, np.int32)
        for row, number in enumerate(members):
            labels[row, : len(self.labels[number])] = self.labels[number]
        return {"labels": labels}

    def _widths(self, length: int) -> tuple[int, int]:
        """Return the widths of sources and targets in batches of a length."""
        lengths, longest = self._longest_up_to
        needed = longest[:, np.searchsorted(lengths, length, side="right") - 1]
        rounded = -(-needed // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        source, target = np.minimum(rounded, self.max_lengths).tolist()
        return source, target

    @functools.cached_property
    def _own_lengths(self) -> np.ndarray:
        return np.array([[len(ids) for ids in own] for own in (self.ids, self.labels)])

    @functools.cached_property
    def _longest_up_to(self) -> tuple[np.ndarray, np.ndarray]:
        """The lengths of the examples, ascending, and the longest source and target up to each of them."""
        order = np.argsort(self.lengths, kind="stable")
        return self.lengths[order], np.maximum.accumulate(self._own_lengths[:, order], axis=1)


def encoding_arrays(encodings: Sequence[EncodedText]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return (token ids, token types) of tokenised texts."""
    ids = [np.asarray(encoding.ids, np.int32) for encoding in encodings]
    return ids, [np.asarray(encoding.type_ids, np.int32) for encoding in encodings]


def pad_sequences(
    ids: Sequence[np.ndarray], types: Sequence[np.ndarray], *, size: int, length: int, pad_id: int
) -> HostBatch:
    """Return sequences, one a row, as `input_ids`, `attention_mask` and `token_type_ids`, int32 [size, length]."""
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
