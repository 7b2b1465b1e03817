"""Habits of users that must not end in a traceback, a lost result or another run than the one meant."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.font_manager
import numpy as np
import pytest

from flaxbert.losses import IGNORE
from tests.train.test_loop import with_run, with_task
from train.command import parse_flags
from train.config import Model, Run
from train.data.labels import LabelledText
from train.data.pretraining.datasets import Stage
from train.loop import run
from train.tasks.multiple_choice import MultipleChoice
from train.tasks.prediction_files import write_classification, write_prediction_table
from train.tasks.pretraining import Pretraining
from train.tasks.problems import Problem
from train.tasks.question_answering import QuestionAnswering
from train.tasks.sequence_classification import SequenceClassification

BEST = {"evaluate_every": 2, "best": "loss"}


def unlabelled(path):
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join(line.split("\t")[0] for line in [head, *lines]) + "\n")


def test_the_best_model_on_a_dev_set_without_labels_is_refused_before_training(classification, tmp_path):
    unlabelled(tmp_path / "dev.tsv")
    with pytest.raises(ValueError, match="best is 'loss', but the dev set has no labels: give another --task.dev or"):
        run(with_run(classification, **BEST))
    choice = '{"premise": "alpha", "choice1": "beta", "choice2": "zeta", "label": %s}\n'
    (tmp_path / "train.jsonl").write_text(choice % 0 * 8)
    (tmp_path / "dev.jsonl").write_text(choice % -1 * 8)
    vocabulary = classification.task.tokenizer
    task = MultipleChoice(
        str(tmp_path / "train.jsonl"), str(tmp_path / "dev.jsonl"), tokenizer=vocabulary, max_length=9
    )
    with pytest.raises(ValueError, match="the dev set has no labels"):
        run(with_run(dataclasses.replace(classification, task=task), **BEST))
    question = {"id": "1", "question": "beta", "answers": [{"text": "alpha", "answer_start": 0}]}
    for name, asked in (("train", question), ("dev", {"id": "1", "question": "beta"})):
        content = {"data": [{"title": "", "paragraphs": [{"context": "alpha beta", "qas": [asked]}]}]}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = [str(tmp_path / f"{name}.json") for name in ("train", "dev")]
    task = QuestionAnswering(*files, tokenizer=vocabulary, max_length=20, max_query=4, window_step=4)
    with pytest.raises(ValueError, match="the dev set has no labels"):
        run(with_run(dataclasses.replace(classification, task=task), **BEST))


def test_a_held_out_text_without_masked_tokens_ends_with_a_model(masked_lm, capsys, monkeypatch):
    prepare = Pretraining.prepare

    def nothing_masked(self, *arguments, **options):
        task = prepare(self, *arguments, **options)
        batches = [
            {**b, "masked_lm_labels": np.full_like(b["masked_lm_labels"], IGNORE)} for b in task.evaluations["dev"]
        ]
        return dataclasses.replace(task, evaluations={"dev": batches})

    monkeypatch.setattr(Pretraining, "prepare", nothing_masked)
    folder = run(with_run(masked_lm, steps=2, checkpoint_every=None))
    assert (folder / "model" / "model.safetensors").exists()
    assert "no token of the held-out text is masked: raise" in capsys.readouterr().out
    with pytest.raises(ValueError, match="best is 'loss', but the dev set has no labels"):
        run(with_run(masked_lm, **BEST, folder=folder.with_name("other")))


def test_a_cut_file_of_the_only_checkpoint_is_named(masked_lm, caplog):
    config = with_run(masked_lm, steps=2, checkpoint_every=None)
    file = run(config) / "checkpoints" / "2" / "default" / "_METADATA"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"no checkpoint is left that is not damaged \(2.damaged\)"):
        run(config)
    assert f"{file}: 100 bytes instead of" in caplog.text


def test_paths_may_begin_with_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert Run(folder=Path("~/run"), steps=1).folder == Path("/home/me/run")
    assert Model(pretrained=Path("~/model")).pretrained == Path("/home/me/model")
    assert SequenceClassification("a", tokenizer=Path("~/v.txt")).tokenizer == Path("/home/me/v.txt")
    assert Pretraining("a", tokenizer=Path("~/v.txt")).tokenizer == Path("/home/me/v.txt")


def test_tabs_and_line_ends_stay_inside_their_cells(tmp_path):
    write_prediction_table(tmp_path, "dev", [("a.csv:1", "x\ty", "line\nend\r", 0.5)])
    assert (tmp_path / "predictions_dev.tsv").read_text().splitlines() == [
        "row\tgiven\tpredicted\tprobability",
        r"a.csv:1	x\ty	line\nend\r	0.5000",
    ]


def test_the_predictions_of_a_regression_have_no_probability(tmp_path):
    problem, rows = Problem("regression", ("LABEL_0",)), []
    write_prediction_table(tmp_path, "dev", [("a.csv:1", "0.5", "0.4321", None)])
    assert (tmp_path / "predictions_dev.tsv").read_text() == "row\tgiven\tpredicted\na.csv:1\t0.5\t0.4321\n"
    given = [LabelledText("a", None, "0.5", "a.csv:1")]
    write_classification(tmp_path, "test", problem, given, None, np.array([[0.43211]]))
    assert (tmp_path / "predictions_test.tsv").read_text() == (tmp_path / "predictions_dev.tsv").read_text()
    write_classification(tmp_path, "empty", problem, rows, None, np.zeros((0, 1)))
    assert (tmp_path / "predictions_empty.tsv").read_text().startswith("row\tgiven\tpredicted")


def drawn(folder, labels):
    """Draw a confusion matrix and return its picture; a glyph that no font has is a warning, and so an error."""
    problem = Problem("single_label_classification", labels)
    rows = [LabelledText("a", None, labels[0], "f:1"), LabelledText("b", None, labels[1], "f:2")]
    write_classification(folder, "dev", problem, rows, np.array([0, 1]), np.eye(2))
    return (folder / "confusion_dev.png").read_bytes()


def test_labels_that_no_font_can_draw_have_numbers_in_the_picture(tmp_path, monkeypatch):
    only = [font for font in matplotlib.font_manager.fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(matplotlib.font_manager.fontManager, "ttflist", only)
    chinese = drawn(tmp_path, ("体育", "财经"))
    assert chinese == drawn(tmp_path, ("教育", "娱乐")) != drawn(tmp_path, ("a", "b"))
    assert "| 教育 |" not in (tmp_path / "report_dev.md").read_text()  # of the last one


def test_the_length_of_a_run_may_be_given_in_the_other_unit(classification, masked_lm):
    flags = parse_flags(classification, ["--run.steps", "20"]).run
    assert (flags.steps, flags.epochs) == (20, None)
    flags = parse_flags(masked_lm, ["--run.epochs=2.5"]).run
    assert (flags.steps, flags.epochs) == (None, 2.5)
    flags = parse_flags(classification, ["--run.steps", "20", "--run.epochs", "None"]).run
    assert (flags.steps, flags.epochs) == (20, None)
    assert parse_flags(classification, []).run == classification.run
    with pytest.raises(SystemExit):  # with a message
        parse_flags(classification, ["--run.steps", "20", "--run.epochs", "1"])


def test_a_config_with_stages_names_the_flags_that_shorten_it(masked_lm):
    staged = with_task(masked_lm, stages=(Stage(steps=10),))
    short = parse_flags(staged, ["--run.steps", "5"])
    words = "the stages take 10 steps, and run.steps is 5; give --run.steps above 10, or shorter stages"
    with pytest.raises(ValueError, match=words):
        short.task.prepare(short)
    assert parse_flags(staged, ["--run.steps", "5", "--task.stages.0.steps", "3"]).task.stages[0].steps == 3


def test_other_training_data_do_not_meet_the_sets_of_the_config(classification, tmp_path):
    other = tmp_path / "other.tsv"
    other.write_text((tmp_path / "train.tsv").read_text())
    with pytest.raises(
        ValueError,
        match=r"--task.train names other data, but the config's own --task.dev and --task.test would be evaluated",
    ):
        parse_flags(classification, ["--task.train", str(other)])
    given = ["--task.train", str(other), "--task.dev", "dev.tsv"]
    assert parse_flags(classification, [*given, "--task.test", "None"]).task.test is None
    assert parse_flags(classification, [*given, "--task.test", "test.tsv"]).task.dev == "dev.tsv"
    assert parse_flags(classification, ["--task.train", classification.task.train]).task == classification.task


def test_other_training_data_with_other_labels_than_the_config_names_the_flag(classification, tmp_path):
    config = with_task(classification, labels=("short", "long"))
    other = tmp_path / "other.tsv"
    other.write_text("sentence\tlabel\nalpha\tgood\nbeta\tbad\n")
    flags = ["--task.train", str(other), "--task.dev", str(other), "--task.test", "None"]
    given = parse_flags(config, flags)
    with pytest.raises(
        ValueError, match=r"label 'good'.*(\n.*)*--task.labels \(without a value: those of the training"
    ):
        given.task.prepare(given)
    given = parse_flags(config, [*flags, "--task.labels"])
    assert given.task.prepare(given).config.id2label == ("bad", "good")


def test_output_that_cannot_be_encoded_does_not_end_a_run(tmp_path):
    code = (
        "import sys; from train.command import main; import train.loop\n"
        "train.loop.run = lambda *_: print('caf\\u00e9 \\u4f53')\n"
        f"sys.exit(main([{str(tmp_path / 'config.py')!r}]))"
    )
    (tmp_path / "config.py").write_text(
        "from pathlib import Path\nfrom train.config import Config, Run\n"
        "from train.tasks.pretraining import Pretraining\n"
        "config = Config(Pretraining('pydoc:'), Run(Path('x'), steps=1))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert (found.returncode, found.stdout) == (0, b"caf\\xe9 \\u4f53\n"), found.stderr
