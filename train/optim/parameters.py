"""Rules that depend on a parameter's place in the model: weight decay, freezing, rates and statistics per layer.

The names in the model's tree of parameters that these rules rely on are the constants below; no other module of this
package contains one.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath, tree_flatten_with_path, tree_map_with_path

STACK = "layers"
"""Parameters below this name are those of the layers: stacked, with a first axis that counts the layers, or, below the
number of a layer, its own."""
EMBEDDINGS = "embeddings"
"""Parameters below this name are the embedding tables and their LayerNorm."""
KERNEL, BIAS, SCALE = "kernel", "bias", "scale"
"""Last names of a path: the matrix of a linear layer, any bias, the factor of a LayerNorm."""
OUTPUT = "output"
"""Output projection of attention, whose kernel has the heads in its first two axes [H, K, D]; others have [D, H, K]."""

Update = tuple[optax.Updates, optax.OptState]
"""Result of a transformation's `update`: the new updates, and its next state."""


def path_names(path: KeyPath) -> tuple[str, ...]:
    """Return the names along a path in the tree of parameters, such as ("bert", "layers", "up", "kernel")."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)


def is_stacked(path: KeyPath) -> bool:
    """Return whether the first axis of the parameter at this path counts layers."""
    return STACK in path_names(path) and layer_number(path) is None


def layer_number(path: KeyPath) -> int | None:
    """Return the number of the layer that a parameter belongs to, where each layer has a tree of its own."""
    names = path_names(path)
    follower = names[names.index(STACK) + 1] if STACK in names else ""
    return int(follower) if follower.isdecimal() else None


def decay_mask(params: optax.Params) -> optax.Params:
    """Return a tree that is True where weight decay applies: kernels and embedding tables, no bias, no LayerNorm."""
    return tree_map_with_path(lambda path, _: path_names(path)[-1] not in (BIAS, SCALE), params)


def scale_by_depth(decay: float) -> optax.GradientTransformation:
    """Multiply updates by `decay` once for each layer between the parameter and the heads (layer-wise rate decay).

    With L layers, counted from 0, layer i gets decay**(L - i) and the embeddings get decay**(L + 1); pooler and heads
    keep their updates. Weight decay is part of the update and is scaled with it. This is the rule of BEiT (Bao et al.,
    2021); ELECTRA's released code has one more power of the decay everywhere below the heads.

    Raises:
        ValueError: when an update is computed, if no parameters are those of layers, or if stacks differ in depth.
    """

    def scale(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
        leaves = tree_flatten_with_path(updates)[0]
        depths = {leaf.shape[0] for path, leaf in leaves if is_stacked(path)}
        if numbers := {number for path, _ in leaves if (number := layer_number(path)) is not None}:
            depths.add(max(numbers) + 1)
        if len(depths) != 1:
            raise ValueError(f"layer_decay needs parameters stacked by layer, of one depth; found depths {depths}")
        depth = depths.pop()

        def scaled(path: KeyPath, update: jax.Array) -> jax.Array:
            if is_stacked(path):
                factors = decay ** (depth - jnp.arange(depth, dtype=jnp.float32))
                return update * factors.reshape(-1, *(1,) * (update.ndim - 1))
            if (number := layer_number(path)) is not None:
                return update * decay ** (depth - number)
            return update * decay ** (depth + 1) if EMBEDDINGS in path_names(path) else update

        return tree_map_with_path(scaled, updates)

    return optax.stateless(scale)


def scale_heads(factor: float) -> optax.GradientTransformation:
    """Multiply the updates of the heads by `factor`: of all subtrees but those that hold embeddings or layers.

    Weight decay is part of the update and is scaled with it.

    Raises:
        ValueError: when an update is computed, if the model has no heads.
    """

    def scale(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
        paths = [path_names(path) for path, _ in tree_flatten_with_path(updates)[0]]
        encoders = {names[: names.index(part)] for names in paths for part in (EMBEDDINGS, STACK) if part in names}

        def is_head(names: tuple[str, ...]) -> bool:
            return not any(names[: len(encoder)] == encoder for encoder in encoders)

        if not any(map(is_head, paths)):
            raise ValueError(f"head_rate is {factor}, but this model has no head")
        return tree_map_with_path(lambda path, x: x * factor if is_head(path_names(path)) else x, updates)

    return optax.stateless(scale)


def freeze(optimizer: optax.GradientTransformation, prefixes: tuple[str, ...]) -> optax.GradientTransformation:
    """Apply `optimizer` to all parameters except those whose path begins with a prefix such as "bert/embeddings".

    Frozen parameters get no update and no optimizer state, and their gradients do not count in the clipped norm.

    Raises:
        ValueError: from `init`, if a prefix matches no parameters or if nothing is left to train.
    """
    split_prefixes = [tuple(prefix.split("/")) for prefix in prefixes]

    def is_frozen(path: KeyPath) -> bool:
        names = path_names(path)
        return any(names[: len(prefix)] == prefix for prefix in split_prefixes)

    def labels(params: optax.Params) -> optax.Params:
        return tree_map_with_path(lambda path, _: "frozen" if is_frozen(path) else "trained", params)

    split = optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)

    def init(params: optax.Params) -> optax.OptState:
        for prefix in prefixes:
            _require_prefix(prefix, params)
        if "trained" not in jax.tree.leaves(labels(params)):
            raise ValueError(f"frozen is {', '.join(prefixes)}, which leaves nothing to train")
        return split.init(params)

    return optax.GradientTransformation(init, split.update)


def _require_prefix(prefix: str, params: Any) -> None:
    """Raise for a prefix without parameters; the message lists the names at the first part that does not match."""
    node, matched = params, []
    for part in prefix.split("/"):
        if not isinstance(node, Mapping) or part not in node:
            parent = "/".join(matched) or "the model"
            found = ", ".join(sorted(node)) if isinstance(node, Mapping) else "nothing below it"
            raise ValueError(f"frozen has {prefix!r}: no such parameters; {parent} has {found}")
        node = node[part]
        matched.append(part)


def per_matrix(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Apply `inner` to the tensor of each layer separately, viewed as a matrix or a vector.

    The encoder stacks the parameters of its L layers in one array, and attention kernels have an axis for the heads. A
    norm, a mean or a factored second moment must be that of one layer's tensor, as in PyTorch's optimizers.

    The state of `inner` has the shapes of `view_shape`; its scalars, such as a step count, stay scalars.
    """

    def labels(params: optax.Params) -> optax.Params:
        return tree_map_with_path(lambda path, _: "stacked" if is_stacked(path) else "single", params)

    def views(tree: optax.Params | None) -> optax.Params:
        return tree_map_with_path(lambda path, x: x.reshape(view_shape(path, x.shape)), tree)

    split = optax.partition({"single": inner, "stacked": _over_layers(inner)}, labels)

    def init(params: optax.Params) -> optax.OptState:
        return split.init(views(params))

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None) -> Update:
        changed, state = split.update(views(updates), state, views(params))
        return jax.tree.map(lambda new, old: new.reshape(old.shape), changed, updates), state

    return optax.GradientTransformation(init, update)


