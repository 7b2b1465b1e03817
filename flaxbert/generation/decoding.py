"""`generate` and `stream`: checks on the host, preparation of the parameters, and the two compiled programs.

One program reads the prompts and chooses the first new token (`_start`), the other adds tokens in a loop (`_continue`).
Each is compiled once for a model, the static settings and shapes of prompts; `stream` runs the same two, one token a
call.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple, TypeVar, Unpack, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key, Num

from flaxbert import layers
from flaxbert.cache import KeyValueCache, init_cache
from flaxbert.encoder_decoder import EncoderDecoderModel
from flaxbert.generation.arguments import EncoderStates, GenerationArguments, Request, check_arguments, require_known
from flaxbert.generation.beams import BeamState, continue_beams, start_beams
from flaxbert.generation.encoder_states import decoder_arguments
from flaxbert.generation.search import SearchState, continue_search, start_search
from flaxbert.generation.settings import GenerationSettings
from flaxbert.layers import Params
from flaxbert.lm_heads import BertLMHeadModel
from flaxbert.outputs import CausalLMOutput

Model = TypeVar("Model", BertLMHeadModel, EncoderDecoderModel)


class GenerationOutput(NamedTuple):
    """Generated sequences, `num_return_sequences` for each prompt, those of a beam search best first.

    Attributes:
        sequences: the prompt as it was given, then the new tokens, then padding; cut at the longest.
        lengths: number of new tokens, an end token included.
        scores: log probability of the new tokens under the adjusted scores; of a beam search, divided by
            lengths ** length_penalty (Hugging Face's sequences_scores). A search that can end in fewer ways than it
            has beams repeats sequences, with scores of about -1e9 / length.
    """

    sequences: Int[Array, "B S"]
    lengths: Int[Array, "B"]
    scores: Float[Array, "B"]


def generate(
    model: BertLMHeadModel | EncoderDecoderModel,
    params: Params,
    input_ids: Int[ArrayLike, "B T"],
    **arguments: Unpack[GenerationArguments],
) -> GenerationOutput:
    """Continue prompts with a decoder, as `transformers` does with the same settings.

    Args:
        model, params: a decoder, or an encoder-decoder. `prepare_for_generation` once, if there are many calls:
            otherwise each call copies the layers.
        input_ids: the prompts, one a row; of an encoder-decoder, the input of the encoder. Its decoder begins with
            `decoder_start_token_id`, the first of the sequences returned.
        attention_mask: 0 for padding, on either side; None takes `pad_token_id` for padding if it is no end token.
        settings: None for the defaults: greedy search, 20 new tokens.
        key: for sampling: one for all prompts, or one for each; the result of a row depends on no other row.
        encoder_hidden_states, encoder_attention_mask: for a decoder with cross-attention.

    Raises:
        ValueError: an argument is impossible, or contradicts another; before anything is compiled.
    """
    require_known(arguments)
    if isinstance(model, EncoderDecoderModel):
        start, arguments = decoder_arguments(model, params, input_ids, arguments)
        return generate(cast(BertLMHeadModel, model.decoder), model.decoder_params(params), start, **arguments)
    request = check_arguments(model, input_ids, **arguments)
    model, params = _for_generation(model, params)
    settings, length = request.settings, request.prompts.shape[1]
    state = _start(model, settings, params, request.prompts, request.start, request.keys, request.encoder)
    state = _continue(model, settings, params, state, np.int32(length + settings.new_tokens))
    tokens, lengths, scores = _results(state, settings)
    given = jnp.repeat(jnp.asarray(request.given), settings.num_return_sequences, axis=0)
    new = tokens[:, length : length + int(jnp.max(lengths))]
    return GenerationOutput(jnp.concatenate([given, new], axis=1), lengths, scores)


def stream(
    model: BertLMHeadModel | EncoderDecoderModel,
    params: Params,
    input_ids: Int[ArrayLike, "B T"],
    **arguments: Unpack[GenerationArguments],
) -> Iterator[Int[np.ndarray, "B"]]:
    """Yield the next token of each row as soon as it is known: those of `generate`, padding after the end of a row.

    The arguments are those of `generate`, without beams.

    Raises:
        ValueError: as `generate`; or beams, whose tokens are not known before the end.
    """
    require_known(arguments)
    if isinstance(model, EncoderDecoderModel):
        start, arguments = decoder_arguments(model, params, input_ids, arguments)
        return stream(cast(BertLMHeadModel, model.decoder), model.decoder_params(params), start, **arguments)
    request = check_arguments(model, input_ids, **arguments)
    if request.settings.num_beams > 1:
        raise ValueError(
            f"num_beams is {request.settings.num_beams}; a stream takes 1, because the tokens of beams are known at "
            "the end alone"
        )
    return _streamed(*_for_generation(model, params), request)


def greedy_tokens(
    model: EncoderDecoderModel,
    params: Params,
    input_ids: Int[Array, "B X"],
    *,
    attention_mask: Num[Array, "B X"],
    settings: GenerationSettings,
    rows: Bool[Array, "B"],
) -> Int[Array, "B S"]:
    """Return the new tokens of a greedy search, for use in a function that is compiled, such as an evaluation step.

    Arrays are not checked. Tokens of the rows that are False in `rows` mean nothing: the loop does not wait for them.
    """
    encoded = model.encode(params, input_ids, attention_mask=attention_mask).last_hidden_state
    own, own_params = _for_generation(cast(BertLMHeadModel, model.decoder), model.decoder_params(params))
    settings = settings.resolve(own.config, prompt_length=1, longest_prompt=1)
    assert model.decoder_start_token_id is not None
    prompts = jnp.full((input_ids.shape[0], 1), model.decoder_start_token_id)
    encoder = EncoderStates(encoded, attention_mask)
    state = _start(own, settings, own_params, prompts, jnp.zeros_like(prompts[:, 0]), None, encoder)
    state = cast(SearchState, state)._replace(ended=state.ended | ~rows)
    state = _continue(own, settings, own_params, state, jnp.int32(1 + settings.new_tokens))
    return cast(SearchState, state).tokens[:, 1:]


def _streamed(model: BertLMHeadModel, params: Params, request: Request) -> Iterator[Int[np.ndarray, "B"]]:
    settings, first = request.settings, request.prompts.shape[1]
    state = _start(model, settings, params, request.prompts, request.start, request.keys, request.encoder)
    assert isinstance(state, SearchState)
    for column in range(first, first + settings.new_tokens):
        if column > first:
            state = _continue(model, settings, params, state, np.int32(column + 1))
        yield np.asarray(state.tokens[:, column])
        if bool(jnp.all(state.ended)):
            return


def prepare_for_generation(model: Model, params: Params) -> tuple[Model, Params]:
    """Return a model and parameters with the same results that generate faster; nothing is copied if they are so.

    Each layer has a tree of its own, so that the loop updates the caches in place. On CPUs a tied decoder becomes
    a kernel of its own, at the price of its memory: each call would transpose the word table, which took three quarters
    of the time of a token in a stream (BERT-small).
    """
    if not isinstance(model, EncoderDecoderModel):
        return _for_generation(model, params)
    decoder, own = _for_generation(cast(BertLMHeadModel, model.decoder), model.decoder_params(params))
    return dataclasses.replace(model, decoder=decoder, tied=False), {**params, "decoder": own}


def _for_generation(model: BertLMHeadModel, params: Params) -> tuple[BertLMHeadModel, Params]:
    prefix = model.base_model_prefix
    if model.layers_are_stacked:
        unstacked = layers.unstack_layers(params[prefix]["layers"])
        model, params = model.clone(stacked_layers=False), {**params, prefix: {**params[prefix], "layers": unstacked}}
    # In other dtypes the scores of an untied decoder would be rounded.
    if model.config.tie_word_embeddings and model.dtype == jnp.float32 and jax.default_backend() == "cpu":
        head = dict(params["predictions"])
        kernel = jnp.asarray(params[prefix]["embeddings"]["word"]["embedding"]).T
        head["decoder"] = {"kernel": kernel, "bias": head.pop("bias")}
        model = model.clone(config=model.config.replace(tie_word_embeddings=False))
        params = {**params, "predictions": head}
    return model, params


# -- compiled programs ----------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def _start(
    model: BertLMHeadModel,
    settings: GenerationSettings,
    params: Params,
    prompts: Int[Array, "B T"],
    start: Int[Array, "B"],
    keys: Key[Array, "B"] | None,
    encoder: EncoderStates | None,
) -> SearchState | BeamState:
    """Read the prompts into a new cache and choose the first new token."""
    batch, length = prompts.shape
    columns = jnp.arange(length)[None]
    cache = init_cache(
        model,
        rows=batch,
        length=length + settings.new_tokens - 1,  # nothing is computed from the last new token
        encoder_length=None if encoder is None else encoder.states.shape[1],
    )
    scores, cache = _next_scores(
        model,
        params,
        prompts,
        jnp.maximum(columns - start[:, None], 0),
        cache,
        attention_mask=columns >= start[:, None],
        encoder=encoder,
    )
    begin = start_beams if settings.num_beams > 1 else start_search
    return begin(prompts, start, scores, cache, keys, settings)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _continue(
    model: BertLMHeadModel,
    settings: GenerationSettings,
    params: Params,
    state: SearchState | BeamState,
    until: Int[Array, ""],
) -> SearchState | BeamState:
    """Add tokens until `until` columns are filled (a beam search: to its end)."""

    def step(ids: Array, positions: Array, cache: KeyValueCache) -> tuple[Array, KeyValueCache]:
        return _next_scores(model, params, ids, positions, cache)

    if isinstance(state, BeamState):
        return continue_beams(step, state, settings)
    return continue_search(step, state, until, settings)


def _next_scores(
    model: BertLMHeadModel,
    params: Params,
    ids: Int[Array, "B T"],
    position_ids: Int[Array, "B T"],
    cache: KeyValueCache,
    *,
    attention_mask: Bool[Array, "B T"] | None = None,
    encoder: EncoderStates | None = None,
) -> tuple[Float[Array, "B V"], KeyValueCache]:
    """Return the scores of the vocabulary after the last of the new tokens `ids`, and the cache with these."""
    output = model.apply(
        {"params": params},
        ids,
        cache=cache,
        attention_mask=attention_mask,
        position_ids=position_ids + model.config.position_offset,
        logit_positions=jnp.full((ids.shape[0], 1), ids.shape[1] - 1),
        encoder_hidden_states=None if encoder is None else encoder.states,
        encoder_attention_mask=None if encoder is None else encoder.mask,
    )
    output = cast(CausalLMOutput, output)
    return output.logits[:, 0, : model.config.vocab_size], cast(KeyValueCache, output.cache)


def _results(state: SearchState | BeamState, settings: GenerationSettings) -> tuple[Array, Array, Array]:
    """Return tokens, numbers of new tokens and scores of the sequences to return."""
    if isinstance(state, SearchState):
        return state.tokens, state.lengths, state.log_probs
    best = jax.tree.map(lambda leaf: leaf[:, : settings.num_return_sequences].reshape(-1, *leaf.shape[2:]), state.best)
    return best.tokens, best.lengths, best.scores
