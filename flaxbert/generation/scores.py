"""Rules on the scores of the next token, as pure functions: penalties, bans, forced tokens, limits of sampling.

The rules and their order are those of `transformers` 5 (`_get_logits_processor`). B here counts the sequences that are
searched: every prompt has as many as it has beams, or sequences to return.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flaxbert.generation.settings import GenerationSettings

_BANNED = -jnp.inf
Scores = Float[Array, "B V"]
Scalar = Float[Array, ""]


class History(NamedTuple):
    """The tokens so far: columns `start` of each row to `length` of `tokens`; earlier ones are padding."""

    tokens: Int[Array, "B S"]
    start: Int[Array, "B"]
    length: Int[Array, ""]


def adjust_scores(scores: Scores, history: History, settings: GenerationSettings, *, prompt_length: int) -> Scores:
    """Apply penalties, bans and forced tokens; `settings` are resolved (`GenerationSettings.resolve`)."""
    vocabulary = scores.shape[1]
    if settings.changes("repetition_penalty"):
        scores = penalise_repetition(scores, history, settings.repetition_penalty)
    if settings.no_repeat_ngram_size:
        scores = jnp.where(repeated_ngrams(history, settings.no_repeat_ngram_size, vocabulary), _BANNED, scores)
    if settings.bad_words_ids:
        scores = _ban_words(scores, history, settings)
    if settings.min_new_tokens and settings.ends:
        too_early = history.length < prompt_length + settings.min_new_tokens
        scores = jnp.where(too_early & _is_one_of(settings.ends, vocabulary), _BANNED, scores)
    if settings.forced_bos_token_id is not None:
        forced = _forced((settings.forced_bos_token_id,), vocabulary)
        scores = jnp.where(history.length == 1, forced, scores)
    if settings.forced_eos_token_id:
        is_last = history.length == prompt_length + settings.new_tokens - 1
        scores = jnp.where(is_last, _forced(settings.forced_eos_token_id, vocabulary), scores)
    if settings.suppress_tokens:
        scores = jnp.where(_is_one_of(settings.suppress_tokens, vocabulary), _BANNED, scores)
    return scores


def restrict_to_likely(scores: Scores, settings: GenerationSettings) -> Scores:
    """Apply temperature, top-k and top-p: the scores to draw from."""
    # A beam needs a token that does not end it, whatever the others are.
    least = 1 if settings.num_beams == 1 else max(2, len(settings.ends) + 1)
    scores = scores / settings.temperature if settings.changes("temperature") else scores
    largest = scores.shape[1]
    if settings.top_k:
        largest = min(max(settings.top_k, least), scores.shape[1])
        scores = jnp.where(scores < jax.lax.top_k(scores, largest)[0][:, -1:], _BANNED, scores)
    if settings.changes("top_p"):
        scores = keep_top_p(scores, settings.top_p, candidates=largest, least=least)
    return scores


def keep_top_p(scores: Scores, top_p: float | Scalar, *, candidates: int, least: int = 1) -> Scores:
    """Ban all but the most probable tokens whose probabilities add up to `top_p` (Holtzman et al., 2020).

    Only the `candidates` best tokens are sorted: the caller has banned the others. At least `least` tokens are kept.
    """
    best = jax.lax.top_k(scores, candidates)[0]
    probabilities = jax.nn.softmax(best, axis=1)
    # The probability of a token and of all less probable ones: dropped if that is at most 1 - top_p.
    remaining = jnp.cumsum(probabilities[:, ::-1], axis=1)[:, ::-1]
    kept = jnp.maximum(jnp.sum(remaining > 1.0 - top_p, axis=1, keepdims=True), least)
    threshold = jnp.take_along_axis(best, jnp.minimum(kept, candidates) - 1, axis=1)
    return jnp.where(scores < threshold, _BANNED, scores)


def penalise_repetition(scores: Scores, history: History, penalty: float | Scalar) -> Scores:
    """Divide the positive scores, and multiply the negative ones, of tokens that occurred (Keskar et al., 2019)."""
    occurred = _mark(history.tokens, _is_filled(history), scores.shape[1])
    return jnp.where(occurred, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def repeated_ngrams(history: History, size: int, vocabulary: int) -> Bool[Array, "B V"]:
    """Return the tokens that would complete a sequence of `size` tokens which occurred before."""
    tokens, windows = history.tokens, history.tokens.shape[1] - size + 1
    if windows <= 0:
        return jnp.zeros((tokens.shape[0], vocabulary), bool)
    suffix = _last_tokens(history, size - 1)
    occurred = _is_filled(history)
    complete = occurred[:, :windows] & occurred[:, size - 1 :]
    equal = (tokens[:, i : windows + i] == suffix[:, i : i + 1] for i in range(size - 1))
    return _mark(tokens[:, size - 1 :], functools.reduce(jnp.logical_and, equal, complete), vocabulary)


def _ban_words(scores: Scores, history: History, settings: GenerationSettings) -> Scores:
    """Ban the last token of each bad word whose other tokens come last; a bad word that is an end token is allowed."""
    words = [word for word in settings.bad_words_ids if not (len(word) == 1 and word[0] in settings.ends)]
    for length, group in itertools.groupby(sorted(words, key=len), key=len):
        ids = np.array(list(group))  # [words, length]
        if length == 1:
            scores = jnp.where(_is_one_of(ids[:, 0], scores.shape[1]), _BANNED, scores)
            continue
        suffix = _last_tokens(history, length - 1)
        matches = jnp.all(suffix[:, None] == ids[None, :, :-1], axis=2) & (history.length >= length - 1)
        lasts = jnp.broadcast_to(jnp.asarray(ids[None, :, -1]), matches.shape)
        scores = jnp.where(_mark(lasts, matches, scores.shape[1]), _BANNED, scores)
    return scores


def _is_filled(history: History) -> Bool[Array, "B S"]:
    columns = jnp.arange(history.tokens.shape[1])[None]
    return (columns >= history.start[:, None]) & (columns < history.length)


def _last_tokens(history: History, count: int) -> Int[Array, "B count"]:
    return jax.lax.dynamic_slice_in_dim(history.tokens, history.length - count, count, axis=1)


def _mark(ids: Int[Array, "B N"], counted: Bool[Array, "B N"], vocabulary: int) -> Bool[Array, "B V"]:
    """Return True at the ids of each row that are counted."""
    rows = jnp.arange(ids.shape[0])[:, None]
    empty = jnp.zeros((ids.shape[0], vocabulary), bool)
    return empty.at[rows, jnp.where(counted, ids, vocabulary)].set(True, mode="drop")


def _is_one_of(ids, vocabulary: int) -> np.ndarray:
    return np.isin(np.arange(vocabulary), ids)[None]


def _forced(ids, vocabulary: int) -> np.ndarray:
    return np.where(_is_one_of(ids, vocabulary), np.float32(0), np.float32(-np.inf))
