"""Digests of the bits of arrays, computed by each device of the part that it holds.

Every element is mixed with its index, and the results are added modulo 2**32, two sums for each array. Sums of integers
do not depend on their order, so the digest of a tree is the same on every mesh. Digests find damage; they are no
protection against forgers.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from flaxbert import sharding
from flaxbert.layers import LAYERS

Device: TypeAlias = Any
"""A `jax.Device`, which is no type to type checkers."""
_Axes = tuple[tuple[str, ...], ...]  # the mesh axes that divide each dimension of an array
_LAYER = re.compile(rf"(^|/){LAYERS}/(\d+)(?=/)")


class TreeDigest:
    """Digests of all arrays of a tree, each device's own.

    Attributes:
        names: paths of the arrays, such as "params/bert/pooler/kernel".
        parts: uint32 [*mesh, arrays, 2], by the coordinates of a device and the index of an array.
    """

    def __init__(self, tree: PyTree):
        """Compute the digests and wait for them; all hosts must call it together.

        The arrays of `tree` must have a `NamedSharding`, all of the same mesh.
        """
        paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(tree), strict=True)
        self.names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
        self._mesh: Mesh = leaves[0].sharding.mesh
        self._axes = [_axes_by_dimension(leaf) for leaf in leaves]
        # A tree for each layer has the digest of layers that are stacked on a leading axis.
        starts = [_layer(name) * leaf.size % 2**32 for name, leaf in zip(self.names, leaves, strict=True)]
        program = _program(self._mesh, tuple(self._axes))
        self.parts: np.ndarray = jax.device_get(program(leaves, np.array(starts, np.uint32)))

    @property
    def text(self) -> str:
        """The digest of the whole tree, 32 hexadecimal digits."""
        sums: dict[str, np.ndarray] = {}
        for index, name in enumerate(self.names):
            # One copy of every part: coordinate 0 of the axes that do not divide the array.
            divided = {axis for axes in self._axes[index] for axis in axes}
            copy = tuple(slice(None) if axis in divided else 0 for axis in self._mesh.axis_names)
            part = self.parts[(*copy, ..., index, slice(None))].reshape(-1, 2).sum(axis=0, dtype=np.uint32)
            name = _LAYER.sub(rf"\1{LAYERS}", name)
            sums[name] = sums.get(name, np.zeros(2, np.uint32)) + part
        lines = [f"{name} {first:08x}{second:08x}\n" for name, (first, second) in sorted(sums.items())]
        return xxhash.xxh3_128_hexdigest("".join(lines).encode())

    def differing_copies(self) -> dict[str, list[Device]]:
        """Compare the copies of every part of every array; return the devices whose copies differ, by array.

        They are those that differ from most, or all that have a copy if no value is that of most.
        """
        found = {}
        for index, name in enumerate(self.names):
            divided = [axis in {axis for axes in self._axes[index] for axis in axes} for axis in self._mesh.axis_names]
            # [parts, copies, 2], with the devices alike
            order = [*np.flatnonzero(divided), *np.flatnonzero(np.logical_not(divided))]
            count = int(np.prod([self._mesh.devices.shape[axis] for axis in np.flatnonzero(divided)]))
            parts = self.parts[..., index, :].transpose(*order, -1).reshape(count, -1, 2)
            if (parts == parts[:, :1]).all():  # a hundredth of the time of what follows
                continue
            devices = self._mesh.devices.transpose(order).reshape(count, -1)
            devices = [device for part, own in zip(parts, devices, strict=True) for device in own[_minority(part)]]
            if devices:
                found[name] = devices
        return found

    def differences(self, other: "TreeDigest") -> dict[str, list[Device]]:
        """Return the devices whose parts differ from those of another digest of the same arrays, by array."""
        differ = (self.parts != other.parts).any(axis=-1)
        return {
            name: list(self._mesh.devices[differ[..., index]])
            for index, name in enumerate(self.names)
            if differ[..., index].any()
        }


def _minority(copies: np.ndarray) -> np.ndarray:
    """Return which of the copies [copies, 2] differ from most of them; all if no value is that of most."""
    _, kinds, counts = np.unique(copies, axis=0, return_inverse=True, return_counts=True)
    most = counts.max()
    if most == len(copies):
        return np.zeros(len(copies), bool)
    return kinds.reshape(-1) != counts.argmax() if most > len(copies) / 2 else np.ones(len(copies), bool)


def _layer(name: str) -> int:
    """Return the number of the layer of an array in a tree for each layer; 0 for other arrays."""
    match = _LAYER.search(name)
    return int(match[2]) if match else 0


def _axes_by_dimension(leaf: jax.Array) -> _Axes:
    assert isinstance(leaf.sharding, NamedSharding), leaf.sharding
    spec = leaf.sharding.spec
    entries = [*spec, *[None] * (leaf.ndim - len(spec))]
    return tuple(() if entry is None else (entry,) if isinstance(entry, str) else tuple(entry) for entry in entries)


@functools.lru_cache(maxsize=16)
def _program(mesh: Mesh, axes: tuple[_Axes, ...]) -> Callable[[Sequence[jax.Array], np.ndarray], jax.Array]:
    """Return the function from arrays and the numbers of their first elements to `TreeDigest.parts`."""
    names = mesh.axis_names

    def digest_blocks(blocks: Sequence[jax.Array], starts: jax.Array) -> jax.Array:
        digests = [
            _digest_block(block, _first_indices(block, own), _global_shape(mesh, block, own), starts[number])
            for number, (block, own) in enumerate(zip(blocks, axes, strict=True))
        ]
        return jnp.stack(digests).reshape(*(1,) * len(names), len(blocks), 2)

    specs = tuple(PartitionSpec(*(axis or None for axis in own)) for own in axes)
    by_device = jax.shard_map(
        digest_blocks, mesh=mesh, in_specs=(specs, PartitionSpec()), out_specs=PartitionSpec(*names), check_vma=False
    )
    return jax.jit(by_device, out_shardings=sharding.replicated(mesh))


def _global_shape(mesh: Mesh, block: jax.Array, axes: _Axes) -> tuple[int, ...]:
    return tuple(
        size * int(np.prod([mesh.shape[axis] for axis in own])) for size, own in zip(block.shape, axes, strict=True)
    )


def _first_indices(block: jax.Array, axes: _Axes) -> list[jax.Array | int]:
    """Return the index, in the whole array, of the block's first element along each dimension."""
    return [jax.lax.axis_index(tuple(own)) * size if own else 0 for size, own in zip(block.shape, axes, strict=True)]


