"""The mathematics of the encoders as pure functions over arrays; the axis letters are those of `encoder.py`."""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num, Shaped

from flaxbert.dropout import dropout_scale
from flaxbert.execution import SAVED_WITH_PRODUCTS


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU by the error function: Hugging Face's "gelu"; Google's later code uses the tanh form instead.

    PyTorch's formula. `jax.nn.gelu` has erfc in place of 1 + erf, which takes more than twice as many operations.
    """
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # 1 + erf cancels
    return (0.5 * y * (1.0 + jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU's tanh approximation: up to 4.7e-4 from `gelu`, which compounds over layers."""
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_10": lambda x: jnp.clip(gelu(x), -10.0, 10.0),  # for quantisation
    "gelu_accurate": gelu_tanh,
    # The tanh form with sqrt(2/pi) rounded to ten digits.
    "gelu_fast": lambda x: 0.5 * x * (1.0 + jnp.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x))),
    "gelu_new": gelu_tanh,
    "gelu_python": gelu,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "hardswish": jax.nn.hard_swish,
    # Of MEGA (Ma et al., 2022), with its published mean and deviation.
    "laplace": lambda x: 0.5 * (1.0 + jax.lax.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0)))),
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.01),
    "linear": lambda x: x,
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),  # Misra, 2019
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # So et al., 2021
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "sqrtsoftplus": lambda x: jnp.sqrt(jax.nn.softplus(x)),
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
"""Activations by the names that `hidden_act` of config.json may hold, with Hugging Face's meaning."""

LEARNED_ACTIVATIONS: dict[str, dict[str, float]] = {
    "prelu": {"weight": 0.25},
    "xielu": {"alpha_p": math.log(math.expm1(0.8)), "alpha_n": math.log(math.expm1(0.3))},
}
"""Initial values of the parameters, one number each, of the activations of `hidden_act` that have some."""


def activate(params: Mapping[str, Array], x: Float[Array, "..."], name: str) -> Float[Array, "..."]:
    """Apply the activation of a name; `params` holds those of `LEARNED_ACTIVATIONS`, [1] each."""
    numbers = {key: value[0].astype(x.dtype) for key, value in params.items()}
    if name == "prelu":
        return jnp.where(x > 0, x, numbers["weight"] * x)
    if name == "xielu":  # Huang and Schlag, 2024, with beta 0.5
        positive, negative = jax.nn.softplus(numbers["alpha_p"]), 0.5 + jax.nn.softplus(numbers["alpha_n"])
        below = (jnp.expm1(jnp.minimum(x, -1e-6)) - x) * negative
        return jnp.where(x > 0, positive * x * x, below) + 0.5 * x
    return ACTIVATIONS[name](x)


def linear(params: Mapping[str, Array], x: Float[Array, "..."], equation: str) -> Float[Array, "..."]:
    """Return `einsum(equation, x, kernel) + bias`, computed in the kernel's dtype; without a bias if there is none.

    The bias has those axes of the kernel that the output keeps: "BTD,DHK->BHTK" takes a bias [H, K]. It is added in
    float32, so that its gradient, a sum over all positions, is accumulated in float32.
    """
    kernel = params["kernel"]
    y = jnp.einsum(equation, x.astype(kernel.dtype), kernel)
    if "bias" not in params:
        return y
    operands, output = equation.split("->")
    kernel_letters, letters = operands.split(",")[1], output.removeprefix("...")
    sizes = y.shape[y.ndim - len(letters) :]
    shape = [size if letter in kernel_letters else 1 for letter, size in zip(letters, sizes, strict=True)]
    bias = params["bias"].reshape((1,) * (y.ndim - len(shape)) + tuple(shape))
    return (y.astype(jnp.float32) + bias).astype(y.dtype)


def layer_norm(
    x: Float[Array, "... D"], scale: Float[Array, "D"], bias: Float[Array, "D"], *, epsilon: float
) -> Float[Array, "... D"]:
    """Layer normalisation over the last axis (Ba et al., 2016), statistics in float32, result in x's dtype.

    The variance is taken around the mean in a second pass: E[x^2] - E[x]^2 cancels where |mean| >> deviation.
    """
    y = x.astype(jnp.float32)
    # Both statistics are saved for the backward pass also where the layer's other activations are not.
    mean = checkpoint_name(jnp.mean(y, axis=-1), SAVED_WITH_PRODUCTS)
    centred = y - mean[..., None]
    variance = checkpoint_name(jnp.mean(jnp.square(centred), axis=-1), SAVED_WITH_PRODUCTS)
    y = centred * jax.lax.rsqrt(variance + epsilon)[..., None]
    broadcast = (1,) * (x.ndim - 1) + (-1,)
    return (y * scale.reshape(broadcast) + bias.reshape(broadcast)).astype(x.dtype)


