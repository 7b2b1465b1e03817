"""The mathematics of BERT as pure functions over arrays: no parameters declared, no state, no configuration."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.random import threefry2x32_p
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key, Num, Shaped, UInt32

# -- activations ----------------------------------------------------------------------------------------


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU by the error function: Hugging Face's "gelu"; Google's later code uses the tanh form instead."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU's tanh approximation: up to 4.7e-4 from `gelu`, which compounds over layers."""
    return jax.nn.gelu(x, approximate=True)


def gelu_10(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU clipped to [-10, 10], made for quantisation."""
    return jnp.clip(gelu(x), -10.0, 10.0)


def gelu_fast(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The tanh approximation with sqrt(2/pi) rounded to ten digits, as Hugging Face's "gelu_fast"."""
    return 0.5 * x * (1.0 + jnp.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU's sigmoid approximation, x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def laplace(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The Laplace activation of MEGA (Ma et al., 2022) with its published mean and deviation."""
    return 0.5 * (1.0 + jax.lax.erf((x - 0.707107) / (0.282095 * math.sqrt(2.0))))


def relu2(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Squared ReLU (So et al., 2021)."""
    return jnp.square(jax.nn.relu(x))


def mish(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Mish, x * tanh(softplus(x)) (Misra, 2019)."""
    return x * jnp.tanh(jax.nn.softplus(x))


def linear(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The identity."""
    return x


def leaky_relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """ReLU with a slope of 0.01 below zero."""
    return jax.nn.leaky_relu(x, 0.01)


# The names that `hidden_act` of config.json may hold, with Hugging Face's meaning.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_10": gelu_10,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_fast,
    "gelu_new": gelu_tanh,
    "gelu_python": gelu,
    "gelu_pytorch_tanh": gelu_tanh,
    "laplace": laplace,
    "leaky_relu": leaky_relu,
    "linear": linear,
    "mish": mish,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "relu2": relu2,
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}

# -- layers ---------------------------------------------------------------------------------------------


def layer_norm(
    x: Float[Array, "... D"], scale: Float[Array, "D"], bias: Float[Array, "D"], *, epsilon: float
) -> Float[Array, "... D"]:
    """Layer normalisation over the last axis (Ba et al., 2016), statistics in float32, result in x's dtype.

    The variance is taken around the mean in a second pass: E[x^2] - E[x]^2 cancels where |mean| >> deviation.
    """
    y = x.astype(jnp.float32)
    centred = y - jnp.mean(y, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(variance + epsilon)
    broadcast = (1,) * (x.ndim - 1) + (-1,)
    return (y * scale.reshape(broadcast) + bias.reshape(broadcast)).astype(x.dtype)


WORD = 32
"""Bits of a word of `kept_words`."""


def kept(key: Key[Array, ""], shape: tuple[int, ...], *, rate: float) -> Bool[Array, "..."]:
    """Which elements `dropout` keeps: each a function of the key and of its place, however devices share the array.

    An element is decided by 16 bits. Four share one block of Threefry-2x32 (Salmon et al., 2011), the generator of
    jax's own keys. They stand a quarter of the last axis but one apart: neighbours, or one array of bits for all sites
    of a block, would have to be moved about between the lanes of a TPU, which takes many times as long as drawing.
    """
    outer, (rows, columns) = shape[:-2], shape[-2:] if len(shape) > 1 else (1, *shape)
    # Compared before they are put together: a quarter of the bytes.
    quarters = _kept_quarters(key, (*outer, -(-rows // 4), columns), rate)
    return jnp.concatenate(quarters, axis=-2)[..., :rows, :].reshape(shape)


def kept_words(key: Key[Array, ""], shape: tuple[int, ...], *, rate: float) -> UInt32[Array, "... W S"]:
    """What `kept` makes of the same key and shape, as the bits of words, for a kernel.

    Bit b of a word in row w is for row b * W + w, with W = T / 32: rows of words give whole rows of a mask.

    Args:
        key, rate: of `kept`.
        shape: [..., T, S], T a multiple of 32.
    """
    *outer, rows, columns = shape
    quarters = _kept_quarters(key, (*outer, WORD // 4, rows // WORD, columns), rate)
    first, second, third, fourth = (
        quarter.astype(jnp.uint32) << (WORD // 4 * place) for place, quarter in enumerate(quarters)
    )
    bits = first | second | third | fourth
    return jnp.sum(bits << jax.lax.broadcasted_iota(jnp.uint32, bits.shape, bits.ndim - 3), axis=-3, dtype=jnp.uint32)


def _kept_quarters(key: Key[Array, ""], words: tuple[int, ...], rate: float) -> list[Bool[Array, "..."]]:
    """Of an array's last axis but one: one array of blocks gives four elements at each of its places."""
    counters = [jax.lax.broadcasted_iota(jnp.uint32, words, 0), _places(words)]
    data = jax.random.key_data(key).reshape(-1)  # two words, or more of other generators
    keys = [jnp.broadcast_to(word, words) for word in (data[0], data[-1])]
    halves = [part for word in threefry2x32_p.bind(*keys, *counters) for part in (word & 0xFFFF, word >> 16)]
    return [half < _keep(rate) for half in halves]


def kept_scale(rate: float) -> float:
    """What dropout multiplies the elements it keeps by."""
    return 2**16 / _keep(rate)


def _keep(rate: float) -> int:
    """Of 65536."""
    return max(1, round((1.0 - rate) * 2**16))


def _places(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """The number of each element within its row of the first axis."""
    places = jnp.zeros(shape, jnp.uint32)
    for axis in range(1, len(shape)):
        places += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(math.prod(shape[axis + 1 :]))
    return places


def dropout(
    x: Float[Array, "*shape"], random: Key[Array, ""] | Bool[Array, "*shape"] | None, *, rate: float
) -> Float[Array, "*shape"]:
    """Zeroes each element by itself with probability `rate` and scales the rest by its inverse.

    Args:
        x: at least one axis.
        random: a key, or what `kept` makes of one; None drops nothing.
        rate: kept to 1/65536.
    """
    if random is None or rate == 0.0 or x.size == 0:
        return x
    mask = random if random.dtype == jnp.bool_ else kept(random, x.shape, rate=rate)
    return jnp.where(mask, x * kept_scale(rate), jnp.zeros((), x.dtype)).astype(x.dtype)


# -- attention ------------------------------------------------------------------------------------------


def attention_mask(
    mask: Num[ArrayLike, "B S"] | Num[ArrayLike, "B T S"] | Bool[ArrayLike, "B S"] | Bool[ArrayLike, "B T S"],
) -> Bool[Array, "B 1 _ S"]:
    """True where a query may attend to a key, broadcast over heads; a 3-D mask is used row by row as given."""
    mask = jnp.asarray(mask) != 0
    return mask[:, None, None, :] if mask.ndim == 2 else mask[:, None, :, :]


def mask_bias(mask: Bool[Array, "..."]) -> Float[Array, "..."]:
    """What is added to scores, in float32: 0 where a query may attend, the lowest finite number elsewhere.

    Added, not selected: the sum rounds to the lowest, and a row without keys has PyTorch's gradient too.
    """
    return jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min)


def packed_mask(segment_ids: Int[ArrayLike, "B T"]) -> Bool[Array, "B T T"]:
    """True between positions of one sequence, for rows that hold several: `segment_ids` tells them apart."""
    ids = jnp.asarray(segment_ids)
    return ids[:, :, None] == ids[:, None, :]


def causal_mask(query_length: int, key_length: int) -> Bool[Array, "1 1 T S"]:
    """True where a key stands at or before its query; the queries are the last `query_length` positions."""
    rows = jnp.arange(query_length)[:, None] + (key_length - query_length)
    return (jnp.arange(key_length)[None, :] <= rows)[None, None]


def attention(
    query: Float[Array, "B H T K"],
    key: Float[Array, "B H S K"],
    value: Float[Array, "B H S K"],
    mask: Bool[Array, "#B 1 #T S"] | None,
    *,
    kept: Bool[Array, "B H T S"] | None = None,
    rate: float = 0.0,
) -> tuple[Float[Array, "B H T K"], Float[Array, "B H T S"]]:
    """Scaled dot-product attention (Vaswani et al., 2017): contexts and the weights they are means by, dropped out.

    Softmax is taken in float32, of products rounded to query's dtype as PyTorch's are; in float32 they would be the
    largest array of a step. Masked scores become the lowest finite float32, so a row with nothing to attend to is
    uniform instead of NaN, as in Hugging Face's eager attention.
    """
    scores = jnp.einsum("BHTK,BHSK->BHTS", query, key).astype(jnp.float32) * (1.0 / math.sqrt(query.shape[-1]))
    if mask is not None:
        scores = scores + mask_bias(mask)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    # Divided by their sum only after the product: contexts are smaller, and the gradient is spared a sum over scores.
    share = 1.0 / jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights.astype(value.dtype)
    if kept is not None and rate:
        weights = jnp.where(kept, weights, jnp.zeros((), weights.dtype))
        share = share * kept_scale(rate)
    context = jnp.einsum("BHTS,BHSK->BHTK", weights, value, preferred_element_type=jnp.float32)
    return (context * share).astype(value.dtype), (weights * share).astype(value.dtype)


# -- positions ------------------------------------------------------------------------------------------


def at_positions(x: Shaped[Array, "B T *rest"], positions: Int[ArrayLike, "B P"]) -> Shaped[Array, "B P *rest"]:
    """What x holds at some positions of each row."""
    where = jnp.asarray(positions)
    return jnp.take_along_axis(x, where.reshape(*where.shape, *(1,) * (x.ndim - 2)), axis=1)


# -- host-side checks -----------------------------------------------------------------------------------


def require_shape(name: str, value: ArrayLike | None, *allowed: tuple[int | str, ...]) -> None:
    """Raises where the shape of `value` is none of `allowed`; a letter there stands for any length, None passes.

    Raises:
        ValueError: names the argument, its shape and the allowed ones.
    """
    if value is None:
        return
    given = jnp.shape(value)
    for shape in allowed:
        if len(shape) == len(given) and all(isinstance(w, str) or w == g for g, w in zip(given, shape, strict=True)):
            return
    wanted = " or ".join(f"[{', '.join(map(str, shape))}]" for shape in allowed)
    raise ValueError(f"{name} has shape {list(given)}; allowed: {wanted}")


def require_range(name: str, values: ArrayLike | None, low: int, high: int, *, why: str) -> None:
    """Raises where an integer of `values` lies outside low..high inclusive; XLA would clamp or wrap silently.

    Values that are being traced, or lie on other hosts, cannot be looked at and pass: check before jit, on the host.

    Raises:
        ValueError: names the first offending value and its place, and `why` the range is what it is.
    """
    if values is None or isinstance(values, Tracer):
        return
    if isinstance(values, jax.Array) and not values.is_fully_addressable:
        return
    array = np.asarray(values)
    wrong = (array < low) | (array > high)
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"{name} holds {array[place]} at {list(place)}; allowed: {low} to {high} ({why})")


def flatten_choices(x: Shaped[ArrayLike, "B C *rest"] | None) -> Shaped[Array, "BC *rest"] | None:
    """[B, C, ...] to [B*C, ...]: every choice becomes a row of its own; None stays None."""
    if x is None:
        return None
    x = jnp.asarray(x)
    if x.ndim < 3:
        raise ValueError(f"an input of shape {x.shape} has no axis of choices; [B, C, T] is needed")
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
