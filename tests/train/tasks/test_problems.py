"""Classification of every kind, as whole runs on rows that a small model can learn."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import BertForSequenceClassification

from train.data.labelled_texts import read_labelled_texts
from train.data.labels import LabelledText, infer_labels, label_indicators, label_numbers
from train.loop import run
from train.metrics.classification import spearman_correlation
from train.optim import Optim
from train.tasks.problems import Problem, problem_metrics


def rows(*labels):
    return [LabelledText("text", None, label, f"file:{i}") for i, label in enumerate(labels, 1)]


def evaluated(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["name"]: line for line in lines if line["kind"] == "eval"}


def relabelled(config, label):
    """The same sentences, each with `label` of how many words it has."""
    for name in ("train", "dev", "test"):
        path = Path(config.task.train).with_name(f"{name}.tsv")
        head, *lines = path.read_text().splitlines()
        texts = [line.split("\t")[0] for line in lines]
        path.write_text("\n".join([head, *(f"{text}\t{label(len(text.split()))}" for text in texts)]) + "\n")


def with_task(config, **changes):
    longer = dataclasses.replace(config.run, epochs=30)
    return dataclasses.replace(config, task=dataclasses.replace(config.task, **changes), run=longer)


def test_regression(classification):
    relabelled(classification, lambda words: (words - 8) / 4)
    with pytest.raises(ValueError, match="labels is .*but a regression has none"):
        run(with_task(classification, problem_type="regression", labels=("a",)))
    longer = dataclasses.replace(with_task(classification, problem_type="regression"), optim=Optim(learning_rate=3e-3))
    folder = run(dataclasses.replace(longer, run=dataclasses.replace(longer.run, epochs=45)))
    found = evaluated(folder)["dev"]
    assert found["spearman"] > 0.9 and found["pearson"] > 0.9
    predictions = [line.split("\t") for line in (folder / "predictions_dev.tsv").read_text().splitlines()[1:]]
    given, said = (np.array([float(line[i]) for line in predictions]) for i in (1, 2))
    assert spearman_correlation(given, said) == pytest.approx(found["spearman"], abs=1e-3)
    assert np.mean((given - said) ** 2) == pytest.approx(found["loss"], rel=1e-3)
    # transformers reads a model of one number, whose loss is squared error.
    model = BertForSequenceClassification.from_pretrained(folder / "model")
    assert model.config.problem_type == "regression" and model.num_labels == 1


def test_f1_of_two_labels_is_that_of_the_second():
    problem = Problem("single_label_classification", ("not_equivalent", "equivalent"))  # as in MRPC
    found = problem_metrics(problem, np.array([1, 1, 0, 0, 0]), np.eye(2)[[1, 0, 1, 0, 0]])
    assert found["f1"] == pytest.approx(0.5) and found["macro_f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize("ending", [pytest.param("tsv", marks=pytest.mark.slow), "jsonl"])
def test_several_labels(classification, tmp_path, ending):
    names = lambda words: [n for n, there in (("long", words > 8), ("odd", words % 2)) if there]  # noqa: E731
    relabelled(classification, lambda words: ", ".join(names(words)))
    task = {"problem_type": "multi_label_classification"}
    if ending == "jsonl":
        for name in ("train", "dev", "test"):
            table = (tmp_path / f"{name}.tsv").read_text().splitlines()[1:]
            pairs = [line.split("\t") for line in table]
            objects = [{"sentence": text, "labels": [n for n in given.split(", ") if n]} for text, given in pairs]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, objects)) + "\n")
            task[name] = str(tmp_path / f"{name}.jsonl")
    folder = run(with_task(classification, **task))
    found = evaluated(folder)["dev"]
    assert found["f1"] > 0.6 and {"accuracy", "macro_f1", "loss"} <= found.keys()
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["id2label"] == {"0": "long", "1": "odd"} and config["problem_type"] == "multi_label_classification"
    assert (folder / "report_dev.md").read_text().count("| long |") == 1 and not list(folder.glob("confusion*"))


def test_one_label_is_reported_by_class(classification):
    folder = run(classification)
    figures = evaluated(folder)["dev"]
    assert {"loss", "accuracy", "macro_f1", "f1", "matthews"} <= figures.keys()
    lines = [line.split("\t") for line in (folder / "predictions_dev.tsv").read_text().splitlines()[1:]]
    assert np.mean([given == said for _, given, said, _ in lines]) == pytest.approx(figures["accuracy"])
    report = (folder / "report_dev.md").read_text()
    assert "| long |" in report and "(confusion_dev.png)" in report
    assert (folder / "confusion_dev.png").read_bytes().startswith(b"\x89PNG")


def test_rows_without_labels_are_predicted(classification, tmp_path):
    test = tmp_path / "test.tsv"
    test.write_text("sentence\n" + "\n".join(line.split("\t")[0] for line in test.read_text().splitlines()[1:]) + "\n")
    folder = run(classification)
    assert evaluated(folder)["test"].keys() == {"kind", "step", "name", "time"}
    assert len((folder / "predictions_test.tsv").read_text().splitlines()) == 6
    assert not (folder / "report_test.md").exists()
    (tmp_path / "train.tsv").write_text(test.read_text())
    with pytest.raises(ValueError, match=r"train\.tsv:2: no column known as a label; name it: --task\.columns\.label"):
        run(dataclasses.replace(classification, run=dataclasses.replace(classification.run, folder=tmp_path / "no")))


def test_labels_that_are_numbers(data_dir):
    sts = read_labelled_texts(data_dir / "tasks" / "glue" / "STS-B" / "dev.tsv")
    with pytest.raises(ValueError, match=r"labels such as '.*' are measures, .*--task.problem-type regression"):
        infer_labels(sts)
    assert label_numbers(sts).max() == 5.0
    with pytest.raises(ValueError, match=r"file:1: label 'nan'\n  file:2: label 'x'\n  file:3: no label"):
        label_numbers(rows("nan", "x", None))


def test_several_labels_of_a_row():
    found = rows("b,a", "", "a")
    assert infer_labels(found, separator=",") == ("a", "b")
    assert label_indicators(found, ["a", "b"], separator=",").tolist() == [[1, 1], [0, 0], [1, 0]]
    with pytest.raises(ValueError, match="file:1: label 'c' is not allowed\n"):
        label_indicators(rows("a,c"), ["a", "b"], separator=",")
    with pytest.raises(ValueError, match="no row has a label"):
        infer_labels(rows("", ""), separator=",")


def test_a_list_whose_label_holds_the_separator(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a", "label": ["x,y"]}\n')
    with pytest.raises(ValueError, match="'x,y', with the separator ',' in it"):
        read_labelled_texts(tmp_path / "x.jsonl", separator=",")
