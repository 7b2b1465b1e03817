"""Changes of a trained model's shape: pruned heads, another vocabulary, other positions, fewer layers, another family.

Each function takes a configuration and the parameters of any class with it, and returns new ones; build the model
again with that configuration: `model.clone(config=config)`. The parameters given stay as they are.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from flaxbert.config import BertConfig
from flaxbert.encoder import declare_positions
from flaxbert.families import family_of_config_class
from flaxbert.families.family import Family, TensorName
from flaxbert.layers import LAYERS, Params, ParamsDict, has_tree_for_each_layer, stack_layers, unstack_layers

Batch = TypeVar("Batch")
_HEAD_AXES = {("query", "kernel"): 1, ("key", "kernel"): 1, ("value", "kernel"): 1, ("output", "kernel"): 0}
_HEAD_AXES |= {("query", "bias"): 0, ("key", "bias"): 0, ("value", "bias"): 0}
_COVARIANCE_SCALE = 1e-9  # that of transformers 5


# -- heads -----------------------------------------------------------------------------------------------


def prune_heads(
    config: BertConfig, params: Params, heads: Mapping[int, Iterable[int]]
) -> tuple[BertConfig, ParamsDict]:
    """Remove attention heads of layers: {layer: heads}, by their numbers in the model before any pruning.

    Heads that are pruned already are skipped, as in transformers 4. Layers may keep different numbers of heads: the
    parameters of a pruned model have a tree for each layer. Cross-attention is not pruned.

    Raises:
        ValueError: a layer or a head that the model does not have, or all heads of a layer.
    """
    if not isinstance(heads, Mapping) or not all(isinstance(given, Iterable) for given in heads.values()):
        raise ValueError(f"heads is {heads!r:.80}; it must be a mapping from layers to lists of heads: {{0: [1, 2]}}")
    pruned = dict(config.pruned_heads)
    merged = pruned | {layer: {*pruned.get(layer, ()), *given} for layer, given in heads.items()}
    new_config = config.replace(pruned_heads=merged)

    def prune(number: int, layer: Params) -> Params:
        left = set(new_config.kept_heads(number))
        indices = np.array([index for index, head in enumerate(config.kept_heads(number)) if head in left])
        attention = {name: dict(child) for name, child in layer["attention"].items()}
        for (name, leaf), axis in _HEAD_AXES.items():
            attention[name][leaf] = attention[name][leaf].take(indices, axis=axis)
        return {**layer, "attention": attention}

    layers = [prune(number, layer) for number, layer in enumerate(_layers(config, params))]
    return new_config, _with_layers(new_config, params, layers)


def head_importance(
    config: BertConfig,
    params: Params,
    loss: Callable[[Params, Float[Array, "L H"], Batch], Float[ArrayLike, ""]],
    batches: Iterable[Batch],
) -> Float[np.ndarray, "L H"]:
    """Score every head by the mean absolute gradient of the loss with respect to its mask (Michel et al., 2019).

    As in that paper, the scores of a layer are divided by their l2 norm. Pruned heads have the score 0.

    Args:
        config, params: of the model that the loss applies.
        loss: of the parameters, of a head mask of ones that the model is to be called with, and of a batch.
        batches: arrays, or trees of arrays, of one shape. The mean is over batches: with one example in each, over
            examples, as in the paper.

    Raises:
        ValueError: there are no batches, or a gradient is not finite.
    """
    ones = jnp.ones((config.num_hidden_layers, config.num_attention_heads), jnp.float32)
    gradient = jax.jit(jax.grad(loss, argnums=1))
    total, count = np.zeros(ones.shape), 0
    for batch in batches:
        total += np.abs(np.asarray(gradient(params, ones, batch), np.float64))
        count += 1
    if count == 0:
        raise ValueError("batches is empty; importance is a mean over one batch at least")
    if not np.isfinite(total).all():
        raise ValueError("a gradient of the head mask is not finite; check the loss and the parameters")
    for layer, heads in config.pruned_heads:
        total[layer, list(heads)] = 0
    norms = np.linalg.norm(total, axis=1, keepdims=True)
    return total / np.where(norms == 0, 1, norms)


def least_important_heads(
    config: BertConfig, importance: Float[np.ndarray, "L H"], fraction: float
) -> dict[int, list[int]]:
    """Choose this fraction of the model's heads, rounded down, to prune: those with the lowest scores.

    The highest of each layer stays, because a layer needs a head. Heads that are pruned already do not count.

    Raises:
        ValueError: scores of another shape, or a fraction that leaves a layer without heads.
    """
    shape = (config.num_hidden_layers, config.num_attention_heads)
    if np.shape(importance) != shape:
        raise ValueError(f"importance has the shape {np.shape(importance)}; the model has layers and heads {shape}")
    kept = {layer: config.kept_heads(layer) for layer in range(shape[0])}
    total = sum(map(len, kept.values()))
    candidates = []
    for layer, heads in kept.items():
        ranked = sorted(heads, key=lambda head: importance[layer, head])
        candidates += [(importance[layer, head], layer, head) for head in ranked[:-1]]
    count = int(fraction * total + 1e-9) if 0 <= fraction < 1 else total
    if count > len(candidates):
        raise ValueError(
            f"fraction is {fraction}; it must be from 0 to {len(candidates) / total:.3f}, because each of {shape[0]} "
            "layers keeps a head"
        )
    chosen: dict[int, list[int]] = {}
    for _, layer, head in sorted(candidates)[:count]:
        chosen.setdefault(layer, []).append(head)
    return {layer: sorted(heads) for layer, heads in sorted(chosen.items())}


# -- vocabulary and positions ----------------------------------------------------------------------------


def resize_token_embeddings(
    config: BertConfig,
    params: Params,
    vocab_size: int | None = None,
    *,
    pad_to_multiple_of: int | None = None,
    mean_resizing: bool = True,
    key: jax.Array | None = None,
) -> tuple[BertConfig, ParamsDict]:
    """Change the vocabulary of word embeddings and decoder: cut the last entries, or append new ones.

    New vectors are drawn as in transformers 5: around the mean of the old ones with 1e-9 of their covariance (Hewitt,
    2021), or from N(0, `initializer_range`) without `mean_resizing`. New biases of an untied decoder are the mean of
    the old ones with `mean_resizing`; all others are 0. The result has no rows for the model's `vocab_multiple`.

    Args:
        config, params: the model's.
        vocab_size: the new number of entries; that of `config` where None.
        pad_to_multiple_of: round the number up to a multiple of this.
        mean_resizing: see above.
        key: for new vectors; `jax.random.key(0)` where None.

    Raises:
        ValueError: the new vocabulary lacks `pad_token_id`, or a number that is no size.
    """
    size = config.vocab_size if vocab_size is None else vocab_size
    if pad_to_multiple_of is not None:
        if pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of is {pad_to_multiple_of}; it must be at least 1")
        size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
    if config.pad_token_id is not None and not 0 <= config.pad_token_id < max(size, 1):
        raise ValueError(
            f"vocab_size is {size} and pad_token_id {config.pad_token_id}; the new vocabulary must contain the padding "
            "token: give a larger size, or replace pad_token_id in the config first"
        )
    new_config = config.replace(vocab_size=size)
    rows = [row for row in _table(config) if row.per_token]

    def resize(path: tuple[str, ...], leaf: Array, key: jax.Array) -> Array:
        axis = next((row.input_axes or 0 for row in rows if _ends_with(path, row.path)), None)
        if axis is None:
            return leaf
        table = jnp.moveaxis(jnp.asarray(leaf), axis, 0)[: config.vocab_size]
        count = max(size - config.vocab_size, 0)
        if path[-1] == "bias":
            mean = jnp.mean(table) if mean_resizing and "decoder" in path else 0.0
            new = jnp.full((count,), mean, table.dtype)
        elif mean_resizing and count:
            new = _draw_like(table, count, key)
        else:
            new = config.initializer_range * jax.random.normal(key, (count, *table.shape[1:]), table.dtype)
        return jnp.moveaxis(jnp.concatenate([table[:size], new]), 0, axis)

    return new_config, _map_leaves(resize, params, key)


def _draw_like(table: Float[Array, "V D"], count: int, key: jax.Array) -> Float[Array, "N D"]:
    mean = jnp.mean(table, axis=0)
    centred = table - mean[None]
    covariance = _COVARIANCE_SCALE * (centred.T @ centred) / len(table)
    # The decomposition that bears a singular matrix: a table may have fewer rows than columns.
    return jax.random.multivariate_normal(key, mean, covariance, (count,), dtype=table.dtype, method="svd")


def resize_positions(
    config: BertConfig, params: Params, max_position_embeddings: int, *, key: jax.Array | None = None
) -> tuple[BertConfig, ParamsDict]:
    """Change the number of positions: cut the last rows of the table, or append rows, initialised as in a new model.

    Tables of relative distances keep their middle: they are cut, or extended, at both ends. As everywhere,
    `max_position_embeddings` counts the positions before RoBERTa's first one.

    Raises:
        ValueError: a number of positions that the family does not allow.
    """
    new_config = config.replace(max_position_embeddings=max_position_embeddings)
    growth = max_position_embeddings - config.max_position_embeddings

    def resize(path: tuple[str, ...], leaf: Array, key: jax.Array) -> Array:
        relative = _ends_with(path, ("attention", "distance", "embedding"))
        if not relative and not _ends_with(path, ("embeddings", "position", "embedding")):
            return leaf
        leaf, rows = jnp.asarray(leaf), leaf.ndim - 2  # stacked layers have an axis before the rows
        before = growth if relative else 0
        cut = leaf.take(np.arange(max(-before, 0), leaf.shape[rows] - max(-growth, 0)), axis=rows)
        widths = [(0, 0)] * leaf.ndim
        widths[rows] = (max(before, 0), max(growth, 0))
        old = jnp.pad(jnp.ones_like(cut, bool), widths)
        if relative:
            new = config.initializer_range * jax.random.normal(key, old.shape, leaf.dtype)
        else:
            new = declare_positions(new_config)["embedding"].initializer(key, old.shape, leaf.dtype)
        return jnp.where(old, jnp.pad(cut, widths), new)

    return new_config, _map_leaves(resize, params, key)


# -- layers ----------------------------------------------------------------------------------------------


def drop_layers(config: BertConfig, params: Params, *, keep: Sequence[int]) -> tuple[BertConfig, ParamsDict]:
    """Keep the layers with these numbers, in ascending order, and drop the others.

    Raises:
        ValueError: no layers, layers that the model does not have, or another order.
    """
    if not keep or list(keep) != sorted(set(keep)) or not 0 <= keep[0] <= keep[-1] < config.num_hidden_layers:
        raise ValueError(
            f"keep is {list(keep)}; it must be numbers of layers from 0 to {config.num_hidden_layers - 1}, in "
            "ascending order"
        )
    pruned = dict(config.pruned_heads)
    pruned = {new: pruned[old] for new, old in enumerate(keep) if old in pruned}
    lengths, run = config.length_config, config.layer_config
    new_config = config.replace(
        num_hidden_layers=len(keep),
        pruned_heads=pruned,
        length_config=None if lengths is None else [lengths[old] for old in keep],
        layer_config=None if run is None else [new for new, old in enumerate(keep) if old in run],
    )
    layers = _layers(config, params)
    return new_config, _with_layers(new_config, params, [layers[number] for number in keep])


# -- family ----------------------------------------------------------------------------------------------


def change_family(config: BertConfig, params: Params, config_class: type[BertConfig]) -> tuple[BertConfig, ParamsDict]:
    """Give the layers and the head of a BERT to DistilBERT: a student to train, with the same outputs at first.

    The vector of token type 0 is added to the positions, and a pooler is left out. The head stays as it is; DistilBERT
    has other classifiers of sequences and choices.

    Raises:
        ValueError: the other family does not take layers of this one, or lacks one of its settings.
    """
    family, target = family_of_config_class(type(config)), family_of_config_class(config_class)
    if family.model_type not in target.takes_layers_of:
        allowed = ", ".join(target.takes_layers_of) or "no other family"
        raise ValueError(f"config is of {family.model_type!r}; {target.model_type!r} takes the layers of: {allowed}")
    names = {field.name for field in dataclasses.fields(config_class)} - {"type_vocab_size", "classifier_dropout"}
    new_config = config_class(**{name: value for name, value in vars(config).items() if name in names})
    encoder = dict(_encoder(config, params))
    embeddings = dict(encoder["embeddings"])
    types = embeddings.pop("token_type")["embedding"]
    embeddings["position"] = {"embedding": jnp.asarray(embeddings["position"]["embedding"]) + types[:1]}
    encoder |= {"embeddings": embeddings}
    encoder.pop("pooler", None)
    if family.prefix not in params:
        return new_config, encoder
    return new_config, {target.prefix: encoder} | {name: tree for name, tree in params.items() if name != family.prefix}


# -- trees -----------------------------------------------------------------------------------------------


def _table(config: BertConfig) -> tuple[TensorName, ...]:
    family: Family = family_of_config_class(type(config))
    return (*family.encoder, *family.heads)


def _ends_with(path: tuple[str, ...], ending: tuple[str, ...]) -> bool:
    return path[-len(ending) :] == ending


def _encoder(config: BertConfig, params: Params) -> Params:
    """Return the parameters of the encoder: all of a base model's, or those under the family's name."""
    encoder = params.get(family_of_config_class(type(config)).prefix, params)
    if LAYERS not in encoder:
        raise ValueError(
            f"params has the keys {sorted(params)}; the parameters of a {type(config).__name__} model "
            f"have {LAYERS!r}, or an encoder with it"
        )
    return encoder


def _layers(config: BertConfig, params: Params) -> list[Params]:
    """Return the parameters of each layer."""
    layers = _encoder(config, params)[LAYERS]
    layers = layers if has_tree_for_each_layer(layers) else unstack_layers(layers)
    if len(layers) != config.num_hidden_layers:
        raise ValueError(f"params has {len(layers)} layers; the config has {config.num_hidden_layers}")
    return [layers[str(number)] for number in range(len(layers))]


def _with_layers(config: BertConfig, params: Params, layers: Sequence[Params]) -> ParamsDict:
    """Return the parameters with other layers: stacked, unless heads are pruned."""
    trees = {str(number): layer for number, layer in enumerate(layers)}
    encoder = _encoder(config, params)
    new = {**encoder, LAYERS: trees if config.pruned_heads else stack_layers(trees)}
    return new if encoder is params else {**params, family_of_config_class(type(config)).prefix: new}


def _map_leaves(
    function: Callable[[tuple[str, ...], Array, jax.Array], Array], params: Params, key: jax.Array | None
) -> ParamsDict:
    """Apply a function to the path of every parameter, to the parameter and to a random key of its own."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    keys = jax.random.split(jax.random.key(0) if key is None else key, len(leaves))
    new = [
        function(tuple(part.key for part in path), leaf, own) for (path, leaf), own in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, new)
