"""Fused attention: one kernel per platform, behind one function that chooses by a stated rule."""

import functools
import logging

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, UInt32

from flaxbert.config import BertConfig
from flaxbert.functional import linear
from flaxbert.layers import Params
from flaxbert.length_adaptive import gather_tokens
from flaxbert.sharding import AxisRules, constrain, current_mesh

_log = logging.getLogger("flaxbert")


@functools.cache
def _log_once(message: str) -> None:
    _log.info(message)


def platform() -> str:
    """Return "cpu", "gpu" or "tpu": the devices of the current mesh, or JAX's default ones without a mesh."""
    mesh = current_mesh()
    return jax.default_backend() if mesh is None or mesh.abstract_device is None else mesh.abstract_device.platform


def supports_fused_attention(
    config: BertConfig,
    length: int,
    *,
    self_attention: bool,
    needs_scores: bool,
    dtype: DTypeLike,
    mask_per_query: bool,
    dropout: bool,
) -> bool:
    """Return True if there is a kernel for this call.

    The rule: for self-attention over all positions, without a cache, and where neither scores nor probabilities are
    needed: for relative positions, a head mask, or because they are asked for.
    - On TPUs, for lengths that are multiples of 32 up to 512 and head sizes that divide 128.
    - On NVIDIA GPUs from Ampere on, in bfloat16 or float16, without dropout of probabilities, for even lengths and head
      sizes that are multiples of 8 up to 128. With a mask for each query, for lengths that are multiples of 128.

    The reason for another answer on a TPU or GPU is logged once.
    """
    device = platform()
    if device not in ("gpu", "tpu"):
        return False
    if not self_attention or needs_scores:
        reason = (
            "scores or probabilities are needed" if needs_scores else "not all positions are queries, or are cached"
        )
        _log_once(f"fused attention is not used where {reason}")
        return False
    if device == "tpu":
        from flaxbert.kernels import tpu_attention  # imports Pallas, which takes half a second

        return tpu_attention.supports(length, heads=config.num_attention_heads, head_size=config.head_size)
    if dropout:
        _log_once("fused attention is not used on GPUs with dropout of probabilities (attention_probs_dropout_prob)")
        return False
    from flaxbert.kernels import gpu_attention

    return gpu_attention.has_cudnn() and gpu_attention.supports(
        length, head_size=config.head_size, dtype=dtype, mask_per_query=mask_per_query
    )


@jax.named_scope("attention")
def attend_fused(
    params: Params,
    x: Float[Array, "B T D"],
    mask: Bool[Array, "#B 1 #T T"] | None,
    *,
    rules: AxisRules,
    rate: float = 0.0,
    keep: UInt32[Array, "B H W T"] | None = None,
) -> Float[Array, "B T D"]:
    """Self-attention by one kernel, which keeps no probabilities; return what `transformer.attend` returns first.

    The arguments are those of `transformer.attend`; `keep` is packed (`dropout.packed_keep_mask`).
    """
    if platform() == "gpu":
        return _attend_on_gpu(params, x, mask, rules=rules)
    from flaxbert.kernels import tpu_attention

    projections = [params[name] for name in ("query", "key", "value")]
    heads = params["query"]["kernel"].shape[1]
    query, key, value = (
        constrain(linear(_merge_heads(projection, inputs=1), x, "BTD,DE->BTE"), rules, "batch", None, "heads")
        for projection in projections
    )
    context = tpu_attention.attention(query, key, value, mask, heads=heads, keep_mask=keep, rate=rate, rules=rules)
    return linear(_merge_heads(params["output"], inputs=2), context, "BTE,ED->BTD")


def _attend_on_gpu(
    params: Params, x: Float[Array, "B T D"], mask: Bool[Array, "#B 1 #T T"] | None, *, rules: AxisRules
) -> Float[Array, "B T D"]:
    from flaxbert.kernels import gpu_attention

    attended, counts = x, None
    if mask is not None and mask.shape[2] == 1:
        order, counts = gpu_attention.keys_first(jnp.broadcast_to(mask, (len(x), *mask.shape[1:])))
        attended, mask = gather_tokens(x, order, ascending=False), None
    query, key, value = (
        constrain(linear(params[name], source, "BTD,DHK->BTHK"), rules, "batch", None, "heads", None)
        for name, source in (("query", x), ("key", attended), ("value", attended))
    )
    context = gpu_attention.attention(query, key, value, counts=counts, mask=mask, rules=rules)
    return linear(params["output"], context, "BTHK,HKD->BTD")


def _merge_heads(params: Params, *, inputs: int) -> dict[str, Array]:
    """Reshape a linear layer's axes of heads and head size into one; the first `inputs` axes of a kernel are inputs."""
    kernel = params["kernel"]
    shape = (kernel.shape[0], -1) if inputs == 1 else (-1, kernel.shape[2])
    return {"kernel": kernel.reshape(shape), "bias": params["bias"].reshape(-1)}
