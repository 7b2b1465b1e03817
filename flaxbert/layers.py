"""The three layers that declare parameters, each with a logical name for every axis (`sharding.py` maps them).

flax's own Dense, Embed and Dropout are not used: they fail on sharded meshes (google/flax #3676, #3892), and BERT
needs its own rules for the pad row and for LayerNorm anyway.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import normal, ones, zeros
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from flaxbert import functional, sharding

Axes = tuple[str | None, ...]


def parameter(module: nn.Module, name: str, initializer: Callable, shape: tuple[int, ...], axes: Axes) -> Array:
    """Declares a float32 parameter with a logical name for every axis (`base.py` takes the names off again)."""
    value: Any = module.param(name, nn.with_logical_partitioning(initializer, axes), shape, jnp.float32)
    return value


def _padded(initializer: Callable, axis: int, used: int | None) -> Callable:
    """Draws the first `used` entries of an axis as if there were no others; those are 0."""
    if used is None:
        return initializer

    def draw(key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        drawn = initializer(key, (*shape[:axis], used, *shape[axis + 1 :]), dtype)
        return jnp.pad(drawn, [(0, size - given) for size, given in zip(shape, drawn.shape, strict=True)])

    return draw


class Linear(nn.Module):
    """`einsum(equation, x, kernel) + bias`, kernel ~ N(0, stddev) not truncated, bias 0 (Hugging Face's rule).

    The bias has the kernel's axes that remain in the output: "BTD,DHK->BHTK" gives a bias [H, K]. Axes that are
    `merged`, "HK" say, are one in what is given and returned.
    """

    equation: str
    shape: tuple[int, ...]
    axes: Axes
    stddev: float
    dtype: DTypeLike = jnp.float32
    used: int | None = None  # of the kernel's second axis; what is after it starts at 0
    merged: str = ""

    @nn.compact
    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Applies the layer in `dtype`; parameters are float32."""
        operands, output = self.equation.split("->")
        letters = operands.split(",")[1]
        kept = [i for i, letter in enumerate(letters) if letter in output]
        kernel = parameter(self, "kernel", _padded(normal(self.stddev), 1, self.used), self.shape, self.axes)
        kernel = sharding.gather(kernel.astype(self.dtype), self.axes)
        bias_shape, bias_axes = tuple(self.shape[i] for i in kept), tuple(self.axes[i] for i in kept)
        bias = parameter(self, "bias", zeros, bias_shape, bias_axes)
        sizes = dict(zip(letters, self.shape, strict=True))
        equation = self.equation
        if self.merged:
            first = self.merged[0]
            sizes[first] = math.prod(sizes[letter] for letter in self.merged)
            equation, letters, output = (part.replace(self.merged, first) for part in (equation, letters, output))
            kernel = kernel.reshape([sizes[letter] for letter in letters])
        y = jnp.einsum(equation, x.astype(self.dtype), kernel)
        shape = [sizes.get(letter, 1) for letter in output.removeprefix("...")]
        # In float32, so that the bias's gradient is summed in it.
        whole = y.astype(jnp.float32) + bias.reshape((1,) * (y.ndim - len(shape)) + tuple(shape))
        return whole.astype(self.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis; see `functional.layer_norm`."""

    size: int
    epsilon: float

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalises in float32 and returns x's dtype."""
        scale = parameter(self, "scale", ones, (self.size,), ("norm",))
        bias = parameter(self, "bias", zeros, (self.size,), ("norm",))
        return functional.layer_norm(x, scale, bias, epsilon=self.epsilon)


class Embedding(nn.Module):
    """A table of vectors ~ N(0, stddev), read by row number."""

    rows: int
    size: int
    row_axis: str
    stddev: float
    used: int | None = None  # of the rows; those after them are 0 and stay so
    pad_row: int | None = None  # starts at zero and gets no gradient through the lookup, as torch's padding_idx

    def setup(self):
        """Declares the table [rows, size]."""

        def initializer(key, shape, dtype):
            table = _padded(normal(self.stddev), 0, self.used)(key, shape, dtype)
            return table if self.pad_row is None else table.at[self.pad_row].set(0)

        axes = (self.row_axis, "embed")
        table = parameter(self, "embedding", initializer, (self.rows, self.size), axes)
        self.embedding = sharding.gather(table, axes, split_gradient=False)

    def __call__(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Gathers rows; an id beyond the table gives NaN (loud), never another row."""
        vectors = jnp.take(self.embedding, ids, axis=0, mode="fill")
        if self.pad_row is None:
            return vectors
        return jnp.where((ids == self.pad_row)[..., None], jax.lax.stop_gradient(vectors), vectors)

    def select(self, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The same for a table of a few rows, as a sum over rows.

        Its gradient is a few reductions; a gather's would be a scatter of every position onto two rows.
        """
        rows = [(ids == row)[..., None] * self.embedding[row][None, None] for row in range(self.rows)]
        return sum(rows[1:], rows[0])

    def decode(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Scores x against every row, in x's dtype with a float32 result: the decoder tied to the embedding."""
        table = self.embedding.astype(x.dtype)
        return jnp.einsum("BTD,VD->BTV", x, table, preferred_element_type=jnp.float32)
