"""Attention as one TPU kernel: scores and probabilities never leave the core's own memory.

It computes `functional.attention` without returning the probabilities. Heads lie side by side, [B, T, H*K], as
projections take and return them: a TPU stores 128 numbers in a row, and heads of 64 on an axis of their own would leave
half of each row empty. The kernel works on such a row of 128 at a time: the products of one head in it are those of all
128 numbers with the other heads' numbers set to zero, in the same number of cycles as 64 would take.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas
from jax.experimental.pallas import tpu
from jax.sharding import AbstractMesh
from jaxtyping import Array, Bool, Float, PyTree, UInt32

from flaxbert import dropout, functional, sharding
from flaxbert.execution import SAVED_WITH_PRODUCTS
from flaxbert.kernels import platform
from flaxbert.sharding import REPLICATED, AxisRules

_LANES = 128
_LONGEST = 512  # positions: a grid step holds several arrays of T x T, and a v4 has 16 MiB for them
# Operations of the vector unit for each score: scale, mask, maximum, difference, exponential (12), sum, the dropout's
# bit and selection (5), rounding; backward also three for the score's gradient and two roundings more.
_FORWARD_OPERATIONS, _BACKWARD_OPERATIONS = 23, 28


def supports(length: int, *, heads: int, head_size: int) -> bool:
    """Return True for what the kernel was made for: lengths that are multiples of 32 up to 512, head sizes that divide
    the 128 numbers that a TPU stores in a row (or all of a narrower row)."""
    return length % dropout.LANE_BITS == 0 and length <= _LONGEST and _lanes(heads * head_size) % head_size == 0


def attention(
    query: Float[Array, "B T D"],
    key: Float[Array, "B T D"],
    value: Float[Array, "B T D"],
    mask: Bool[Array, "#B 1 #T T"] | None,
    *,
    heads: int,
    keep_mask: UInt32[Array, "B H _ T"] | None = None,
    rate: float = 0.0,
    rules: AxisRules = REPLICATED,
) -> Float[Array, "B T D"]:
    """Return the context of `functional.attention`, for projections with heads side by side (D is H*K).

    Compiled for other devices than TPUs, the kernel is interpreted operation by operation, which only tests want.

    Args:
        query, key, value: the projections; T and K as `supports` takes them.
        mask: True where a query may attend to a key; None allows all.
        heads: H.
        keep_mask: the result of `dropout.packed_keep_mask` for [B, H, T, T]; None keeps all.
        rate: the dropout rate that it was drawn with.
        rules: layout of activations on the current mesh; each device runs the kernel on its own batch rows and heads.

    """
    rows, length, width = query.shape
    assert supports(length, heads=heads, head_size=width // heads), query.shape
    query, key, value = (checkpoint_name(x, SAVED_WITH_PRODUCTS) for x in (query, key, value))
    keep_mask = None if keep_mask is None else checkpoint_name(keep_mask, SAVED_WITH_PRODUCTS)
    bias = jnp.zeros((1, 1, length), jnp.float32)
    if mask is not None:
        bias = functional.mask_bias(mask[:, 0])
    bias = jnp.broadcast_to(bias, (rows, *bias.shape[1:]))
    scale = 1.0 if keep_mask is None else dropout.dropout_scale(rate)
    static = _Static(width // heads, scale, platform() != "tpu", sharding.current_mesh(), rules)
    return _attention(static, query, key, value, bias, keep_mask)


@dataclasses.dataclass(frozen=True)
class _Static:
    """Static arguments of the kernels (hashable; `nondiff_argnums`).

    Attributes:
        head_size: K.
        dropout_scale: factor on the probabilities that dropout keeps.
        interpret: run operation by operation, on devices other than TPUs.
        mesh, rules: the current mesh, and the layout of activations on it.
    """

    head_size: int
    dropout_scale: float
    interpret: bool
    mesh: AbstractMesh | None
    rules: AxisRules

    @property
    def score_scale(self) -> float:
        return 1.0 / math.sqrt(self.head_size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static: _Static, query: Array, key: Array, value: Array, bias: Array, keep_mask: Array | None) -> Array:
    return _call(static, _forward_kernel, (query, key, value), bias, keep_mask)[0]


def _forward(
    static: _Static, query: Array, key: Array, value: Array, bias: Array, keep_mask: Array | None
) -> tuple[Array, PyTree]:
    context: Array = _attention(static, query, key, value, bias, keep_mask)
    # Saved as integers: JAX rounds saved floats to their own precision, which is one more pass through memory.
    bits = jnp.dtype(f"uint{8 * context.dtype.itemsize}")
    saved = checkpoint_name(jax.lax.bitcast_convert_type(context, bits), SAVED_WITH_PRODUCTS)
    context = jax.lax.bitcast_convert_type(saved, context.dtype)
    return context, (query, key, value, bias, keep_mask, context)


def _backward(static: _Static, residuals: PyTree, gradient: Array) -> tuple[Array | None, ...]:
    query, key, value, bias, keep_mask, context = residuals
    given = (query, key, value, context, gradient)
    return (*_call(static, _backward_kernel, given, bias, keep_mask), None, None)


_attention.defvjp(_forward, _backward)


# -- the call -------------------------------------------------------------------------------------------


def _call(
    static: _Static, kernel: Callable[..., None], vectors: tuple[Array, ...], bias: Array, keep_mask: Array | None
) -> list[Array]:
    """Run a kernel on every device for its own batch rows and heads; the compiler cannot divide a kernel."""
    local = functools.partial(_local_call, static, kernel)
    if static.mesh is None:
        return local(vectors, bias, keep_mask)
    # Also on a mesh of one device, which tells pallas the kind of chip.
    spec_of = functools.partial(sharding.local_spec, static.mesh, static.rules)
    spec, bias_spec = spec_of(("batch", None, "heads")), spec_of(("batch", None, None))
    keep_spec = None if keep_mask is None else spec_of(("batch", "heads", None, None))
    in_specs = ((spec,) * len(vectors), bias_spec, keep_spec)
    divided = jax.shard_map(local, mesh=static.mesh, in_specs=in_specs, out_specs=spec, check_vma=False)
    return divided(vectors, bias, keep_mask)


def _local_call(
    static: _Static, kernel: Callable[..., None], vectors: tuple[Array, ...], bias: Array, keep_mask: Array | None
) -> list[Array]:
    """Run a kernel here: a grid step takes the heads that share 128 lanes, of one or several batch rows."""
    rows, length, width = vectors[0].shape
    lanes = _lanes(width)
    at_once = math.gcd(rows, max(1, _LONGEST // length))
    heads = lanes // static.head_size
    block = pallas.BlockSpec((at_once, length, lanes), lambda row, part: (row, 0, part))
    specs = [block] * len(vectors)
    specs.append(pallas.BlockSpec((at_once, *bias.shape[1:]), lambda row, part: (row, 0, 0)))
    arrays = [*vectors, bias]
    if keep_mask is not None:
        specs.append(pallas.BlockSpec((at_once, heads, *keep_mask.shape[2:]), lambda row, part: (row, part, 0, 0)))
        arrays.append(keep_mask)
    backward = kernel is _backward_kernel
    outputs = 3 if backward else 1
    results = [jax.ShapeDtypeStruct(vectors[0].shape, vectors[0].dtype)] * outputs
    scores = rows * (width // static.head_size) * length * length
    return pallas.pallas_call(
        functools.partial(kernel, static=static),
        grid=(rows // at_once, width // lanes),
        in_specs=specs,
        out_specs=[block] * outputs,
        out_shape=results,
        interpret=static.interpret,
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        # The field for transcendental functions holds all that the vector unit does, which is most of the work.
        cost_estimate=pallas.CostEstimate(
            flops=2 * static.head_size * scores * (5 if backward else 2),
            transcendentals=scores * (_BACKWARD_OPERATIONS if backward else _FORWARD_OPERATIONS),
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *results)),
        ),
        name=f"attention_{'backward' if backward else 'forward'}",
    )(*arrays)


def _lanes(width: int) -> int:
    """Return the lanes of a grid step: 128, or the whole width where 128 does not divide it."""
    return _LANES if width % _LANES == 0 else width


# -- the kernels ------------------------------------------------------------------------------------------


def _forward_kernel(query_ref, key_ref, value_ref, bias_ref, *refs, static: _Static) -> None:
    *keep_ref, context_ref = refs

    def one_head(row: Array, own_lanes: Array, bits: Array | None) -> None:
        value = value_ref[row]
        weights, total = _softmax_parts(_only(query_ref[row], own_lanes), key_ref[row], bias_ref[row], static)
        context = _dot(_dropped(weights, bits).astype(value.dtype), value, 1, 0) * (static.dropout_scale / total)
        _put(context_ref, row, own_lanes, context)

    _each_head(one_head, query_ref, keep_ref, static)


def _backward_kernel(
    query_ref, key_ref, value_ref, context_ref, gradient_ref, bias_ref, *refs, static: _Static
) -> None:
    *keep_ref, query_gradient_ref, key_gradient_ref, value_gradient_ref = refs

    def one_head(row: Array, own_lanes: Array, bits: Array | None) -> None:
        query, key, value = query_ref[row], key_ref[row], value_ref[row]
        weights, total = _softmax_parts(_only(query, own_lanes), key, bias_ref[row], static)
        gradient = jnp.where(own_lanes, gradient_ref[row].astype(jnp.float32), 0.0)
        # The gradient of a softmax subtracts the mean of the probabilities' gradients, which is gradient * context.
        delta = jnp.sum(gradient * context_ref[row].astype(jnp.float32), axis=-1, keepdims=True) / total
        gradient = (gradient * (static.dropout_scale / total)).astype(value.dtype)
        scores = (weights * (_dropped(_dot(gradient, value, 1, 1), bits) - delta)).astype(key.dtype)
        _put(query_gradient_ref, row, own_lanes, _dot(scores, key, 1, 0) * static.score_scale)
        _put(key_gradient_ref, row, own_lanes, _dot(scores, query, 0, 0) * static.score_scale)
        _put(value_gradient_ref, row, own_lanes, _dot(_dropped(weights, bits).astype(value.dtype), gradient, 0, 0))

    _each_head(one_head, query_ref, keep_ref, static)


def _each_head(one_head: Callable[..., None], query_ref, keep_ref, static: _Static) -> None:
    """Call `one_head` with each batch row, the lanes of each head in it, and the head's keep mask or None.

    `keep_ref` is a list of one reference, or empty without dropout.
    """
    rows, _, lanes = query_ref.shape
    numbers = jax.lax.broadcasted_iota(jnp.int32, (1, lanes), 1) // static.head_size

    def one_row(row: Array, _: None) -> None:
        for head in range(lanes // static.head_size):
            one_head(row, numbers == head, _unpacked(keep_ref[0][row, head]) if keep_ref else None)

    jax.lax.fori_loop(0, rows, one_row, None)


def _softmax_parts(query: Array, key: Array, bias: Array, static: _Static) -> tuple[Array, Array]:
    """Return numerator and denominator of the softmax of one head's scores."""
    scores = _dot(query, key, 1, 1) * static.score_scale + bias
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return weights, jnp.sum(weights, axis=-1, keepdims=True)


def _unpacked(packed: Array) -> Array:
    """Unpack one head's keep mask from uint32 rows."""
    return jnp.concatenate([(packed >> bit) & 1 for bit in range(dropout.LANE_BITS)], axis=0) != 0


def _dropped(x: Array, bits: Array | None) -> Array:
    return x if bits is None else jnp.where(bits, x, 0.0)


def _only(x: Array, own_lanes: Array) -> Array:
    return jnp.where(own_lanes, x.astype(jnp.float32), 0.0).astype(x.dtype)  # vector units have no smaller floats


def _put(ref, row: Array, own_lanes: Array, values: Array) -> None:
    """Write the lanes of one head; the reference may hold nothing yet."""
    before = ref[row].astype(jnp.float32)
    ref[row] = jnp.where(own_lanes, values, before).astype(ref.dtype)


def _dot(x: Array, y: Array, x_axis: int, y_axis: int) -> Array:
    return jax.lax.dot_general(x, y, (((x_axis,), (y_axis,)), ((), ())), preferred_element_type=jnp.float32)
