"""Batches of a run: the rows that each host builds, ahead of time, and their place on the mesh of its devices."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from flaxbert import sharding
from flaxbert.encoder_decoder import AnyModel
from flaxbert.sharding import AxisRules
from train.multihost.progress import WORK

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


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """Shape of the mesh, data x fsdp x tensor; the product must be the number of devices."""

    data: int | None = None
    """Groups of devices, each with a whole model and its own rows of a batch; None: as many as possible."""
    fsdp: int = 1
    """Devices among which parameters and optimizer state are divided; each takes its own rows of a batch."""
    tensor: int = 1
    """Devices among which heads, feed-forward units and vocabulary are divided; they take the same rows."""

    def __post_init__(self):
        for name in ("data", "fsdp", "tensor"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh, and the rules that map logical axes of arrays to it."""

    mesh: Mesh
    rules: AxisRules = sharding.FSDP_TENSOR

    @classmethod
    def of(cls, shape: MeshShape, devices: Sequence[object] | None = None) -> "Placement":
        """Make a mesh of these devices, by default of all devices of the run.

        Raises:
            ValueError: the shape does not fit the number of devices.
        """
        return cls(sharding.make_mesh(devices, data=shape.data, fsdp=shape.fsdp, tensor=shape.tensor))

    @property
    def data_parallel_size(self) -> int:
        """Number of shards of a batch: data x fsdp."""
        return sharding.axis_size(self.mesh, self.rules.batch)

    def check_rows(self, name: str, rows: int, *, gradient_accumulation_steps: int = 1) -> None:
        """Check that the rows of a batch divide evenly over the devices and gradient-accumulation steps.

        Raises:
            ValueError: they do not; the message has the `name` of the setting, its value and an allowed multiple.
        """
        multiple = self.data_parallel_size * gradient_accumulation_steps
        if rows % multiple:
            parts = f"{self.data_parallel_size} devices"
            if gradient_accumulation_steps > 1:
                parts += f" and {gradient_accumulation_steps} gradient accumulation steps"
            raise ValueError(f"{name} is {rows}, which does not divide over {parts}; use a multiple of {multiple}")

    def check_model(self, model: AnyModel) -> None:
        """Check that every parameter of the model divides evenly over the mesh.

        Raises:
            ValueError: lists the parameters that do not.
        """
        sharding.check_divisible(self.mesh, self.rules, model.parameter_shapes(), model.logical_axes())

    @functools.cached_property
    def host_shard(self) -> HostShard:
        """The shards of every batch that this host builds: those that its own devices take."""
        held = self.batch_sharding.addressable_devices_indices_map((self.data_parallel_size,)).values()
        return HostShard(
            tuple(sorted({index[0].start or 0 for index in held if index is not None})), self.data_parallel_size
        )

    def batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Return the global batch, divided over the devices, of which this host gives the rows of `host_shard`."""
        WORK.begun += 1
        return {name: self._global(values) for name, values in batch.items()}

    def _global(self, values: np.ndarray) -> jax.Array:
        shard = self.host_shard
        size = len(values) * shard.count // len(shard.shards)

        def rows(index: Any) -> np.ndarray:
            first, stop, _ = index[0].indices(size)
            start = shard.local_index(first, size)
            return values[start : start + stop - first]

        return jax.make_array_from_callback((size, *values.shape[1:]), self.batch_sharding, rows)

    @property
    def batch_sharding(self) -> NamedSharding:
        """Sharding of a batch: rows divided, other axes whole."""
        return sharding.batch_sharding(self.mesh, self.rules)

    @property
    def replicated(self) -> NamedSharding:
        """Sharding of an array that is whole on every device."""
        return sharding.replicated(self.mesh)

    def parameters(self, model: AnyModel) -> PyTree:
        """Return a sharding for every parameter of the model."""
        return sharding.tree_shardings(self.mesh, self.rules, model.logical_axes())

    def tracing(self) -> contextlib.AbstractContextManager[None]:
        """Return JAX's own mesh context for code that is being traced; `jax.set_mesh` is the same outside of jit."""
        return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)


_Batch = TypeVar("_Batch", covariant=True)


class Indexed(Protocol[_Batch]):
    """Batches by number, with whatever belongs to them."""

    def __getitem__(self, index: int, /) -> _Batch: ...


class TrainSet(Protocol):
    """Endless batches by number; batch `i` is always the same, so the position in the data is a step number."""

    def __getitem__(self, index: int, /) -> HostBatch:
        """Return batch `index`, of epoch `index // steps_per_epoch`."""
        ...


def prefetch(train_set: Indexed[_Batch], start: int, stop: int) -> Iterator[_Batch]:
    """Return batches `start` to `stop - 1` in order, up to 8 of them built ahead of time in two threads."""
    import grain  # not needed to build batches, and not installed everywhere that builds them

    numbers = grain.MapDataset.range(start, stop)
    return iter(numbers.map(train_set.__getitem__).to_iter_dataset(grain.ReadOptions(2, 8)))
