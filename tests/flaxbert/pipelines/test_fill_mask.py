"""Filled masks equal transformers' pipeline."""

import dataclasses

import numpy as np
import pytest
import transformers

from flaxbert.pipelines import FillMaskPipeline
from tests.flaxbert.reference_folders import loaded, saved

TEXTS = [
    "The capital of [MASK] is Paris.",
    "[MASK]",
    "Zwölf [MASK] jagen [MASK] quer über [MASK]; and [MASK], [MASK].",  # more than share a row
    "a rather long one " * 4 + "[MASK]!",
]


@pytest.fixture(scope="module")
def folder(data_dir, tmp_path_factory):
    return saved("BertForMaskedLM", tmp_path_factory.mktemp("words"), data_dir / "tokenizers" / "bert-base-uncased")


@pytest.fixture(scope="module")
def fill(folder):
    return FillMaskPipeline.from_pretrained(folder, batch_size=2)


@pytest.fixture(scope="module")
def reference(folder):
    model, tokenizer = loaded("BertForMaskedLM", folder)
    return transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")


def assert_same(found, wanted):
    wanted = [[answer] if isinstance(answer[0], dict) else answer for answer in wanted]
    for text, masks in zip(found, wanted, strict=True):
        assert [[f.id for f in mask] for mask in text.masks] == [[f["token"] for f in mask] for mask in masks]
        assert [[f.token for f in mask] for mask in text.masks] == [[f["token_str"] for f in mask] for mask in masks]
        scores = [[f.probability for f in mask] for mask in text.masks]
        np.testing.assert_allclose(scores, [[f["score"] for f in mask] for mask in masks], rtol=1e-4)


def test_tokens_and_probabilities_equal_transformers(fill, reference):
    assert_same(fill(TEXTS), reference(TEXTS))
    three = dataclasses.replace(fill, top_k=3)
    assert_same(three(TEXTS[:2]), reference(TEXTS[:2], top_k=3))


@pytest.mark.slow
def test_a_pretrained_models_words(data_dir, tmp_path):
    saved("BertForPreTraining", tmp_path, data_dir / "tokenizers" / "bert-base-uncased")
    model, tokenizer = loaded("BertForMaskedLM", tmp_path)
    reference = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")
    assert_same(FillMaskPipeline.from_pretrained(tmp_path)(TEXTS[:2]), reference(TEXTS[:2]))


def test_targets_equal_transformers(fill, reference):
    targets = ("paris", "london", "##ing", "paris")
    only = dataclasses.replace(fill, targets=targets, top_k=9)
    found = only(TEXTS)
    assert {f.token for f in found[0].masks[0]} == {"paris", "london", "##ing"}
    assert_same(found, reference(TEXTS, targets=list(targets), top_k=9))
    capitals = dataclasses.replace(fill, targets=("Paris",))  # as the tokenizer sees it
    assert capitals(TEXTS[:1])[0].masks[0][0].token == "paris"
    for wrong in ("unbelievablyish", " ", "\U0001f9ff"):
        with pytest.raises(ValueError, match="is no token of the vocabulary"):
            dataclasses.replace(fill, targets=(wrong,))
    with pytest.raises(ValueError, match="targets is empty"):
        dataclasses.replace(fill, targets=())


def test_filled_text_keeps_the_other_characters(fill):
    only = dataclasses.replace(fill, targets=("london", "##ing"), top_k=2)
    (answer,) = only(["Go [MASK]  walk [MASK], Ärger"])
    first, second = ({f.token: f.text for f in mask} for mask in answer.masks)
    assert first == {"london": "Go london  walk [MASK], Ärger", "##ing": "Going  walk [MASK], Ärger"}
    assert second == {"london": "Go [MASK]  walk london, Ärger", "##ing": "Go [MASK]  walking, Ärger"}


def test_texts_without_a_mask_within_reach_are_named(fill):
    with pytest.raises(ValueError, match=r"texts\[1\] holds no \[MASK\]: 'none here'"):
        fill(["[MASK]", "none here"])
    with pytest.raises(ValueError, match=r"texts\[0\]: a \[MASK\] lies beyond its first 24 tokens"):
        fill(["[MASK] " + "word " * 21 + "[MASK]"])
