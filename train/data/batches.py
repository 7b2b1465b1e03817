"""Examples as batches in a reproducible order: padded to their longest, or several to a row."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from train.data.examples import HostBatch, LabelledSequences, SequenceExamples
from train.data.host_shard import WHOLE_BATCH, HostShard
from train.data.packing import COMPILING, MULTIPLE, PackedShape, choose_padded_sizes, choose_shape, first_fit, pack

# Rows are dealt by length within windows of this many batches, so that which rows meet still changes every epoch.
_WINDOW = 64
# Batches of which the shape of packed rows is chosen.
_SAMPLE = 4096


class TrainSet(Protocol):
    """Endless batches by number; batch `i` is always the same, so the position in the data is a step number."""

    def __getitem__(self, index: int, /) -> HostBatch:
        """Return batch `index`, of epoch `index // steps_per_epoch`."""
        ...


@dataclasses.dataclass
class _TrainBatches(abc.ABC):
    """Batch `i` of a training run, for any i: a pure function of (seed, epoch, place in the epoch)."""

    examples: SequenceExamples
    size: int
    pad_id: int
    max_length: int
    seed: int
    total_steps: Callable[[int], int]  # of the run, given those of an epoch
    host_shard: HostShard = dataclasses.field(default=WHOLE_BATCH, kw_only=True)  # what is built of each batch
    _last_epoch: tuple[int, list[np.ndarray]] | None = dataclasses.field(default=None, init=False, repr=False)

    @property
    def per_epoch(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.examples) // self.size)

    def __getitem__(self, index: int) -> HostBatch:
        epoch, place = divmod(index, self.per_epoch)
        return self._arrays(self._epoch(epoch)[place])

    @property
    def _compiling(self) -> float:
        """What one more size costs a batch of the first epoch, in positions: a run of many pays it once, too."""
        return COMPILING * self.per_epoch / self.total_steps(self.per_epoch)

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        """The rows of every batch of an epoch: shuffled, dealt by length within windows, batches shuffled again."""
        if self._last_epoch is not None and self._last_epoch[0] == epoch:
            return self._last_epoch[1]
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.examples))
        lengths = self.examples.lengths
        batches = []
        for start in range(0, len(order), _WINDOW * self.size):
            window = order[start : start + _WINDOW * self.size]
            batches.extend(self._deal(window[np.argsort(lengths[window], kind="stable")], generator))
        shuffled = [batches[i] for i in generator.permutation(len(batches))]
        self._last_epoch = (epoch, shuffled)  # the next batch almost always wants it again
        return shuffled

    @abc.abstractmethod
    def _deal(self, window: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
        """Rows in the order of their lengths, as batches."""

    @abc.abstractmethod
    def _arrays(self, rows: np.ndarray) -> HostBatch:
        """The batch of these rows."""


class PaddedBatches(_TrainBatches):
    """One example a row; rows of a batch are alike in length, and padded to one of a few lengths."""

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """The lengths that batches are padded to."""
        # Other epochs mix the rows anew, but the longest one is in each of them.
        longest = self.examples.longest(self._epoch(0))
        return choose_padded_sizes(longest, self.max_length, multiple=MULTIPLE, compiling=self._compiling)

    def _deal(self, window: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
        return [window[start : start + self.size] for start in range(0, len(window), self.size)]

    def _arrays(self, rows: np.ndarray) -> HostBatch:
        return self.examples.batch(
            rows, size=self.size, pad_id=self.pad_id, lengths=self.lengths, host_shard=self.host_shard
        )


@dataclasses.dataclass
class PackedBatches(_TrainBatches):
    """Several examples a row; every batch has the same mix of lengths, so all fit one shape, or two.

    How many rows a batch has can be divided by `multiple`.
    """

    examples: LabelledSequences
    multiple: int = dataclasses.field(default=1, kw_only=True)

    @functools.cached_property
    def shape(self) -> tuple[PackedShape, tuple[int, ...]]:
        """What a row holds, and how many rows batches are filled up to; one that needs more has as many as it needs."""
        batches, lengths = self._epoch(0), self.examples.lengths
        sample = [lengths[rows].tolist() for rows in batches[:: -(-len(batches) // _SAMPLE)]]
        compiling = self._compiling * self.size * len(sample) / len(batches)
        return choose_shape(sample, int(lengths.max()), step=MULTIPLE, multiple=self.multiple, compiling=compiling)

    def _deal(self, window: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
        # The shortest rows, one to each batch, then the next ones, up to the longest.
        count = -(-len(window) // self.size)
        hands = [generator.permutation(window[start : start + count]) for start in range(0, len(window), count)]
        return [np.array([hand[i] for hand in hands if i < len(hand)]) for i in range(count)]

    def _arrays(self, rows: np.ndarray) -> HostBatch:
        examples, (shape, counts) = self.examples, self.shape
        packed = first_fit(examples.lengths[rows].tolist(), shape)
        counts = (*counts, -(-len(packed) // self.multiple) * self.multiple)
        packed += [[]] * (next(count for count in counts if count >= len(packed)) - len(packed))
        packed = [packed[row] for row in self.host_shard.rows(len(packed))]  # only now is anything built
        chosen = [examples.ids[row] for row in rows], [examples.types[row] for row in rows]
        batch = pack(*chosen, packed, shape, pad_id=self.pad_id)
        labels = examples.blank(batch["first_positions"].shape)
        for row, members in enumerate(packed):
            labels[row, : len(members)] = examples.labels[rows[members]]
        slots = np.arange(shape.slots) < np.array([[len(members)] for members in packed])
        return {**batch, "labels": labels, "weight": slots.astype(np.float32)}


Kind = TypeVar("Kind", bound=SequenceExamples)


@dataclasses.dataclass(frozen=True)
class EvaluationBatches(Generic[Kind]):
    """Every example once, longest rows together; `rows` says which example each row of a batch is.

    Of the arrays of a batch only `host_shard` is built.
    """

    examples: Kind
    size: int
    pad_id: int
    max_length: int
    host_shard: HostShard = WHOLE_BATCH

    def __len__(self) -> int:
        return -(-len(self.examples) // self.size)

    def __iter__(self) -> Iterator[HostBatch]:
        for rows in self.rows:
            yield self.examples.batch(
                rows, size=self.size, pad_id=self.pad_id, lengths=self.lengths, host_shard=self.host_shard
            )

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """The lengths that batches are padded to."""
        return choose_padded_sizes(self.examples.longest(self.rows), self.max_length, multiple=MULTIPLE)

    def by_example(self, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Of what a model put out for every batch [B, ...], the entry of each example, in the examples' order."""
        found: dict[int, np.ndarray] = {}
        for rows, values in zip(self.rows, outputs, strict=True):
            found.update(zip(rows.tolist(), values, strict=False))  # filling comes last
        return [found[number] for number in range(len(self.examples))]

    @functools.cached_property
    def rows(self) -> list[np.ndarray]:
        """Example numbers of each batch, in the batches' order."""
        order = np.argsort(self.examples.lengths, kind="stable")
        return [order[start : start + self.size] for start in range(0, len(order), self.size)]


def prefetch(train_set: TrainSet, start: int, stop: int, *, threads: int = 2, ahead: int = 8) -> Iterator[HostBatch]:
    """Batches `start` to `stop - 1`; the order does not depend on the number of threads.

    A batch is a pure function of its number, so a run resumes at step n by starting at n: nothing is skipped over.
    """
    import grain  # not needed to build batches, and not installed everywhere that builds them

    numbers = grain.MapDataset.range(start, stop)
    return iter(numbers.map(train_set.__getitem__).to_iter_dataset(grain.ReadOptions(threads, ahead)))
