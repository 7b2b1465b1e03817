"""Generation by an encoder-decoder against `generate` of transformers."""

import dataclasses

import numpy as np
import pytest
import torch

import flaxbert
from flaxbert.generation import GenerationSettings, generate, prepare_for_generation, stream
from tests.flaxbert.test_encoder_decoder import IDS, MASK, reference_model

pytestmark = pytest.mark.filterwarnings("ignore:Version v4.12.0")
INPUT = IDS * MASK  # padding is token 0


@pytest.fixture(scope="module")
def reference():
    return reference_model(24, 16)


@pytest.fixture(scope="module")
def model(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder-decoder")
    reference.save_pretrained(folder)
    return prepare_for_generation(*flaxbert.EncoderDecoderModel.from_pretrained(folder))


@pytest.mark.parametrize(
    "values",
    [
        {"num_beams": 3, "eos_token_id": [5, 9, 11], "forced_bos_token_id": 7, "num_return_sequences": 2},
        pytest.param({"eos_token_id": 9, "no_repeat_ngram_size": 2}, marks=pytest.mark.slow),
    ],
    ids=["beams", "greedy"],
)
def test_tokens_equal_the_reference(values, reference, model):
    values = {"max_new_tokens": 8} | values
    found = generate(*model, INPUT, attention_mask=MASK, settings=GenerationSettings(**values))
    with torch.no_grad():
        expected = reference.generate(torch.tensor(INPUT), attention_mask=torch.tensor(MASK), **values).numpy()
    counted = np.arange(expected.shape[1]) < 1 + np.asarray(found.lengths)[:, None]
    np.testing.assert_array_equal(np.where(counted, found.sequences, 0), np.where(counted, expected, 0))
    inferred = generate(*model, INPUT, settings=GenerationSettings(**values))  # the mask of the padding
    np.testing.assert_array_equal(inferred.sequences, found.sequences)


def test_a_stream_of_an_encoder_decoder(model):
    settings = GenerationSettings(max_new_tokens=3)
    tokens = np.stack(list(stream(*model, INPUT, settings=settings)), axis=1)
    found = generate(*model, INPUT, settings=settings)
    np.testing.assert_array_equal(found.sequences[:, 1:], tokens)
    np.testing.assert_array_equal(found.sequences[:, 0], 1)


def test_wrong_arguments_are_refused(model):
    built, params = model
    with pytest.raises(ValueError, match="input_ids holds 40 at .*the encoder's vocab_size"):
        generate(built, params, np.full((1, 2), 40))
    with pytest.raises(ValueError, match="encoder_hidden_states are those of the model's encoder"):
        generate(built, params, INPUT, encoder_hidden_states=np.zeros((3, 7, 16)))
    with pytest.raises(ValueError, match="decoder_start_token_id is None"):
        generate(dataclasses.replace(built, decoder_start_token_id=None), params, INPUT)
    with pytest.raises(ValueError, match="it needs encoder_hidden_states"):
        generate(built.decoder, params["decoder"], INPUT)
