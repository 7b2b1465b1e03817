"""Penalties, bans, forced tokens and limits of sampling against the classes of transformers."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as reference

from flaxbert.generation.scores import History, adjust_scores, restrict_to_likely
from flaxbert.generation.settings import GenerationSettings

B, S, V, PROMPT, LENGTH = 5, 13, 9, 4, 10  # few tokens: n-grams repeat


@pytest.fixture(scope="module")
def history():
    tokens = np.random.default_rng(0).integers(1, V, (B, S))
    return History(jnp.asarray(tokens), jnp.zeros(B, jnp.int32), jnp.int32(LENGTH))


@pytest.fixture(scope="module")
def scores():
    return np.random.default_rng(1).normal(size=(B, V)).astype(np.float32) * 3


ADJUSTED = {
    "repetition": ({"repetition_penalty": 1.7}, lambda: reference.RepetitionPenaltyLogitsProcessor(1.7)),
    "one-gram": ({"no_repeat_ngram_size": 1}, lambda: reference.NoRepeatNGramLogitsProcessor(1)),
    "two-gram": ({"no_repeat_ngram_size": 2}, lambda: reference.NoRepeatNGramLogitsProcessor(2)),
    "three-gram": ({"no_repeat_ngram_size": 3}, lambda: reference.NoRepeatNGramLogitsProcessor(3)),
    "too long a gram": ({"no_repeat_ngram_size": 12}, lambda: reference.NoRepeatNGramLogitsProcessor(12)),
    "bad words": (
        {"bad_words_ids": [[5], [6, 7], [3, 4, 8], [1, 2], [2, 3], [8]], "eos_token_id": 8},
        lambda: reference.NoBadWordsLogitsProcessor([[5], [6, 7], [3, 4, 8], [1, 2], [2, 3], [8]], 8),
    ),
    "minimum": (
        {"min_new_tokens": 7, "eos_token_id": [3, 8]},
        lambda: reference.MinNewTokensLengthLogitsProcessor(PROMPT, 7, [3, 8]),
    ),
    "minimum reached": (
        {"min_new_tokens": 6, "eos_token_id": [3, 8]},
        lambda: reference.MinNewTokensLengthLogitsProcessor(PROMPT, 6, [3, 8]),
    ),
    "forced end": (
        {"max_new_tokens": 7, "forced_eos_token_id": [3, 8]},
        lambda: reference.ForcedEOSTokenLogitsProcessor(PROMPT + 7, [3, 8]),
    ),
    "not yet forced": (
        {"max_new_tokens": 8, "forced_eos_token_id": 3},
        lambda: reference.ForcedEOSTokenLogitsProcessor(PROMPT + 8, 3),
    ),
    "suppressed": ({"suppress_tokens": [2, 4]}, lambda: reference.SuppressTokensLogitsProcessor([2, 4])),
}


@pytest.mark.parametrize("name", ADJUSTED)
def test_adjusted_scores_equal_the_reference(name, history, scores):
    values, processor = ADJUSTED[name]
    settings = GenerationSettings(**({"max_new_tokens": 9} | values))
    expected = processor()(torch.tensor(np.asarray(history.tokens)[:, :LENGTH]), torch.tensor(scores)).numpy()
    adjusted = adjust_scores(jnp.asarray(scores), history, settings, prompt_length=PROMPT)
    np.testing.assert_array_equal(np.isinf(adjusted), np.isinf(expected))
    np.testing.assert_allclose(adjusted, expected, rtol=1e-6)


def test_padding_is_no_repetition(scores):
    """The tokens of the shorter prompts are the last ones of the longer: their scores are those without padding."""
    rng = np.random.default_rng(2)
    tokens, start = rng.integers(1, V, (B, S)), np.array([0, 3, 5, 8, 9])
    settings = GenerationSettings(max_new_tokens=9, no_repeat_ngram_size=2, repetition_penalty=2.0)
    padded = History(jnp.asarray(tokens), jnp.asarray(start), jnp.int32(LENGTH))
    adjusted = adjust_scores(jnp.asarray(scores), padded, settings, prompt_length=PROMPT)
    for row in range(B):
        alone = torch.tensor(tokens[row : row + 1, start[row] : LENGTH])
        expected = torch.tensor(scores[row : row + 1])
        for processor in (ADJUSTED["two-gram"][1](), reference.RepetitionPenaltyLogitsProcessor(2.0)):
            expected = processor(alone, expected)
        np.testing.assert_allclose(adjusted[row], expected[0], rtol=1e-6)


@pytest.mark.parametrize("length", [1, 2])
def test_the_first_token_is_forced_after_a_prompt_of_one(length, history, scores):
    settings = GenerationSettings(max_new_tokens=9, forced_bos_token_id=3)
    given = history._replace(length=jnp.int32(length))
    expected = reference.ForcedBOSTokenLogitsProcessor(3)(torch.zeros(B, length), torch.tensor(scores))
    np.testing.assert_array_equal(adjust_scores(jnp.asarray(scores), given, settings, prompt_length=1), expected)


@pytest.mark.parametrize("top_k", [0, 1, 4, 50])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 1.0])
def test_limits_of_sampling_equal_the_reference(top_k, top_p, scores):
    settings = GenerationSettings(do_sample=True, temperature=0.7, top_k=top_k, top_p=top_p)
    expected = reference.TemperatureLogitsWarper(0.7)(None, torch.tensor(scores))
    if top_k:
        expected = reference.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1.0:
        expected = reference.TopPLogitsWarper(top_p)(None, expected)
    np.testing.assert_allclose(restrict_to_likely(jnp.asarray(scores), settings), expected, rtol=1e-6)


def test_sampled_beams_keep_a_token_that_ends_none(scores):
    settings = GenerationSettings(do_sample=True, num_beams=2, top_k=1, top_p=0.01, eos_token_id=[1, 2])
    kept = np.isfinite(restrict_to_likely(jnp.asarray(scores), settings))
    np.testing.assert_array_equal(kept.sum(axis=1), 3)
