"""Multi-head self-attention as a module: four projections around `functional.attention`."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from flaxbert import functional
from flaxbert.config import BertConfig
from flaxbert.layers import Linear
from flaxbert.sharding import constrain


class SelfAttention(nn.Module):
    """Attention of each position to the positions that the mask allows, and the output projection."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        source: Float[Array, "B S D"],
        mask: Bool[Array, "#B 1 #T S"] | None,
        head_mask: Float[Array, "H"] | None,
        kept: Bool[Array, "B H T S"] | None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B H T S"]]:
        """Attends from `x` to `source`: the projected context, the attention weights (after dropout and head mask).

        `kept` is for the weights' dropout, None without.
        """
        config = self.config
        inputs = {"query": x, "key": source, "value": source}
        query, key, value = (
            constrain(self._projection(name)(given), "batch", "heads", None, None) for name, given in inputs.items()
        )
        rate = config.attention_probs_dropout_prob
        context, weights = functional.attention(query, key, value, mask, kept=kept, rate=rate)
        if head_mask is not None:
            factor = head_mask.astype(self.dtype)[None, :, None, None]
            context, weights = context * factor, weights * factor
        output = Linear(
            "BHTK,HKD->BTD",
            (config.num_attention_heads, config.head_size, config.hidden_size),
            ("heads", "head", "embed"),
            config.initializer_range,
            self.dtype,
            name="output",
        )
        return output(context), weights

    def _projection(self, name: str) -> Linear:
        config = self.config
        shape = (config.hidden_size, config.num_attention_heads, config.head_size)
        axes = ("embed", "heads", "head")
        return Linear("BTD,DHK->BHTK", shape, axes, config.initializer_range, self.dtype, name=name)
