"""Declarations of parameters: shape, logical axes and initialiser of each, as trees of plain data.

A model's declaration is the one description of its parameters: fresh values, shapes, shardings and the casts and
gathers before use all follow from it. flax's own Dense, Embed and Dropout are not used: they fail on sharded meshes
(google/flax #3676, #3892), and BERT has its own rules for the padding row and for layer norm.
"""

import dataclasses
import enum
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import constant, normal, ones, zeros
from jax.typing import DTypeLike
from jaxtyping import PyTree

from flaxbert.functional import LEARNED_ACTIVATIONS
from flaxbert.sharding import AxisRules, LogicalAxes, gather

LAYERS = "layers"
"""The logical name of a stack's leading axis, and the name of the stack in the tree of parameters."""
Initializer = Callable[..., jax.Array]  # (key, shape, dtype)
Params = Mapping[str, Any]
"""A tree of dicts of arrays."""
ParamsDict = dict[str, Any]
"""The same tree, as its owner has it, who may change it."""


class ParameterKind(enum.Enum):
    """The use of a parameter: factor of a matrix product, table of rows to look up, or vector to add or scale by."""

    KERNEL = "kernel"
    TABLE = "table"
    VECTOR = "vector"


@dataclasses.dataclass(frozen=True)
class ParameterSpec:
    """The declaration of one float32 parameter; `sharding.AxisRules` maps its logical axes to mesh axes."""

    shape: tuple[int, ...]
    axes: LogicalAxes
    initializer: Initializer
    kind: ParameterKind


Declaration = dict[str, Any]
"""A tree of dicts with a `ParameterSpec` at each leaf."""


def declare_linear(
    shape: tuple[int, ...], axes: LogicalAxes, *, stddev: float, inputs: int = 1, used_outputs: int | None = None
) -> Declaration:
    """Declare a kernel ~ N(0, stddev), not truncated, and a bias of zeros, as Hugging Face initialises them.

    The first `inputs` axes of the kernel are inputs, the others are those of the bias. Entries of the second axis after
    the first `used_outputs` start at zero.
    """
    kernel = ParameterSpec(shape, axes, _zero_padded(normal(stddev), 1, used_outputs), ParameterKind.KERNEL)
    return {"kernel": kernel, "bias": declare_vector(shape[inputs:], axes[inputs:], zeros)}


def declare_vector(shape: tuple[int, ...], axes: LogicalAxes, initializer: Initializer = zeros) -> ParameterSpec:
    """Declare a parameter that is added or multiplied in float32, such as a bias."""
    return ParameterSpec(shape, axes, initializer, ParameterKind.VECTOR)


def declare_layer_norm(size: int) -> Declaration:
    """Declare a scale of ones and a bias of zeros."""
    return {"scale": declare_vector((size,), ("norm",), ones), "bias": declare_vector((size,), ("norm",))}


def declare_activation(name: str) -> Declaration:
    """Declare the parameters of an activation that has some, as "activation"."""
    numbers = LEARNED_ACTIVATIONS.get(name)
    if numbers is None:
        return {}
    return {"activation": {key: declare_vector((1,), (None,), constant(value)) for key, value in numbers.items()}}


def declare_embedding(
    shape: tuple[int, int], row_axis: str, *, stddev: float, used_rows: int | None = None, pad_row: int | None = None
) -> Declaration:
    """Declare a table [rows, size] ~ N(0, stddev); `row_axis` is the logical name of its rows.

    Rows after the first `used_rows` start at zero, and so does `pad_row`, like `padding_idx` of PyTorch.
    """

    def initializer(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        table = _zero_padded(normal(stddev), 0, used_rows)(key, shape, dtype)
        return table if pad_row is None else table.at[pad_row].set(0)

    return {"embedding": ParameterSpec(shape, (row_axis, "embed"), initializer, ParameterKind.TABLE)}


def stacked(declaration: Declaration, count: int) -> Declaration:
    """Declare `count` layers of one shape as one tree with a leading axis [count, ...]."""

    def stack_spec(spec: ParameterSpec) -> ParameterSpec:
        return dataclasses.replace(spec, shape=(count, *spec.shape), axes=(LAYERS, *spec.axes))

    return map_specs(stack_spec, declaration)


def has_tree_for_each_layer(params: Params) -> bool:
    """Return True for the parameters of a stack that are not stacked on a leading axis: {"0": tree, "1": tree, ...}."""
    return "0" in params


def unstack_layers(params: Params) -> ParamsDict:
    """Return stacked layers as one tree for each, by number."""
    count = len(jax.tree.leaves(params)[0])
    return {str(number): jax.tree.map(lambda leaf: leaf[number], params) for number in range(count)}  # noqa: B023


def stack_layers(params: Params) -> Params:
    """Return layers of one shape, a tree for each, as one tree with a leading axis; the inverse of `unstack_layers`."""
    trees = [params[str(number)] for number in range(len(params))]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _zero_padded(initializer: Initializer, axis: int, used: int | None) -> Initializer:
    """Initialise the first `used` entries of an axis as if there were no others; zeros after them."""
    if used is None:
        return initializer

    def padded(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        values = initializer(key, (*shape[:axis], used, *shape[axis + 1 :]), dtype)
        return jnp.pad(values, [(0, size - given) for size, given in zip(shape, values.shape, strict=True)])

    return padded


# -- from declarations to arrays ---------------------------------------------------------------------------


def map_specs(function: Callable[..., object], declaration: PyTree, *trees: PyTree) -> PyTree:
    """Apply a function to each spec, and to the values at the same path of further trees; return a tree of dicts."""
    if isinstance(declaration, ParameterSpec):
        return function(declaration, *trees)
    return {name: map_specs(function, child, *(tree[name] for tree in trees)) for name, child in declaration.items()}


def fresh_parameters(declaration: PyTree, key: jax.Array, *, path: str = "") -> PyTree:
    """Return fresh float32 parameters; each is a function of the key and of its own path alone."""
    if isinstance(declaration, ParameterSpec):
        own_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        return declaration.initializer(own_key, declaration.shape, jnp.float32)
    return {name: fresh_parameters(child, key, path=f"{path}/{name}") for name, child in declaration.items()}


def prepare(params: PyTree, declaration: PyTree, *, dtype: DTypeLike, rules: AxisRules) -> PyTree:
    """Return the declared parameters ready for use: kernels cast to `dtype`, kernels and tables gathered over `fsdp`.

    Biases and norms stay as they are: they are applied in float32. So does everything below "layers": each layer is
    prepared when it is run, so that the whole of one layer at a time is in memory.
    """
    if not isinstance(declaration, ParameterSpec):
        return {
            name: params[name] if name == LAYERS else prepare(params[name], child, dtype=dtype, rules=rules)
            for name, child in declaration.items()
        }
    if declaration.kind is ParameterKind.VECTOR:
        return params
    if declaration.kind is ParameterKind.TABLE:
        return gather(params, rules, declaration.axes, split_gradient=False)
    return gather(params.astype(dtype), rules, declaration.axes)


def mismatches(params: PyTree, declaration: PyTree, path: str = "") -> Iterator[str]:
    """Yield a line for every declared parameter that `params` lacks or has in another shape."""
    if isinstance(declaration, ParameterSpec):
        if np.shape(params) != declaration.shape:
            yield f"{path} has shape {list(np.shape(params))}, expected {list(declaration.shape)}"
        return
    for name, child in declaration.items():
        here = f"{path}/{name}".removeprefix("/")
        if isinstance(params, Mapping) and name in params:
            yield from mismatches(params[name], child, here)
        else:
            yield f"{here} is missing"
