"""Pretrained models in folders of every layout, and their files that a run exports."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.flaxbert.saved_models import folder_of
from tests.runs import SMALL
from tests.train.test_loop import with_run
from train.config import Config, Model
from train.loop import run
from train.training_loop import TrainingLoop

MODULES = [
    {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Dense", "type": "sentence_transformers.models.Dense"},
]
DENSE = '{"in_features": 32}'


@pytest.fixture
def sentence_model(masked_lm, finished) -> Config:
    """A run that goes on from a model of sentence-transformers, whose transformer and tokenizer are in a folder below.

    The modules belong to the encoder, so masked-LM training keeps them.
    """
    folder = masked_lm.run.folder.parent / "sentences"
    sizes = SMALL.replace(vocab_size=300)
    transformer = folder_of("BertForMaskedLM", folder / "0_Transformer", config=sizes)
    vocabulary = (finished.folder / "model" / "vocab.txt").read_text()
    (transformer / "vocab.txt").write_text(vocabulary)
    (folder / "modules.json").write_text(json.dumps(MODULES))
    (folder / "1_Dense").mkdir()
    (folder / "1_Dense" / "config.json").write_text(DENSE)
    config = with_run(masked_lm, steps=1, checkpoint_every=None)
    return dataclasses.replace(config, model=Model(pretrained=folder))


def test_a_transformer_in_a_folder_below_is_trained_and_its_modules_are_exported(sentence_model):
    exported = run(sentence_model) / "model"
    assert json.loads((exported / "modules.json").read_text())[0]["path"] == ""
    assert (exported / "1_Dense" / "config.json").read_text() == DENSE
    assert {"vocab.txt", "model.safetensors"} <= {file.name for file in exported.iterdir()}


def test_what_becomes_of_the_modules_is_said_once(sentence_model, caplog):
    run(sentence_model)
    moved = [record for record in caplog.records if "move from 0_Transformer" in record.getMessage()]
    assert len(moved) == 1


def test_a_tokenizer_that_is_a_link_out_of_the_folder_does_not_end_a_run(sentence_model, tmp_path):
    vocabulary = sentence_model.model.pretrained / "0_Transformer" / "vocab.txt"
    vocabulary.rename(tmp_path / "shared.txt")
    vocabulary.symlink_to(tmp_path / "shared.txt")
    exported = run(sentence_model) / "model"
    assert (exported / "vocab.txt").read_text() == vocabulary.read_text()


def damage(config: Config) -> None:
    dense = config.model.pretrained / "1_Dense"
    (dense / "pytorch_model.bin").write_bytes(b"no zip of PyTorch")


def test_a_module_that_cannot_be_exported_is_an_error_before_training(sentence_model):
    damage(sentence_model)
    with pytest.raises(ValueError, match=r"1_Dense.pytorch_model\.bin"):
        run(sentence_model)
    assert not sentence_model.run.folder.exists()


def test_a_module_that_is_damaged_during_the_run_does_not_lose_the_model(sentence_model, monkeypatch, capsys):
    train_steps = TrainingLoop.run

    def train_and_damage(self):
        damage(sentence_model)
        train_steps(self)

    monkeypatch.setattr(TrainingLoop, "run", train_and_damage)
    folder = run(sentence_model)
    assert (folder / "model" / "model.safetensors").is_file() and (folder / "summary.md").is_file()
    assert f"warning: not all files of {sentence_model.model.pretrained} are copied into" in capsys.readouterr().out


def test_a_run_is_a_pretrained_model(masked_lm, finished):
    config = with_run(masked_lm, steps=1, checkpoint_every=None)
    folder = run(dataclasses.replace(config, model=Model(pretrained=finished.folder)))
    assert (folder / "model" / "vocab.txt").read_text() == (finished.folder / "model" / "vocab.txt").read_text()


@pytest.mark.parametrize("path", ["google/model.zip", "bert-base-uncased"])
def test_a_zip_and_a_model_on_the_hub_are_made_a_folder_first(masked_lm, tmp_path, path):
    path = Path(path) if "." not in path else tmp_path / Path(path).name
    if path.suffix:
        path.write_bytes(b"")
    config = dataclasses.replace(masked_lm, model=Model(pretrained=path))
    with pytest.raises(FileNotFoundError, match=f"`flaxbert convert {path} FOLDER` makes a folder of a zip or"):
        run(config)


@pytest.mark.parametrize("name", ["model", "checkpoints", "tensorboard"])
def test_a_file_where_a_run_makes_a_folder_is_an_error_before_training(masked_lm, name):
    masked_lm.run.folder.mkdir()
    file = masked_lm.run.folder / name
    file.write_text("mine")
    with pytest.raises(ValueError, match=f"cannot be used: {file} is a file; choose another --run.folder"):
        run(masked_lm)


def test_a_long_name_of_an_extra_set_fits_into_the_names_of_its_files(classification, tmp_path):
    long = tmp_path / ("新" * 80 + ".tsv")
    long.write_text((tmp_path / "dev.tsv").read_text())
    task = dataclasses.replace(classification.task, extra_eval=(str(long),))
    folder = run(dataclasses.replace(with_run(classification, epochs=None, steps=1), task=task))
    assert [*folder.glob("predictions_新*.tsv")] != []
