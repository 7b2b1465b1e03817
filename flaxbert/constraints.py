"""Sharding constraints inside a traced model, on JAX's own mesh: that of `jax.set_mesh`.

Outside of it, on a mesh of one device, and without `jax.jit`, nothing is constrained.
"""

import functools

import jax
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from flaxbert.sharding import AxisRules, LogicalAxes, mesh_axes

_GATHERED = "fsdp"  # the mesh axis that splits parameters in memory; they are all-gathered over it for use


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
