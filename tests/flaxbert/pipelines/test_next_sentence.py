"""Next-sentence probabilities equal transformers' model."""

import numpy as np
import pytest
import torch

from flaxbert.pipelines import NextSentencePipeline
from tests.flaxbert.reference_folders import loaded, saved

PAIRS = [("He went home.", "Then he slept."), ("a", "b " * 60), ("Cats purr.", "Bonds fell by 3%.")]


@pytest.mark.parametrize(
    "name", ["BertForPreTraining", pytest.param("BertForNextSentencePrediction", marks=pytest.mark.slow)]
)
def test_next_sentence_probability_equals_transformers(data_dir, tmp_path, name):
    saved(name, tmp_path, data_dir / "tokenizers" / "bert-base-uncased")
    model, tokenizer = loaded("BertForNextSentencePrediction", tmp_path)
    batch = tokenizer([a for a, _ in PAIRS], [b for _, b in PAIRS], padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        wanted = model(**batch).logits.softmax(-1)[:, 0].numpy()
    found = NextSentencePipeline.from_pretrained(tmp_path, batch_size=4)(PAIRS)
    np.testing.assert_allclose([answer.probability for answer in found], wanted, atol=1e-5)
    assert [answer.follows for answer in found] == (wanted > 0.5).tolist() and np.ptp(wanted) > 0.1
    with pytest.raises(TypeError, match=r"texts\[0\] is 'ab'; expected a pair of texts"):
        NextSentencePipeline.from_pretrained(tmp_path)(["ab"])
