"""Batches in the memory of a host: the rows that it builds of each, and building them ahead of time."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np

HostBatch = Mapping[str, np.ndarray]
"""The arrays of a batch by name."""


@dataclasses.dataclass(frozen=True)
class HostShard:
    """The shards of every batch that this host builds; `count` shards of equal size make up a batch.

    The rows that all hosts build are together the batch that a single host would build.
    """

    shards: tuple[int, ...] = (0,)
    """Indices of the shards that are built here, ascending."""
    count: int = 1
    """Shards of a batch."""

    def __post_init__(self):
        if not self.shards or list(self.shards) != sorted(set(self.shards) & set(range(self.count))):
            raise ValueError(f"shards is {self.shards}; must be one or more of 0 to {self.count - 1}, ascending")

    @property
    def fraction(self) -> float:
        """The fraction of a batch's rows that is built here, 0 < fraction <= 1."""
        return len(self.shards) / self.count

    def rows(self, batch_size: int) -> np.ndarray:
        """Return the indices, ascending, of the rows that are built here of a batch of `batch_size` rows.

        Raises:
            ValueError: the batch does not divide into `count` shards.
        """
        shard_size, rest = divmod(batch_size, self.count)
        if rest:
            raise ValueError(f"a batch of {batch_size} rows does not divide into {self.count} shards")
        return np.concatenate([np.arange(shard * shard_size, (shard + 1) * shard_size) for shard in self.shards])

    def local_index(self, row: int, batch_size: int) -> int:
        """Return the index, among the rows built here, of row `row` of the batch, the first row of a shard."""
        shard_size = batch_size // self.count
        return self.shards.index(row // shard_size) * shard_size


WHOLE_BATCH = HostShard()
"""A single host, which builds all rows."""


class TrainSet(Protocol):
    """Endless batches by number; batch `i` is always the same, so the position in the data is a step number."""

    def __getitem__(self, index: int, /) -> HostBatch:
        """Return batch `index`, of epoch `index // steps_per_epoch`."""
        ...


def prefetch(
    train_set: TrainSet, start: int, stop: int, *, threads: int = 2, buffer_size: int = 8
) -> Iterator[HostBatch]:
    """Return batches `start` to `stop - 1` in order, built ahead of time in background threads."""
    import grain  # not needed to build batches, and not installed everywhere that builds them

    numbers = grain.MapDataset.range(start, stop)
    return iter(numbers.map(train_set.__getitem__).to_iter_dataset(grain.ReadOptions(threads, buffer_size)))
