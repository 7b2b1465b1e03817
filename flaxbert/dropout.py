"""Dropout with a counter-based generator: keep masks that do not depend on how devices share an array.

An element is decided by 16 bits of Threefry-2x32 (Salmon et al., 2011), the generator of JAX's own keys, over its
index. `jax.random.bernoulli` draws 32 bits for each element, which costs twice as much.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p
from jaxtyping import Array, Bool, Float, Key, UInt32

from flaxbert.sharding import AxisRules, constrain

LANE_BITS = 32
"""Bits in one element of `packed_keep_mask`."""


def dropout(
    x: Float[Array, "*shape"], random: Key[Array, ""] | Bool[Array, "*shape"] | None, *, rate: float
) -> Float[Array, "*shape"]:
    """Set each element to zero with probability `rate` and multiply the others by `dropout_scale(rate)`.

    Args:
        x: an array with at least one axis.
        random: a key, or the result of `keep_mask`; with None, x is returned unchanged.
        rate: probability of a zero, rounded to a multiple of 1/65536.
    """
    if random is None or rate == 0.0 or x.size == 0:
        return x
    if rate == 1.0:
        return jnp.zeros_like(x)
    mask = random if random.dtype == jnp.bool_ else keep_mask(random, x.shape, rate=rate)
    return jnp.where(mask, x * dropout_scale(rate), jnp.zeros((), x.dtype)).astype(x.dtype)


def dropout_scale(rate: float) -> float:
    """Return the factor on the elements that are kept: the inverse of the probability of keeping one."""
    return 0.0 if rate == 1.0 else 2**16 / _keep_threshold(rate)


def keep_mask(key: Key[Array, ""], shape: tuple[int, ...], *, rate: float) -> Bool[Array, "..."]:
    """Bernoulli keep mask: each element is a function of the key and of its index, the same under every sharding.

    One Threefry block decides four elements. They lie a quarter of axis -2 apart: with neighbouring elements, or one
    array of bits for all dropout sites of a layer, a TPU would have to move bits between its lanes, which takes many
    times as long as drawing them.
    """
    outer, (rows, columns) = shape[:-2], shape[-2:] if len(shape) > 1 else (1, *shape)
    # Compared before they are concatenated: a quarter of the bytes.
    quarters = _keep_quarters(key, (*outer, -(-rows // 4), columns), rate)
    return jnp.concatenate(quarters, axis=-2)[..., :rows, :].reshape(shape)


def packed_keep_mask(key: Key[Array, ""], shape: tuple[int, ...], *, rate: float) -> UInt32[Array, "... W S"]:
    """Pack the mask that `keep_mask` gives for the same key and shape, 32 elements in a uint32, for a kernel.

    Bit b of row w holds row b * W + w of the mask, with W = T / 32: packed rows unpack to whole rows.

    Args:
        key: as for `keep_mask`.
        shape: [..., T, S], with T a multiple of 32.
        rate: as for `keep_mask`.
    """
    *outer, rows, columns = shape
    quarters = _keep_quarters(key, (*outer, LANE_BITS // 4, rows // LANE_BITS, columns), rate)
    first, second, third, fourth = (
        quarter.astype(jnp.uint32) << (LANE_BITS // 4 * number) for number, quarter in enumerate(quarters)
    )
    bits = first | second | third | fourth
    return jnp.sum(bits << jax.lax.broadcasted_iota(jnp.uint32, bits.shape, bits.ndim - 3), axis=-3, dtype=jnp.uint32)


def _keep_quarters(key: Key[Array, ""], shape: tuple[int, ...], rate: float) -> list[Bool[Array, "..."]]:
    """Draw four 16-bit lanes per Threefry block, one array [*shape] for each quarter of axis -2."""
    counters = [jax.lax.broadcasted_iota(jnp.uint32, shape, 0), _index_in_row(shape)]
    data = jax.random.key_data(key).reshape(-1)  # two uint32; generators other than Threefry have more
    keys = [jnp.broadcast_to(half, shape) for half in (data[0], data[-1])]
    lanes = [lane for block in threefry2x32_p.bind(*keys, *counters) for lane in (block & 0xFFFF, block >> 16)]
    return [lane < _keep_threshold(rate) for lane in lanes]


def _keep_threshold(rate: float) -> int:
    """Return how many of the 65536 values of a 16-bit lane mean "keep"."""
    return max(1, round((1.0 - rate) * 2**16))


def _index_in_row(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Return the flat index of each element within its row of the first axis."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis in range(1, len(shape)):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(math.prod(shape[axis + 1 :]))
    return index


# -- the masks of a layer ----------------------------------------------------------------------------------


class KeepMasks(NamedTuple):
    """Elements that dropout keeps in one layer; None keeps all."""

    probabilities: Bool[Array, "B H T S"] | UInt32[Array, "B H W S"] | None = None  # packed for a fused kernel
    outputs: tuple[Bool[Array, "B T D"] | None, ...] = ()


class DropoutRates(NamedTuple):
    """Dropout rates of a layer: of attention probabilities, and of the outputs of its parts."""

    probabilities: float
    outputs: float


def draw_keep_masks(
    key: Key[Array, ""],
    shape: tuple[int, ...],
    probabilities_shape: tuple[int, ...],
    *,
    rates: DropoutRates,
    rules: AxisRules,
    outputs: int,
    packed: bool = False,
) -> KeepMasks:
    """Draw the keep masks of probabilities [B, H, T, S] and of a number of outputs of the shape [B, T, D].

    `packed` packs that of the probabilities, for a fused kernel.
    """
    probabilities, masks = None, (None,) * outputs
    batch, length, width = shape
    probabilities_key, outputs_key = jax.random.split(key)
    if rates.probabilities:
        draw = packed_keep_mask if packed else keep_mask
        mask = draw(probabilities_key, probabilities_shape, rate=rates.probabilities)
        probabilities = constrain(mask, rules, "batch", "heads", None, None)
    if rates.outputs:
        # One draw for all outputs: XLA generates code for every draw, which on a CPU takes longer than some runs.
        mask = keep_mask(outputs_key, (batch, length, outputs * width), rate=rates.outputs)
        masks = tuple(jnp.split(constrain(mask, rules, "batch", None, None), outputs, axis=-1))
    return KeepMasks(probabilities, masks)
