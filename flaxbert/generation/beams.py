"""Beam search as pure functions over a step function and its cache; the rules are those of `transformers` 5.

G is the number of beams of a prompt. A hypothesis is a continuation that has ended; the others are running beams.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from flaxbert.generation.scores import History, adjust_scores, restrict_to_likely
from flaxbert.generation.search import Cache, Step
from flaxbert.generation.settings import GenerationSettings

_NONE = -1e9
"""Score of a place without a hypothesis, and of a beam that must not be chosen, as in transformers."""


class Hypotheses(NamedTuple):
    """The best hypotheses of each prompt, best first; running beams where not `found`, with scores of -1e9 / length."""

    tokens: Int[Array, "B G S"]
    scores: Float[Array, "B G"]
    lengths: Int[Array, "B G"]
    found: Bool[Array, "B G"]


class BeamState(NamedTuple):
    """State between two steps of a beam search.

    Attributes:
        tokens, log_probs: running beams, best first, and their log probabilities.
        start: the first column of each prompt that is not padding.
        length: columns of `tokens` that are filled, in all beams.
        parents: the row of `cache`, among all B * G, that each beam continues.
        best: hypotheses so far.
        improvable: prompts of which a running beam may still become one of the best hypotheses.
        stopped: the search has ended for all prompts.
        keys: a random key for each prompt; None without sampling.
        cache: of the tokens before the last one, before the beams were chosen.
    """

    tokens: Int[Array, "B G S"]
    log_probs: Float[Array, "B G"]
    start: Int[Array, "B"]
    length: Int[Array, ""]
    parents: Int[Array, "B G"]
    best: Hypotheses
    improvable: Bool[Array, "B"]
    stopped: Bool[Array, ""]
    keys: Key[Array, "B"] | None
    cache: Cache


def start_beams(
    prompt: Int[Array, "B T"],
    start: Int[Array, "B"],
    scores: Float[Array, "B V"],
    cache: Cache,
    keys: Key[Array, "B"] | None,
    settings: GenerationSettings,
) -> BeamState:
    """Return the state after the first step, chosen from the model's `scores` after the prompt."""
    beams, batch = settings.num_beams, prompt.shape[0]
    tokens = jnp.pad(prompt, ((0, 0), (0, settings.new_tokens)), constant_values=settings.padding)
    tokens = jnp.repeat(tokens[:, None], beams, axis=1)
    # All beams are equal at first: only the first one may be continued.
    log_probs = jnp.where(jnp.arange(beams) == 0, 0.0, _NONE)
    none = Hypotheses(
        tokens=tokens,
        scores=jnp.full((batch, beams), _NONE, jnp.float32),
        lengths=jnp.zeros((batch, beams), jnp.int32),
        found=jnp.zeros((batch, beams), bool),
    )
    state = BeamState(
        tokens=tokens,
        log_probs=jnp.broadcast_to(log_probs.astype(jnp.float32), (batch, beams)),
        start=start,
        length=jnp.int32(prompt.shape[1]),
        parents=jnp.arange(batch * beams).reshape(batch, beams),
        best=none,
        improvable=jnp.ones(batch, bool),
        stopped=jnp.zeros((), bool),
        keys=keys,
        cache=cache.take_rows(jnp.repeat(jnp.arange(batch), beams)),
    )
    return _advance(state, jnp.repeat(scores, beams, axis=0), settings)


def continue_beams(step: Step, state: BeamState, settings: GenerationSettings) -> BeamState:
    """Add tokens until no prompt can be improved, or all columns are filled."""
    batch, beams, columns = state.tokens.shape

    def body(state: BeamState) -> BeamState:
        last = jax.lax.dynamic_slice_in_dim(state.tokens, state.length - 1, 1, axis=2)
        positions = jnp.repeat(state.length - 1 - state.start, beams)[:, None]
        cache = state.cache.take_rows(state.parents.reshape(-1))
        scores, cache = step(last.reshape(batch * beams, 1), positions, cache)
        return _advance(state._replace(cache=cache), scores, settings)

    return jax.lax.while_loop(lambda state: (state.length < columns) & ~state.stopped, body, state)


