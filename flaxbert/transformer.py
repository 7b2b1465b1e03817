"""A layer of the transformer as pure functions over a tree of parameters: attention, feed-forward, the layer.

Start reading here. `stack.py` runs all layers, `encoder.py` puts embeddings below them and has the glossary of axis
letters, and `functional.py` has the formulas. A layer's parameters are one tree of dicts (`declare_layer`). Every layer
is post-norm (Devlin et al., 2018): each part adds its input and normalises.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import normal
from jaxtyping import Array, Bool, Float, Int, Key

from flaxbert import functional, kernels, length_adaptive
from flaxbert.cache import KeyValues, LayerCache
from flaxbert.config import BertConfig
from flaxbert.dropout import DropoutRates, KeepMasks, draw_keep_masks, dropout
from flaxbert.execution import AttentionImplementation, Execution
from flaxbert.functional import linear
from flaxbert.layers import (
    Declaration,
    ParameterKind,
    ParameterSpec,
    Params,
    declare_activation,
    declare_layer_norm,
    declare_linear,
    prepare,
)
from flaxbert.length_adaptive import KeptTokens
from flaxbert.sharding import AxisRules, constrain


def declare_layer(config: BertConfig, *, heads: int | None = None) -> Declaration:
    """Declare the parameters of one layer, whose self-attention has `heads` heads; None for all."""
    width, inner, stddev = config.hidden_size, config.intermediate_size, config.initializer_range
    declaration: Declaration = {
        "attention": declare_attention(config, heads=heads or config.num_attention_heads),
        "attention_norm": declare_layer_norm(width),
        "up": declare_linear((width, inner), ("embed", "mlp"), stddev=stddev),
        "down": declare_linear((inner, width), ("mlp", "embed"), stddev=stddev),
        "output_norm": declare_layer_norm(width),
        **declare_activation(config.hidden_act),
    }
    if config.has_relative_positions:  # of self-attention alone, as in the reference
        shape = (2 * config.max_position_embeddings - 1, config.head_size)
        table = ParameterSpec(shape, ("position", "head"), normal(stddev), ParameterKind.TABLE)
        declaration["attention"] |= {"distance": {"embedding": table}}
    if config.add_cross_attention:
        declaration["cross_attention"] = declare_attention(config, heads=config.num_attention_heads)
        declaration["cross_attention_norm"] = declare_layer_norm(width)
    return declaration


def declare_attention(config: BertConfig, *, heads: int) -> Declaration:
    """Declare the projections of one attention."""
    width, stddev, split = config.hidden_size, config.initializer_range, (heads, config.head_size)
    projection = declare_linear((width, *split), ("embed", "heads", "head"), stddev=stddev)
    output = declare_linear((*split, width), ("heads", "head", "embed"), stddev=stddev, inputs=2)
    return {"query": projection, "key": projection, "value": projection, "output": output}


# -- one layer --------------------------------------------------------------------------------------------


@jax.named_scope("attention")
def attend(
    params: Params,
    x: Float[Array, "B T D"],
    source: Float[Array, "B S D"] | KeyValues,
    mask: Bool[Array, "#B 1 #T S"] | None,
    *,
    rules: AxisRules,
    rate: float = 0.0,
    keep: Bool[Array, "B H T S"] | None = None,
    head_mask: Float[Array, "H"] | None = None,
    bias: Float[Array, "#B #H T S"] | None = None,
    distances: Int[Array, "#B T S"] | None = None,
    keys_have_distances: bool = False,
) -> tuple[Float[Array, "B T D"], Float[Array, "B H T S"]]:
    """Multi-head attention: return (output projection of the context, attention probabilities).

    Queries come from `x`, keys and values from `source`: the same array in self-attention, unless fewer positions are
    computed than are attended to, or the keys and values are cached. The probabilities are those after dropout and head
    mask.

    Args:
        params: "query", "key", "value" and "output" of a layer, ready for use (`layers.prepare`).
        mask: True where a query may attend to a key; None allows all.
        rules: layout of activations on the current mesh.
        rate, keep: dropout rate of the probabilities, and the mask that was drawn with it.
        head_mask: factor on each head.
        bias: added to the scores.
        distances: query position - key position, for relative positions (params "distance"); None adds no term.
        keys_have_distances: add the term of the keys, too.
    """
    query = _by_heads(params["query"], x, rules)
    key, value = source if isinstance(source, KeyValues) else keys_and_values(params, source, rules=rules)
    if distances is not None:
        table = params["distance"]["embedding"]
        own_bias = functional.distance_bias(table, query, key if keys_have_distances else None, distances)
        bias = own_bias if bias is None else bias + own_bias
    context, probabilities = functional.attention(query, key, value, mask, bias=bias, keep_mask=keep, rate=rate)
    if head_mask is not None:
        factor = head_mask.astype(context.dtype)[None, :, None, None]
        context, probabilities = context * factor, probabilities * factor
    return linear(params["output"], context, "BHTK,HKD->BTD"), probabilities


def keys_and_values(params: Params, source: Float[Array, "B S D"], *, rules: AxisRules) -> KeyValues:
    """Return the keys and values of the states that are attended to."""
    return KeyValues(_by_heads(params["key"], source, rules), _by_heads(params["value"], source, rules))


def _by_heads(params: Params, x: Float[Array, "B T D"], rules: AxisRules) -> Float[Array, "B H T K"]:
    rows, length = x.shape[:2]
    if isinstance(rows, int) and length == 1 < rows:  # in memory [B, T, H, K] is the same: XLA transposes nothing
        heads = jnp.swapaxes(linear(params, x, "BTD,DHK->BTHK"), 1, 2)
    else:
        heads = linear(params, x, "BTD,DHK->BHTK")
    return constrain(heads, rules, "batch", "heads", None, None)


@jax.named_scope("feed_forward")
def feed_forward(
    params: Params, x: Float[Array, "B T D"], *, activation: str, rules: AxisRules, chunk: int = 0
) -> Float[Array, "B T D"]:
    """Return `down(activation(up(x)))` of each position by itself, for `chunk` positions at a time; 0 for all.

    Positions that `chunk` does not divide, those of a step with a cache or first positions alone, are all computed at
    once.
    """
    if 0 < chunk < x.shape[1] and x.shape[1] % chunk == 0:
        parts = jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, x.shape[2]), 1, 0)
        compute = functools.partial(feed_forward, params, activation=activation, rules=rules)
        return jnp.moveaxis(jax.lax.map(compute, parts), 0, 1).reshape(x.shape)
    inner = functional.activate(params.get("activation", {}), linear(params["up"], x, "BTD,DF->BTF"), activation)
    return linear(params["down"], constrain(inner, rules, "batch", None, "mlp"), "BTF,FD->BTD")


class SharedInputs(NamedTuple):
    """Inputs of a layer that are the same for every layer.

    Attributes:
        mask: True where a query may attend to a key; None allows all.
        distances: query position - key position, for relative positions.
        bias: added to the scores of every layer's self-attention.
        encoder_states, encoder_mask: states to attend to in cross-attention; None where they are in the cache.
        start: the first slot of the cache that this call fills; not read without a cache.
    """

    mask: Bool[Array, "#B 1 #T S"] | None
    distances: Int[Array, "#B T S"] | None = None
    bias: Float[Array, "#B H T S"] | None = None
    encoder_states: Float[Array, "B X D"] | None = None
    encoder_mask: Bool[Array, "#B 1 #T X"] | None = None
    start: Int[Array, ""] | int = 0


class PerLayer(NamedTuple):
    """Inputs of one layer, or of all with a leading axis of layers; the head mask and the cache can be None."""

    params: Params
    head_mask: Float[Array, "*L H"] | None = None
    key: Key[Array, "*L"] | None = None
    cache: LayerCache | None = None


class LayerOutput(NamedTuple):
    """Outputs of one layer beside x, or of all with a leading axis; None where not asked for.

    `kept` are the positions in the layer's input of the tokens that it kept, where it dropped some.
    """

    state: Float[Array, "*L B T D"] | None = None
    attention: Float[Array, "*L B H T S"] | None = None
    cross_attention: Float[Array, "*L B H T X"] | None = None
    cache: LayerCache | None = None
    kept: Int[Array, "B R"] | None = None


@dataclasses.dataclass(frozen=True)
class LayerSettings:
    """Static settings of one layer.

    Attributes:
        config, execution: the model's.
        kept_heads: heads of its self-attention that are not pruned.
        output_attentions: return the attention probabilities.
        kept_tokens: tokens to keep after attention; None for all.
    """

    config: BertConfig
    execution: Execution
    kept_heads: tuple[int, ...]
    output_attentions: bool = False
    kept_tokens: KeptTokens | None = None


@jax.named_scope("layer")
def layer(
    own: PerLayer,
    x: Float[Array, "B T D"],
    source: Float[Array, "B S D"] | None,
    shared: SharedInputs,
    *,
    settings: LayerSettings,
) -> tuple[Float[Array, "B R D"], LayerOutput]:
    """One post-norm layer: self-attention, cross-attention where there are states for it, feed-forward.

    `x` holds the positions to compute, and `source` those to attend to: None for x itself, after what is cached.
    `own.key` is for dropout; None applies none. Returns R = T positions, or those of `settings.kept_tokens`.
    """
    config, rules, cache = settings.config, settings.execution.rules, own.cache
    declaration = declare_layer(config, heads=len(settings.kept_heads))
    params = prepare(own.params, declaration, dtype=settings.execution.dtype, rules=rules)
    crosses = shared.encoder_states is not None or (cache is not None and cache.cross_attention is not None)
    key, cross_key = own.key, None
    if crosses and key is not None:
        key, cross_key = jax.random.split(key)
    own = PerLayer(params, own.head_mask, key, cache)
    x, feed_forward_keep, output = _attend_to_self(own, x, source, shared, settings=settings)
    if crosses:
        x, output = _attend_to_encoder(own._replace(key=cross_key), x, shared, output, settings=settings)
    if settings.kept_tokens is not None:
        x, output = _drop_tokens(x, shared.mask, output, settings=settings)
        # Any part of an independent mask serves; the first needs no gather.
        feed_forward_keep = None if feed_forward_keep is None else feed_forward_keep[:, : x.shape[1]]
    y = feed_forward(params, x, activation=config.hidden_act, rules=rules, chunk=config.chunk_size_feed_forward)
    x = _add_and_normalise(params["output_norm"], x, y, feed_forward_keep, config=config)
    return constrain(x, rules, "batch", None, None), output


def _attend_to_self(
    own: PerLayer,
    x: Float[Array, "B T D"],
    source: Float[Array, "B S D"] | None,
    shared: SharedInputs,
    *,
    settings: LayerSettings,
) -> tuple[Float[Array, "B T D"], Bool[Array, "B T D"] | None, LayerOutput]:
    """Return the normalised output of self-attention, the keep mask of the feed-forward half, and further outputs."""
    config, execution, heads = settings.config, settings.execution, settings.kept_heads
    params, rules, cache = own.params["attention"], execution.rules, own.cache
    head_mask = None if own.head_mask is None else own.head_mask[jnp.array(heads)]
    needs_probabilities = settings.output_attentions or settings.kept_tokens is not None
    fused = execution.attention is not AttentionImplementation.EAGER and kernels.supports_fused_attention(
        config,
        x.shape[1],
        self_attention=source is None and cache is None,
        needs_scores=needs_probabilities
        or not all(part is None for part in (head_mask, shared.distances, shared.bias)),
        dtype=execution.dtype,
        mask_per_query=shared.mask is not None and shared.mask.shape[2] > 1,
        dropout=own.key is not None and config.attention_probs_dropout_prob > 0,
    )
    attended = x if source is None else source
    if cache is not None:
        written = cache.attention.write(keys_and_values(params, x, rules=rules), shared.start)
        attended = KeyValues(*(constrain(part, rules, "batch", "heads", None, None) for part in written))
        cache = cache._replace(attention=attended)
    keep = _keep_masks(own.key, x, attended, heads=len(heads), settings=settings, outputs=2, packed=fused)
    rate, kept, probabilities = config.attention_probs_dropout_prob, keep.probabilities, None
    if fused:
        y = kernels.attend_fused(params, x, shared.mask, rules=rules, rate=rate, keep=kept)
    else:
        y, probabilities = attend(
            params,
            x,
            attended,
            shared.mask,
            rules=rules,
            rate=rate,
            keep=kept,
            head_mask=head_mask,
            bias=None if shared.bias is None else shared.bias[:, jnp.array(heads)],
            distances=shared.distances,
            keys_have_distances=config.position_embedding_type == "relative_key_query",
        )
    x = _add_and_normalise(own.params["attention_norm"], x, y, keep.outputs[0], config=config)
    output = LayerOutput(attention=probabilities if needs_probabilities else None, cache=cache)
    return x, keep.outputs[1], output


def _drop_tokens(
    x: Float[Array, "B T D"], mask: Bool[Array, "#B 1 1 T"] | None, output: LayerOutput, *, settings: LayerSettings
) -> tuple[Float[Array, "B R D"], LayerOutput]:
    """Return the tokens that received the most attention, and `output` with their positions."""
    kept, probabilities = settings.kept_tokens, output.attention
    assert kept is not None and probabilities is not None
    is_real = None if mask is None else mask[:, 0, 0]
    positions = length_adaptive.choose_tokens(length_adaptive.received_attention(probabilities), is_real, kept)
    x = constrain(length_adaptive.gather_tokens(x, positions), settings.execution.rules, "batch", None, None)
    return x, output._replace(attention=probabilities if settings.output_attentions else None, kept=positions)


def _attend_to_encoder(
    own: PerLayer, x: Float[Array, "B T D"], shared: SharedInputs, output: LayerOutput, *, settings: LayerSettings
) -> tuple[Float[Array, "B T D"], LayerOutput]:
    """Return the normalised output of cross-attention, and `output` with its probabilities and cached states."""
    config, rules, params = settings.config, settings.execution.rules, own.params["cross_attention"]
    cached = None if output.cache is None else output.cache.cross_attention
    if shared.encoder_states is not None:
        attended = keys_and_values(params, shared.encoder_states, rules=rules)
    else:
        assert cached is not None  # `layer` checked it
        attended = cached
    keep = _keep_masks(own.key, x, attended, heads=config.num_attention_heads, settings=settings, outputs=1)
    y, probabilities = attend(
        params,
        x,
        attended,
        shared.encoder_mask,
        rules=rules,
        rate=config.attention_probs_dropout_prob,
        keep=keep.probabilities,
        head_mask=own.head_mask,
    )
    x = _add_and_normalise(own.params["cross_attention_norm"], x, y, keep.outputs[0], config=config)
    cache = None if output.cache is None else output.cache._replace(cross_attention=attended)
    return x, output._replace(cross_attention=probabilities if settings.output_attentions else None, cache=cache)


def _keep_masks(
    key: Key[Array, ""] | None,
    x: Float[Array, "B T D"],
    attended: Float[Array, "B S D"] | KeyValues,
    *,
    heads: int,
    settings: LayerSettings,
    outputs: int,
    packed: bool = False,
) -> KeepMasks:
    if key is None:
        return KeepMasks(outputs=(None,) * outputs)
    config = settings.config
    keys = attended.key.shape[2] if isinstance(attended, KeyValues) else attended.shape[1]
    return draw_keep_masks(
        key,
        x.shape,
        (x.shape[0], heads, x.shape[1], keys),
        rates=DropoutRates(config.attention_probs_dropout_prob, config.hidden_dropout_prob),
        rules=settings.execution.rules,
        outputs=outputs,
        packed=packed,
    )


def _add_and_normalise(
    params: Params,
    x: Float[Array, "B T D"],
    y: Float[Array, "B T D"],
    keep: Bool[Array, "B T D"] | None,
    *,
    config: BertConfig,
) -> Float[Array, "B T D"]:
    """Return the normalised sum of the input and the output, after dropout, of one part of a layer."""
    if keep is not None:
        y = dropout(y, keep, rate=config.hidden_dropout_prob)
    return functional.layer_norm(y + x, **params, epsilon=config.layer_norm_eps)
