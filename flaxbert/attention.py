"""Multi-head self-attention as a module: four projections around `functional.attention` or the kernel for TPUs."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, UInt32

from flaxbert import functional, tpu_attention
from flaxbert.config import BertConfig
from flaxbert.layers import Linear
from flaxbert.sharding import constrain


class SelfAttention(nn.Module):
    """Attention of each position to the positions that the mask allows, and the output projection."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32
    fused: bool = False
    """As one kernel, which returns no weights."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        source: Float[Array, "B S D"],
        mask: Bool[Array, "#B 1 #T S"] | None,
        head_mask: Float[Array, "H"] | None,
        kept: Bool[Array, "B H T S"] | UInt32[Array, "B H W S"] | None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B H T S"] | None]:
        """Attends from `x` to `source`: the projected context, the attention weights (after dropout and head mask).

        `kept` is for the weights' dropout, None without; words where `fused`.
        """
        config = self.config
        if self.fused:
            return self._fused(x, source, mask, kept), None
        query, key, value = self._projected(x, source, "BTD,DHK->BHTK", ("batch", "heads", None, None))
        rate = config.attention_probs_dropout_prob
        context, weights = functional.attention(query, key, value, mask, kept=kept, rate=rate)
        if head_mask is not None:
            factor = head_mask.astype(self.dtype)[None, :, None, None]
            context, weights = context * factor, weights * factor
        return self._output("BHTK,HKD->BTD")(context), weights

    def _fused(
        self,
        x: Float[Array, "B T D"],
        source: Float[Array, "B T D"],
        mask: Bool[Array, "#B 1 #T T"] | None,
        kept: UInt32[Array, "B H W T"] | None,
    ) -> Float[Array, "B T D"]:
        config = self.config
        query, key, value = self._projected(x, source, "BTD,DHK->BTHK", ("batch", None, "heads"), merged="HK")
        rate = config.attention_probs_dropout_prob
        context = tpu_attention.attention(
            query, key, value, mask, heads=config.num_attention_heads, kept=kept, rate=rate
        )
        return self._output("BTHK,HKD->BTD", "HK")(context)

    def _projected(
        self, x: Array, source: Array, equation: str, places: tuple[str | None, ...], *, merged: str = ""
    ) -> list[Array]:
        """Queries, keys and values; `places` are the logical names of their axes."""
        config = self.config
        shape = (config.hidden_size, config.num_attention_heads, config.head_size)
        how = (equation, shape, ("embed", "heads", "head"), config.initializer_range, self.dtype)
        inputs = {"query": x, "key": source, "value": source}
        return [constrain(Linear(*how, merged=merged, name=name)(y), *places) for name, y in inputs.items()]

    def _output(self, equation: str, merged: str = "") -> Linear:
        config = self.config
        shape = (config.num_attention_heads, config.head_size, config.hidden_size)
        axes = ("heads", "head", "embed")
        return Linear(equation, shape, axes, config.initializer_range, self.dtype, merged=merged, name="output")
