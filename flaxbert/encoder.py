"""The encoder as pure functions: embeddings, the transformer stack (`transformer.py`), the pooler.

Axis letters, here and in every file of the library:

    B batch   T query positions   S key positions   D model width   H heads   K head size   F feed-forward width
    V vocabulary   L layers   C choices   N labels   E output width of a linear layer
    P first positions (one for each sequence of a batch row)   M masked positions   R positions returned: T, P, M or 1
    W rows of a packed keep mask: T / 32
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key, Num

from flaxbert import functional
from flaxbert.config import BertConfig
from flaxbert.constraints import constrain
from flaxbert.dropout import dropout
from flaxbert.execution import Execution
from flaxbert.functional import linear, require_range, require_shape
from flaxbert.layers import Declaration, Params, declare_embedding, declare_layer_norm, declare_linear, stacked
from flaxbert.outputs import BaseModelOutput
from flaxbert.transformer import declare_layer, stack

Mask = Num[ArrayLike, "B T"] | Bool[ArrayLike, "B T"] | Num[ArrayLike, "B T T"] | Bool[ArrayLike, "B T T"]


@dataclasses.dataclass(frozen=True)
class EncoderInputs:
    """The inputs of `encode`: the call arguments of `BertModel`, where they are described."""

    input_ids: Int[ArrayLike, "B T"] | None = None
    attention_mask: Mask | None = None
    token_type_ids: Int[ArrayLike, "B T"] | None = None
    position_ids: Int[ArrayLike, "#B T"] | None = None
    head_mask: Float[ArrayLike, "H"] | Float[ArrayLike, "L H"] | None = None
    inputs_embeds: Float[ArrayLike, "B T D"] | None = None
    output_attentions: bool = False
    output_hidden_states: bool = False
    first_positions: Int[ArrayLike, "B P"] | None = None
    first_positions_only: bool = False

    def check(self, config: BertConfig) -> None:
        """Check shapes, and values that are not being traced, before any computation.

        Raises:
            ValueError: names the argument, what was given and what is allowed.
        """
        if (self.input_ids is None) == (self.inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        require_shape("input_ids", self.input_ids, ("B", "T"))
        require_shape("inputs_embeds", self.inputs_embeds, ("B", "T", config.hidden_size))
        given = self.input_ids if self.inputs_embeds is None else self.inputs_embeds
        assert given is not None
        batch, length = jnp.shape(given)[:2]
        # Checked here, because what broadcasts would be taken silently: a mask [B, 1], for instance.
        require_shape("attention_mask", self.attention_mask, (batch, length), (batch, length, length))
        require_shape("token_type_ids", self.token_type_ids, (batch, length))
        require_shape("position_ids", self.position_ids, (batch, length), (1, length))
        require_shape("first_positions", self.first_positions, (batch, "P"))
        if length == 0:
            raise ValueError("the sequences have no positions; each needs one token at least")
        limit = config.max_position_embeddings
        if length > limit and self.position_ids is None:
            raise ValueError(f"the sequence has {length} positions; max_position_embeddings is {limit}: truncate it")
        require_range("input_ids", self.input_ids, 0, config.vocab_size - 1, why="vocab_size")
        require_range("token_type_ids", self.token_type_ids, 0, config.type_vocab_size - 1, why="type_vocab_size")
        require_range("position_ids", self.position_ids, 0, limit - 1, why="max_position_embeddings")
        require_range("first_positions", self.first_positions, 0, length - 1, why="the sequence's length")
        heads = (config.num_attention_heads,)
        require_shape("head_mask", self.head_mask, heads, (config.num_hidden_layers, *heads))


def declare_encoder(config: BertConfig, *, vocab_rows: int, pooler: bool) -> Declaration:
    """Declare the parameters of `encode`; the word table has `vocab_rows` rows, of which `vocab_size` are used."""
    width, stddev = config.hidden_size, config.initializer_range
    shape, used = (vocab_rows, width), config.vocab_size
    word = declare_embedding(shape, "vocab", stddev=stddev, used_rows=used, pad_row=config.padding_row)
    declaration: Declaration = {
        "embeddings": {
            "word": word,
            "position": declare_embedding((config.max_position_embeddings, width), "position", stddev=stddev),
            "token_type": declare_embedding((config.type_vocab_size, width), "token_type", stddev=stddev),
            "norm": declare_layer_norm(width),
        },
        "layers": stacked(declare_layer(config), config.num_hidden_layers),
    }
    if pooler:
        declaration["pooler"] = declare_linear((width, width), ("embed", None), stddev=stddev)
    return declaration


def encode(
    params: Params,
    inputs: EncoderInputs,
    *,
    config: BertConfig,
    execution: Execution,
    key: Key[Array, ""] | None = None,
) -> BaseModelOutput:
    """Encode a batch: embeddings, stack, pooler. `key` is for dropout; None applies none.

    `params` are those of `declare_encoder`, ready for use (`layers.prepare`). Without "pooler" nothing is pooled.
    """
    inputs.check(config)
    embedding_key, stack_key = (None, None) if key is None else jax.random.split(key)
    embedded = embed(params["embeddings"], inputs, config=config, execution=execution, key=embedding_key)
    first_positions = None if inputs.first_positions is None else jnp.asarray(inputs.first_positions)
    head_mask = None
    if inputs.head_mask is not None:
        shape = (config.num_hidden_layers, config.num_attention_heads)
        head_mask = jnp.broadcast_to(jnp.asarray(inputs.head_mask, jnp.float32), shape)
    output = stack(
        params["layers"],
        embedded,
        _attention_mask(inputs.attention_mask, embedded.shape[1], config=config),
        config=config,
        execution=execution,
        head_mask=head_mask,
        key=stack_key,
        output_attentions=inputs.output_attentions,
        output_hidden_states=inputs.output_hidden_states,
        first_positions=first_positions,
        first_positions_only=inputs.first_positions_only,
    )
    pooled = None
    if "pooler" in params:
        last = output.last
        first = last if inputs.first_positions_only else functional.at_first_positions(last, first_positions)
        pooled = jnp.tanh(linear(params["pooler"], first, "BPD,DE->BPE"))
        pooled = pooled[:, 0] if first_positions is None else pooled
    return BaseModelOutput(
        last_hidden_state=output.last,
        pooler_output=pooled,
        hidden_states=(embedded, *output.hidden_states) if inputs.output_hidden_states else None,
        attentions=output.attentions if inputs.output_attentions else None,
    )


@jax.named_scope("embeddings")
def embed(
    params: Params, inputs: EncoderInputs, *, config: BertConfig, execution: Execution, key: Key[Array, ""] | None
) -> Float[Array, "B T D"]:
    """Sum word, position and token-type vectors in float32, normalise, drop out; return the compute dtype."""
    word, position, token_type = (params[name]["embedding"] for name in ("word", "position", "token_type"))
    if inputs.input_ids is None:
        x = jnp.asarray(inputs.inputs_embeds, jnp.float32)
    else:
        x = functional.lookup(word, jnp.asarray(inputs.input_ids), frozen_row=config.padding_row)
    if inputs.token_type_ids is None:
        x = x + token_type[None, :1]
    else:
        x = x + functional.lookup_by_sum(token_type, jnp.asarray(inputs.token_type_ids))
    if inputs.position_ids is None:
        x = x + position[None, : x.shape[1]]  # a slice needs no gather, and no scatter for its gradient
    else:
        x = x + functional.lookup(position, jnp.asarray(inputs.position_ids))
    x = functional.layer_norm(x, **params["norm"], epsilon=config.layer_norm_eps)
    x = constrain(x.astype(execution.dtype), execution.rules, "batch", None, None)
    return x if key is None else dropout(x, key, rate=config.hidden_dropout_prob)


def _attention_mask(attention_mask: Mask | None, length: int, *, config: BertConfig) -> Bool[Array, "#B 1 #T T"] | None:
    mask = None if attention_mask is None else functional.attention_mask(attention_mask)
    if not config.is_decoder or (attention_mask is not None and jnp.ndim(attention_mask) == 3):
        return mask
    causal = functional.causal_mask(length, length)
    return causal if mask is None else causal & mask
