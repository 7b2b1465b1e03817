"""Where arrays live: a mesh of devices, and rules from logical axis names to mesh axes."""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
_GATHERED = "fsdp"  # the mesh axis over which parameters are kept in parts, and put together to be used


@dataclasses.dataclass(frozen=True)
class AxisRules:
    """For each logical axis of a parameter or batch, the mesh axis that splits it; None keeps it whole.

    A mesh axis of one device splits nothing, so `FSDP_TENSOR` serves for every mesh.
    """

    batch: str | tuple[str, ...] | None = ("data", "fsdp")
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
        used = [name for axis in mapped for name in _names(axis)]
        if len(used) != len(set(used)):
            raise ValueError(f"the axes {axes} map to {mapped}: one mesh axis twice in one array")
        return PartitionSpec(*mapped)


REPLICATED = AxisRules()
"""Every device holds all parameters; batches are split."""
FSDP = AxisRules(embed="fsdp")
"""Parameters and moments are kept in parts, and gathered layer by layer to be used (ZeRO's third stage)."""
TENSOR = AxisRules(vocab="tensor", heads="tensor", mlp="tensor")
"""Heads, feed-forward units and words are divided among devices (Megatron's split of a block)."""
FSDP_TENSOR = AxisRules(embed="fsdp", vocab="tensor", heads="tensor", mlp="tensor")
"""Both."""


def make_mesh(devices: Sequence[Any] | None = None, *, data: int | None = None, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """The devices (all where None) in a grid of `AXES`, neighbours on the last axis; `data` takes what is left.

    Raises:
        ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    for name, size in (("data", data), ("fsdp", fsdp), ("tensor", tensor)):
        if size is not None and size < 1:
            raise ValueError(f"the mesh axis {name} is {size}; it must be at least 1")
    inner = fsdp * tensor
    if count % inner or data not in (None, count // inner):
        wanted = f"fsdp {fsdp} x tensor {tensor}" if data is None else f"data {data} x fsdp {fsdp} x tensor {tensor}"
        raise ValueError(f"a mesh of {wanted} does not fit: there are {count} devices, and it must use all of them")
    # An axis may take a part of a dimension of the torus, which jax.make_mesh allows on some TPUs only.
    grid = create_device_mesh((count // inner, fsdp, tensor), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def tree_shardings(mesh: Mesh, rules: AxisRules, logical_axes: Any) -> Any:
    """A sharding for every parameter of `PreTrainedModel.logical_axes()`."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, rules.spec(tuple(spec))), logical_axes, is_leaf=_is_spec)


def check_divisible(mesh: Mesh, rules: AxisRules, shapes: Any, logical_axes: Any) -> None:
    """Raises where a parameter does not divide evenly over the devices that are to hold it.

    Args:
        mesh, rules: where parameters are to live.
        shapes: `PreTrainedModel.parameter_shapes()`.
        logical_axes: `PreTrainedModel.logical_axes()`.

    Raises:
        ValueError: lists every logical axis that does not divide, its size, and over how many devices.
    """
    specs = jax.tree.leaves(logical_axes, is_leaf=_is_spec)
    problems = set()
    for leaf, axes in zip(jax.tree.leaves(shapes), specs, strict=True):
        for size, axis, over in zip(leaf.shape, axes, rules.spec(tuple(axes)), strict=True):
            parts = split(mesh, over)
            if size % parts:
                problems.add(f"{axis} of size {size} over {parts} devices of {' x '.join(_names(over))}")
    if problems:
        raise ValueError(f"does not divide evenly: {'; '.join(sorted(problems))}. Choose another mesh")


def split(mesh: Mesh, over: str | tuple[str, ...] | None) -> int:
    """In how many parts a mesh axis, or several, splits an array's axis."""
    return math.prod(mesh.shape[name] for name in _names(over))


def batch_sharding(mesh: Mesh, rules: AxisRules) -> NamedSharding:
    """The sharding of a batch's arrays: rows split, everything else whole."""
    return NamedSharding(mesh, rules.spec(("batch",)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def fetch(x: jax.Array, layer: int | None = None) -> np.ndarray:
    """An array, or row `layer` of it, on this host, wherever its parts are.

    Where other processes hold parts of it, all processes must call this, in the same order.
    """
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        place = x.sharding
        everywhere = NamedSharding(place.mesh, PartitionSpec()) if isinstance(place, NamedSharding) else place
        return np.asarray(_whole(x, layer, everywhere))
    return np.asarray(x if layer is None else x[layer])


@functools.partial(jax.jit, static_argnums=2)
def _whole(x: jax.Array, layer: int | None, everywhere: jax.sharding.Sharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(x if layer is None else x[layer], everywhere)


def spread(tree: Any) -> bool:
    """Whether other processes hold arrays of the tree too, or parts of them."""
    return any(isinstance(leaf, jax.Array) and not leaf.is_fully_addressable for leaf in jax.tree.leaves(tree))


def _names(over: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if over is None else (over,) if isinstance(over, str) else over


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, PartitionSpec)


# -- inside a traced function ----------------------------------------------------------------------------

Place = tuple[Mesh, AxisRules]

_place: contextvars.ContextVar[Place | None] = contextvars.ContextVar("place", default=None)


@contextlib.contextmanager
def placed(mesh: Mesh, rules: AxisRules) -> Iterator[None]:
    """While a function is traced inside it, the model says where activations live and parameters are gathered.

    Left to itself the compiler spreads the split of a parameter's width to the activations, and then moves those.
    """
    token = _place.set((mesh, rules))
    try:
        yield
    finally:
        _place.reset(token)


def place() -> Place | None:
    """The mesh and the rules of `placed`, inside it."""
    return _place.get()


def platform() -> str:
    """Of the devices that are compiled for: "cpu", "gpu" or "tpu"; JAX's default ones outside of `placed`."""
    place = _place.get()
    return jax.default_backend() if place is None else place[0].devices.flat[0].platform


def _several() -> Place | None:
    """`place`, where there is something to divide."""
    place = _place.get()
    return None if place is None or place[0].size == 1 else place


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """An activation whose axes have these logical names, laid out by the rules of `placed`; as it is outside."""
    place = _several()
    if place is None:
        return x
    mesh, rules = place
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, rules.spec(axes)))


def gather(parameter: jax.Array, axes: tuple[str | None, ...], *, split_gradient: bool = True) -> jax.Array:
    """A parameter put together over the mesh axis `fsdp`, to be used.

    Its gradient is summed and split in one go; not so without `split_gradient`, for tables that are looked up: what
    is added up there, row by row of the batch, would have to be split by width and moved before.
    """
    place = _several()
    if place is None:
        return parameter
    mesh, rules = place
    parts = rules.spec(axes)
    whole = PartitionSpec(*(None if over == _GATHERED else over for over in parts))
    if not split_gradient:
        return jax.lax.with_sharding_constraint(parameter, NamedSharding(mesh, whole))
    return _gather(parameter, NamedSharding(mesh, parts), NamedSharding(mesh, whole))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(parameter: jax.Array, parts: NamedSharding, whole: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(parameter, whole)


def _forward(parameter: jax.Array, parts: NamedSharding, whole: NamedSharding) -> tuple[jax.Array, None]:
    return _gather(parameter, parts, whole), None


def _backward(parts: NamedSharding, whole: NamedSharding, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    # Left to itself the constraint's own rule would want the gradient whole first.
    return (jax.lax.with_sharding_constraint(gradient, parts),)


_gather.defvjp(_forward, _backward)
