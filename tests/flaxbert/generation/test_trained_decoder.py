"""Fifty prompts of a small decoder that was trained on a novel: the same tokens as transformers."""

import functools

import jax
import numpy as np
import optax
import pytest
import torch
import transformers

import flaxbert
from flaxbert import losses
from flaxbert.generation import GenerationSettings, generate, prepare_for_generation
from flaxbert.tokenizer import WordPieceTokenizer
from tests.trees import initial

PROMPTS, T, NEW = 50, 10, 24
pytestmark = pytest.mark.slow  # training: a minute


@pytest.fixture(scope="module")
def ids(data_dir):
    """The word pieces of a novel; "." ends a text."""
    text = (data_dir / "corpus/gutenberg/Emma_158.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip()]
    tokenizer = WordPieceTokenizer.train(lines, vocab_size=1000)
    return np.concatenate([np.array(row, np.int32) for row in tokenizer.piece_ids(lines)]), tokenizer.token_id(".")


@pytest.fixture(scope="module")
def trained(ids, tmp_path_factory):
    """The decoder, its parameters, and transformers' model with the same ones."""
    config = flaxbert.BertConfig(
        vocab_size=1000,
        hidden_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=256,
        max_position_embeddings=64,
        is_decoder=True,
    )
    model = flaxbert.BertLMHeadModel(config)
    params = initial(model)
    optimizer = optax.adam(3e-3)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, rows):
        def loss(params):
            return losses.causal_lm(model.apply({"params": params}, rows).logits, rows).mean

        value, gradients = jax.value_and_grad(loss)(params)
        changes, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, changes), state, value

    tokens, rng, state = ids[0], np.random.default_rng(0), optimizer.init(params)
    for _ in range(400):
        starts = rng.integers(0, len(tokens) - 48, 16)
        params, state, value = update(params, state, tokens[starts[:, None] + np.arange(48)])
    assert value < 5.0  # of 6.9 by chance
    folder = tmp_path_factory.mktemp("trained")
    flaxbert.save_pretrained(folder, model, params)
    return *prepare_for_generation(model, params), transformers.BertLMHeadModel.from_pretrained(folder).eval()


BEAMS = {"num_beams": 4}
CASES = [
    {},
    {"no_repeat_ngram_size": 2, "repetition_penalty": 1.2},
    BEAMS,
    BEAMS | {"early_stopping": True},
    BEAMS | {"early_stopping": "never", "length_penalty": 2.0},
    BEAMS | {"length_penalty": 0.5, "no_repeat_ngram_size": 3},
    BEAMS | {"early_stopping": True, "length_penalty": 0.0, "no_repeat_ngram_size": 2, "num_return_sequences": 4},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_of_fifty_prompts_equal_the_reference(case, ids, trained):
    model, params, reference = trained
    tokens, end = ids
    rng = np.random.default_rng(1)
    starts, lengths = rng.integers(0, len(tokens) - T, PROMPTS), rng.integers(3, T + 1, PROMPTS)
    mask = (np.arange(T) >= T - lengths[:, None]).astype(np.int64)
    prompts = tokens[starts[:, None] + np.arange(T)] * mask
    values = {"max_new_tokens": NEW, "eos_token_id": end} | case
    found = generate(model, params, prompts, attention_mask=mask, settings=GenerationSettings(**values))
    with torch.no_grad():
        given = torch.tensor(prompts, dtype=torch.long)
        expected = reference.generate(given, attention_mask=torch.tensor(mask), **values).numpy()
    counted = np.arange(expected.shape[1]) < T + np.asarray(found.lengths)[:, None]
    np.testing.assert_array_equal(np.where(counted, found.sequences, 0), np.where(counted, expected, 0))
    assert len(np.unique(np.asarray(found.sequences), axis=0)) > 40  # the texts differ
    # Texts end before the limit, unless the length penalty prefers the longest.
    assert found.lengths.mean() > 3 and (found.lengths.mean() < NEW or case.get("length_penalty") == 2.0)
