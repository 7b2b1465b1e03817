"""Generation by an encoder-decoder: its encoder's states, and the first token of the decoder."""

import functools

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from flaxbert.encoder_decoder import EncoderDecoderModel
from flaxbert.functional import require_range, require_shape
from flaxbert.generation.arguments import GenerationArguments
from flaxbert.layers import Params


def decoder_arguments(
    model: EncoderDecoderModel, params: Params, input_ids: Int[ArrayLike, "B X"], arguments: GenerationArguments
) -> tuple[Int[np.ndarray, "B 1"], GenerationArguments]:
    """Run the encoder: return the decoder's prompts, of one start token each, and its arguments.

    Args:
        model, params: the encoder-decoder.
        input_ids: input of the encoder; `attention_mask` of the arguments marks its padding.
        arguments: those of `generate`.

    Raises:
        ValueError: the model names no start token, states are given, or an id or the mask is impossible.
    """
    if model.decoder_start_token_id is None:
        raise ValueError(
            "decoder_start_token_id is None, the first token of what is generated; give it: "
            "dataclasses.replace(model, decoder_start_token_id=...)"
        )
    if arguments.get("encoder_hidden_states") is not None or arguments.get("encoder_attention_mask") is not None:
        raise ValueError(
            "encoder_hidden_states are those of the model's encoder; generate with model.decoder to give some"
        )
    ids = np.asarray(input_ids)
    require_shape("input_ids", ids, ("B", "X"))
    require_range("input_ids", ids, 0, model.encoder.config.vocab_size - 1, why="the encoder's vocab_size")
    mask = arguments.get("attention_mask")
    require_shape("attention_mask", mask, ids.shape)
    mask = ids != model.encoder.config.padding_row if mask is None else np.asarray(mask) != 0
    start = np.full((len(ids), 1), model.decoder_start_token_id, np.int32)
    return start, {
        "settings": arguments.get("settings"),
        "key": arguments.get("key"),
        "attention_mask": np.ones_like(start),  # the start token may be the token of padding
        "encoder_hidden_states": _encode(model, params, ids.astype(np.int32), mask),
        "encoder_attention_mask": mask,
    }


@functools.partial(jax.jit, static_argnums=0)
def _encode(
    model: EncoderDecoderModel, params: Params, ids: Int[Array, "B X"], mask: Bool[Array, "B X"]
) -> Float[Array, "B X D"]:
    return model.encode(params, ids, attention_mask=mask).last_hidden_state
