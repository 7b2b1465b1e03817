"""Attention as one kernel of a TPU: scores and weights never leave the core's own memory.

Its mathematics are `functional.attention`'s, without the weights as a result. Vectors of all heads lie side by side,
[B, T, H*K], as projections give and take them: a TPU stores 128 numbers in a row, and heads of 64 on an axis of their
own would leave half of each row empty. The kernel takes such a row at a time. The products of one head in it are those
of all 128 with the other heads' numbers zeroed, in the same number of cycles as 64 would take.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas
from jax.experimental.pallas import tpu
from jaxtyping import Array, Bool, Float, UInt32

from flaxbert import functional, sharding

SAVED = "attention"
"""The name, for policies of `jax.checkpoint`, of what the backward pass reads."""

_LANES = 128
_LONGEST = 512  # positions: a step holds several arrays of T x T, and a v4 has 16 MiB for them
# Operations of the vector unit for each score: scale, mask, maximum, difference, exponential (12), sum, the dropout's
# bit and selection (5), rounding; backward also three for the score's gradient and two roundings more.
_FORWARD_OPERATIONS, _BACKWARD_OPERATIONS = 23, 28


def takes(length: int) -> bool:
    """Whether the kernel was made for so many positions: multiples of 32 up to 512."""
    return length % functional.WORD == 0 and length <= _LONGEST


def attention(
    query: Float[Array, "B T D"],
    key: Float[Array, "B T D"],
    value: Float[Array, "B T D"],
    mask: Bool[Array, "#B 1 #T T"] | None,
    *,
    heads: int,
    kept: UInt32[Array, "B H _ T"] | None = None,
    rate: float = 0.0,
) -> Float[Array, "B T D"]:
    """The contexts of `functional.attention`, of projections whose heads stand side by side (D is H*K).

    T must be one that it `takes`.

    Compiled for devices that are no TPUs, it is interpreted operation by operation: for tests.

    Args:
        query, key, value: as said.
        mask: True where a query may attend to a key.
        heads: H.
        kept: what `functional.kept_words` makes for the weights' dropout, None without.
        rate: of dropout.

    Raises:
        ValueError: heads do not divide the 128 numbers that a TPU stores in a row.
    """
    rows, length, width = query.shape
    if _lanes(width) % (width // heads):
        raise ValueError(
            f'attn_implementation "pallas" with heads of {width // heads}; allowed: sizes that divide {_lanes(width)}; '
            'choose "eager"'
        )
    query, key, value = (checkpoint_name(x, SAVED) for x in (query, key, value))
    kept = None if kept is None else checkpoint_name(kept, SAVED)
    bias = jnp.zeros((1, 1, length), jnp.float32)
    if mask is not None:
        bias = functional.mask_bias(mask[:, 0])
    bias = jnp.broadcast_to(bias, (rows, *bias.shape[1:]))
    scale = 1.0 if kept is None else functional.kept_scale(rate)
    how = _How(width // heads, scale, sharding.platform() != "tpu", sharding.place())
    return _attention(how, query, key, value, bias, kept)


@dataclasses.dataclass(frozen=True)
class _How:
    """What is known while tracing."""

    head_size: int
    scale: float
    """Of what dropout keeps."""
    interpret: bool
    place: sharding.Place | None

    @property
    def factor(self) -> float:
        """Of scores."""
        return 1.0 / math.sqrt(self.head_size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(how: _How, query: Array, key: Array, value: Array, bias: Array, kept: Array | None) -> Array:
    return _call(how, _forward_kernel, (query, key, value), bias, kept)[0]


def _forward(how: _How, query: Array, key: Array, value: Array, bias: Array, kept: Array | None) -> tuple[Array, Any]:
    context: Any = _attention(how, query, key, value, bias, kept)
    # As integers: what is saved as floats JAX rounds to their own precision, a pass through memory after a kernel.
    bits = jnp.dtype(f"uint{8 * context.dtype.itemsize}")
    saved = checkpoint_name(jax.lax.bitcast_convert_type(context, bits), SAVED)
    context = jax.lax.bitcast_convert_type(saved, context.dtype)
    return context, (query, key, value, bias, kept, context)


def _backward(how: _How, residuals: Any, gradient: Array) -> tuple[Array | None, ...]:
    query, key, value, bias, kept, context = residuals
    given = (query, key, value, context, gradient)
    return (*_call(how, _backward_kernel, given, bias, kept), None, None)


_attention.defvjp(_forward, _backward)


# -- where it runs ---------------------------------------------------------------------------------------


def _call(how: _How, kernel: Any, vectors: tuple[Array, ...], bias: Array, kept: Array | None) -> list[Array]:
    """Runs a kernel for the rows and heads of each device: the compiler cannot divide one itself."""
    local = functools.partial(_local_call, how, kernel)
    if how.place is None:
        return local(vectors, bias, kept)
    mesh, rules = how.place  # of one device too: it tells pallas which chip it is
    spec = rules.spec(("batch", None, "heads"))
    bits = None if kept is None else rules.spec(("batch", "heads", None, None))
    places = ((spec,) * len(vectors), rules.spec(("batch", None, None)), bits)
    everywhere = jax.shard_map(local, mesh=mesh, in_specs=places, out_specs=spec, check_vma=False)
    return everywhere(vectors, bias, kept)


def _local_call(how: _How, kernel: Any, vectors: tuple[Array, ...], bias: Array, kept: Array | None) -> list[Array]:
    """Each step of the grid takes the heads of some lanes, of one row or of several short ones."""
    rows, length, width = vectors[0].shape
    lanes = _lanes(width)
    at_once = math.gcd(rows, max(1, _LONGEST // length))
    heads = lanes // how.head_size
    block = pallas.BlockSpec((at_once, length, lanes), lambda row, part: (row, 0, part))
    specs = [block] * len(vectors)
    specs.append(pallas.BlockSpec((at_once, *bias.shape[1:]), lambda row, part: (row, 0, 0)))
    arrays = [*vectors, bias]
    if kept is not None:
        specs.append(pallas.BlockSpec((at_once, heads, *kept.shape[2:]), lambda row, part: (row, part, 0, 0)))
        arrays.append(kept)
    backward = kernel is _backward_kernel
    outputs = 3 if backward else 1
    results = [jax.ShapeDtypeStruct(vectors[0].shape, vectors[0].dtype)] * outputs
    scores = rows * (width // how.head_size) * length * length
    return pallas.pallas_call(
        functools.partial(kernel, how=how),
        grid=(rows // at_once, width // lanes),
        in_specs=specs,
        out_specs=[block] * outputs,
        out_shape=results,
        interpret=how.interpret,
        compiler_params=tpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        # The field for transcendental functions holds all that the vector unit does, which is most of the work.
        cost_estimate=pallas.CostEstimate(
            flops=2 * how.head_size * scores * (5 if backward else 2),
            transcendentals=scores * (_BACKWARD_OPERATIONS if backward else _FORWARD_OPERATIONS),
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *results)),
        ),
        name=f"attention_{'backward' if backward else 'forward'}",
    )(*arrays)


def _lanes(width: int) -> int:
    """Of a block: what a TPU stores in a row, or all where that does not divide them."""
    return _LANES if width % _LANES == 0 else width


# -- what it does ----------------------------------------------------------------------------------------


def _forward_kernel(query_ref, key_ref, value_ref, bias_ref, *refs, how: _How) -> None:
    *kept_ref, context_ref = refs

    def one_head(row: Array, mine: Array, bits: Array | None) -> None:
        value = value_ref[row]
        weights, total = _weights(_only(query_ref[row], mine), key_ref[row], bias_ref[row], how)
        context = _dot(_dropped(weights, bits).astype(value.dtype), value, 1, 0) * (how.scale / total)
        _put(context_ref, row, mine, context)

    _each_head(one_head, query_ref, kept_ref, how)


def _backward_kernel(query_ref, key_ref, value_ref, context_ref, gradient_ref, bias_ref, *refs, how: _How) -> None:
    *kept_ref, query_gradient_ref, key_gradient_ref, value_gradient_ref = refs

    def one_head(row: Array, mine: Array, bits: Array | None) -> None:
        query, key, value = query_ref[row], key_ref[row], value_ref[row]
        weights, total = _weights(_only(query, mine), key, bias_ref[row], how)
        gradient = jnp.where(mine, gradient_ref[row].astype(jnp.float32), 0.0)
        # A softmax's gradient lacks the mean of its weights' gradients: of all contexts' numbers, that of the context.
        delta = jnp.sum(gradient * context_ref[row].astype(jnp.float32), axis=-1, keepdims=True) / total
        gradient = (gradient * (how.scale / total)).astype(value.dtype)
        scores = (weights * (_dropped(_dot(gradient, value, 1, 1), bits) - delta)).astype(key.dtype)
        _put(query_gradient_ref, row, mine, _dot(scores, key, 1, 0) * how.factor)
        _put(key_gradient_ref, row, mine, _dot(scores, query, 0, 0) * how.factor)
        _put(value_gradient_ref, row, mine, _dot(_dropped(weights, bits).astype(value.dtype), gradient, 0, 0))

    _each_head(one_head, query_ref, kept_ref, how)


def _each_head(one_head: Callable[..., None], query_ref, kept_ref, how: _How) -> None:
    """Calls it with a row, the lanes of a head in it, and what its dropout keeps (`kept_ref` holds one or none)."""
    rows, _, lanes = query_ref.shape
    numbers = jax.lax.broadcasted_iota(jnp.int32, (1, lanes), 1) // how.head_size

    def one_row(row: Array, _: None) -> None:
        for head in range(lanes // how.head_size):
            one_head(row, numbers == head, _unpacked(kept_ref[0][row, head]) if kept_ref else None)

    jax.lax.fori_loop(0, rows, one_row, None)


def _weights(query: Array, key: Array, bias: Array, how: _How) -> tuple[Array, Array]:
    """What the softmax of one head's scores divides, and what it divides by."""
    scores = _dot(query, key, 1, 1) * how.factor + bias
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    return weights, jnp.sum(weights, axis=-1, keepdims=True)


def _unpacked(words: Array) -> Array:
    """The mask of one head, of its words."""
    return jnp.concatenate([(words >> place) & 1 for place in range(functional.WORD)], axis=0) != 0


def _dropped(x: Array, bits: Array | None) -> Array:
    return x if bits is None else jnp.where(bits, x, 0.0)


def _only(x: Array, mine: Array) -> Array:
    return jnp.where(mine, x.astype(jnp.float32), 0.0).astype(x.dtype)  # vector units know no smaller floats than these


def _put(ref, row: Array, mine: Array, values: Array) -> None:
    """Into the lanes of one head, which may be the first to write here."""
    before = ref[row].astype(jnp.float32)
    ref[row] = jnp.where(mine, values, before).astype(ref.dtype)


def _dot(x: Array, y: Array, x_axis: int, y_axis: int) -> Array:
    return jax.lax.dot_general(x, y, (((x_axis,), (y_axis,)), ((), ())), preferred_element_type=jnp.float32)
