"""The transformer as pure functions over a tree of parameters: attention, feed-forward, one layer, the stack.

Start reading here. `encoder.py` puts embeddings below this stack and has the glossary of axis letters; `functional.py`
has the formulas. A layer's parameters are one tree of dicts (`declare_layer`), and those of a stack the same tree with
a leading axis of layers. Every layer is post-norm (Devlin et al., 2018): each half adds its input and normalises.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from flaxbert import functional, kernels
from flaxbert.config import BertConfig
from flaxbert.constraints import constrain
from flaxbert.dropout import DropoutRates, KeepMasks, draw_keep_masks, dropout
from flaxbert.execution import REMAT_POLICIES, AttentionImplementation, Execution, Remat
from flaxbert.functional import linear
from flaxbert.layers import Declaration, Params, declare_activation, declare_layer_norm, declare_linear, prepare
from flaxbert.sharding import AxisRules


def declare_layer(config: BertConfig) -> Declaration:
    """Declare the parameters of one layer."""
    width, inner, stddev = config.hidden_size, config.intermediate_size, config.initializer_range
    heads = (config.num_attention_heads, width // config.num_attention_heads)
    projection = declare_linear((width, *heads), ("embed", "heads", "head"), stddev=stddev)
    output = declare_linear((*heads, width), ("heads", "head", "embed"), stddev=stddev, inputs=2)
    return {
        "attention": {"query": projection, "key": projection, "value": projection, "output": output},
        "attention_norm": declare_layer_norm(width),
        "up": declare_linear((width, inner), ("embed", "mlp"), stddev=stddev),
        "down": declare_linear((inner, width), ("mlp", "embed"), stddev=stddev),
        "output_norm": declare_layer_norm(width),
        **declare_activation(config.hidden_act),
    }


# -- one layer --------------------------------------------------------------------------------------------


@jax.named_scope("attention")
def attend(
    params: Params,
    x: Float[Array, "B T D"],
    source: Float[Array, "B S D"],
    mask: Bool[Array, "#B 1 #T S"] | None,
    *,
    rules: AxisRules,
    rate: float = 0.0,
    keep: Bool[Array, "B H T S"] | None = None,
    head_mask: Float[Array, "H"] | None = None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B H T S"]]:
    """Multi-head attention: return (output projection of the context, attention probabilities).

    Queries come from `x`, keys and values from `source`: the same array in self-attention, unless fewer positions are
    computed than are attended to. The probabilities are those after dropout and head mask.

    Args:
        params: "query", "key", "value" and "output" of a layer, ready for use (`layers.prepare`).
        mask: True where a query may attend to a key; None allows all.
        rules: layout of activations on the current mesh.
        rate, keep: dropout rate of the probabilities, and the mask that was drawn with it.
        head_mask: factor on each head.
    """
    inputs = {"query": x, "key": source, "value": source}
    query, key, value = (
        constrain(linear(params[name], y, "BTD,DHK->BHTK"), rules, "batch", "heads", None, None)
        for name, y in inputs.items()
    )
    context, probabilities = functional.attention(query, key, value, mask, keep_mask=keep, rate=rate)
    if head_mask is not None:
        factor = head_mask.astype(context.dtype)[None, :, None, None]
        context, probabilities = context * factor, probabilities * factor
    return linear(params["output"], context, "BHTK,HKD->BTD"), probabilities


@jax.named_scope("feed_forward")
def feed_forward(
    params: Params, x: Float[Array, "B T D"], *, activation: str, rules: AxisRules
) -> Float[Array, "B T D"]:
    """Return `down(activation(up(x)))`, applied to each position by itself."""
    inner = functional.activate(params.get("activation", {}), linear(params["up"], x, "BTD,DF->BTF"), activation)
    return linear(params["down"], constrain(inner, rules, "batch", None, "mlp"), "BTF,FD->BTD")


@jax.named_scope("layer")
def layer(
    params: Params,
    x: Float[Array, "B T D"],
    source: Float[Array, "B S D"] | None,
    mask: Bool[Array, "#B 1 #T S"] | None,
    *,
    config: BertConfig,
    execution: Execution,
    head_mask: Float[Array, "H"] | None = None,
    key: Key[Array, ""] | None = None,
    output_attentions: bool = False,
) -> tuple[Float[Array, "B T D"], Float[Array, "B H T S"] | None]:
    """One post-norm layer: return (output, attention probabilities or None).

    `x` holds the positions to compute, and `source` those to attend to: None for x itself, self-attention over all
    positions. `key` is for dropout; None applies none. The other arguments are those of `stack`.
    """
    params = prepare(params, declare_layer(config), dtype=execution.dtype, rules=execution.rules)
    needs_probabilities = output_attentions or head_mask is not None
    fused = execution.attention is not AttentionImplementation.EAGER and kernels.supports_fused_attention(
        config, x.shape[1], self_attention=source is None, needs_probabilities=needs_probabilities
    )
    attended = x if source is None else source
    rules, rate, keep = execution.rules, config.attention_probs_dropout_prob, KeepMasks()
    if key is not None:
        scores_shape = (x.shape[0], config.num_attention_heads, x.shape[1], attended.shape[1])
        rates = DropoutRates(rate, config.hidden_dropout_prob)
        keep = draw_keep_masks(key, x.shape, scores_shape, rates=rates, rules=rules, packed=fused)
    attention, kept = params["attention"], keep.probabilities
    if fused:
        y, probabilities = kernels.attend_fused(attention, x, mask, rules=rules, rate=rate, keep=kept), None
    else:
        y, probabilities = attend(attention, x, attended, mask, rules=rules, rate=rate, keep=kept, head_mask=head_mask)
    if keep.attention_output is not None:
        y = dropout(y, keep.attention_output, rate=config.hidden_dropout_prob)
    x = functional.layer_norm(y + x, **params["attention_norm"], epsilon=config.layer_norm_eps)
    y = feed_forward(params, x, activation=config.hidden_act, rules=rules)
    if keep.feed_forward_output is not None:
        y = dropout(y, keep.feed_forward_output, rate=config.hidden_dropout_prob)
    x = functional.layer_norm(y + x, **params["output_norm"], epsilon=config.layer_norm_eps)
    return constrain(x, rules, "batch", None, None), probabilities if output_attentions else None


# -- the stack --------------------------------------------------------------------------------------------


class StackOutput(NamedTuple):
    """Output of the last layer; hidden states and attention probabilities of every layer, or empty tuples."""

    last: Float[Array, "B R D"]
    hidden_states: tuple[Float[Array, "B T D"], ...] = ()
    attentions: tuple[Float[Array, "B H T S"], ...] = ()


class PerLayer(NamedTuple):
    """Inputs of each layer, with a leading axis of layers; room for what else differs by layer (a cache, a mask)."""

    params: Params
    head_mask: Float[Array, "L H"] | None = None
    keys: Key[Array, "L"] | None = None


Step = Callable[[Array, PerLayer], tuple[Array, PyTree]]


def stack(
    params: Params,
    x: Float[Array, "B T D"],
    mask: Bool[Array, "#B 1 #T T"] | None,
    *,
    config: BertConfig,
    execution: Execution,
    head_mask: Float[Array, "L H"] | None = None,
    key: Key[Array, ""] | None = None,
    output_attentions: bool = False,
    output_hidden_states: bool = False,
    first_positions: Int[Array, "B P"] | None = None,
    first_positions_only: bool = False,
) -> StackOutput:
    """Apply all layers: in one `lax.scan`, or in a Python loop where `execution.scan` is False, with the same results.

    Args:
        params: the parameters of a layer (`declare_layer`), each with a leading axis of layers.
        x, mask: output of the embeddings, and True where a query may attend to a key; None allows all.
        config, execution: sizes and dropout rates; dtype, loop, remat, attention and sharding rules.
        head_mask: factor on each head of each layer.
        key: for dropout; None applies none.
        output_attentions, output_hidden_states: return those of every layer. Then all positions are computed.
        first_positions: the first position of each sequence, for batch rows that hold several; 0 where None.
        first_positions_only: return these positions alone, [B, P, D]; the last layer computes no others.
    """
    layers = PerLayer(params, head_mask, None if key is None else jax.random.split(key, config.num_hidden_layers))
    in_loop = alone = functools.partial(layer, config=config, execution=execution, output_attentions=output_attentions)
    if execution.remat is not Remat.NONE:
        checkpoint = functools.partial(jax.checkpoint, alone, policy=REMAT_POLICIES[execution.remat])
        # Inside a real loop nothing can be merged with the forward pass, so the barrier against it is not needed.
        in_loop, alone = checkpoint(prevent_cse=not execution.scan), checkpoint(prevent_cse=True)

    def step(x: Array, inputs: PerLayer) -> tuple[Array, tuple[Array | None, Array | None]]:
        x, probabilities = in_loop(inputs.params, x, None, mask, head_mask=inputs.head_mask, key=inputs.keys)
        return x, (x if output_hidden_states else None, probabilities)

    if first_positions_only and not (output_attentions or output_hidden_states):
        layers, last_layer = _split(layers, (config.num_hidden_layers - 1, 1))
        x, _ = _loop(step, x, layers, config.num_hidden_layers - 1, scan=execution.scan)
        queries, query_mask = functional.at_first_positions(x, first_positions), _first_rows(mask, first_positions)
        last = jax.tree.map(lambda leaf: leaf[0], last_layer)
        x, _ = alone(last.params, queries, x, query_mask, head_mask=last.head_mask, key=last.keys)
        return StackOutput(x)
    x, (states, attentions) = _loop(step, x, layers, config.num_hidden_layers, scan=execution.scan)
    last = functional.at_first_positions(x, first_positions) if first_positions_only else x
    states = tuple(states) if output_hidden_states else ()
    return StackOutput(last, states, tuple(attentions) if output_attentions else ())


def _loop(step: Step, x: Array, layers: PerLayer, count: int, *, scan: bool) -> tuple[Array, PyTree]:
    """Run `lax.scan` or its Python loop: return the last x, and each output of `step` for all layers."""
    if count == 0:
        return x, (None, None)
    if scan:
        return jax.lax.scan(step, x, layers)
    outputs = []
    for number, inputs in enumerate(_split(layers, (1,) * count)):
        with jax.named_scope(f"layer_{number}"):  # so that a profile shows each layer
            x, output = step(x, jax.tree.map(lambda leaf: leaf[0], inputs))
        outputs.append(output)
    return x, tuple(zip(*outputs, strict=True))


def _split(tree: PyTree, sizes: Sequence[int]) -> list[PyTree]:
    """Split the leading axis of every leaf into parts of these sizes.

    The gradient of one split is one concatenation; slices would each be padded with zeros to the full size and added.
    """

    def parts(leaf: Array) -> Sequence[Array]:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # `lax.split` takes no keys, and keys have no gradient
            ends = list(itertools.accumulate(sizes))
            return [leaf[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        return jax.lax.split(leaf, sizes)

    leaves, structure = jax.tree.flatten(tree)
    return [jax.tree.unflatten(structure, part) for part in zip(*map(parts, leaves), strict=True)]


def _first_rows(
    mask: Bool[Array, "#B 1 #T S"] | None, positions: Int[Array, "B P"] | None
) -> Bool[Array, "#B 1 #P S"] | None:
    """Return the mask of the queries at the first positions."""
    if mask is None or mask.shape[2] == 1:
        return mask
    return functional.at_first_positions(mask[:, 0], positions)[:, None]
