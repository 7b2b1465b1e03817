"""Training from a RoBERTa folder: classes and tokenizer of its family, up to the export that transformers reads."""

import dataclasses

import jax
import numpy as np
import pytest
import transformers

from flaxbert import RobertaForMaskedLM, RobertaForSequenceClassification
from flaxbert.losses import IGNORE
from flaxbert.tokenizer import WordPieceTokenizer
from flaxbert.tokenizer_files import TOKENIZER_FILES
from tests.flaxbert.families.test_roberta import write_classifier
from train.config import Config, Model, Run
from train.data.pretraining.datasets import Segments
from train.data.pretraining.preparation import Preparation, prepare_store
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


@pytest.mark.parametrize("row_length", [pytest.param(None, marks=pytest.mark.slow), 64])
def test_pretraining_goes_on_with_the_tokens_of_the_family(pretraining, folder, row_length, capsys):
    config = changed(pretraining, row_length=row_length)
    task = config.task.prepare(config)
    assert task.architecture is RobertaForMaskedLM
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = {number for line in tokenizer(TEXTS, add_special_tokens=False).input_ids for number in line}
    batch = task.train[0]
    ids, labels = batch["input_ids"].copy(), batch["masked_lm_labels"]
    row, slot = np.nonzero(labels != IGNORE)
    column = batch["masked_lm_positions"][row, slot]
    masked = np.mean(ids[row, column] == tokenizer.mask_token_id)
    assert 0.5 < masked < 1.0 and not np.isin(labels[row, slot], tokenizer.all_special_ids).any()
    ids[row, column] = labels[row, slot]
    assert (ids[:, 0] == tokenizer.cls_token_id).all()
    used = batch["segment_ids"] > 0 if row_length else batch["attention_mask"] > 0
    assert (ids[~used] == tokenizer.pad_token_id).all()
    assert set(ids[used]) == text | {tokenizer.cls_token_id, tokenizer.sep_token_id}
    run(config)
    assert_same_tokenizer(config.run.folder / "model", folder)
    assert "The <mask> sat.  ->" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"segments": Segments.NEXT_SENTENCE},
            "'roberta' has no model for pretraining.*--task.segments full-sentences",
        ),
        ({"whole_words": True}, "whole_words needs a WordPiece tokenizer"),
    ],
)
def test_pretraining_settings_that_do_not_fit_are_refused_before_the_text_is_read(pretraining, changes, message):
    config = changed(pretraining, text="/nowhere", **changes)
    with pytest.raises(ValueError, match=message):
        config.task.prepare(config)


def test_a_prompt_without_the_mask_of_the_family_is_refused(pretraining):
    config = changed(pretraining, prompts=("The [MASK] sat.",))
    with pytest.raises(ValueError, match="must hold <mask> once"):
        config.task.prepare(config)


def test_a_prepared_store_keeps_the_tokenizer_and_takes_no_list_of_words(pretraining, folder, tmp_path):
    (tmp_path / "list.txt").write_text("自然\n")
    settings = Preparation((pretraining.task.text,), tmp_path / "store", tokenizer=folder, workers=1)
    with pytest.raises(ValueError, match="--words needs a WordPiece tokenizer"):
        prepare_store(dataclasses.replace(settings, words=tmp_path / "list.txt"))
    assert prepare_store(settings)["unknown"] == 0
    assert_same_tokenizer(tmp_path / "store" / "tokenizer", folder)
    config = changed(pretraining, text=str(tmp_path / "store"))
    assert config.task.prepare(config).train[0].keys() == pretraining.task.prepare(pretraining).train[0].keys()
