import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from flaxbert import BertConfig
from tests.train.test_loop import with_task
from train.command import load_config
from train.config import Config, Model, Run
from train.data.pretraining.datasets import Segments
from train.tasks.pretraining import Pretraining
from train.tasks.sequence_classification import SequenceClassification
from train.tasks.task import model_config

ROOT = Path(__file__).parents[3]
SIZES = BertConfig.tiny(max_position_embeddings=48)


@pytest.fixture
def config(tmp_path):
    words = [f"w{i}" for i in range(300)]
    documents = (" ".join(np.random.default_rng(i).permutation(words)) for i in range(20))
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    task = Pretraining(
        str(tmp_path / "text.txt"), segments=Segments.STREAM, tokenizer=tmp_path / "vocab.txt", max_length=48
    )
    return Config(task=task, model=Model(sizes=SIZES), run=Run(folder=tmp_path / "run", batch_size=6, steps=10))


def shapes(batch):
    return {name: (values.shape, values.dtype) for name, values in batch.items()}


def test_a_train_spec_is_what_the_data_would_say(config):
    spec, task = config.task.train_spec(config), config.task.prepare(config)
    assert shapes(spec.batch) == shapes(task.train[0])
    assert spec.config == task.config
    assert spec.architecture is task.architecture
    # None of the rows of this batch is the short one at the end of the text.
    assert task.train[0]["attention_mask"].all()
    assert spec.token_counts(spec.batch) == task.token_counts(task.train[0])


def test_a_train_spec_needs_neither_text_nor_vocabulary(config):
    away = with_task(config, text="nothing.txt", tokenizer=Path("nothing"))
    assert away.task.train_spec(away).config == SIZES
    to_come = with_task(config, text="nothing", tokenizer=None, vocab_size=77)
    assert to_come.task.train_spec(to_come).config == SIZES
    learnt = with_task(config, tokenizer=None, vocab_size=77)
    assert learnt.task.train_spec(learnt).config == SIZES.replace(vocab_size=77)


def test_a_model_that_is_yet_to_be_trained_has_the_sizes_of_the_config(config, caplog):
    second = dataclasses.replace(config, model=Model(pretrained=Path("nowhere/model"), sizes=SIZES))
    assert second.task.train_spec(second).config.hidden_size == SIZES.hidden_size
    assert caplog.messages == ["nowhere/model does not exist: the model is assumed to have the sizes of the config"]


def test_dropout_is_the_runs_or_the_models(config, tmp_path):
    own = SIZES.replace(hidden_dropout_prob=0.05)
    (tmp_path / "config.json").write_text(json.dumps(own.to_dict()))
    for model in (Model(sizes=own), Model(pretrained=tmp_path)):
        for dropout, found in ((None, (0.05, 0.1)), (0.0, (0.0, 0.0)), (0.25, (0.25, 0.25))):
            given = model_config(dataclasses.replace(model, dropout=dropout), None, max_length=48)
            assert (given.hidden_dropout_prob, given.attention_probs_dropout_prob) == found
    with pytest.raises(ValueError, match=r"hidden_dropout_prob is 1\.5"):
        model_config(Model(sizes=own, dropout=1.5), None, max_length=48)


def test_a_train_spec_is_checked_as_the_data_would_be(config):
    long = with_task(config, max_length=49)
    with pytest.raises(ValueError, match="max_length is 49; allowed: 3 to the model's number of positions, 48"):
        long.task.train_spec(long)
    rate = with_task(config, masking_rate=1.5)
    with pytest.raises(ValueError, match=r"the masking rate is 1\.5"):
        rate.task.train_spec(rate)


def test_batches_trimmed_to_their_texts_have_the_train_spec_of_their_data(config, tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + "".join(f"w1 w2 w{i}\t{i % 2}\n" for i in range(12)))
    task = SequenceClassification(train=str(tmp_path / "train.tsv"), tokenizer=tmp_path / "vocab.txt", max_length=32)
    found = task.train_spec(dataclasses.replace(config, task=task))
    assert shapes(found.batch) == shapes(task.prepare(dataclasses.replace(config, task=task)).train[0])
    assert found.batch["input_ids"].shape == (6, 8)  # five tokens; lengths are multiples of 8
    assert found.steps_per_epoch == 2


@pytest.mark.parametrize("length", [128, 512])
@pytest.mark.parametrize("size", ["base", "large"])
def test_the_configs_of_pretraining_have_googles_sizes(size, length):
    config = load_config(ROOT / f"configs/pretrain_{size}_{length}.py")
    spec = config.task.train_spec(config)
    assert spec.config == {"base": BertConfig.base(), "large": BertConfig.large()}[size]
    counts = spec.token_counts(spec.batch)
    assert (counts.tokens, counts.predictions) == (256 * length, 256 * round(0.15 * length))
    # 10,000 steps of warmup in all, as create_pretraining's default.
    assert config.run.steps is not None
    assert round(config.optim.warmup * config.run.steps) == 10_000
