"""The cache of keys and values of a decoder: a tree of arrays of fixed shapes, for `lax.while_loop` and donation.

Every batch row has the same number of slots. A call writes its tokens into the next slots of all rows; a slot of
padding stays invalid, whichever side the padding is on.
"""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num

from flaxbert.functional import require_shape

if TYPE_CHECKING:
    from flaxbert.models import PreTrainedModel


class KeyValues(NamedTuple):
    """Keys and values of attention, by heads."""

    key: Float[Array, "B H S K"]
    value: Float[Array, "B H S K"]

    def write(self, new: "KeyValues", start: Int[Array, ""] | int) -> "KeyValues":
        """Return the slots with those from `start` on replaced by `new`."""
        at = (0, 0, start, 0)
        key, value = (
            jax.lax.dynamic_update_slice(old, part.astype(old.dtype), at) for old, part in zip(self, new, strict=True)
        )
        return KeyValues(key, value)


class LayerCache(NamedTuple):
    """Keys and values of one layer: of its self-attention, and of its cross-attention where there is one."""

    attention: KeyValues
    cross_attention: KeyValues | None = None


LayerCaches = LayerCache | tuple[LayerCache, ...]
"""The caches of all layers: with a leading axis of layers, or one for each layer."""


@struct.dataclass
class KeyValueCache:
    """Keys and values of all layers.

    Attributes:
        layers: a `LayerCache` with a leading axis of layers, or one for each layer where the parameters are so.
        valid: True for slots that hold a token.
        length: number of slots used, the same for every row.
        encoder_mask: True for positions of the encoder that may be attended to; None without cross-attention.
    """

    layers: LayerCaches
    valid: Bool[Array, "B S"]
    length: Int[Array, ""]
    encoder_mask: Bool[Array, "B X"] | None = None

    @property
    def slots(self) -> int:
        """The number of tokens that a row has room for."""
        return self.valid.shape[1]

    def require_room(self, tokens: int) -> None:
        """Raise ValueError if the cache has no room for further `tokens`; a traced length passes."""
        if not isinstance(self.length, Tracer) and int(self.length) + tokens > self.slots:
            raise ValueError(
                f"the cache has {self.slots} slots, of which {int(self.length)} are used; {tokens} more tokens do not "
                "fit: give init_cache a larger length"
            )

    def extend(
        self, attention_mask: Num[ArrayLike, "B T"] | Bool[ArrayLike, "B T"] | None, tokens: int
    ) -> tuple["KeyValueCache", Bool[Array, "B 1 T S"]]:
        """Mark the slots of further tokens as used: return the cache and the mask of these tokens' attention.

        A token attends to the valid slots up to its own. `attention_mask` is nonzero for tokens that are not padding;
        None means that all are tokens.
        """
        rows = self.valid.shape[0]
        new = jnp.ones((rows, tokens), bool) if attention_mask is None else jnp.asarray(attention_mask) != 0
        valid = jax.lax.dynamic_update_slice(self.valid, new, (0, self.length))
        slots = jnp.arange(self.slots)[None, :] <= (self.length + jnp.arange(tokens))[:, None]
        mask = slots[None, None] & valid[:, None, None, :]
        return dataclasses.replace(self, valid=valid, length=self.length + tokens), mask

    def distances(self, tokens: int) -> Int[Array, "B T S"]:
        """Return the number of tokens between each of the last `tokens` slots used and every slot, without padding."""
        count = jnp.cumsum(self.valid, axis=1)
        last = jax.lax.dynamic_slice(count, (0, self.length - tokens), (count.shape[0], tokens))
        return last[:, :, None] - count[:, None, :]

    def take_rows(self, rows: Int[ArrayLike, " rows"]) -> "KeyValueCache":
        """Return the cache of the given batch rows, in their order: those of the chosen beams, for example."""
        indices = jnp.asarray(rows)
        axis = 1 if isinstance(self.layers, LayerCache) else 0
        return dataclasses.replace(
            self,
            layers=jax.tree.map(lambda leaf: jnp.take(leaf, indices, axis=axis), self.layers),
            valid=self.valid[indices],
            encoder_mask=None if self.encoder_mask is None else self.encoder_mask[indices],
        )


def init_cache(model: "PreTrainedModel", *, rows: int, length: int, encoder_length: int | None = None) -> KeyValueCache:
    """Return an empty cache for a decoder.

    Args:
        model: its `config`, `dtype` and layout of layers decide the shapes.
        rows: batch rows.
        length: slots of a row, for the prompt and all tokens after it.
        encoder_length: positions of the encoder, for a decoder with cross-attention.

    Raises:
        ValueError: the model is not a decoder or has no cross-attention, a size is below 1, or the length exceeds the
            model's positions.
    """
    config = model.config
    if not config.is_decoder:
        raise ValueError("config.is_decoder is false; only a decoder has a cache: config.replace(is_decoder=True)")
    if encoder_length is not None and not config.add_cross_attention:
        raise ValueError(
            f"encoder_length is {encoder_length}, but config.add_cross_attention is false; leave it out or use a "
            "decoder with cross-attention"
        )
    for name, size in (("rows", rows), ("encoder_length", encoder_length)):
        if size is not None and size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
    if not 1 <= length <= config.max_sequence_length:
        raise ValueError(f"length is {length}; the model's positions allow 1 to {config.max_sequence_length}")

    def keys_values(heads: int, slots: int, fill: float) -> KeyValues:
        shape = (rows, heads, slots, config.head_size)
        return KeyValues(*(jnp.full(shape, fill, model.dtype) for _ in range(2)))

    def layer_cache(heads: int) -> LayerCache:
        # A cross-attention that was never given its encoder's states gives NaN.
        cross = None if encoder_length is None else keys_values(config.num_attention_heads, encoder_length, jnp.nan)
        return LayerCache(keys_values(heads, length, 0.0), cross)

    if model.layers_are_stacked:
        one = layer_cache(config.num_attention_heads)
        layers = jax.tree.map(lambda leaf: jnp.stack([leaf] * config.num_hidden_layers), one)
    else:
        layers = tuple(layer_cache(len(config.kept_heads(number))) for number in range(config.num_hidden_layers))
    encoder_mask = None if encoder_length is None else jnp.zeros((rows, encoder_length), bool)
    return KeyValueCache(layers, jnp.zeros((rows, length), bool), jnp.zeros((), jnp.int32), encoder_mask)


def check_cached_call(
    cache: KeyValueCache, *, rows: int, tokens: int, attention_mask: ArrayLike | None, encoder_length: int | None
) -> None:
    """Check the arguments of a call with a cache, before any computation.

    Raises:
        ValueError: names the argument, what was given and what is allowed.
    """
    if cache.valid.shape[0] != rows:
        raise ValueError(f"the cache has {cache.valid.shape[0]} batch rows, the input {rows}; they must be the same")
    require_shape("attention_mask of a call with a cache, for its new tokens,", attention_mask, (rows, tokens))
    cache.require_room(tokens)
    room = None if cache.encoder_mask is None else cache.encoder_mask.shape[1]
    if encoder_length is not None and encoder_length != room:
        raise ValueError(
            f"encoder_hidden_states have {encoder_length} positions, and the cache room for {room or 'none'}; give "
            f"init_cache encoder_length={encoder_length}"
        )
