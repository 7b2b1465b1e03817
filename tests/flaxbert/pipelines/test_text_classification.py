"""Labels of texts and pairs equal transformers' pipeline."""

import dataclasses

import numpy as np
import pytest
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
