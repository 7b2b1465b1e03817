"""Continuations of texts equal those of transformers' model; samples follow the seed; streams give the same text."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers

from flaxbert.generation import GenerationSettings
from flaxbert.pipelines import TextGenerationPipeline
from tests.flaxbert.reference_folders import loaded, saved

TEXTS = ["Paris is", "a rather long prompt of some words", "x"]
SETTINGS = {"max_new_tokens": 5}


@pytest.fixture(scope="module")
def folder(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoder")
    saved("BertLMHeadModel", folder, data_dir / "tokenizers" / "bert-base-uncased", is_decoder=True)
    transformers.GenerationConfig(max_length=7, no_repeat_ngram_size=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def generate(folder):
    return TextGenerationPipeline.from_pretrained(folder, settings=SETTINGS, batch_size=2)


def test_tokens_and_texts_equal_transformers(folder, generate):
    """The folder's n-gram ban counts; its max_length is replaced by the new tokens that are given."""
    model, tokenizer = loaded("BertLMHeadModel", folder)
    for text, found in zip(TEXTS, generate(TEXTS), strict=True):
        ids = torch.tensor([tokenizer(text).input_ids[:-1]])  # without [SEP]
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), eos_token_id=tokenizer.sep_token_id, **SETTINGS
        )
        (continuation,) = found.continuations
        whole, prompt = (tokenizer.decode(row[0], skip_special_tokens=True) for row in (expected, ids))
        assert continuation.text == whole[len(prompt) :]
        assert continuation.tokens == expected.shape[1] - ids.shape[1]


def test_a_stream_gives_the_same_text(generate):
    pieces = list(generate.stream_text(TEXTS[0]))
    assert "".join(pieces) == generate(TEXTS[:1])[0].continuations[0].text and len(pieces) > 1


def test_samples_follow_the_seed_and_the_number_of_the_text(generate):
    settings = dataclasses.replace(generate.settings, do_sample=True, num_return_sequences=2)
    sample = dataclasses.replace(generate, settings=settings)

    def texts(pipeline):
        return [[continuation.text for continuation in found.continuations] for found in pipeline([TEXTS[0]] * 3)]

    first = texts(sample)
    assert len({text for row in first for text in row}) == 6
    assert texts(dataclasses.replace(sample, batch_size=4)) == first
    assert texts(dataclasses.replace(sample, seed=1)) != first


def test_what_does_not_fit_is_refused(folder, generate):
    with pytest.raises(ValueError, match=r"texts\[1\] has 31 tokens; before 5 new ones the model takes 20: shorten"):
        generate(["a", "a " * 30])
    with pytest.raises(
        ValueError, match="max_length of the settings is 7, which would count padding; give max_new_tok"
    ):
        TextGenerationPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match="99 new tokens after a prompt of 1 need 99 positions; the model has 24"):
        TextGenerationPipeline.from_pretrained(folder, settings=GenerationSettings(max_new_tokens=99))
    with pytest.raises(ValueError, match="num_beams is 2; a stream takes 1"):
        dataclasses.replace(generate, settings=GenerationSettings(num_beams=2)).stream_text("a")
    assert np.isfinite(generate(["a"])[0].continuations[0].score)
