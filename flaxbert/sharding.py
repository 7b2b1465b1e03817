"""Sharding: a mesh of devices, and rules from logical axis names to mesh axes.

A model finds the mesh of `jax.set_mesh`, and constrains activations and gathers parameters on it:

    mesh = sharding.make_mesh(fsdp=2, tensor=4)
    model, params = flaxbert.from_pretrained(folder, mesh=mesh, rules=sharding.FSDP_TENSOR)
    with jax.set_mesh(mesh):
        out = jax.jit(model.apply)({"params": params}, input_ids)
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.core import Tracer
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

AXES = ("data", "fsdp", "tensor")
LogicalAxes = tuple[str | None, ...]

_GATHERED = "fsdp"  # the mesh axis that splits parameters in memory; they are all-gathered over it for use


@dataclasses.dataclass(frozen=True)
class AxisRules:
    """For each logical axis of a parameter or activation, the mesh axis that splits it; None does not split it.

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

    def spec(self, axes: LogicalAxes) -> PartitionSpec:
        """Return the mesh axes for an array's logical axes.

        Raises:
            AttributeError: a logical axis that has no rule.
            ValueError: two axes of one array would be split over the same mesh axis.
        """
        mapped = [None if axis is None else getattr(self, axis) for axis in axes]
        used = [name for axis in mapped for name in mesh_axes(axis)]
        if len(used) != len(set(used)):
            raise ValueError(
                f"the axes {axes} map to {mapped}: one mesh axis twice in one array; change the rules so that it "
                "splits one axis only"
            )
        return PartitionSpec(*mapped)


REPLICATED = AxisRules()
"""Every device holds all parameters; batches are split over `data` and `fsdp`."""
FSDP = AxisRules(embed="fsdp")
"""Parameters and optimizer state are split, and gathered layer by layer for use (stage 3 of ZeRO)."""
TENSOR = AxisRules(vocab="tensor", heads="tensor", mlp="tensor")
"""Heads, feed-forward units and the vocabulary are split over devices (the split of Megatron-LM)."""
FSDP_TENSOR = AxisRules(embed="fsdp", vocab="tensor", heads="tensor", mlp="tensor")
"""`FSDP` and `TENSOR` together."""


def make_mesh(
    devices: Sequence[object] | None = None, *, data: int | None = None, fsdp: int = 1, tensor: int = 1
) -> Mesh:
    """Return a mesh with the axes `AXES` over all devices, or those given; `data` defaults to what the others leave.

    Neighbouring devices share the last axis, `tensor`, whose collectives are the most frequent.

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
    # An axis may take part of a dimension of the torus, which jax.make_mesh allows on some TPUs only.
    grid = create_device_mesh((count // inner, fsdp, tensor), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def tree_shardings(mesh: Mesh, rules: AxisRules, logical_axes: PyTree) -> PyTree:
    """Return a sharding for every parameter of `PreTrainedModel.logical_axes()`."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, rules.spec(tuple(spec))), logical_axes, is_leaf=_is_spec)


def check_divisible(mesh: Mesh, rules: AxisRules, shapes: PyTree, logical_axes: PyTree) -> None:
    """Check that every parameter divides evenly over the devices that split it.

    Args:
        mesh, rules: the placement of the parameters.
        shapes: `PreTrainedModel.parameter_shapes()`.
        logical_axes: `PreTrainedModel.logical_axes()`.

    Raises:
        ValueError: lists every logical axis that does not divide, its size, and the number of devices.
    """
    specs = jax.tree.leaves(logical_axes, is_leaf=_is_spec)
    problems = set()
    for leaf, axes in zip(jax.tree.leaves(shapes), specs, strict=True):
        for size, axis, over in zip(leaf.shape, axes, rules.spec(tuple(axes)), strict=True):
            count = axis_size(mesh, over)
            if size % count:
                problems.add(f"{axis} of size {size} over {count} devices of {' x '.join(mesh_axes(over))}")
    if problems:
        raise ValueError(f"does not divide evenly: {'; '.join(sorted(problems))}. Choose another mesh")


