"""Generation against `generate` of transformers, with prompts padded on either side; sampling; streams; devices."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import transformers

import flaxbert
from flaxbert import sharding
from flaxbert.generation import GenerationSettings, decoding, generate, prepare_for_generation, stream

V, T, NEW = 50, 7, 12
RNG = np.random.default_rng(0)
IDS, MASK = RNG.integers(3, V, (6, T)), np.ones((6, T), np.int64)
for row, padding in enumerate((0, 1, 2, 3, 0, 1)):
    IDS[row, :padding] = MASK[row, :padding] = 0


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=V,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=32,
        initializer_range=0.6,  # so that answers differ clearly
        is_decoder=True,
    )
    return transformers.BertLMHeadModel(config).eval()


@pytest.fixture(scope="module")
def decoder(reference, tmp_path_factory):
    """The same model, with a tree of parameters for each layer."""
    folder = tmp_path_factory.mktemp("decoder")
    reference.save_pretrained(folder)
    return prepare_for_generation(*flaxbert.BertLMHeadModel.from_pretrained(folder))


def assert_equal_to_reference(reference, decoder, ids, mask, values):
    found = generate(*decoder, ids, attention_mask=mask, settings=GenerationSettings(**values))
    with torch.no_grad():
        expected = reference.generate(
            torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            return_dict_in_generate=True,
            output_scores=True,
            **values,
        )
    sequences = expected.sequences.numpy()
    assert found.sequences.shape == sequences.shape
    # Beyond the end of a hypothesis, transformers puts its end token where pad_token_id is 0.
    counted = np.arange(sequences.shape[1]) < ids.shape[1] + np.asarray(found.lengths)[:, None]
    np.testing.assert_array_equal(np.where(counted, found.sequences, 0), np.where(counted, sequences, 0))
    np.testing.assert_array_equal(found.sequences[~counted], 0)
    assert found.lengths.max() == sequences.shape[1] - ids.shape[1]
    if values.get("num_beams", 1) > 1:
        np.testing.assert_allclose(found.scores, expected.sequences_scores, rtol=1e-5)
        return
    scores = reference.compute_transition_scores(expected.sequences, expected.scores, normalize_logits=True).numpy()
    scores = np.where(counted[:, ids.shape[1] :], scores, 0.0).sum(axis=1)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-4)


ENDS = {"max_new_tokens": NEW, "eos_token_id": [9, 11, 12, 20, 21, 22]}
BEAMS = ENDS | {"num_beams": 4}
CASES = {
    "greedy": {"max_new_tokens": NEW, "eos_token_id": 9},
    "greedy, adjusted": ENDS | {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
    "beams": BEAMS | {"length_penalty": -1.0, "num_return_sequences": 4},
    "beams, early": BEAMS | {"early_stopping": True, "length_penalty": 0.5, "no_repeat_ngram_size": 2},
    "beams, never early": BEAMS | {"early_stopping": "never", "length_penalty": 2.0, "bad_words_ids": [[5], [6, 7]]},
}


@pytest.mark.parametrize("name", CASES)
def test_tokens_equal_the_reference(name, reference, decoder):
    assert_equal_to_reference(reference, decoder, IDS, MASK, CASES[name])


MORE_CASES = {
    "beams without ends": {"num_beams": 4, "max_length": 20},
    "beams, two returned": BEAMS | {"num_return_sequences": 2},
    "beams, early, minimum": BEAMS | {"early_stopping": True, "min_length": 12, "num_beams": 2},
    "beams, repetition": BEAMS | {"repetition_penalty": 1.3, "length_penalty": 1.5},
    "beams, one way to end": BEAMS | {"max_new_tokens": 1, "forced_eos_token_id": 9, "num_return_sequences": 4},
    "beams, one-gram": BEAMS | {"no_repeat_ngram_size": 1},
    "greedy, bad words": ENDS | {"bad_words_ids": [[5], [6, 7], [3, 4, 9], [10]], "suppress_tokens": [1, 2]},
    "greedy, forced end": {"max_new_tokens": NEW, "forced_eos_token_id": 7},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_CASES)
def test_tokens_equal_the_reference_in_more_cases(name, reference, decoder):
    assert_equal_to_reference(reference, decoder, IDS, MASK, MORE_CASES[name])


GREEDY = GenerationSettings(max_new_tokens=NEW, eos_token_id=9)


@pytest.fixture(scope="module")
def greedy(decoder):
    return generate(*decoder, IDS, attention_mask=MASK, settings=GREEDY)


def test_padding_on_the_right_changes_nothing(decoder, greedy):
    order = np.argsort(MASK == 0, axis=1, kind="stable")
    ids, mask = (np.take_along_axis(array, order, axis=1) for array in (IDS, MASK))
    found = generate(*decoder, ids, attention_mask=mask, settings=GREEDY)
    np.testing.assert_array_equal(found.sequences[:, :T], ids)
    np.testing.assert_array_equal(found.sequences[:, T:], greedy.sequences[:, T:])
    inferred = generate(*decoder, ids, settings=GREEDY)
    np.testing.assert_array_equal(inferred.sequences, found.sequences)


def test_padding_beyond_the_positions_of_the_model_is_cut(decoder, greedy):
    ids, mask = (np.pad(array, ((0, 0), (30, 0))) for array in (IDS, MASK))
    found = generate(*decoder, ids, attention_mask=mask, settings=GREEDY)
    np.testing.assert_array_equal(found.sequences[:, :37], ids)
    np.testing.assert_array_equal(found.sequences[:, 37:], greedy.sequences[:, T:])


def test_a_stream_yields_the_same_tokens_without_a_further_compilation(decoder, greedy):
    programs = decoding._start._cache_size(), decoding._continue._cache_size()
    tokens = np.stack(list(stream(*decoder, IDS, attention_mask=MASK, settings=GREEDY)), axis=1)
    np.testing.assert_array_equal(tokens, greedy.sequences[:, T:])
    generate(*decoder, (IDS + 1) * MASK, attention_mask=MASK, settings=GREEDY)
    assert (decoding._start._cache_size(), decoding._continue._cache_size()) == programs


def test_stacked_and_scanned_layers_generate_the_same_tokens(decoder, reference, tmp_path, greedy):
    reference.save_pretrained(tmp_path)
    model, params = flaxbert.BertLMHeadModel.from_pretrained(tmp_path)
    assert model.layers_are_stacked
    found = generate(model, params, IDS, attention_mask=MASK, settings=GREEDY)
    np.testing.assert_array_equal(found.sequences, greedy.sequences)


@pytest.mark.parametrize("name", ["beams", pytest.param("greedy", marks=pytest.mark.slow)])
def test_eight_devices_generate_the_same_tokens(name, decoder):
    settings = GenerationSettings(**CASES[name])
    ids, mask = np.tile(IDS, (2, 1))[:8], np.tile(MASK, (2, 1))[:8]
    expected = generate(*decoder, ids, attention_mask=mask, settings=settings)
    model, params = decoder
    mesh = sharding.make_mesh(jax.devices())
    params = jax.device_put(params, sharding.tree_shardings(mesh, model.rules, model.logical_axes()))
    with jax.set_mesh(mesh):
        found = generate(model, params, ids, attention_mask=mask, settings=settings)
    np.testing.assert_array_equal(found.sequences, expected.sequences)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)


# -- sampling -------------------------------------------------------------------------------------------------


def test_samples_have_the_distribution_of_the_model(reference, decoder):
    """Chi-square of pairs of tokens; the probability that it fails by chance is 1e-4, and the key is fixed."""
    count, top_k, temperature = 2000, 3, 3.0
    settings = GenerationSettings(
        max_new_tokens=2, do_sample=True, temperature=temperature, top_k=top_k, num_return_sequences=count
    )
    found = generate(*decoder, IDS[:1], settings=settings, key=jax.random.key(1))

    def best(ids):
        """The most probable next tokens, and their probabilities among these."""
        with torch.no_grad():
            logits = reference(torch.tensor(ids)).logits[0, -1].double().numpy() / temperature
        tokens = np.argsort(logits)[-top_k:]
        return zip(tokens, scipy.special.softmax(logits[tokens]), strict=True)

    observed, expected = [], []
    for first, probability in best(IDS[:1]):
        for second, conditional in best(np.append(IDS[:1], [[first]], axis=1)):
            observed.append(np.sum(np.all(np.asarray(found.sequences)[:, T:] == [first, second], axis=1)))
            expected.append(probability * conditional * count)
    assert sum(observed) == count and len(observed) == top_k**2
    assert scipy.stats.chisquare(observed, expected).pvalue > 1e-4


SAMPLED = GenerationSettings(max_new_tokens=5, do_sample=True, temperature=2.0, top_p=0.95)


def test_a_sample_depends_on_its_own_row_alone(decoder):
    keys = jax.random.split(jax.random.key(0), 6)
    found = generate(*decoder, IDS, attention_mask=MASK, settings=SAMPLED, key=keys)
    order = np.array([3, 0, 5, 1, 2, 4])
    others = generate(*decoder, IDS[order], attention_mask=MASK[order], settings=SAMPLED, key=keys[order])
    np.testing.assert_array_equal(found.sequences[order], others.sequences)
    again = generate(*decoder, IDS, attention_mask=MASK, settings=SAMPLED, key=jax.random.key(1))
    assert (np.asarray(again.sequences) != found.sequences).any(axis=1).sum() > 3


def test_other_numbers_take_effect_without_a_further_compilation(decoder, greedy):
    def sample(**values):
        settings = dataclasses.replace(SAMPLED, **values)
        return generate(*decoder, IDS, attention_mask=MASK, settings=settings, key=jax.random.key(0))

    sample()
    programs = decoding._start._cache_size(), decoding._continue._cache_size()
    found = sample(temperature=1e-3, top_p=0.5)
    counted = np.arange(5) < np.asarray(greedy.lengths)[:, None]
    np.testing.assert_array_equal(found.sequences[:, T:][counted], greedy.sequences[:, T : T + 5][counted])
    assert (decoding._start._cache_size(), decoding._continue._cache_size()) == programs


def test_sampled_beams_are_distinct_and_follow_the_key(decoder):
    settings = GenerationSettings(max_new_tokens=5, do_sample=True, num_beams=3, num_return_sequences=3)
    first, second = (
        generate(*decoder, IDS, attention_mask=MASK, settings=settings, key=jax.random.key(k)) for k in (0, 1)
    )
    assert (np.asarray(first.sequences) != second.sequences).any()
    assert len(np.unique(np.asarray(first.sequences)[:, T:], axis=0)) == len(first.sequences)
    assert (np.diff(np.asarray(first.scores).reshape(-1, 3), axis=1) <= 0).all()


# -- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"input_ids": [[3, V]]}, f"input_ids holds {V} at"),
        ({"input_ids": [3, 4]}, "input_ids has shape"),
        ({"input_ids": np.zeros((2, 0), int)}, "input_ids are int64.2, 0.; every prompt needs a token"),
        ({"input_ids": IDS * 1.0}, "input_ids are float64"),
        ({"attention_mask": np.zeros((6, T))}, "prompt 0 holds only padding"),
        ({"attention_mask": np.ones((6, T + 1))}, "attention_mask has shape"),
        ({"key": jax.random.key(0)}, "key is given without sampling"),
        ({"settings": SAMPLED}, "do_sample is true and key None; give a key"),
        ({"settings": SAMPLED, "key": jax.random.split(jax.random.key(0), 5)}, "key has shape"),
        ({"encoder_hidden_states": np.zeros((6, 3, 24))}, "takes no encoder_hidden_states"),
        ({"encoder_attention_mask": np.zeros((6, 3))}, "without encoder_hidden_states"),
        ({"settings": GenerationSettings(max_new_tokens=99)}, "give max_new_tokens of at most 26"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, decoder):
    with pytest.raises(ValueError, match=message):
        generate(*decoder, **({"input_ids": IDS} | arguments))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"max_new_tokens": 5}, r"'max_new_tokens': give settings=flaxbert.GenerationSettings\(max_new_tokens=...\)"),
        ({"beams": 5}, "generate takes no argument 'beams'"),
        ({"settings": {"max_new_tokens": 5}}, r"settings is a dict; give flaxbert.GenerationSettings"),
        ({"settings": SAMPLED, "key": 3}, r"key is a int; give a key, such as jax.random.key\(0\)"),
    ],
)
def test_arguments_of_another_type_are_refused(arguments, message, decoder):
    with pytest.raises(TypeError, match=message):
        generate(*decoder, IDS, **arguments)


def test_encoders_and_beams_in_a_stream_are_refused(decoder):
    model, params = decoder
    with pytest.raises(ValueError, match="is_decoder=False; generation needs a BertLMHeadModel"):
        generate(model.clone(config=model.config.replace(is_decoder=False)), params, IDS)
    with pytest.raises(ValueError, match="num_beams is 2; a stream takes 1"):
        stream(model, params, IDS, settings=GenerationSettings(num_beams=2))
