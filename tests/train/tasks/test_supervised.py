"""Which sets a task on labelled data trains and evaluates on: files beyond dev and test, and a share held out."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from tests.train.test_loop import with_task
from train.data.sources import split_by_group
from train.tasks.multiple_choice import MultipleChoice
from train.tasks.question_answering import QuestionAnswering
from train.tasks.sequence_classification import NextSentence, SequenceClassification
from train.tasks.token_classification import TokenClassification


@pytest.mark.parametrize(
    "kind", [SequenceClassification, NextSentence, MultipleChoice, TokenClassification, QuestionAnswering]
)
def test_settings_that_contradict_each_other(kind):
    for settings, message in [
        (
            {"dev": "a", "validation_split": 0.2},
            "validation_split is 0.2, dev a; .* only where dev is not given; else None",
        ),
        ({"validation_split": 1.0}, "between 0 and 1"),
        ({"validation_split": 0.0}, "between 0 and 1"),
        ({"extra_eval": ("a", "b"), "extra_eval_splits": ("c",)}, "one for each of extra_eval"),
    ]:
        with pytest.raises(ValueError, match=message):
            kind("train", **settings)


def test_further_sets_are_called_by_their_names():
    extra = ("mnli/dev_mismatched.tsv", "other/dev.tsv", "more/dev.tsv", "datasets:glue:mnli", "a strange/näme?.csv")
    splits = ("", "", "", "validation_mismatched[:10%]", "")
    task = SequenceClassification("train.tsv", "dev.tsv", extra_eval=extra, extra_eval_splits=splits)
    assert list(task.sources.items())[2:] == [
        ("dev_mismatched", ("mnli/dev_mismatched.tsv", None)),
        ("dev-2", ("other/dev.tsv", None)),
        ("dev-3", ("more/dev.tsv", None)),
        ("validation_mismatched_10_", ("datasets:glue:mnli", "validation_mismatched[:10%]")),
        ("näme_", ("a strange/näme?.csv", None)),
    ]
    assert [*SequenceClassification("a", extra_eval=("b/test.tsv", "c/test.tsv"), test="d").sources] == [
        "train",
        "test",
        "test-2",
        "test-3",
    ]


def test_further_sets_are_evaluated(classification, tmp_path):
    shutil.copy(classification.task.dev, tmp_path / "matched.tsv")
    task = with_task(classification, extra_eval=(str(tmp_path / "matched.tsv"),)).task.prepare(classification)
    assert [*task.evaluations] == ["dev", "test", "matched"]
    assert task.rows["matched"][0].label == task.rows["dev"][0].label
    assert task.facts["matched rows"] == task.facts["dev rows"] == len(task.rows["dev"])


def test_rows_of_one_text_are_held_out_together(classification):
    path = Path(classification.task.train)
    head, *lines = path.read_text().splitlines()
    lines = [*lines, *lines[:20]]
    path.write_text("\n".join([head, *lines]) + "\n")
    config = with_task(classification, dev=None, validation_split=0.25)
    task = config.task.prepare(config)
    train, dev = task.rows["train"], task.rows["dev"]
    assert [*task.rows] == ["train", "dev", "test"] and [*task.evaluations] == ["dev", "test"]
    assert 0.25 <= len(dev) / len(lines) < 0.3 and len(train) + len(dev) == len(lines)
    assert not {row.text for row in train} & {row.text for row in dev}
    again = config.task.prepare(config)
    assert again.rows == task.rows
    other = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=1))
    assert other.task.prepare(other).rows["dev"] != dev


def test_a_label_of_one_row_is_known_wherever_that_row_goes(classification):
    path = Path(classification.task.train)
    path.write_text(path.read_text() + "one of its kind\trare\n")
    for seed in range(4):
        config = with_task(classification, dev=None, validation_split=0.5)
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, seed=seed))
        assert "rare" in config.task.prepare(config).config.id2label


def test_the_first_line_of_a_run_says_which_columns_were_read(classification, tmp_path):
    for name in ("dev", "test"):
        file = tmp_path / f"{name}.tsv"
        file.write_text(file.read_text().replace("sentence\t", "text\t", name == "test"))
    facts = classification.task.prepare(classification).facts
    assert facts["train columns"] == "'sentence' as text + 'label' as label"
    assert facts["test columns"] == "'text' as text + 'label' as label" and "dev columns" not in facts
    (tmp_path / "train.jsonl").write_text(
        '{"premise": "beta", "choice1": "alpha", "choice2": "zeta", "label": 0}\n' * 8
    )
    (tmp_path / "tags.jsonl").write_text('{"tokens": ["alpha", "beta"], "ner_tags": ["B-X", "O"]}\n' * 8)
    words = classification.task.tokenizer
    for task, columns in (
        (MultipleChoice(str(tmp_path / "train.jsonl"), tokenizer=words, max_length=9), "'premise' as"),
        (
            TokenClassification(str(tmp_path / "tags.jsonl"), tokenizer=words, max_length=9),
            "'tokens' as words + 'ner_tags' as tags",
        ),
    ):
        assert columns in task.prepare(dataclasses.replace(classification, task=task)).facts["train columns"]


def test_what_is_drawn():
    rows, groups = [*range(10)], [*"aabbbcddde"]
    kept, held = split_by_group(rows, groups, 0.3, seed=0)
    assert sorted(kept + held) == rows and 3 <= len(held) <= 5
    assert not {groups[row] for row in kept} & {groups[row] for row in held}
    assert {tuple(split_by_group(rows, groups, 0.3, seed=seed)[1]) for seed in range(9)} > {tuple(held)}
    with pytest.raises(ValueError, match=r"0\.9 takes all of 3 rows, of 1 article\(s\) or text\(s\)"):
        split_by_group([1, 2, 3], ["a", "a", "a"], 0.9, seed=0)