def axis_size(mesh: Mesh, over: str | tuple[str, ...] | None) -> int:
    """Return the number of devices along one or several mesh axes; 1 for None."""
    return math.prod(mesh.shape[name] for name in mesh_axes(over))


def batch_sharding(mesh: Mesh, rules: AxisRules) -> NamedSharding:
    """Return the sharding of a batch's arrays: the first axis split, everything else whole."""
    return NamedSharding(mesh, rules.spec(("batch",)))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding with the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def fetch_global(x: jax.Array, layer: int | None = None) -> np.ndarray:
    """Return an array, or its entry `layer`, on this host, even if other processes hold parts of it.

    It is then a collective operation: all processes must call it, in the same order.
    """
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        sharding = x.sharding
        whole = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding
        return np.asarray(_all_gather(x, layer, whole))
    return np.asarray(x if layer is None else x[layer])


@functools.partial(jax.jit, static_argnums=2)
def _all_gather(x: jax.Array, layer: int | None, whole: jax.sharding.Sharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(x if layer is None else x[layer], whole)


def is_multihost(tree: PyTree) -> bool:
    """Return True if other processes hold arrays of the tree, or parts of them."""
    return any(isinstance(leaf, jax.Array) and not leaf.is_fully_addressable for leaf in jax.tree.leaves(tree))


def mesh_axes(over: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the names in one entry of a `PartitionSpec`."""
    return () if over is None else (over,) if isinstance(over, str) else over


def _is_spec(leaf: object) -> bool:
    return isinstance(leaf, PartitionSpec)


# -- inside a traced model, on the mesh of `jax.set_mesh` -----------------------------------------------
# Outside of it, on a mesh of one device, and without `jax.jit`, nothing is constrained.


def current_mesh() -> AbstractMesh | None:
    """Return the mesh of `jax.set_mesh`, or None outside of it."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def local_spec(mesh: AbstractMesh, rules: AxisRules, axes: LogicalAxes) -> PartitionSpec:
    """Return `rules.spec(axes)` without mesh axes that this mesh lacks or that are not left to the compiler (Auto)."""
    usable = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind is AxisType.Auto}
    kept = (tuple(name for name in mesh_axes(over) if name in usable) for over in rules.spec(axes))
    return PartitionSpec(*(names[0] if len(names) == 1 else names or None for names in kept))


def constrain(x: jax.Array, rules: AxisRules, *axes: str | None) -> jax.Array:
    """Constrain an activation, whose axes have these logical names, to the layout of the rules on the current mesh.

    Without constraints XLA propagates the `fsdp` sharding of kernels to activations, and inserts all-to-alls.
    """
    mesh = current_mesh()
    if mesh is None or mesh.size == 1 or not isinstance(x, Tracer):
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, local_spec(mesh, rules, axes)))


def gather(parameter: jax.Array, rules: AxisRules, axes: LogicalAxes, *, split_gradient: bool = True) -> jax.Array:
    """All-gather a parameter over the mesh axis `fsdp`; its gradient is reduce-scattered.

    With `split_gradient=False` the gradient is all-reduced instead. Embedding tables need that: the scatter-add that
    computes their gradient cannot be split by width.
    """
    mesh = current_mesh()
    if mesh is None or mesh.size == 1 or not isinstance(parameter, Tracer):
        return parameter
    split = local_spec(mesh, rules, axes)
    whole = PartitionSpec(*(None if over == _GATHERED else over for over in split))
    if not split_gradient:
        return jax.lax.with_sharding_constraint(parameter, NamedSharding(mesh, whole))
    return _gather(parameter, NamedSharding(mesh, split), NamedSharding(mesh, whole))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(parameter: jax.Array, split: NamedSharding, whole: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(parameter, whole)


def _gather_forward(parameter: jax.Array, split: NamedSharding, whole: NamedSharding) -> tuple[jax.Array, None]:
    return _gather(parameter, split, whole), None


def _gather_backward(split: NamedSharding, whole: NamedSharding, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    # The constraint's own rule would first ask for the whole gradient.
    return (jax.lax.with_sharding_constraint(gradient, split),)


_gather.defvjp(_gather_forward, _gather_backward)
