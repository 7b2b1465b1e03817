"""The stack: all layers (`transformer.layer`) in one `lax.scan`, or in a Python loop with the same results.

The parameters of all layers are one tree with a leading axis [L, ...], or a tree for each layer, {"0": ..., "1": ...},
where layers differ in shape, or a decoder's loop is to update the cache of each in place: these run in a Python loop.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from flaxbert import functional, length_adaptive
from flaxbert.cache import LayerCache, LayerCaches
from flaxbert.config import BertConfig
from flaxbert.execution import REMAT_POLICIES, Execution, Remat
from flaxbert.layers import Declaration, Params, has_tree_for_each_layer, stacked
from flaxbert.length_adaptive import KeptTokens, LayerPlan
from flaxbert.transformer import LayerOutput, LayerSettings, PerLayer, SharedInputs, declare_layer, layer


def declare_layers(config: BertConfig, *, stack: bool) -> Declaration:
    """Declare the parameters of all layers: stacked on a leading axis, or a tree for each layer by its number."""
    if stack:
        return stacked(declare_layer(config), config.num_hidden_layers)
    numbers = range(config.num_hidden_layers)
    return {str(number): declare_layer(config, heads=len(config.kept_heads(number))) for number in numbers}


class StackOutput(NamedTuple):
    """Output of the last layer; what every layer gives, or empty tuples; the cache after this call."""

    last: Float[Array, "B R D"]
    hidden_states: tuple[Float[Array, "B T D"], ...] = ()
    attentions: tuple[Float[Array, "B _ T S"], ...] = ()
    cross_attentions: tuple[Float[Array, "B H T X"], ...] = ()
    cache: LayerCaches | None = None


class Tokens(NamedTuple):
    """Tokens that the next layer computes, where some are dropped.

    Attributes:
        x: their states.
        positions: their places in the input, ascending; None while no token is dropped.
        states: of all positions; only those of dropped tokens are final. None while no token is dropped.
    """

    x: Float[Array, "B R D"]
    positions: Int[Array, "B R"] | None = None
    states: Float[Array, "B T D"] | None = None

    def all_states(self) -> Float[Array, "B T D"]:
        """Return the last state of every position."""
        if self.positions is None or self.states is None:
            return self.x
        return length_adaptive.restore_tokens(self.states, self.x, self.positions)


Run = Callable[..., tuple[PyTree, LayerOutput]]
"""Runs one layer: (its number, its inputs, x or `Tokens`, in_scan=False)."""


def stack(
    params: Params,
    x: Float[Array, "B T D"],
    shared: SharedInputs,
    *,
    config: BertConfig,
    execution: Execution,
    head_mask: Float[Array, "L H"] | None = None,
    key: Key[Array, ""] | None = None,
    cache: LayerCaches | None = None,
    output_attentions: bool = False,
    output_hidden_states: bool = False,
    first_positions: Int[Array, "B P"] | None = None,
    first_positions_only: bool = False,
    plan: LayerPlan | None = None,
) -> StackOutput:
    """Apply all layers: in one `lax.scan`, or in a Python loop with the same results.

    The loop serves where `execution.scan` is False, where each layer has a tree of its own, and where layers or tokens
    are left out.

    Args:
        params: those of `declare_layers`.
        x: output of the embeddings.
        shared: masks, states of the encoder and whatever else every layer gets.
        config, execution: sizes and dropout rates; dtype, loop, remat, attention and sharding rules.
        head_mask: factor on each head of each layer.
        key: for dropout; None applies none.
        cache: of all layers, as the parameters are: with a leading axis, or one for each layer.
        output_attentions, output_hidden_states: return those of every layer. Then all positions are computed.
        first_positions: the first position of each sequence, for batch rows that hold several; 0 where None.
        first_positions_only: return these positions alone, [B, P, D]; the last layer computes no others.
        plan: layers and tokens to leave out; None for none. Then there is no cache, and `first_positions` is None
            where tokens are dropped.
    """
    count = config.num_hidden_layers
    numbers = range(count) if plan is None else plan.layers
    keys = None if key is None else jax.random.split(key, count)
    few = first_positions_only and not (output_attentions or output_hidden_states) and cache is None
    if plan is not None and plan.drops and not plan.keep_cls:
        few = False  # the first token may be dropped before the last layer

    def run(
        number: int,
        own: PerLayer,
        x: Array,
        *,
        shared: SharedInputs = shared,
        kept: KeptTokens | None = None,
        in_scan: bool = False,
    ) -> tuple[Array, LayerOutput]:
        settings = LayerSettings(config, execution, config.kept_heads(number), output_attentions, kept)
        apply = _rematerialised(functools.partial(layer, settings=settings), execution.remat, in_scan=in_scan)
        if few and number == numbers[-1]:
            queries = functional.at_first_positions(x, first_positions)
            return apply(own, queries, x, _at_first_positions(shared, first_positions))
        x, output = apply(own, x, None, shared)
        return x, output._replace(state=x if output_hidden_states else None)

    def run_on_tokens(number: int, own: PerLayer, tokens: Tokens) -> tuple[Tokens, LayerOutput]:
        assert plan is not None
        kept = None if few and number == numbers[-1] else plan.kept_tokens(number, tokens.x.shape[1])
        own_shared = shared if tokens.positions is None else _at_tokens(shared, tokens.positions)
        x, output = run(number, own, tokens.x, shared=own_shared, kept=kept)
        if output.kept is None:
            return tokens._replace(x=x), output
        positions = output.kept
        if tokens.positions is not None:
            positions = jnp.take_along_axis(tokens.positions, positions, axis=1, mode="promise_in_bounds")
        return Tokens(x, positions, tokens.all_states()), output

    if plan is not None and plan.drops:
        output = _loop(run_on_tokens, params, head_mask, keys, cache, Tokens(x), numbers=numbers)
        tokens = cast(Tokens, output.last)
        output = output._replace(last=tokens.x if few else tokens.all_states())
    elif execution.scan and not has_tree_for_each_layer(params) and len(numbers) == count:
        assert cache is None or isinstance(cache, LayerCache)
        output = _scan(run, PerLayer(params, head_mask, keys, cache), x, count=count, last_alone=few)
    else:
        output = _loop(run, params, head_mask, keys, cache, x, numbers=numbers)
    if first_positions_only and not few:
        return output._replace(last=functional.at_first_positions(output.last, first_positions))
    return output


def _rematerialised(step: Callable, remat: Remat, *, in_scan: bool) -> Callable:
    """Return the function of a layer, of which the backward pass keeps only what `remat` says."""
    if remat is Remat.NONE:
        return step
    # Inside a real loop nothing can be merged with the forward pass, so the barrier against it is not needed.
    return jax.checkpoint(step, policy=REMAT_POLICIES[remat], prevent_cse=not in_scan)


def _scan(run: Run, layers: PerLayer, x: Array, *, count: int, last_alone: bool) -> StackOutput:
    """Run the layers in one `lax.scan`; with `last_alone` all but the last, which then follows."""
    last, output = None, LayerOutput()
    if last_alone:
        layers, last = _split(layers, (count - 1, 1))
    if last is None or count > 1:
        x, output = jax.lax.scan(lambda x, own: run(0, own, x, in_scan=True), x, layers)
    if last is not None:
        x, _ = run(count - 1, _only(last), x)
    states, attentions, cross_attentions = (() if leaf is None else tuple(leaf) for leaf in output[:3])
    return StackOutput(x, states, attentions, cross_attentions, output.cache)


def _loop(
    run: Run,
    params: Params,
    head_mask: Float[Array, "L H"] | None,
    keys: Key[Array, "L"] | None,
    cache: LayerCaches | None,
    x: PyTree,
    *,
    numbers: Sequence[int],
) -> StackOutput:
    """Run these layers in a Python loop; trees of parameters and caches of a layer of its own are not copied."""
    count = len(params) if has_tree_for_each_layer(params) else len(jax.tree.leaves(params)[0])
    own_params = params if has_tree_for_each_layer(params) else None
    stacked_cache = cache if isinstance(cache, LayerCache) else None
    stacks = PerLayer({} if own_params else params, head_mask, keys, stacked_cache)
    outputs = []
    parts = _split(stacks, (1,) * count)
    for number in numbers:
        own = _only(parts[number])
        if own_params is not None:
            own = own._replace(params=own_params[str(number)])
        if cache is not None and stacked_cache is None:
            own = own._replace(cache=cache[number])
        with jax.named_scope(f"layer_{number}"):  # so that a profile shows each layer
            x, output = run(number, own, x)
        outputs.append(output)
    states, attentions, cross_attentions, caches = (
        () if field[0] is None else field for field in list(zip(*outputs, strict=True))[:4]
    )
    if stacked_cache is not None:
        caches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *caches)
    return StackOutput(x, states, attentions, cross_attentions, caches or None)


def _only(tree: PyTree) -> PyTree:
    """Return the one entry of every leaf."""
    return jax.tree.map(lambda leaf: leaf[0], tree)


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
    if not leaves:
        return [tree] * len(sizes)
    return [jax.tree.unflatten(structure, part) for part in zip(*map(parts, leaves), strict=True)]


def _at_tokens(shared: SharedInputs, positions: Int[Array, "B R"]) -> SharedInputs:
    """Return the mask, distances and bias of the tokens at these positions of the input."""
    mask, distances, bias = shared.mask, shared.distances, shared.bias
    queries, keys = positions[:, :, None], positions[:, None, :]
    if mask is not None:
        mask = length_adaptive.gather_tokens(mask[:, 0, 0], positions)[:, None, None]
    if bias is not None:
        bias = jnp.moveaxis(bias[0][:, queries, keys], 0, 1)
    return shared._replace(mask=mask, distances=None if distances is None else queries - keys, bias=bias)


def _at_first_positions(shared: SharedInputs, positions: Int[Array, "B P"] | None) -> SharedInputs:
    """Return the masks, distances and bias of the queries at the first positions."""

    def rows(array: Shaped[Array, "#B #T S *rest"]) -> Shaped[Array, "#B #P S *rest"]:
        if array.shape[1] == 1:
            return array
        if positions is not None:
            array = jnp.broadcast_to(array, (positions.shape[0], *array.shape[1:]))
        return functional.at_first_positions(array, positions)

    def mask_rows(mask: Bool[Array, "#B 1 #T S"] | None) -> Bool[Array, "#B 1 #P S"] | None:
        return None if mask is None else rows(mask[:, 0])[:, None]

    distances = None if shared.distances is None else rows(shared.distances)
    bias = None if shared.bias is None else jnp.moveaxis(rows(jnp.moveaxis(shared.bias, 1, -1)), -1, 1)
    return shared._replace(
        mask=mask_rows(shared.mask), distances=distances, bias=bias, encoder_mask=mask_rows(shared.encoder_mask)
    )
