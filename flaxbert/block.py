"""One layer of the encoder, and the stack of them (Devlin et al., 2018); axis letters as in `encoder.py`."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt32

from flaxbert import functional, tpu_attention
from flaxbert.attention import SelfAttention
from flaxbert.base import Attention, Remat
from flaxbert.config import BertConfig
from flaxbert.layers import LayerNorm, Linear
from flaxbert.sharding import constrain, platform

_REMAT_POLICIES: dict[Remat, Callable[..., Any]] = {
    Remat.DOTS: jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(tpu_attention.SAVED),
    ),
    Remat.FULL: jax.checkpoint_policies.nothing_saveable,
}


class Block(nn.Module):
    """One encoder layer: attention and feed-forward, each followed by dropout, residual and norm (post-norm)."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32
    attn_implementation: Attention = Attention.EAGER
    deterministic: bool = True
    output_attentions: bool = False
    output_hidden_states: bool = False
    first_positions_only: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "#B 1 #S S"] | None,
        head_mask: Float[Array, "H"] | None,
        first_positions: Int[Array, "B P"] | None = None,
    ) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "B T D"] | None, Float[Array, "B H T S"] | None]]:
        """Returns the output as a scan's carry, and what was asked for beside it: (hidden state, attentions).

        T is S; with `first_positions_only` only those are computed, which still attend to all of them.
        """
        c = self.config
        source = x
        fused = self._fused(x.shape[1], head_mask)
        if self.first_positions_only:
            x, mask = at_first(x, first_positions), _first_queries(mask, first_positions)
        for_weights, for_context, for_output = self._kept(x, source, fused)
        attention = SelfAttention(c, self.dtype, fused, name="attention")
        context, probabilities = attention(x, source, mask, head_mask, for_weights)
        context = functional.dropout(context, for_context, rate=c.hidden_dropout_prob)
        x = LayerNorm(c.hidden_size, c.layer_norm_eps, name="attention_norm")(context + x)
        std, width, inner = c.initializer_range, c.hidden_size, c.intermediate_size
        up = Linear("BTD,DF->BTF", (width, inner), ("embed", "mlp"), std, self.dtype, name="up")
        down = Linear("BTF,FD->BTD", (inner, width), ("mlp", "embed"), std, self.dtype, name="down")
        y = down(constrain(functional.ACTIVATIONS[c.hidden_act](up(x)), "batch", None, "mlp"))
        y = functional.dropout(y, for_output, rate=c.hidden_dropout_prob)
        x = LayerNorm(c.hidden_size, c.layer_norm_eps, name="output_norm")(y + x)
        x = constrain(x, "batch", None, None)
        return x, (
            x if self.output_hidden_states else None,
            probabilities if self.output_attentions else None,
        )

    def _fused(self, length: int, head_mask: Float[Array, "H"] | None) -> bool:
        """Whether attention is one kernel here."""
        if self.attn_implementation is Attention.EAGER or platform() != "tpu":
            return False
        asked = self.output_attentions or self.first_positions_only or head_mask is not None
        return not asked and tpu_attention.takes(length)

    def _kept(
        self, x: Float[Array, "B T D"], source: Float[Array, "B S D"], fused: bool
    ) -> list[Bool[Array, "B T D"] | Bool[Array, "B H T S"] | UInt32[Array, "B H W S"] | None]:
        """What the three dropouts keep: of attention weights (words where `fused`), of their context, of the output.

        The last two in one draw: XLA generates code for every draw, which on a CPU takes longer than some runs.
        """
        c, rows, length = self.config, *x.shape[:2]
        drawn: list[Any] = [None, None, None]
        if self.deterministic or not (c.attention_probs_dropout_prob or c.hidden_dropout_prob):
            return drawn
        for_weights, for_vectors = jax.random.split(self.make_rng("dropout"))
        if c.attention_probs_dropout_prob:
            weights = (rows, c.num_attention_heads, length, source.shape[1])
            draw = functional.kept_words if fused else functional.kept
            mask = draw(for_weights, weights, rate=c.attention_probs_dropout_prob)
            drawn[0] = constrain(mask, "batch", "heads", None, None)
        if c.hidden_dropout_prob:
            mask = functional.kept(for_vectors, (rows, length, 2 * c.hidden_size), rate=c.hidden_dropout_prob)
            drawn[1:] = jnp.split(constrain(mask, "batch", None, None), 2, axis=-1)
        return drawn


def at_first(x: Float[Array, "B T D"], positions: Int[Array, "B P"] | None) -> Float[Array, "B P D"]:
    """The vectors of the first positions, [B, 1, D] where None are given."""
    return x[:, :1] if positions is None else functional.at_positions(x, positions)  # a slice: no scatter


def _first_queries(
    mask: Bool[Array, "#B 1 #T S"] | None, positions: Int[Array, "B P"] | None
) -> Bool[Array, "#B 1 #P S"] | None:
    if mask is None or mask.shape[2] == 1:
        return mask
    return mask[:, :, :1] if positions is None else functional.at_positions(mask[:, 0], positions)[:, None]


def block_class(scan: bool, remat: Remat) -> Any:
    """`Block`, which recomputes in the backward pass what `remat` says; `scan` says that it stands in a loop."""
    if remat is Remat.NONE:
        return Block
    # Inside a real loop nothing can be merged with the forward pass, so the barrier against it is not needed.
    return nn.remat(Block, policy=_REMAT_POLICIES[remat], prevent_cse=not scan)


def stack_of_blocks(config: BertConfig, length: int, *, scan: bool, remat: Remat, **block: Any) -> nn.Module:
    """`length` blocks as one module whose parameters carry a leading layer axis [length, ...].

    `scan` False unrolls the loop at trace time: longer to compile, no copying between iterations; same parameters,
    same random numbers, same results.
    """
    in_axes: Any = (nn.broadcast, 0)  # one mask for all layers, a head mask for each
    stacked = nn.scan(
        block_class(scan, remat),
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=length,
        unroll=1 if scan else length,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    return stacked(config, **block)
