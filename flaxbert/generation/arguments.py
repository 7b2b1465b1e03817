"""Arguments of `generate`: what they are, and their checks on the host, before anything is compiled."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, TypedDict, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key, Num

from flaxbert.functional import require_range, require_shape
from flaxbert.generation.settings import GenerationSettings
from flaxbert.lm_heads import BertLMHeadModel


class GenerationArguments(TypedDict, total=False):
    """The keyword arguments of `generate` and `stream`; see `generate`."""

    attention_mask: Num[ArrayLike, "B T"] | Bool[ArrayLike, "B T"] | None
    settings: GenerationSettings | None
    key: Key[Array, ""] | Key[Array, "B"] | None
    encoder_hidden_states: Float[ArrayLike, "B X D"] | None
    encoder_attention_mask: Num[ArrayLike, "B X"] | Bool[ArrayLike, "B X"] | None


class EncoderStates(NamedTuple):
    """States of an encoder, for a decoder with cross-attention, and the mask of its padding."""

    states: Float[Array, "B X D"]
    mask: Num[Array, "B X"] | None = None


class Request(NamedTuple):
    """Checked arguments.

    Attributes:
        settings: resolved for the prompts.
        given: the prompts as they were given.
        prompts, start: the prompts with all padding moved to the left, and the first column that is not padding.
        keys: a random key for each row that is searched; None without sampling.
        encoder: None for a decoder without cross-attention.
    """

    settings: GenerationSettings
    given: Int[np.ndarray, "B T"]
    prompts: Int[np.ndarray, "B T"]
    start: Int[np.ndarray, "B"]
    keys: Key[Array, "B"] | None
    encoder: EncoderStates | None


def require_known(arguments: Mapping[str, object]) -> None:
    """Raise TypeError for an argument that `generate` does not have; those of transformers' are settings here."""
    for name in arguments.keys() - GenerationArguments.__annotations__.keys():
        settings = {field.name for field in dataclasses.fields(GenerationSettings)}
        remedy = f": give settings=flaxbert.GenerationSettings({name}=...)" if name in settings else ""
        raise TypeError(f"generate takes no argument {name!r}{remedy}")


def check_arguments(
    model: BertLMHeadModel,
    input_ids: Int[ArrayLike, "B T"],
    *,
    attention_mask: Num[ArrayLike, "B T"] | Bool[ArrayLike, "B T"] | None = None,
    settings: GenerationSettings | None = None,
    key: Key[Array, ""] | Key[Array, "B"] | None = None,
    encoder_hidden_states: Float[ArrayLike, "B X D"] | None = None,
    encoder_attention_mask: Num[ArrayLike, "B X"] | Bool[ArrayLike, "B X"] | None = None,
) -> Request:
    """Check the arguments of `generate`.

    Raises:
        TypeError: settings or a key of another type, or an argument that is a field of the settings.
        ValueError: names the argument, what was given and what is allowed.
    """
    if settings is not None and not isinstance(settings, GenerationSettings):
        raise TypeError(f"settings is a {type(settings).__name__}; give flaxbert.GenerationSettings(...)")
    settings = settings or GenerationSettings()
    if not isinstance(model, BertLMHeadModel) or not model.config.is_decoder:
        raise ValueError(
            f"the model is a {type(model).__name__} with is_decoder={model.config.is_decoder}; generation needs a "
            "BertLMHeadModel whose config has is_decoder=True"
        )
    ids = np.asarray(input_ids)
    require_shape("input_ids", ids, ("B", "T"))
    if 0 in ids.shape or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"input_ids are {ids.dtype}{list(ids.shape)}; every prompt needs a token, a whole number")
    require_range("input_ids", ids, 0, model.config.vocab_size - 1, why="vocab_size")
    ids = ids.astype(np.int32)
    require_shape("attention_mask", attention_mask, ids.shape)
    if attention_mask is None:
        pad = model.config.padding_row if settings.pad_token_id is None else settings.pad_token_id
        mask = np.ones(ids.shape, bool) if pad is None or pad in settings.ends else ids != pad
    else:
        mask = np.asarray(attention_mask) != 0
    lengths = mask.sum(axis=1)
    if not lengths.all():
        empty = int(np.flatnonzero(lengths == 0)[0])
        raise ValueError(f"prompt {empty} holds only padding; every prompt needs a token")
    settings = settings.resolve(model.config, prompt_length=ids.shape[1], longest_prompt=int(lengths.max()))
    order = np.argsort(mask, axis=1, kind="stable")  # padding first
    moved = np.take_along_axis(np.where(mask, ids, np.int32(settings.padding)), order, axis=1)
    # Columns that hold only padding are cut where the cache would exceed the model's positions.
    columns = min(ids.shape[1], model.config.max_sequence_length - settings.new_tokens + 1)
    return Request(
        settings=settings,
        given=ids,
        prompts=moved[:, -columns:],
        start=(columns - lengths).astype(np.int32),
        keys=_row_keys(settings, key, len(ids)),
        encoder=_encoder_states(model, encoder_hidden_states, encoder_attention_mask, len(ids)),
    )


def _row_keys(settings: GenerationSettings, key: Array | None, batch: int) -> Key[Array, "B"] | None:
    """Return a key for each row that is searched, made from the key of its prompt."""
    if not settings.do_sample:
        if key is not None:
            raise ValueError("key is given without sampling, which alone reads it; give do_sample=True, or no key")
        return None
    if key is None:
        raise ValueError("do_sample is true and key None; give a key, such as jax.random.key(0)")
    if not isinstance(key, jax.Array):
        raise TypeError(f"key is a {type(key).__name__}; give a key, such as jax.random.key(0)")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = cast(Array, jax.random.wrap_key_data(key))
    if key.shape not in ((), (batch,)):
        raise ValueError(f"key has shape {list(key.shape)}; allowed: one key, or one for each of {batch} prompts")
    keys = key if key.shape else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if settings.num_beams > 1 or settings.num_return_sequences == 1:
        return keys
    numbers = jnp.arange(settings.num_return_sequences)
    return jax.vmap(lambda own: jax.vmap(jax.random.fold_in, (None, 0))(own, numbers))(keys).reshape(-1)


def _encoder_states(
    model: BertLMHeadModel, states: ArrayLike | None, mask: ArrayLike | None, batch: int
) -> EncoderStates | None:
    """Check the encoder's states and mask against the model and the prompts."""
    if (states is not None) != model.config.add_cross_attention:
        problem = "needs encoder_hidden_states" if states is None else "takes no encoder_hidden_states"
        raise ValueError(f"the model's add_cross_attention is {model.config.add_cross_attention}; it {problem}")
    if states is None:
        if mask is not None:
            raise ValueError("encoder_attention_mask is given without encoder_hidden_states; give both or neither")
        return None
    require_shape("encoder_hidden_states", states, (batch, "X", "D"))
    require_shape("encoder_attention_mask", mask, (batch, jnp.shape(states)[1]))
    return EncoderStates(jnp.asarray(states), None if mask is None else jnp.asarray(mask))