@functools.partial(jax.jit, static_argnames="shape")
def _digest_block(
    block: jax.Array, first: Sequence[jax.Array | int], shape: tuple[int, ...], start: jax.Array
) -> jax.Array:
    """Return two sums over the elements of a block of an array of this shape, whose elements count from `start`."""
    index = jnp.zeros(block.shape, jnp.uint32)
    for axis, size in enumerate(shape):
        own = jax.lax.broadcasted_iota(jnp.uint32, block.shape, axis) + jnp.asarray(first[axis]).astype(jnp.uint32)
        index = index * jnp.uint32(size) + own
    index = index + start
    for bits in _words(block):
        index = _mix(bits ^ _mix(index))
    zero = jnp.uint32(0)
    sums = jax.lax.reduce(
        (index, _mix(index)), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), range(block.ndim)
    )
    return jnp.stack(sums)


def _words(array: jax.Array) -> list[jax.Array]:
    """Return the bits of the elements of an array as one uint32 array of its shape, or two for types of 64 bits."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    if array.dtype.itemsize == 8:
        pairs = jax.lax.bitcast_convert_type(array, jnp.uint32)
        return [pairs[..., 0], pairs[..., 1]]
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    return [jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)]


def _mix(value: jax.Array) -> jax.Array:
    """Mix the bits of uint32 numbers, one to one: the constants are those of lowbias32 (C. Wellons, 2018)."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        value = (value ^ (value >> jnp.uint32(shift))) * jnp.uint32(factor)
    return value ^ (value >> jnp.uint32(16))
