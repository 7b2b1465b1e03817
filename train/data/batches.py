"""Batches of examples in a reproducible order: one example a row, or several packed into a row."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from train.data.examples import LabelledSequences, SequenceExamples
from train.data.packing import (
    COMPILE_COST,
    LENGTH_MULTIPLE,
    PackedBatchShape,
    choose_packed_shape,
    choose_padded_sizes,
    first_fit,
    pack_sequences,
)
from train.distributed import WHOLE_BATCH, HostBatch, HostShard

# Examples are sorted by length inside a shuffled buffer of this many batches, so that epochs have different batches.
_BUFFER_BATCHES = 64
# The number of batches from which the shape of packed rows is chosen.
_SHAPE_SAMPLE = 4096


@dataclasses.dataclass
class _TrainBatches(abc.ABC):
    """The batches of a training run; batch `i` is a pure function of the seed, the epoch and the index in the epoch."""

    examples: SequenceExamples
    _: dataclasses.KW_ONLY
    size: int
    pad_id: int
    max_length: int  # the longest allowed length of a row
    seed: int
    total_steps: Callable[[int], int]  # the steps of the run, as a function of the steps of an epoch
    host_shard: HostShard = WHOLE_BATCH
    programs: int = 1  # compile cost of a shape, in plain train steps
    _last_epoch: tuple[int, list[np.ndarray]] | None = dataclasses.field(default=None, init=False, repr=False)

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.examples) // self.size)

    def __getitem__(self, index: int) -> HostBatch:
        return self._arrays(self.members(index))

    def members(self, index: int) -> np.ndarray:
        """Return the indices of the examples of batch `index`."""
        epoch, number = divmod(index, self.per_epoch)
        return self._epoch(epoch)[number]

    @property
    def _compile_cost(self) -> float:
        """The compile cost of one more shape, in padded positions, divided by the number of epochs."""
        return self.programs * COMPILE_COST * self.per_epoch / self.total_steps(self.per_epoch)

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        """Return the indices of the examples of each batch of an epoch.

        Examples are shuffled, sorted by length inside buffers and divided into batches, which are shuffled again.
        """
        if self._last_epoch is not None and self._last_epoch[0] == epoch:
            return self._last_epoch[1]
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.examples))
        lengths = self.examples.lengths
        batches = []
        for start in range(0, len(order), _BUFFER_BATCHES * self.size):
            buffer = order[start : start + _BUFFER_BATCHES * self.size]
            batches.extend(self._divide(buffer[np.argsort(lengths[buffer], kind="stable")], generator))
        shuffled = [batches[i] for i in generator.permutation(len(batches))]
        self._last_epoch = (epoch, shuffled)  # the next batch is almost always of the same epoch
        return shuffled

    @abc.abstractmethod
    def _divide(self, buffer: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
        """Divide examples, sorted by length, into batches."""

    @abc.abstractmethod
    def _arrays(self, members: np.ndarray) -> HostBatch:
        """Return the batch of these examples."""


class PaddedBatches(_TrainBatches):
    """Batches of one example a row; examples of a batch are of similar length, and padded to one of a few lengths."""

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """The lengths that batches are padded to, ascending."""
        # Chosen from the first epoch. Others have other batches, but the longest example is in each of them.
        longest = self.examples.longest(self._epoch(0))
        return choose_padded_sizes(longest, self.max_length, multiple=LENGTH_MULTIPLE, compile_cost=self._compile_cost)

    def _divide(self, buffer: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
        return [buffer[start : start + self.size] for start in range(0, len(buffer), self.size)]

    def _arrays(self, members: np.ndarray) -> HostBatch:
        return self.examples.batch(
            members, size=self.size, pad_id=self.pad_id, lengths=self.lengths, host_shard=self.host_shard
        )


@dataclasses.dataclass
class PackedBatches(_TrainBatches):
    """Batches of several examples a row; all batches have a similar mix of lengths, so one or two shapes suffice."""

    examples: LabelledSequences
    _: dataclasses.KW_ONLY
    row_multiple: int = 1

    @functools.cached_property
    def shape(self) -> PackedBatchShape:
        """The capacity of rows, and the numbers of rows of batches; a batch that needs more has as many as it needs."""
        batches, lengths = self._epoch(0), self.examples.lengths
        sample = [lengths[members].tolist() for members in batches[:: -(-len(batches) // _SHAPE_SAMPLE)]]
        compile_cost = self._compile_cost * self.size * len(sample) / len(batches)
        return choose_packed_shape(sample, int(lengths.max()), multiple=self.row_multiple, compile_cost=compile_cost)

    def _divide(self, buffer: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
        # Split the sorted examples into `size` strata; each batch takes one example of every stratum.
        count = -(-len(buffer) // self.size)
        strata = [generator.permutation(buffer[start : start + count]) for start in range(0, len(buffer), count)]
        return [np.array([stratum[i] for stratum in strata if i < len(stratum)]) for i in range(count)]

    def _arrays(self, members: np.ndarray) -> HostBatch:
        examples, shape = self.examples, self.shape.row
        packed = first_fit(examples.lengths[members].tolist(), shape)
        counts = (*self.shape.row_counts, -(-len(packed) // self.row_multiple) * self.row_multiple)
        packed += [[]] * (next(count for count in counts if count >= len(packed)) - len(packed))
        packed = [packed[row] for row in self.host_shard.rows(len(packed))]  # arrays are built for these rows alone
        ids, types = [examples.ids[i] for i in members], [examples.types[i] for i in members]
        batch = pack_sequences(ids, types, packed, shape, pad_id=self.pad_id)
        labels = examples.blank_labels(batch["first_positions"].shape)
        for row, own in enumerate(packed):
            labels[row, : len(own)] = examples.labels[members[own]]
        filled = np.arange(shape.slots) < np.array([[len(own)] for own in packed])
        return {**batch, "labels": labels, "weight": filled.astype(np.float32)}


Kind = TypeVar("Kind", bound=SequenceExamples)


@dataclasses.dataclass(frozen=True)
class EvaluationBatches(Generic[Kind]):
    """Batches with each example once, in the order of their lengths."""

    examples: Kind
    _: dataclasses.KW_ONLY
    size: int
    pad_id: int
    max_length: int
    host_shard: HostShard = WHOLE_BATCH
    programs: int = 1  # compile cost of a length, in plain eval steps

    def __len__(self) -> int:
        return -(-len(self.examples) // self.size)

    def __iter__(self) -> Iterator[HostBatch]:
        for members in self.members:
            yield self.examples.batch(
                members, size=self.size, pad_id=self.pad_id, lengths=self.lengths, host_shard=self.host_shard
            )

    @functools.cached_property
    def members(self) -> list[np.ndarray]:
        """The indices of the examples of each batch, in the order of its rows."""
        order = np.argsort(self.examples.lengths, kind="stable")
        return [order[start : start + self.size] for start in range(0, len(order), self.size)]

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """The lengths that batches are padded to, ascending."""
        longest, cost = self.examples.longest(self.members), self.programs * COMPILE_COST
        return choose_padded_sizes(longest, self.max_length, multiple=LENGTH_MULTIPLE, compile_cost=cost)

    def by_example(self, outputs: Sequence[PyTree]) -> list[PyTree]:
        """Return the outputs for each example, in the examples' order, from those of each batch, arrays [B, ...]."""
        found: dict[int, PyTree] = {}
        for members, values in zip(self.members, outputs, strict=True):
            for row, number in enumerate(members.tolist()):  # rows of padding come last
                found[number] = jax.tree.map(lambda array, row=row: array[row], values)
        return [found[number] for number in range(len(self.examples))]
