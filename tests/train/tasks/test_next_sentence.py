import dataclasses

import numpy as np
import pytest
import transformers

from tests.train.test_loop import records
from train.loop import run
from train.tasks.sequence_classification import NextSentence


def test_pairs_are_told_apart(classification, tmp_path):
    """The second text follows where it begins with the word that the first ends with."""
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    chance = np.random.default_rng(0)
    for name, count in (("train", 60), ("dev", 20)):
        lines = ["sentence1\tsentence2\tlabel"]
        for i in range(count):
            first, second = chance.choice(words, size=2, replace=False)
            lines.append(f"beta {first}\t{first if i % 2 else second} gamma\t{'next' if i % 2 else 'random'}")
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    settings = {name: getattr(classification.task, name) for name in ("train", "dev", "tokenizer", "max_length")}
    task = NextSentence(**settings, labels=("next", "random"), packed=True)
    folder = run(dataclasses.replace(classification, task=task))
    (found,) = records(folder, "eval")
    assert {"loss", "accuracy"} <= found.keys()
    model, report = transformers.BertForNextSentencePrediction.from_pretrained(
        folder / "model", output_loading_info=True
    )
    assert not any(report.values()) and model.cls.seq_relationship.weight.shape == (2, 32)
    # 1 is the random one, as in Google's code.
    prepared = task.prepare(classification)
    assert prepared.evaluations["dev"].examples.labels.tolist() == [1, 0] * 10


def test_one_text_is_no_pair(classification):
    settings = {name: getattr(classification.task, name) for name in ("train", "tokenizer", "max_length")}
    with pytest.raises(ValueError, match=r"train.tsv:2: one text\n(.*\n)*Next sentences are pairs"):
        NextSentence(**settings, labels=("short", "long")).prepare(classification)
    with pytest.raises(ValueError, match="labels is .*; give two"):
        NextSentence(**settings, labels=("0", "1", "2"))
