"""Layers and tokens left out of a forward pass: the length-adaptive transformer (Kim and Cho, 2021).

`layer_config` names the layers that run, and `length_config` the number of tokens that each layer keeps. Between its
attention and its feed-forward half, a layer drops the tokens that received the least attention. A token that is dropped
keeps the state that the layer before gave it. `transformer.layer` drops tokens, and `stack.stack` restores them.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from flaxbert.config import BertConfig, checked_layer_config, checked_length_config


@dataclasses.dataclass(frozen=True)
class KeptTokens:
    """Number of tokens that a layer keeps; `cls` keeps the first one whatever its score."""

    count: int
    cls: bool


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """The layers that run and the tokens after each of them, for inputs of one length.

    Attributes:
        length: number of tokens of the input.
        layers: numbers of the layers that run, ascending.
        lengths: number of tokens after each of these.
        keep_cls: every layer keeps the first token.
    """

    length: int
    layers: tuple[int, ...]
    lengths: tuple[int, ...]
    keep_cls: bool

    @property
    def drops(self) -> bool:
        """True if some layer drops tokens."""
        return self.lengths[-1] != self.length

    def kept_tokens(self, layer: int, length: int) -> KeptTokens | None:
        """Return the tokens that a layer keeps of `length`; None for all."""
        count = self.lengths[self.layers.index(layer)]
        return None if count == length else KeptTokens(count, self.keep_cls)


def resolve(
    config: BertConfig,
    length: int,
    *,
    layer_config: Sequence[int] | None = None,
    length_config: Sequence[int] | None = None,
    always_keep_cls_token: bool | None = None,
    keep_cls_by_default: bool = True,
) -> LayerPlan | None:
    """Return the layers and lengths for inputs of `length` tokens; None where neither is given.

    Arguments that are None have the value of `config`; `keep_cls_by_default` is the head's, for where that is None too.
    Lengths beyond that of the input are shortened to it.

    Raises:
        ValueError: as `config.checked_layer_config` and `config.checked_length_config`, or the length of the input is
            not a number while a program is exported.
    """
    layer_config = config.layer_config if layer_config is None else layer_config
    length_config = config.length_config if length_config is None else length_config
    if layer_config is None and length_config is None:
        return None
    count = config.num_hidden_layers
    layers = tuple(range(count)) if layer_config is None else checked_layer_config(layer_config, count)
    lengths = (length,) * count
    if length_config is not None:
        if not isinstance(length, int):
            raise ValueError("length_config is given and the inputs have any length; give --length, their one length")
        lengths = tuple(min(kept, length) for kept in checked_length_config(length_config, count))
    keep_cls = config.always_keep_cls_token if always_keep_cls_token is None else always_keep_cls_token
    if keep_cls not in (None, False, True):
        raise ValueError(f"always_keep_cls_token is {keep_cls!r}; allowed: None, False, True")
    keep_cls = keep_cls_by_default if keep_cls is None else bool(keep_cls)
    return LayerPlan(length, layers, tuple(lengths[layer] for layer in layers), keep_cls)


# -- choice of tokens -------------------------------------------------------------------------------------


def received_attention(probabilities: Float[Array, "B H T S"]) -> Float[Array, "B S"]:
    """Return the attention that each key receives, summed over heads and queries in float32."""
    return jnp.sum(probabilities, axis=(1, 2), dtype=jnp.float32)


def choose_tokens(
    scores: Float[Array, "B T"], is_real: Bool[Array, "#B T"] | None, kept: KeptTokens
) -> Int[Array, "B R"]:
    """Return the positions of the tokens with the highest scores, ascending; of equal ones the first.

    Padding, where `is_real` is False, has a rank below all other tokens.
    """
    scores = jax.lax.stop_gradient(scores)
    if is_real is not None:
        scores = jnp.where(is_real, scores, -jnp.inf)
    if kept.cls:
        scores = jnp.where((jnp.arange(scores.shape[1]) == 0)[None], jnp.inf, scores)
    # The compiler gathers the whole batch for `top_k`, but divides a sort among devices.
    return jnp.sort(jnp.argsort(-scores, axis=1)[:, : kept.count], axis=1)


def gather_tokens(
    x: Shaped[Array, "B T *rest"], positions: Int[Array, "B R"], *, ascending: bool = True
) -> Shaped[Array, "B R *rest"]:
    """Return the entries of x at positions, each at most once, which are ascending unless `ascending` is False."""

    def gather(row: Array, indices: Array) -> Array:
        return row.at[indices].get(mode="promise_in_bounds", unique_indices=True, indices_are_sorted=ascending)

    return jax.vmap(gather)(x, positions)


def restore_tokens(
    states: Float[Array, "B S D"], x: Float[Array, "B R D"], positions: Int[Array, "B R"]
) -> Float[Array, "B S D"]:
    """Return `states` with x at its ascending positions."""

    def scatter(row: Array, tokens: Array, indices: Array) -> Array:
        return row.at[indices].set(tokens, mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True)

    return jax.vmap(scatter)(states, x, positions)


# -- cost -------------------------------------------------------------------------------------------------


def flops(
    config: BertConfig,
    length: int,
    length_config: Sequence[int] | None = None,
    layer_config: Sequence[int] | None = None,
    *,
    first_position_only: bool = False,
) -> float:
    """Return the floating-point operations of the matrix products of all layers, for one row of `length` tokens.

    Forward alone. `first_position_only` is for heads that read the first token, whose last layer computes no other.
    """
    plan = resolve(config, length, layer_config=layer_config, length_config=length_config)
    plan = plan or LayerPlan(length, tuple(range(config.num_hidden_layers)), (length,) * config.num_hidden_layers, True)
    # Each kind of relative positions is a product as large as that of queries and keys.
    products = 2 + {"absolute": 0, "relative_key": 1, "relative_key_query": 2}[config.position_embedding_type]
    total, before = 0, length
    for layer, after in zip(plan.layers, plan.lengths, strict=True):
        queries = before
        if first_position_only and layer == plan.layers[-1]:
            queries = after = 1
        width = len(config.kept_heads(layer)) * config.head_size
        projections = 2 * (before + queries) * config.hidden_size * width  # keys and values; queries and output
        total += (
            projections
            + products * before * queries * width
            + 2 * after * config.hidden_size * config.intermediate_size
        )
        before = after
    return 2.0 * total
