"""Settings of the computation: dtype, loop over layers, rematerialisation, attention, sharding rules."""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flaxbert.sharding import AxisRules

SAVED_WITH_PRODUCTS = "saved_with_products"
"""The name, for policies of `jax.checkpoint`, of arrays that `Remat.DOTS` saves beside the matrix products: those that
fused kernels save for their backward pass, and the statistics of norms."""


class AttentionImplementation(enum.Enum):
    """Implementation of attention, by Hugging Face's names where it has them; the results differ by rounding alone.

    "eager": matrix products and a softmax that XLA compiles, on any device.
    "fused": one kernel, which keeps no scores in memory: `kernels/tpu_attention.py` on TPUs, cuDNN's on NVIDIA GPUs
    (`kernels/gpu_attention.py`), for calls that `kernels.supports_fused_attention` accepts; "eager" for all others. On
    several devices, apply the model under `jax.set_mesh`: the compiler cannot divide a kernel, so without a mesh each
    device would compute all batch rows.
    """

    EAGER = "eager"
    FUSED = "fused"


class Remat(enum.Enum):
    """Activations of a layer saved for the backward pass: all, matrix products and norms' statistics, or its input."""

    NONE = "none"
    DOTS = "dots"
    FULL = "full"


def _is_gpu_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Return True for cuDNN's forward pass, whose residuals JAX does not name."""
    return primitive.name == "dot_product_attention_fwd_wrapper"


REMAT_POLICIES: dict[Remat, Callable[..., bool]] = {
    Remat.DOTS: jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_from_both_policies(
            jax.checkpoint_policies.save_only_these_names(SAVED_WITH_PRODUCTS), _is_gpu_attention
        ),
    ),
    Remat.FULL: jax.checkpoint_policies.nothing_saveable,
}
"""The `jax.checkpoint` policy of each `Remat` except NONE."""


@dataclasses.dataclass(frozen=True)
class Execution:
    """Settings of the computation: static while tracing, and without effect on the results except rounding.

    Attributes:
        dtype: dtype of matrix products and activations; softmax, layer norm and logits are float32.
        scan: compute the layers in one `lax.scan`, which compiles fast, or in a Python loop.
        remat: activations saved for the backward pass.
        attention: the implementation of attention; see `AttentionImplementation`.
        rules: layout of parameters and activations on the current mesh.
    """

    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: Remat = Remat.NONE
    attention: AttentionImplementation = AttentionImplementation.EAGER
    rules: AxisRules = AxisRules()
