"""The encoder as pure functions: embeddings, the transformer stack (`transformer.py`), the pooler.

Axis letters, here and in every file of the library:

    B batch   T query positions   S key positions   D model width   H heads   K head size   F feed-forward width
    V vocabulary   L layers   C choices   N labels   E output width of a linear layer
    P first positions (one for each sequence of a batch row)   M masked positions   R positions returned
    W rows of a packed keep mask: T / 32   X positions of the encoder that a decoder attends to
    G beams of a prompt or of an answer   I size of an input vector of a pointer network   U steps of its decoder
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, Num

from flaxbert import functional
from flaxbert.cache import KeyValueCache, check_cached_call
from flaxbert.config import BertConfig
from flaxbert.dropout import dropout
from flaxbert.execution import Execution
from flaxbert.functional import linear, require_range, require_shape
from flaxbert.layers import Declaration, Params, declare_embedding, declare_layer_norm, declare_linear
from flaxbert.length_adaptive import LayerPlan, resolve
from flaxbert.outputs import BaseModelOutput
from flaxbert.sharding import constrain
from flaxbert.stack import declare_layers, stack
from flaxbert.transformer import SharedInputs

Mask = Num[ArrayLike, "B T"] | Bool[ArrayLike, "B T"] | Num[ArrayLike, "B T T"] | Bool[ArrayLike, "B T T"]

CrossMask = Num[ArrayLike, "B X"] | Bool[ArrayLike, "B X"] | Num[ArrayLike, "B T X"] | Bool[ArrayLike, "B T X"]


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
    encoder_hidden_states: Float[ArrayLike, "B X D"] | None = None
    encoder_attention_mask: CrossMask | None = None
    cache: KeyValueCache | None = None
    first_positions: Int[ArrayLike, "B P"] | None = None
    first_positions_only: bool = False
    layer_config: Sequence[int] | None = None
    length_config: Sequence[int] | None = None
    always_keep_cls_token: bool | None = None

    def check(self, config: BertConfig) -> None:
        """Check shapes, and values that are not being traced, before any computation.

        Raises:
            ValueError: names the argument, what was given and what is allowed.
        """
        if (self.input_ids is None) == (self.inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        require_shape("input_ids", self.input_ids, ("B", "T"))
        require_shape("inputs_embeds", self.inputs_embeds, ("B", "T", config.embedding_width))
        given = self.input_ids if self.inputs_embeds is None else self.inputs_embeds
        assert given is not None
        batch, length = jnp.shape(given)[:2]
        # Checked here, because what broadcasts would be taken silently: a mask [B, 1], for instance.
        if self.cache is None:
            require_shape("attention_mask", self.attention_mask, (batch, length), (batch, length, length))
        if self.token_type_ids is not None and not config.type_vocab_size:
            raise ValueError(
                f"token_type_ids are given; a {config.model_type} model has no token types: leave them out"
            )
        require_shape("token_type_ids", self.token_type_ids, (batch, length))
        require_shape("position_ids", self.position_ids, (batch, length), (1, length))
        require_shape("first_positions", self.first_positions, (batch, "P"))
        if length == 0:
            raise ValueError("the sequences have no positions; each needs one token at least")
        limit = config.max_position_embeddings
        if length > limit and (self.position_ids is None or config.has_relative_positions):
            raise ValueError(f"the sequence has {length} positions; max_position_embeddings is {limit}: truncate it")
        require_range("input_ids", self.input_ids, 0, config.vocab_size - 1, why="vocab_size")
        require_range("token_type_ids", self.token_type_ids, 0, config.type_vocab_size - 1, why="type_vocab_size")
        require_range("position_ids", self.position_ids, 0, limit - 1, why="max_position_embeddings")
        require_range("first_positions", self.first_positions, 0, length - 1, why="the sequence's length")
        heads = (config.num_attention_heads,)
        require_shape("head_mask", self.head_mask, heads, (config.num_hidden_layers, *heads))
        chunk = config.chunk_size_feed_forward
        if chunk and length % chunk and self.cache is None:
            raise ValueError(f"the sequence has {length} positions; chunk_size_feed_forward {chunk} must divide them")
        self._check_decoder(config, batch, length)

    def _check_decoder(self, config: BertConfig, batch: int, length: int) -> None:
        states = self.encoder_hidden_states
        if states is not None and not config.add_cross_attention:
            raise ValueError(
                "encoder_hidden_states are given to a model without cross-attention; it needs a config with is_decoder "
                "and add_cross_attention"
            )
        require_shape("encoder_hidden_states", states, (batch, "X", config.hidden_size))
        encoder_length = None if states is None else jnp.shape(states)[1]
        if self.encoder_attention_mask is not None and states is None:
            raise ValueError("encoder_attention_mask is given without encoder_hidden_states; give both")
        allowed = (batch, encoder_length), (batch, length, encoder_length)
        require_shape("encoder_attention_mask", self.encoder_attention_mask, *allowed)
        if self.cache is not None:
            if not config.is_decoder:
                raise ValueError("a cache is given to a model whose config.is_decoder is false; only decoders have one")
            mask = self.encoder_attention_mask
            if mask is not None and jnp.ndim(mask) == 3:
                raise ValueError("encoder_attention_mask has three axes; with a cache it is [B, S]")
            check_cached_call(
                self.cache,
                rows=batch,
                tokens=length,
                attention_mask=self.attention_mask,
                encoder_length=encoder_length,
            )

    def plan(self, config: BertConfig, length: int, *, keep_cls: bool) -> LayerPlan | None:
        """Return the layers that run and the tokens that they keep, for sequences of `length`; None for all.

        Raises:
            ValueError: as `length_adaptive.resolve`, or for inputs whose tokens cannot be left out.
        """
        plan = resolve(
            config,
            length,
            layer_config=self.layer_config,
            length_config=self.length_config,
            always_keep_cls_token=self.always_keep_cls_token,
            keep_cls_by_default=keep_cls,
        )
        if plan is None:
            return None
        if self.cache is not None:
            raise ValueError("layer_config or length_config is given with a cache; both are for encoders without one")
        if plan.drops and config.is_decoder:
            raise ValueError("length_config is given to a decoder, whose tokens follow one another; it is for encoders")
        several = self.attention_mask is not None and jnp.ndim(self.attention_mask) == 3
        if plan.drops and (several or self.first_positions is not None):
            given = "a mask for each query" if several else "first_positions"
            raise ValueError(
                f"length_config is given with {given}, for rows that hold several sequences, which have no length of "
                "their own; give one sequence a row"
            )
        return plan


def declare_encoder(config: BertConfig, *, vocab_rows: int, pooler: bool, stack: bool = True) -> Declaration:
    """Declare the parameters of `encode`; the word table has `vocab_rows` rows, of which `vocab_size` are used.

    `stack` is that of `stack.declare_layers`.
    """
    width, size, stddev = config.hidden_size, config.embedding_width, config.initializer_range
    shape, used = (vocab_rows, size), config.vocab_size
    word = declare_embedding(shape, "vocab", stddev=stddev, used_rows=used, pad_row=config.padding_row)
    embeddings = {"word": word, "position": declare_positions(config), "norm": declare_layer_norm(size)}
    if config.type_vocab_size:
        embeddings["token_type"] = declare_embedding((config.type_vocab_size, size), "token_type", stddev=stddev)
    if size != width:
        embeddings["projection"] = declare_linear((size, width), ("embed", None), stddev=stddev)
    declaration: Declaration = {"embeddings": embeddings, "layers": declare_layers(config, stack=stack)}
    if pooler:
        declaration["pooler"] = declare_linear((width, width), ("embed", None), stddev=stddev)
    return declaration


def declare_positions(config: BertConfig) -> Declaration:
    """Declare the table of positions: drawn like the other embeddings, or filled with sinusoids, and then trained."""
    shape = (config.max_position_embeddings, config.embedding_width)
    table = declare_embedding(shape, "position", stddev=config.initializer_range)
    if not config.has_sinusoidal_positions:
        return table
    return {"embedding": dataclasses.replace(table["embedding"], initializer=_sinusoids)}


def _sinusoids(key: Key[Array, ""], shape: tuple[int, int], dtype: DTypeLike) -> Float[Array, "positions D"]:
    return jnp.asarray(functional.sinusoids(*shape), dtype)


def encode(
    params: Params,
    inputs: EncoderInputs,
    *,
    config: BertConfig,
    execution: Execution,
    key: Key[Array, ""] | None = None,
    keep_cls: bool = True,
) -> BaseModelOutput:
    """Encode a batch: embeddings, stack, pooler. `key` is for dropout; None applies none.

    `params` are those of `declare_encoder`, ready for use (`layers.prepare`). Without "pooler" nothing is pooled.
    `keep_cls` is `always_keep_cls_token` where neither the inputs nor the configuration give it.
    """
    inputs.check(config)
    given = inputs.input_ids if inputs.inputs_embeds is None else inputs.inputs_embeds
    assert given is not None
    plan = inputs.plan(config, jnp.shape(given)[1], keep_cls=keep_cls)
    embedding_key, stack_key = (None, None) if key is None else jax.random.split(key)
    embedded = embed(params["embeddings"], inputs, config=config, execution=execution, key=embedding_key)
    first_positions = None if inputs.first_positions is None else jnp.asarray(inputs.first_positions)
    head_mask = None
    if inputs.head_mask is not None:
        shape = (config.num_hidden_layers, config.num_attention_heads)
        head_mask = jnp.broadcast_to(jnp.asarray(inputs.head_mask, jnp.float32), shape)
    shared, cache = _shared_inputs(inputs, embedded.shape[1], config=config, dtype=execution.dtype)
    if "relative_bias" in params:
        bias = functional.bucket_bias(params["relative_bias"]["embedding"], _distances(embedded.shape[1]))
        shared = shared._replace(bias=bias)
    output = stack(
        params["layers"],
        embedded,
        shared,
        config=config,
        execution=execution,
        head_mask=head_mask,
        key=stack_key,
        cache=None if cache is None else cache.layers,
        output_attentions=inputs.output_attentions,
        output_hidden_states=inputs.output_hidden_states,
        first_positions=first_positions,
        first_positions_only=inputs.first_positions_only,
        plan=plan,
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
        cross_attentions=output.cross_attentions or None,
        cache=None if cache is None else dataclasses.replace(cache, layers=output.cache),
        lengths=None if plan is None else plan.lengths,
    )


@jax.named_scope("embeddings")
def embed(
    params: Params, inputs: EncoderInputs, *, config: BertConfig, execution: Execution, key: Key[Array, ""] | None
) -> Float[Array, "B T D"]:
    """Sum word, position and token-type vectors in float32, normalise, drop out; return the compute dtype.

    A model without token types has no table of them. Vectors of another width than that of the layers are projected.
    """
    word, position = (params[name]["embedding"] for name in ("word", "position"))
    token_type = params["token_type"]["embedding"] if "token_type" in params else None
    if inputs.input_ids is None:
        x = jnp.asarray(inputs.inputs_embeds, jnp.float32)
    else:
        x = functional.lookup(word, jnp.asarray(inputs.input_ids), frozen_row=config.padding_row)
    if token_type is not None and inputs.token_type_ids is None:
        x = x + token_type[None, :1]
    elif token_type is not None:
        x = x + functional.lookup_by_sum(token_type, jnp.asarray(inputs.token_type_ids))
    if inputs.cache is not None:
        # More tokens than slots would be written over others.
        x = jnp.where(inputs.cache.length + x.shape[1] > inputs.cache.slots, jnp.nan, x)
    positions = _position_ids(inputs, x.shape[1])
    if config.has_relative_positions:
        pass  # the layers add them to their scores
    elif positions is None:
        x = x + position[None, : x.shape[1]]  # a slice needs no gather, and no scatter for its gradient
    else:
        x = x + functional.lookup(position, positions)
    x = functional.layer_norm(x, **params["norm"], epsilon=config.layer_norm_eps)
    x = constrain(x.astype(execution.dtype), execution.rules, "batch", None, None)
    x = x if key is None else dropout(x, key, rate=config.hidden_dropout_prob)
    return linear(params["projection"], x, "BTE,ED->BTD") if "projection" in params else x


def _position_ids(inputs: EncoderInputs, length: int) -> Int[Array, "#B T"] | None:
    """Return the positions given, or those after the cached tokens; None for 0 to T-1."""
    if inputs.position_ids is not None:
        return jnp.asarray(inputs.position_ids)
    return None if inputs.cache is None else (inputs.cache.length + jnp.arange(length))[None]


def _shared_inputs(
    inputs: EncoderInputs, length: int, *, config: BertConfig, dtype: DTypeLike
) -> tuple[SharedInputs, KeyValueCache | None]:
    """Return what every layer gets, and the cache with the slots of this call marked as used."""
    states, encoder_mask, cache, start = inputs.encoder_hidden_states, None, inputs.cache, 0
    if states is not None:
        states = jnp.asarray(states, dtype)
        given = inputs.encoder_attention_mask
        encoder_mask = None if given is None else functional.attention_mask(given)
    if cache is None:
        mask, distances = _attention_mask(inputs.attention_mask, length, config=config), None
        if config.has_relative_positions:
            distances = _distances(length)
    else:
        start = cache.length
        cache, mask = cache.extend(inputs.attention_mask, length)
        distances = cache.distances(length) if config.has_relative_positions else None
        if states is not None:
            kept = jnp.ones(states.shape[:2], bool) if encoder_mask is None else encoder_mask[:, 0, 0]
            cache = dataclasses.replace(cache, encoder_mask=kept)
        if cache.encoder_mask is not None:
            encoder_mask = functional.attention_mask(cache.encoder_mask)
    return SharedInputs(mask, distances, encoder_states=states, encoder_mask=encoder_mask, start=start), cache


def _distances(length: int) -> Int[Array, "1 T T"]:
    """Return query position - key position."""
    return jnp.arange(length)[None, :, None] - jnp.arange(length)[None, None, :]


def _attention_mask(attention_mask: Mask | None, length: int, *, config: BertConfig) -> Bool[Array, "#B 1 #T T"] | None:
    mask = None if attention_mask is None else functional.attention_mask(attention_mask)
    if not config.is_decoder or (attention_mask is not None and jnp.ndim(attention_mask) == 3):
        return mask
    causal = functional.causal_mask(length, length)
    return causal if mask is None else causal & mask