def view_shape(path: KeyPath, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a parameter viewed as matrices or vectors, with the axis of layers in front if it is stacked.

    Attention's query, key and value kernels [D, H, K] become [D, H*K] and their biases [H, K] become [H*K]; its output
    kernel [H, K, D] becomes [H*K, D]. All others keep their shape.
    """
    layers, own = (shape[:1], shape[1:]) if is_stacked(path) else ((), shape)
    names = path_names(path)
    if names[-1] == BIAS:
        return (*layers, math.prod(own))
    if names[-1] == KERNEL:
        input_axes = len(own) - 1 if names[-2] == OUTPUT else 1
        return (*layers, math.prod(own[:input_axes]), math.prod(own[input_axes:]))
    return shape


def _over_layers(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Apply `inner` to each entry of the first axis of all arrays; the scalars of its state are shared."""

    def axes(state: optax.OptState) -> optax.OptState:
        return jax.tree.map(lambda leaf: 0 if leaf.ndim else None, state)

    def init(params: optax.Params) -> optax.OptState:
        if not jax.tree.leaves(params):
            return inner.init(params)
        first = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), params)
        return jax.vmap(inner.init, out_axes=axes(jax.eval_shape(inner.init, first)))(params)

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None) -> Update:
        if not jax.tree.leaves(updates):
            return updates, state
        state_axes = axes(state)
        step = jax.vmap(inner.update, in_axes=(0, state_axes, 0), out_axes=(0, state_axes))
        return step(updates, state, params)

    return optax.GradientTransformation(init, update)
