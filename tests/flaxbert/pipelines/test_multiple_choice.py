"""Choices equal transformers' model, for prompts with different numbers of choices."""

import numpy as np
import pytest
import torch

from flaxbert.pipelines import MultipleChoicePipeline
from tests.flaxbert.reference_folders import loaded, saved

QUESTIONS = [
    ("The man broke his toe. Why?", ["He got a hole in his sock.", "He dropped a hammer on his foot."]),
    ("Pick.", ["one", "two", "three and more words", "four " * 50, "five"]),
    ("Alone?", ("yes",)),
    ("Which? " * 20, ["this", "that", "neither"]),
]


def test_probabilities_are_a_softmax_over_the_choices_of_each_prompt(data_dir, tmp_path):
    saved("BertForMultipleChoice", tmp_path, data_dir / "tokenizers" / "bert-base-uncased")
    model, tokenizer = loaded("BertForMultipleChoice", tmp_path)
    choose = MultipleChoicePipeline.from_pretrained(tmp_path, batch_size=3)
    found = choose(QUESTIONS)
    for (prompt, choices), answer in zip(QUESTIONS, found, strict=True):
        pairs = [prompt] * len(choices), list(choices)
        batch = tokenizer(*pairs, padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            logits = model(**{name: array[None] for name, array in batch.items()}).logits[0]
        np.testing.assert_allclose(answer.probabilities, logits.softmax(-1).numpy(), atol=1e-5)
        assert answer.best == int(logits.argmax())
    for wrong, said in (
        ([("a", [])], r"texts\[0\]\[1\] is \[\]; expected a list of choices"),
        ([("a", "bc")], r"texts\[0\]\[1\] is 'bc'; expected a list of choices"),
        ([("a", ["b", 3])], r"texts\[0\]\[1\]\[1\] is 3"),
        (["a"], r"texts\[0\] is 'a'; expected a pair of a prompt"),
    ):
        with pytest.raises(TypeError, match=said):
            choose(wrong)
