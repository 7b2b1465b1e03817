"""Training from a RoBERTa folder: classes and tokenizer of its family, up to the export that transformers reads."""

import dataclasses

import jax
import numpy as np
import pytest
import transformers

from flaxbert import RobertaForSequenceClassification
from flaxbert.tokenizer import WordPieceTokenizer
from flaxbert.tokenizer_files import TOKENIZER_FILES
from tests.flaxbert.families.test_roberta import write_classifier
from train.config import Config, Model, Run
from train.data.pretraining.datasets import Segments
from train.loop import run
from train.tasks.pretraining import Pretraining
from train.tasks.sequence_classification import SequenceClassification

TEXTS = ["The cat sat on the mat.", "A dog sat.", "A log", "the cat was glad"]
OTHER_TEXTS = ["  Ünseen  words", "a <mask> b"]


@pytest.fixture
def folder(tmp_path):
    return write_classifier(tmp_path / "model")


@pytest.fixture
def classification(folder, tmp_path):
    labelled = zip(TEXTS, ["yes", "no", "maybe", "no"], strict=True)
    rows = "".join(f"{text}\t{label}\n" for text, label in labelled) * 4
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("text\tlabel\n" + rows)
    settings = SequenceClassification(
        train=str(tmp_path / "train.tsv"), dev=str(tmp_path / "dev.tsv"), max_length=34, packed=False
    )
    return Config(settings, Run(folder=tmp_path / "run", batch_size=16, steps=1), Model(pretrained=folder))


@pytest.fixture
def pretraining(folder, tmp_path):
    documents = ["\n".join(np.random.default_rng(seed).permutation(TEXTS)) for seed in range(40)]
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    settings = Pretraining(
        str(tmp_path / "text.txt"),
        segments=Segments.FULL_SENTENCES,
        max_length=32,
        heldout=0.2,
        prompts=("The <mask> sat.",),
    )
    return Config(settings, Run(folder=tmp_path / "run", batch_size=8, steps=1), Model(pretrained=folder))


def changed(config, **changes):
    return dataclasses.replace(config, task=dataclasses.replace(config.task, **changes))


def tokenizer_files(folder):
    return {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).exists()}


def assert_same_tokenizer(folder, original):
    assert {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"} <= tokenizer_files(original).keys()
    assert tokenizer_files(folder) == tokenizer_files(original)
    ours, theirs = (transformers.AutoTokenizer.from_pretrained(path) for path in (folder, original))
    assert type(ours) is type(theirs)
    texts = [*TEXTS, *OTHER_TEXTS]
    assert ours(texts).input_ids == theirs(texts).input_ids
    assert ours(texts, texts[::-1]).input_ids == theirs(texts, texts[::-1]).input_ids
    assert WordPieceTokenizer.load(folder).piece_ids(texts) == theirs(texts, add_special_tokens=False).input_ids


def test_packed_rows_have_the_loss_of_rows_apart(classification, folder):
    apart, packed = (changed(classification, packed=each).task.prepare(classification) for each in (False, True))
    assert apart.architecture is packed.architecture is RobertaForSequenceClassification
    assert "segment_ids" in packed.train[0] and "segment_ids" not in apart.train[0]
    model, params = apart.architecture.from_pretrained(folder, config=apart.config)
    losses = [
        jax.jit(lambda p, b, t=task: t.loss(model, p, b, None))(params, task.train[0]) for task in (apart, packed)
    ]
    assert losses[0].weight == losses[1].weight == 16
    np.testing.assert_allclose(losses[0].mean, losses[1].mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["roberta", "fast"])
def test_the_export_has_the_tokenizer_of_the_pretrained_folder(classification, folder, kind):
    if kind == "roberta":  # as published, with the class that reads vocab.json and merges.txt
        transformers.RobertaTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    run(classification)
    for exported in ("model", "tokenizer"):
        assert_same_tokenizer(classification.run.folder / exported, folder)