def lookup(
    table: Float[Array, "V D"], ids: Int[Array, "B T"], *, frozen_row: int | None = None
) -> Float[Array, "B T D"]:
    """Return the rows of an embedding table; an id outside the table gives NaN, never another row.

    `frozen_row` gets no gradient through the lookup, like `padding_idx` of PyTorch.
    """
    beyond = jnp.where(ids < 0, table.shape[0], ids)  # a negative index would count from the end
    vectors = jnp.take(table, beyond, axis=0, mode="fill")
    if frozen_row is None:
        return vectors
    return jnp.where((ids == frozen_row)[..., None], jax.lax.stop_gradient(vectors), vectors)


def lookup_by_sum(table: Float[Array, "V D"], ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Return the rows of an embedding table of very few rows, as a sum over its rows; an id outside gives NaN.

    Its gradient is a few reductions; that of a gather is a scatter of every position onto the same two rows.
    """
    outside = jnp.where((ids < 0) | (ids >= table.shape[0]), jnp.nan, 0.0)[..., None]
    return sum(((ids == row)[..., None] * table[row][None, None] for row in range(table.shape[0])), outside)


def sinusoids(positions: int, width: int) -> Float[np.ndarray, "positions width"]:
    """Return the table of positions of Vaswani et al. (2017): sines in even columns, cosines in odd ones."""
    columns = np.arange(width)
    angles = np.arange(positions)[:, None] / np.power(10_000.0, 2 * (columns // 2) / width)
    return np.where(columns % 2 == 0, np.sin(angles), np.cos(angles)).astype(np.float32)


def attention_mask(
    mask: Num[ArrayLike, "B S"] | Num[ArrayLike, "B T S"] | Bool[ArrayLike, "B S"] | Bool[ArrayLike, "B T S"],
) -> Bool[Array, "B 1 _ S"]:
    """Return True where a query may attend to a key, broadcast over heads; a 3-D mask gives each query its own row."""
    mask = jnp.asarray(mask) != 0
    return mask[:, None, None, :] if mask.ndim == 2 else mask[:, None, :, :]


def mask_bias(mask: Bool[Array, "..."]) -> Float[Array, "..."]:
    """Return the additive mask in float32: 0 where a query may attend, the lowest finite number elsewhere.

    Added rather than selected, so that a fully masked row has a uniform softmax and PyTorch's gradient.
    """
    return jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min)


def packed_mask(segment_ids: Int[ArrayLike, "B T"]) -> Bool[Array, "B T T"]:
    """Return True between positions with the same segment id, for batch rows that hold several sequences."""
    ids = jnp.asarray(segment_ids)
    return ids[:, :, None] == ids[:, None, :]


def causal_mask(query_length: int, key_length: int) -> Bool[Array, "1 1 T S"]:
    """Return True where a key stands at or before its query; the queries are the last `query_length` positions."""
    rows = jnp.arange(query_length)[:, None] + (key_length - query_length)
    return (jnp.arange(key_length)[None, :] <= rows)[None, None]


def attention(
    query: Float[Array, "B H T K"],
    key: Float[Array, "B H S K"],
    value: Float[Array, "B H S K"],
    mask: Bool[Array, "#B 1 #T S"] | None,
    *,
    bias: Float[Array, "#B #H T S"] | None = None,
    keep_mask: Bool[Array, "B H T S"] | None = None,
    rate: float = 0.0,
) -> tuple[Float[Array, "B H T K"], Float[Array, "B H T S"]]:
    """Scaled dot-product attention (Vaswani et al., 2017): return (context, probabilities), both after dropout.

    The softmax is computed in float32, from products rounded to query's dtype as PyTorch rounds them; unrounded they
    would be the largest array of a train step. Masked scores become the lowest finite float32, so a row with nothing to
    attend to is uniform instead of NaN, as in Hugging Face's eager attention.

    `mask` is True where a query may attend to a key; None allows all. `bias` is added to the scores.
    `keep_mask` holds the probabilities that dropout keeps, and `rate` is the rate that it was drawn with.
    """
    scores = jnp.einsum("BHTK,BHSK->BHTS", query, key).astype(jnp.float32) * (1.0 / math.sqrt(query.shape[-1]))
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = scores + mask_bias(mask)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    # Divided by their sum only after the product: contexts are smaller, and the gradient is spared a sum over scores.
    scale = 1.0 / jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights.astype(value.dtype)
    if keep_mask is not None and rate:
        weights = jnp.where(keep_mask, weights, jnp.zeros((), weights.dtype))
        scale = scale * dropout_scale(rate)
    context = jnp.einsum("BHTS,BHSK->BHTK", weights, value, preferred_element_type=jnp.float32)
    return (context * scale).astype(value.dtype), (weights * scale).astype(value.dtype)


def distance_bias(
    table: Float[Array, "distances K"],
    query: Float[Array, "B H T K"],
    key: Float[Array, "B H S K"] | None,
    distances: Int[Array, "#B T S"],
) -> Float[Array, "B H T S"]:
    """Return the terms that relative positions add to the scores of attention, scaled like the scores, in float32.

    Each query's product with the vector of its distance to the key (Shaw et al., 2018: "relative_key"), and with `key`
    also each key's (Huang et al., 2020, method 4: "relative_key_query"), as transformers 4 computes them. The table
    [2 * positions - 1, K] begins with the most negative distance; `distances` are query position - key position, and
    those beyond the table get its ends.
    """
    vectors = jnp.take(table.astype(query.dtype), distances + table.shape[0] // 2, axis=0, mode="clip")
    bias = jnp.einsum("BHTK,ATSK->BHTS" if len(vectors) == 1 else "BHTK,BTSK->BHTS", query, vectors)
    if key is not None:
        bias = bias + jnp.einsum("BHSK,ATSK->BHTS" if len(vectors) == 1 else "BHSK,BTSK->BHTS", key, vectors)
    return bias.astype(jnp.float32) * (1.0 / math.sqrt(query.shape[-1]))


def bucket_bias(table: Float[Array, "buckets H"], distances: Int[Array, "#B T S"]) -> Float[Array, "#B H T S"]:
    """Return the terms that a table of buckets of distances adds to the scores of attention, in float32.

    Half of the buckets are for keys after the query. Of each half, the first half holds one distance each, and the
    others grow by powers up to the distance 128, beyond which all share the last one (T5: Raffel et al., 2020; MPNet:
    Song et al., 2020). `distances` are query position - key position.
    """
    half = table.shape[0] // 2
    exact, distance = half // 2, jnp.abs(distances)
    power = jnp.log(distance.astype(jnp.float32) / exact) / math.log(128 / exact)
    beyond = jnp.minimum(exact + (power * (half - exact)).astype(jnp.int32), half - 1)
    buckets = jnp.where(distance < exact, distance, beyond) + jnp.where(distances < 0, half, 0)
    return jnp.moveaxis(table[buckets], -1, 1).astype(jnp.float32)


def at_positions(x: Shaped[Array, "B T *rest"], positions: Int[ArrayLike, "B P"]) -> Shaped[Array, "B P *rest"]:
    """Return the entries of x at `positions` of each batch row."""
    indices = jnp.asarray(positions)
    return jnp.take_along_axis(x, indices.reshape(*indices.shape, *(1,) * (x.ndim - 2)), axis=1)


def at_first_positions(
    x: Shaped[Array, "B T *rest"], positions: Int[Array, "B P"] | None
) -> Shaped[Array, "B P *rest"]:
    """Return the entries of x at the first position of each sequence; at position 0, [B, 1, ...], for None."""
    return x[:, :1] if positions is None else at_positions(x, positions)  # a slice needs no scatter for its gradient


def require_shape(name: str, value: ArrayLike | None, *allowed: tuple[object, ...]) -> None:
    """Check that the shape of `value` is one of `allowed`; a letter stands for any length, and None passes.

    Lengths are numbers, or symbols while a program is exported.

    Raises:
        ValueError: names the argument, its shape and the allowed shapes.
    """
    if value is None:
        return
    given = jnp.shape(value)
    for shape in allowed:
        if len(shape) == len(given) and all(isinstance(w, str) or w == g for g, w in zip(given, shape, strict=True)):
            return
    expected = " or ".join(f"[{', '.join(map(str, shape))}]" for shape in allowed)
    raise ValueError(f"{name} has shape {list(given)}; allowed: {expected}")


def require_range(name: str, values: ArrayLike | None, low: int, high: int, *, why: str) -> None:
    """Check that all integers of `values` lie in low..high inclusive; XLA would clamp or wrap others silently.

    Values that are being traced, or that other hosts hold, cannot be read and pass: check them before jit, on the host.

    Raises:
        ValueError: names the first value out of range, its index, and `why` the range is what it is.
    """
    if values is None or isinstance(values, Tracer):
        return
    if isinstance(values, jax.Array) and not values.is_fully_addressable:
        return
    array = np.asarray(values)
    wrong = (array < low) | (array > high)
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"{name} holds {array[index]} at {list(index)}; allowed: {low} to {high} ({why})")
