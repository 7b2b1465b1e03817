"""Attention by cuDNN's kernel on NVIDIA GPUs: scores and probabilities are never written to memory.

It computes `functional.attention` without returning the probabilities, through `jax.nn.dot_product_attention`. Padding
is given as the number of keys of each row, so that no mask [B, T, T] is made.

cuDNN's own dropout is not used. Its seed is a constant of the program and its offset a counter of each device, advanced
by every call: its masks would be no function of the step's key, would depend on how devices share the batch, and could
differ between the forward and the backward pass where a layer is computed twice. Attention with dropout of
probabilities is `functional.attention`.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from flaxbert.sharding import REPLICATED, AxisRules, current_mesh, local_spec

_LARGEST_HEAD = 128
_MASKED_MULTIPLE = 128  # of lengths with a mask per query: others gave NaN gradients on Hopper (pytorch/pytorch#196678)


@functools.cache
def has_cudnn() -> bool:
    """Return True if the first GPU is NVIDIA's, of the Ampere generation (compute capability 8.0) or later."""
    device = jax.local_devices(backend="gpu")[0]
    return "cuda" in device.client.platform_version and float(device.compute_capability) >= 8.0


def supports(length: int, *, head_size: int, dtype: DTypeLike, mask_per_query: bool) -> bool:
    """Return True for what JAX passes to cuDNN's kernel: 16-bit floats, even lengths, head sizes that are multiples of
    8 up to 128, and with a mask for each query (packed rows, decoders) lengths that are multiples of 128."""
    return (
        jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
        and length % 2 == 0
        and head_size % 8 == 0
        and head_size <= _LARGEST_HEAD
        and not (mask_per_query and length % _MASKED_MULTIPLE)
    )


def keys_first(mask: Bool[Array, "B 1 1 T"]) -> tuple[Int[Array, "B T"], Int[Array, "B"]]:
    """Return each row's positions with its keys before all others, and the number of its keys.

    The kernel takes the first keys of a row; a mask may leave out any.
    """
    is_key = mask[:, 0, 0]
    return jnp.argsort(~is_key, axis=1, stable=True), jnp.sum(is_key, axis=1, dtype=jnp.int32)


def attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T H K"],
    *,
    counts: Int[Array, "B"] | None = None,
    mask: Bool[Array, "#B 1 T T"] | None = None,
    rules: AxisRules = REPLICATED,
) -> Float[Array, "B T H K"]:
    """Return the context of `functional.attention` without dropout.

    Args:
        query, key, value: the projections; T, K and dtype as `supports` takes them.
        counts: number of keys of each row, the first ones; None for all. A row without keys has the mean of all values,
            as there, but its queries and keys get no gradient.
        mask: True where a query may attend to a key; None allows all. Give this or `counts`.
        rules: layout of activations on the current mesh; each device runs the kernel on its own batch rows and heads.

    """
    if counts is not None:
        query = jnp.where((counts > 0)[:, None, None, None], query, jnp.zeros((), query.dtype))
        counts = jnp.where(counts > 0, counts, key.shape[1])
    if mask is not None:
        mask = jnp.broadcast_to(mask, (len(query), *mask.shape[1:]))
    mesh = current_mesh()
    if mesh is None or mesh.size == 1:
        return _attend(query, key, value, counts, mask)
    spec_of = functools.partial(local_spec, mesh, rules)
    spec, row_spec = spec_of(("batch", None, "heads", None)), spec_of(("batch",))
    in_specs = (spec, spec, spec, None if counts is None else row_spec, None if mask is None else row_spec)
    divided = jax.shard_map(_attend, mesh=mesh, in_specs=in_specs, out_specs=spec, check_vma=False)
    return divided(query, key, value, counts, mask)


def _attend(query: Array, key: Array, value: Array, counts: Array | None, mask: Array | None) -> Array:
    return jax.nn.dot_product_attention(
        query, key, value, mask=mask, key_value_seq_lengths=counts, implementation="cudnn"
    )
