"""Where arrays live: a mesh of devices, and rules from logical axis names to mesh axes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class AxisRules:
    """For each logical axis of a parameter or batch, the mesh axis that splits it; None keeps it whole."""

    batch: str | None = "data"
    vocab: str | None = None
    position: str | None = None
    token_type: str | None = None
    embed: str | None = None
    heads: str | None = None
    head: str | None = None
    mlp: str | None = None
    label: str | None = None
    norm: str | None = None
    layers: str | None = None

    def spec(self, axes: tuple[str | None, ...]) -> PartitionSpec:
        """Mesh axes for an array's logical axes.

        Raises:
            AttributeError: a logical axis that has no rule.
            ValueError: two axes of one array would be split over the same mesh axis.
        """
        mapped = [None if axis is None else getattr(self, axis) for axis in axes]
        used = [axis for axis in mapped if axis is not None]
        if len(used) != len(set(used)):
            raise ValueError(f"the axes {axes} map to {mapped}: one mesh axis twice in one array")
        return PartitionSpec(*mapped)


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """All devices on one axis, "data"."""
    devices = jax.devices() if devices is None else devices
    auto = (jax.sharding.AxisType.Auto,)  # make_mesh's default mode is Explicit
    return Mesh(np.asarray(devices), ("data",), axis_types=auto)


def tree_shardings(mesh: Mesh, rules: AxisRules, logical_axes: Any) -> Any:
    """A sharding for every parameter of `PreTrainedModel.logical_axes()`."""
    is_spec = lambda leaf: isinstance(leaf, PartitionSpec)  # noqa: E731
    return jax.tree.map(lambda spec: NamedSharding(mesh, rules.spec(tuple(spec))), logical_axes, is_leaf=is_spec)


def batch_sharding(mesh: Mesh, rules: AxisRules) -> NamedSharding:
    """The sharding of a batch's arrays: rows split, everything else whole."""
    return NamedSharding(mesh, rules.spec(("batch",)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())
