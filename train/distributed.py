"""The devices of a run: its mesh, and batches and state placed on them."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from flaxbert import sharding
from flaxbert.models import PreTrainedModel
from flaxbert.sharding import AxisRules
from train.data.host_shard import HostShard


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """How the devices share the work: a grid of data x fsdp x tensor, which must use all of them."""

    data: int | None = None
    """Groups that each hold a whole model and take their own rows; None: as many as the other two leave."""
    fsdp: int = 1
    """Devices of a group that keep parameters and optimizer state in parts, and take their own rows."""
    tensor: int = 1
    """Devices among which heads, feed-forward units and words are divided; they take the same rows."""

    def __post_init__(self):
        for name in ("data", "fsdp", "tensor"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh and the rules that place arrays on it."""

    mesh: Mesh
    rules: AxisRules = sharding.FSDP_TENSOR

    @classmethod
    def of(cls, shape: MeshShape, devices: Sequence[Any] | None = None) -> "Placement":
        """The mesh of this shape over the devices, all of this run where None.

        Raises:
            ValueError: there are not as many devices.
        """
        return cls(sharding.make_mesh(devices, data=shape.data, fsdp=shape.fsdp, tensor=shape.tensor))

    @property
    def data_parallel_size(self) -> int:
        """Among how many devices, or groups of them, the rows of a batch are divided."""
        return sharding.axis_size(self.mesh, self.rules.batch)

    def check_rows(self, name: str, rows: int, *, gradient_accumulation_steps: int = 1) -> None:
        """Raises where a batch does not divide evenly.

        Raises:
            ValueError: names the setting, its value, and of what it must be a multiple.
        """
        multiple = self.data_parallel_size * gradient_accumulation_steps
        if rows % multiple:
            parts = f"{self.data_parallel_size} devices" + (
                f" and {gradient_accumulation_steps} gradient accumulation steps"
                if gradient_accumulation_steps > 1
                else ""
            )
            raise ValueError(f"{name} is {rows}, which does not divide over {parts}; use a multiple of {multiple}")

    def check_model(self, model: PreTrainedModel) -> None:
        """Raises where a parameter does not divide evenly.

        Raises:
            ValueError: lists what does not.
        """
        sharding.check_divisible(self.mesh, self.rules, model.parameter_shapes(), model.logical_axes())

    @functools.cached_property
    def host_shard(self) -> HostShard:
        """Which rows of every batch this process builds: those that its devices take."""
        held = self.batch_sharding.addressable_devices_indices_map((self.data_parallel_size,)).values()
        return HostShard(
            tuple(sorted({index[0].start or 0 for index in held if index is not None})), self.data_parallel_size
        )

    def batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """The rows of `host_shard` as global arrays, split over the devices that take their own."""
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
        """Rows divided, everything else whole."""
        return sharding.batch_sharding(self.mesh, self.rules)

    @property
    def replicated(self) -> NamedSharding:
        """Whole on every device."""
        return sharding.replicated(self.mesh)

    def parameters(self, model: PreTrainedModel) -> Any:
        """A sharding for every parameter of the model."""
        return sharding.tree_shardings(self.mesh, self.rules, model.logical_axes())

    def tracing(self) -> contextlib.AbstractContextManager[None]:
        """Return JAX's own mesh context for code that is being traced; `jax.set_mesh` is the same outside of jit."""
        return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)
