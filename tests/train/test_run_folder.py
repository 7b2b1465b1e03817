"""The folder of a run: what it must be, one run at a time, and the same inputs when the run is resumed."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.test_loop import with_run, with_task
from train import run_folder
from train.loop import run
from train.run_folder import remove_temporary_files
from train.tasks.language_modelling import LanguageModelling
from train.tasks.multiple_choice import MultipleChoice
from train.tasks.question_answering import QuestionAnswering
from train.tasks.token_classification import TokenClassification

ROOT = Path(__file__).parents[2]


def test_a_folder_that_cannot_be_used_is_refused_before_anything_is_read(classification, tmp_path, monkeypatch):
    unread = with_task(classification, train="missing.tsv")
    (tmp_path / "file").write_text("")
    (tmp_path / "closed").mkdir()
    for folder, why in [
        (tmp_path / "file", "file is a file"),
        (tmp_path / "file" / "below", "file is a file"),
        (tmp_path / ("n" * 300), "File name too long"),
        (Path("/proc/run"), None),
        (tmp_path / "closed", "closed is not writable"),
    ]:
        config = unread if why else classification
        with monkeypatch.context() as patch:
            patch.setattr(os, "access", lambda path, mode: Path(path).name != "closed")
            with pytest.raises(ValueError, match=f"run.folder is .* cannot be used: .*{why or ''}; choose another"):
                run(with_run(config, folder=folder))
    assert not list((tmp_path / "closed").iterdir())


def test_a_second_run_in_a_folder_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from train.run_folder import locked\n"
        "with locked(Path(sys.argv[1]), first_host=True): print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    with (
        pytest.raises(ValueError, match=rf"in use by another run \(process {holder.pid} on .*, started .*\); wait"),
        run_folder.locked(tmp_path, first_host=True),
    ):
        pass
    holder.kill()
    holder.communicate()
    with run_folder.locked(tmp_path, first_host=True):
        assert f"process {os.getpid()}" in (tmp_path / run_folder.LOCK_FILE).read_text()
        with run_folder.locked(tmp_path, first_host=False):  # of the same run
            pass


def prepared(config):
    """Do what a run does before it trains, and leave the files that it leaves."""
    run_folder.check_folder(config)
    task = config.task.prepare(config)
    inputs = run_folder.input_digests(config, task)
    run_folder.check_inputs(config.run.folder, inputs)
    config.run.folder.mkdir(exist_ok=True)
    model = task.architecture(task.config, **config.model.attributes)
    run_folder.write_files(config, task, model, inputs)
    return inputs


@pytest.mark.parametrize("name", ["train", "dev", "test"])
def test_a_replaced_data_file_is_refused_and_a_moved_one_is_taken(classification, tmp_path, name):
    prepared(classification)
    moved = tmp_path / "elsewhere" / f"{name}.tsv"
    moved.parent.mkdir()
    shutil.move(tmp_path / f"{name}.tsv", moved)
    there = with_task(classification, **{name: str(moved)})
    prepared(there)
    moved.write_text(moved.read_text().replace("alpha", "zeta", 1))
    with pytest.raises(ValueError, match=f"other data; .*:\n  {name}: SHA-256 [0-9a-f]{{12}}... -> [0-9a-f]"):
        prepared(there)


def test_a_set_that_is_left_out_or_added_is_refused(classification, tmp_path):
    prepared(classification)
    with pytest.raises(ValueError, match="test: SHA-256 [0-9a-f]*... -> none"):
        prepared(with_task(classification, test=None))
    with pytest.raises(ValueError, match="more: SHA-256 none -> "):
        shutil.copy(tmp_path / "dev.tsv", tmp_path / "more.tsv")
        prepared(with_task(classification, extra_eval=(str(tmp_path / "more.tsv"),)))


def test_a_replaced_text_or_vocabulary_is_refused(masked_lm, classification, tmp_path):
    prepared(masked_lm)
    text = Path(masked_lm.task.text)
    text.write_text(text.read_text().replace("statement", "sentence", 1))
    with pytest.raises(ValueError, match="text: SHA-256"):
        prepared(masked_lm)
    classification = with_run(classification, folder=tmp_path / "other")
    prepared(classification)
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text(vocabulary.read_text() + "eta\n")
    with pytest.raises(ValueError, match="tokenizer: SHA-256"):
        prepared(classification)
    words = vocabulary.read_text().removesuffix("eta\n")
    vocabulary.unlink()  # the run has its own copy
    prepared(classification)
    vocabulary.write_text(words)
    prepared(classification)


def question_answering(folder, tokenizer):
    answer = {"text": "alpha", "answer_start": 0}
    question = {"id": "1", "question": "beta", "answers": [answer]}
    content = {"data": [{"title": "", "paragraphs": [{"context": "alpha beta alpha", "qas": [question]}]}]}
    file = folder / "questions.json"
    file.write_text(json.dumps(content))
    return file, QuestionAnswering(str(file), tokenizer=tokenizer, max_length=20, max_query=4, window_step=4)


def multiple_choice(folder, tokenizer):
    file = folder / "choices.jsonl"
    file.write_text('{"premise": "beta", "choice1": "alpha", "choice2": "zeta", "label": 0}\n' * 8)
    return file, MultipleChoice(str(file), tokenizer=tokenizer, max_length=9)


def token_classification(folder, tokenizer):
    file = folder / "tags.conll"
    file.write_text("alpha B-X\nbeta O\n\n" * 8)
    return file, TokenClassification(str(file), tokenizer=tokenizer, max_length=9)


def language_modelling(folder, tokenizer):
    file = folder / "text.txt"
    file.write_text("alpha beta gamma\n\n" * 20)
    return file, LanguageModelling((str(file),), tokenizer=tokenizer, max_length=9)


@pytest.mark.parametrize("make", [question_answering, multiple_choice, token_classification, language_modelling])
def test_replaced_data_of_another_task_are_refused(classification, tmp_path, make):
    file, task = make(tmp_path, classification.task.tokenizer)
    config = dataclasses.replace(classification, task=task)
    prepared(config)
    file.write_text(file.read_text().replace("beta", "zeta", 1))
    with pytest.raises(ValueError, match=r"other data; .*:\n  (train|text): SHA-256"):
        prepared(config)


def test_replaced_pretrained_weights_are_refused(classification, finished, tmp_path):
    source = shutil.copytree(finished.folder / "model", tmp_path / "model")
    model = dataclasses.replace(classification.model, pretrained=source)
    config = with_task(dataclasses.replace(classification, model=model), tokenizer=None)
    prepared(config)
    moved = shutil.copytree(source, tmp_path / "moved")
    prepared(dataclasses.replace(config, model=dataclasses.replace(model, pretrained=moved)))
    settings = (source / "config.json").read_text()
    (source / "config.json").write_text(settings.replace("1e-12", "1e-05"))
    with pytest.raises(ValueError, match=r"\n  pretrained config.json: SHA-256"):
        prepared(config)
    (source / "config.json").write_text(settings)
    content = bytearray((source / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (source / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"\n  pretrained weights: SHA-256"):
        prepared(config)


def test_a_run_of_a_former_version_is_compared_by_settings(classification, tmp_path):
    prepared(classification)
    (classification.run.folder / run_folder.INPUTS_FILE).unlink()
    prepared(classification)
    (classification.run.folder / run_folder.INPUTS_FILE).unlink()
    shutil.copy(tmp_path / "dev.tsv", tmp_path / "dev2.tsv")
    with pytest.raises(ValueError, match=r"other settings.*\n  task.dev: .*dev.tsv -> .*dev2.tsv"):
        prepared(with_task(classification, dev=str(tmp_path / "dev2.tsv")))


@pytest.mark.parametrize("content", ["{", "[]"])
@pytest.mark.parametrize("name", ["run.json", "inputs.json"])
def test_a_damaged_file_of_the_folder_is_named(classification, name, content):
    folder = classification.run.folder
    folder.mkdir()
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=f"^{folder / name}: .*; choose another --run.folder, or delete {folder}$"):
        run(classification)


def test_evaluate_every_is_free_unless_it_decides_which_model_is_the_best(classification):
    prepared(classification)
    prepared(with_run(classification, evaluate_every=2))
    best = with_run(classification, evaluate_every=2, best="loss", folder=classification.run.folder.with_name("best"))
    prepared(best)
    with pytest.raises(ValueError, match="run.evaluate_every: 2 -> 3"):
        prepared(with_run(best, evaluate_every=3))


def test_more_steps_than_a_run_had_are_refused_with_the_way_to_go_on(classification, tmp_path):
    steps = with_run(classification, epochs=None, steps=3)
    prepared(steps)
    with pytest.raises(ValueError, match=r"run.steps: 3 -> 5\n.*schedule.*is not finished: .*give --run.steps 3"):
        run_folder.check_folder(with_run(steps, steps=5))
    folder = steps.run.folder / run_folder.MODEL_FOLDER
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    goes_on = rf"run.steps: 3 -> 5\n.*schedule.*is finished: .*--run.folder NEW --model.pretrained {folder}"
    with pytest.raises(ValueError, match=goes_on):
        run_folder.check_folder(with_run(steps, steps=5))
    with pytest.raises(ValueError, match=r"run.epochs: None -> 2.0\n *run.steps: 3 -> None\n.*schedule"):
        run_folder.check_folder(with_run(steps, steps=None, epochs=2.0))
    with pytest.raises(ValueError, match=r"run.seed: .*") as error:
        run_folder.check_folder(with_run(steps, seed=7))
    assert "schedule" not in str(error.value)


def test_temporary_files_of_a_killed_run_are_deleted(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / ".tokenizer.k3_x9a0b").mkdir()
    left = [".tokenizer.k3_x9a0b/vocab.txt", ".run.json.abcdefgh", "model/.model.safetensors.a1b2c3_4", ".shared-0f"]
    others = [".notes.md", "notes.md", ".run.json.abcdefghi", "model/model.safetensors", ".bashrc.abcdefgh"]
    for name in (*left, *others):
        (tmp_path / name).write_text("x")
    (tmp_path / ".link.json.abcdefgh").symlink_to(tmp_path / "notes.md")
    remove_temporary_files(tmp_path)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if not path.is_dir()}
    assert found == {*others, ".link.json.abcdefgh"} and not (tmp_path / ".tokenizer.k3_x9a0b").exists()