def _advance(state: BeamState, scores: Float[Array, "BG V"], settings: GenerationSettings) -> BeamState:
    """Add a token to the beams: rank continuations, keep those that ended as hypotheses and the others as beams."""
    batch, beams, columns = state.tokens.shape
    prompt_length = columns - settings.new_tokens
    new = state.length + 1 - prompt_length  # new tokens of the continuations
    log_probs, parents, ids = _continuations(state, scores, settings)
    tokens = _take(state.tokens, parents)
    tokens = jax.lax.dynamic_update_slice_in_dim(tokens, ids[..., None], state.length, axis=2)
    ends = jnp.isin(ids, jnp.asarray(settings.ends, ids.dtype)) | (state.length + 1 == columns)

    ranked = log_probs / _length_divisors(settings)[new]
    is_best = jnp.arange(ids.shape[1])[None] < beams  # those ranked below only replace beams that ended
    is_full = jnp.all(state.best.found, axis=1, keepdims=True) & (settings.early_stopping is True)
    for excluded in (is_full, ~state.improvable[:, None], ~(ends & is_best)):
        ranked = ranked + excluded * _NONE
    lengths = jnp.broadcast_to(new, ids.shape)
    best = _merged(state.best, Hypotheses(tokens, ranked, lengths, ends & is_best))

    running, order = jax.lax.top_k(log_probs + ends * _NONE, beams)
    rows = jnp.arange(batch)[:, None] * beams
    state = state._replace(
        tokens=_take(tokens, order),
        log_probs=running,
        parents=_take(parents, order) + rows,
        length=state.length + 1,
        best=best,
    )
    improvable = state.improvable & _may_improve(running[:, 0], best, new, settings)
    all_full = jnp.all(best.found) & (settings.early_stopping is True)
    return state._replace(improvable=improvable, stopped=~jnp.any(improvable) | all_full | jnp.all(ends))


def _continuations(
    state: BeamState, scores: Float[Array, "BG V"], settings: GenerationSettings
) -> tuple[Float[Array, "B N"], Int[Array, "B N"], Int[Array, "B N"]]:
    """Return log probability, beam and new token of the N best continuations, or of N drawn ones, best first.

    N is large enough for as many continuations that do not end as there are beams.
    """
    batch, beams, columns = state.tokens.shape
    flat = History(state.tokens.reshape(batch * beams, columns), jnp.repeat(state.start, beams), state.length)
    prompt_length = columns - settings.new_tokens
    log_probs = adjust_scores(jax.nn.log_softmax(scores, axis=1), flat, settings, prompt_length=prompt_length)
    if state.keys is not None:
        log_probs = restrict_to_likely(log_probs, settings)
    vocabulary = scores.shape[1]
    log_probs = (log_probs.reshape(batch, beams, vocabulary) + state.log_probs[..., None]).reshape(batch, -1)
    count = min(max(2, 1 + len(settings.ends)) * beams, log_probs.shape[1])
    if state.keys is None:
        best, indices = jax.lax.top_k(log_probs, count)
    else:  # without replacement (Kool et al., 2019): the largest of the log probabilities with Gumbel noise
        keys = jax.vmap(jax.random.fold_in, (0, None))(state.keys, state.length - prompt_length)
        noise = jax.vmap(lambda key: jax.random.gumbel(key, log_probs.shape[1:]))(keys)
        drawn = jax.lax.top_k(log_probs + noise, count)[1]
        best, order = jax.lax.top_k(jnp.take_along_axis(log_probs, drawn, axis=1), count)
        indices = jnp.take_along_axis(drawn, order, axis=1)
    return best, indices // vocabulary, indices % vocabulary


def _merged(best: Hypotheses, found: Hypotheses) -> Hypotheses:
    """Return the best of the hypotheses of before and those found now.

    Those found now come first, because `top_k` takes the first of equals: where a search can end in fewer ways than
    there are beams, the places left over hold running beams, as in transformers.
    """
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), found, best)
    order = jax.lax.top_k(both.scores, best.scores.shape[1])[1]
    return jax.tree.map(lambda leaf: _take(leaf, order), both)


def _may_improve(
    running: Float[Array, "B"], best: Hypotheses, new: Int[Array, ""], settings: GenerationSettings
) -> Bool[Array, "B"]:
    """Return the prompts whose best running beam may score above the worst hypothesis, by `early_stopping`'s rule."""
    length = new
    if settings.early_stopping == "never":
        length = jnp.where(settings.length_penalty > 0, settings.new_tokens, new)
    reachable = running / _length_divisors(settings)[length]
    worst = jnp.where(jnp.all(best.found, axis=1), jnp.min(best.scores, axis=1), _NONE)
    return reachable > worst


def _length_divisors(settings: GenerationSettings) -> Float[Array, "N"]:
    """Return the divisor of a log probability for each number of new tokens, from 0 (unused)."""
    lengths = np.maximum(np.arange(settings.new_tokens + 1, dtype=np.float32), 1)
    return jnp.asarray(lengths**settings.length_penalty if settings.changes("length_penalty") else lengths)


def _take(values: Shaped[Array, "B N *rest"], indices: Int[Array, "B M"]) -> Shaped[Array, "B M *rest"]:
    """Return the entries of each prompt at these indices of the second axis."""
    return jax.vmap(lambda row, index: row[index])(values, indices)
