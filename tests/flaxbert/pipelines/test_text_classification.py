"""Labels of texts and pairs equal transformers' pipeline."""

import dataclasses
import json

import numpy as np
import pytest
import sentence_transformers
import torch
import transformers

from flaxbert.pipelines import TextClassificationPipeline
from tests.flaxbert.reference_folders import loaded, saved

TEXTS = ["A gorgeous, witty film.", ("How old are you?", "I am six."), "bad", ("x " * 30, "y " * 30)]


@pytest.mark.parametrize(
    "problem_type, labels",
    [
        (None, 3),
        ("multi_label_classification", 3),
        ("regression", 2),
        (None, 1),
    ],
)
def test_scores_equal_transformers(data_dir, tmp_path, problem_type, labels):
    names = {i: name for i, name in enumerate(["neg", "neutral", "pos"][:labels])}
    saved(
        "BertForSequenceClassification",
        tmp_path,
        data_dir / "tokenizers" / "bert-base-cased",
        vocab_size=28996,
        problem_type=problem_type,
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    model, tokenizer = loaded("BertForSequenceClassification", tmp_path)
    pipeline = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    pairs = [{"text": t} if isinstance(t, str) else dict(zip(("text", "text_pair"), t, strict=True)) for t in TEXTS]
    wanted = [pipeline(pair, top_k=None, truncation=True) for pair in pairs]
    classify = TextClassificationPipeline.from_pretrained(tmp_path, batch_size=4)
    found = classify(TEXTS)
    for answer, labels_wanted in zip(found, wanted, strict=True):
        assert [label.name for label in answer.labels] == [label["label"] for label in labels_wanted]
        scores = [label["score"] for label in labels_wanted]
        np.testing.assert_allclose([label.score for label in answer.labels], scores, atol=2e-5)
    assert [answer.best.name for answer in found] == [labels_wanted[0]["label"] for labels_wanted in wanted]
    best = dataclasses.replace(classify, top_k=1)(TEXTS)
    assert [answer.labels for answer in best] == [answer.labels[:1] for answer in found]


@pytest.mark.parametrize(
    "place", ["config_sentence_transformers.json", "block", "sbert_ce_default_activation_function"]
)
def test_scores_equal_those_of_a_cross_encoder(data_dir, tmp_path, place):
    plain = tmp_path / "plain"
    saved("BertForSequenceClassification", plain, data_dir / "tokenizers" / "bert-base-uncased", num_labels=1)
    identity = torch.nn.Identity()
    reference = sentence_transformers.CrossEncoder(str(plain), activation_fn=identity, device="cpu")
    name, keys = "torch.nn.modules.linear.Identity", json.loads((plain / "config.json").read_text())
    if place == "block":
        keys["sentence_transformers"] = {"activation_fn": name, "version": "4.0"}
    elif place in keys or place.startswith("sbert"):
        keys[place] = name
    else:
        reference.save_pretrained(str(plain))
        assert json.loads((plain / place).read_text())["activation_fn"] == name
    (plain / "config.json").write_text(json.dumps(keys))
    pairs = [("How old are you?", "I am six."), ("bad", "good")]
    classify = TextClassificationPipeline.from_pretrained(plain, batch_size=2)
    wanted = reference.predict(pairs)
    np.testing.assert_allclose([answer.best.score for answer in classify(pairs)], wanted, atol=2e-5)
    sigmoid = dataclasses.replace(classify, activation="torch.nn.modules.activation.Sigmoid")(pairs)
    np.testing.assert_allclose([answer.best.score for answer in sigmoid], 1 / (1 + np.exp(-wanted)), atol=2e-5)
    with pytest.raises(
        ValueError, match="activation of the CrossEncoder is 'torch.nn.modules.x.Unknown'; known: torch"
    ):
        dataclasses.replace(classify, activation="torch.nn.modules.x.Unknown")
