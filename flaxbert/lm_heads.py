"""The classes that score the vocabulary: masked LM and causal LM. `heads.py` has the others.

Each takes the keyword arguments of `BertModel.__call__` and returns logits in float32.
"""

from typing import ClassVar, Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

from flaxbert import functional
from flaxbert.config import BertConfig
from flaxbert.execution import Execution
from flaxbert.functional import linear
from flaxbert.layers import Declaration, Params, declare_activation, declare_layer_norm, declare_linear, declare_vector
from flaxbert.models import CrossAttentionInputs, DecoderInputs, TaskModel
from flaxbert.outputs import CausalLMOutput, MaskedLMOutput
from flaxbert.sharding import constrain


def declare_masked_lm_head(config: BertConfig, *, vocab_rows: int) -> Declaration:
    """Declare the parameters of `masked_lm_logits`; a tied decoder's kernel is the word table."""
    width, stddev = config.embedding_width, config.initializer_range
    declaration: Declaration = {
        "transform": declare_linear((config.hidden_size, width), ("embed", None), stddev=stddev),
        "norm": declare_layer_norm(width),
        **declare_activation(config.hidden_act),
    }
    if config.tie_word_embeddings:
        return declaration | {"bias": declare_vector((vocab_rows,), ("vocab",))}
    shape, axes = (width, vocab_rows), ("embed", "vocab")
    return declaration | {"decoder": declare_linear(shape, axes, stddev=stddev, used_outputs=config.vocab_size)}


@jax.named_scope("masked_lm_head")
def masked_lm_logits(
    params: Params,
    x: Float[Array, "B R D"],
    word_table: Float[Array, "V D"],
    *,
    config: BertConfig,
    execution: Execution,
) -> Float[Array, "B R V"]:
    """Score every vocabulary entry at each position: dense, activation, norm, then the decoder with a bias of its own.

    Entries of a padded vocabulary beyond `config.vocab_size` get the lowest float32.
    """
    x = linear(params["transform"], x, "BTD,DE->BTE")
    x = functional.activate(params.get("activation", {}), x, config.hidden_act)
    x = functional.layer_norm(x, **params["norm"], epsilon=config.layer_norm_eps)
    if config.tie_word_embeddings:
        logits = jnp.einsum("BTD,VD->BTV", x, word_table.astype(x.dtype), preferred_element_type=jnp.float32)
        logits = logits + params["bias"][None, None]
    else:
        logits = linear(params["decoder"], x, "BTD,DV->BTV").astype(jnp.float32)
    rows = word_table.shape[0]
    if rows > config.vocab_size:
        used = (jnp.arange(rows) < config.vocab_size)[None, None]
        logits = jnp.where(used, logits, jnp.finfo(jnp.float32).min)
    return constrain(logits, execution.rules, "batch", None, "vocab")


class MaskedLMModel(TaskModel):
    """Base of the classes with a masked-LM head."""

    positions_argument: ClassVar[str] = "masked_lm_positions"
    """The name of the argument that says which positions are scored."""
    head_activation: ClassVar[str | None] = None
    """The head's activation, for families whose reference ignores `hidden_act` there; None for `hidden_act`."""

    @nn.nowrap
    def head_declaration(self) -> Declaration:
        """Return the declaration of the masked-LM head."""
        return {"predictions": declare_masked_lm_head(self.head_config, vocab_rows=self.padded_vocab_size)}

    @property
    def head_config(self) -> BertConfig:
        """The configuration that the head is computed with."""
        if self.head_activation is None:
            return self.config
        return self.config.replace(hidden_act=self.head_activation)

    @nn.nowrap
    def _masked_lm_logits(
        self, params: Params, x: Float[Array, "B T D"], positions: Int[ArrayLike, "B M"] | None = None
    ) -> Float[Array, "B R V"]:
        """Score the vocabulary at `positions` alone, which saves most of the decoder's work, or at every position."""
        if positions is not None:
            functional.require_shape(self.positions_argument, positions, (x.shape[0], "M"))
            functional.require_range(self.positions_argument, positions, 0, x.shape[1] - 1, why="the sequence's length")
            x = functional.at_positions(x, positions)
        table = params[self.base_model_prefix]["embeddings"]["word"]["embedding"]
        return masked_lm_logits(params["predictions"], x, table, config=self.head_config, execution=self.execution)


class BertForMaskedLM(MaskedLMModel):
    """Words at masked positions."""

    call_arguments = CrossAttentionInputs

    @nn.compact
    def __call__(
        self,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        *,
        masked_lm_positions: Int[ArrayLike, "B M"] | None = None,
        deterministic: bool = True,
        **inputs: Unpack[CrossAttentionInputs],
    ) -> MaskedLMOutput:
        """Score the vocabulary at every position, or at `masked_lm_positions`: logits [B, M, V]."""
        params = self._ready_parameters()
        out = self._encode(params, input_ids, deterministic, inputs)
        logits = self._masked_lm_logits(params, out.last_hidden_state, masked_lm_positions)
        return MaskedLMOutput(logits, out.hidden_states, out.attentions, out.cross_attentions, lengths=out.lengths)


class BertLMHeadModel(MaskedLMModel):
    """The next word; attention is causal where `config.is_decoder` is true, as in the reference."""

    call_arguments = DecoderInputs
    positions_argument = "logit_positions"

    @nn.compact
    def __call__(
        self,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        *,
        logit_positions: Int[ArrayLike, "B M"] | None = None,
        deterministic: bool = True,
        **inputs: Unpack[DecoderInputs],
    ) -> CausalLMOutput:
        """Score the vocabulary for the word that follows every position, or `logit_positions`: logits [B, M, V]."""
        params = self._ready_parameters()
        out = self._encode(params, input_ids, deterministic, inputs)
        logits = self._masked_lm_logits(params, out.last_hidden_state, logit_positions)
        return CausalLMOutput(
            logits, out.hidden_states, out.attentions, out.cross_attentions, out.cache, lengths=out.lengths
        )
