"""Labels as files and data sets mean them: spellings, missing ones, vectors, declared classes."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest

from train.data import labelled_texts
from train.data.bad_rows import BadRows
from train.data.labelled_texts import Columns, read_labelled_texts
from train.tasks import problems


def write(path: Path, rows: list[dict], *, separator: str = ",") -> Path:
    """A table of the rows: .jsonl, or .csv / .tsv with JSON's spelling of what is no text."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    between = "\t" if path.suffix == ".tsv" else ","
    quoted = [[cell if isinstance(cell, str) else json.dumps(cell) for cell in row.values()] for row in rows]
    if path.suffix == ".csv":
        quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in quoted]
    path.write_text("\n".join(between.join(row) for row in [list(rows[0]), *quoted]) + "\n")
    return path


def table(path: Path, *labels: object) -> Path:
    return write(path, [{"text": f"t{i}", "label": label} for i, label in enumerate(labels)])


def single(rows):
    problem = problems.make_problem("single_label_classification", rows, labels=(), separator=",")
    return problem.labels, problems.targets(problem, rows).tolist()


def several(rows):
    problem = problems.make_problem("multi_label_classification", rows, labels=(), separator=",")
    return problem.labels, problems.targets(problem, rows).tolist()


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl"])
def test_spellings_of_one_label(tmp_path, ending):
    rows = read_labelled_texts(table(tmp_path / f"a{ending}", "1", "0", "1.0", "0.0"))
    assert single(rows) == (("0", "1"), [1, 0, 1, 0])
    rows = read_labelled_texts(table(tmp_path / f"b{ending}", "pos ", "neg", "pos"))
    assert single(rows) == (("neg", "pos"), [1, 0, 1])
    # Only one spelling stays as it is; another set may have another.
    train = read_labelled_texts(table(tmp_path / f"c{ending}", 1.0, 0.0, 2.0))
    assert single(train)[0] == ("0.0", "1.0", "2.0")
    problem = problems.Problem("single_label_classification", single(train)[0])
    dev = read_labelled_texts(table(tmp_path / f"d{ending}", 2, 0), train=train)
    assert problems.targets(problem, dev).tolist() == [2, 0]
    booleans = read_labelled_texts(table(tmp_path / "b.jsonl", True, False))
    dev = read_labelled_texts(table(tmp_path / f"f{ending}", "True", "False"), train=booleans)  # as pandas writes them
    problem = problems.Problem("single_label_classification", single(booleans)[0])
    assert problems.targets(problem, dev).tolist() == [1, 0]
    # A code with a leading zero is no number.
    assert single(read_labelled_texts(table(tmp_path / f"e{ending}", "01", "1")))[0] == ("01", "1")


@pytest.mark.parametrize("missing", ["-", "", None, float("nan")])
def test_a_missing_label_is_named_or_left_out(tmp_path, missing):
    path = table(tmp_path / "a.jsonl", "entailment", missing, "neutral")
    with pytest.raises(ValueError, match=r"1 of 3 rows.*\n.*a\.jsonl:2: no label.*\n.*--task\.bad-rows skip"):
        read_labelled_texts(path)
    rows = read_labelled_texts(path, bad_rows=BadRows.SKIP)
    assert [row.label for row in rows] == ["entailment", "neutral"] and rows.left_out == 1
    everything = read_labelled_texts(table(tmp_path / "b.jsonl", missing, missing))
    assert [row.label for row in everything] == [None, None]


def test_a_column_of_second_texts_that_is_blank_names_its_flag(tmp_path):
    path = write(
        tmp_path / "a.csv", [{"text": "a", "text_pair": "", "label": 0}, {"text": "b", "text_pair": "", "label": 1}]
    )
    with pytest.raises(ValueError, match=r"in 'text_pair', are missing; .* give --task\.columns\.text-pair ''"):
        read_labelled_texts(path)
    assert [row.text_pair for row in read_labelled_texts(path, columns=Columns(text_pair=""))] == [None, None]


def test_blank_texts_are_left_out(tmp_path):
    rows = [{"question1": "a", "question2": "b", "label": 0}, {"question1": "a", "question2": None, "label": 1}]
    rows += [{"question1": " ", "question2": "b", "label": 1}, {"question1": "c", "question2": "d", "label": 1}]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(ValueError, match=r"2 of 4 rows.*(\n.*){3}--task\.bad-rows skip"):
        read_labelled_texts(path)
    assert [row.text for row in read_labelled_texts(path, bad_rows=BadRows.SKIP)] == ["a", "c"]


def test_minus_one_means_unlabelled_where_it_cannot_be_a_label(tmp_path):
    def labels(*found, **how):
        return [row.label for row in read_labelled_texts(table(tmp_path / "a.csv", *found), **how)]

    for mixed in ([0, 1, 2, -1], ["no", "yes", "-1"], [0.5, 4.2, -1.0]):
        with pytest.raises(ValueError, match=r"a\.csv:5: no label \('-1'\)|a\.csv:4: no label \('-1(\.0)?'\)"):
            labels(*mixed)
        assert len(labels(*mixed, bad_rows=BadRows.SKIP)) == len(mixed) - 1
        assert len(labels(*mixed, unlabelled=())) == len(mixed)  # the user says that it is a label
    assert labels(-1.0, -1.0) == [None, None]  # STS-B's test set
    assert labels(-1, 0, 1) == ["-1", "0", "1"] and labels(-1, 1) == ["-1", "1"]
    assert labels(-1.0, -0.5, 3.0) == ["-1.0", "-0.5", "3.0"]
    assert labels(0, 1, 2, -1, labels=("-1", "0", "1", "2")) == ["0", "1", "2", "-1"]
    assert labels("+", "-", "+") == ["+", "-", "+"]
    train = read_labelled_texts(table(tmp_path / "train.csv", -1, 1, 1))
    assert labels(-1, -1, train=train) == ["-1", "-1"]
    train = read_labelled_texts(table(tmp_path / "train.csv", 0, 1, 1))
    assert labels(-1, -1, train=train) == [None, None]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl"])
def test_vectors_of_several_labels(tmp_path, ending):
    vectors = [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    train = read_labelled_texts(table(tmp_path / f"a{ending}", *vectors), separator=",")
    assert several(train) == (("LABEL_0", "LABEL_1", "LABEL_2"), vectors)
    named = read_labelled_texts(table(tmp_path / f"a{ending}", *vectors), separator=",", labels=("x", "y", "z"))
    assert [row.label for row in named] == ["x", "y,z", ""]
    dev = read_labelled_texts(table(tmp_path / f"b{ending}", [0, 0, 1]), separator=",", train=train)
    assert dev[0].label == "LABEL_2"
    with pytest.raises(ValueError, match="has 2 numbers; there are 3 labels"):
        read_labelled_texts(table(tmp_path / f"c{ending}", [0, 1]), separator=",", train=train)
    # Numbers of classes are not vectors, nor in a set that happens to look like it.
    train = read_labelled_texts(table(tmp_path / f"d{ending}", [2, 27], [0], []), separator=",")
    assert several(train) == (("0", "2", "27"), [[0, 1, 1], [1, 0, 0], [0, 0, 0]])
    dev = read_labelled_texts(table(tmp_path / f"e{ending}", [0, 1]), separator=",", train=train)
    assert dev[0].label == "0,1"


@pytest.mark.parametrize("cell", ['["joy", "love"]', "['joy', 'love']"])
def test_lists_in_cells(tmp_path, cell):
    path = table(tmp_path / "a.csv", cell, "[]", '["joy"]')
    assert several(read_labelled_texts(path, separator=",")) == (("joy", "love"), [[1, 1], [0, 0], [1, 0]])
    with pytest.raises(ValueError, match="is the list .*--task.problem-type multi_label_classification"):
        read_labelled_texts(path)
    words = table(tmp_path / "words.csv", str(np.array(["joy", "it's love"])), str(np.array(["joy"])))
    assert [row.label for row in read_labelled_texts(words, separator=",")] == ["joy,it's love", "joy"]
    with pytest.raises(ValueError, match="no list that can be read"):
        read_labelled_texts(table(tmp_path / "no.csv", "[joy; love]"), separator=",")
    numpy = table(tmp_path / "b.csv", str(np.array([1.0, 0.0])), str(np.array([0.0, 1.0])))
    assert [row.label for row in read_labelled_texts(numpy, separator=",")] == ["LABEL_0", "LABEL_1"]


def test_declared_classes_keep_their_ids(tmp_path):
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["not_equivalent", "equivalent", "other"]),
        }
    )
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    data.save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match=r"1 of 3 rows.*\n.*set:2: no label"):
        read_labelled_texts(tmp_path / "set")
    rows = read_labelled_texts(tmp_path / "set", bad_rows=BadRows.SKIP)
    assert single(rows) == (("not_equivalent", "equivalent", "other"), [1, 0])


def test_a_set_is_read_like_the_training_set(tmp_path):
    train = read_labelled_texts(
        write(tmp_path / "a.csv", [{"sentence": "s", "text": "t", "kind": "x"}]), columns=Columns("text", None, "kind")
    )
    assert train.columns == {"text": "text", "label": "kind"}
    test = write(tmp_path / "b.csv", [{"sentence": "s", "text": "t", "score": 3}])
    rows = read_labelled_texts(test, columns=Columns("text", None, "kind"), train=train)
    assert [(row.text, row.label) for row in rows] == [("t", None)]
    with pytest.raises(ValueError, match="'kind' must be there"):
        read_labelled_texts(test, columns=Columns("text", None, "kind"))
    train = read_labelled_texts(write(tmp_path / "c.csv", [{"text": "t", "label": 1}]))
    other = read_labelled_texts(write(tmp_path / "o.csv", [{"text": "t", "score": 3}]), train=train)
    assert other[0].label is None  # another column that could hold labels is not taken
    dev = read_labelled_texts(write(tmp_path / "d.csv", [{"sentence": "s", "text": "t", "label": 1}]), train=train)
    assert dev[0].text == "t"
    assert labelled_texts.LabelledTexts is type(dev)


def test_sets_that_cannot_be_classified(tmp_path):
    rows = read_labelled_texts(write(tmp_path / "a.csv", [{"text": "t", "toxic": 1, "obscene": 0}]))
    with pytest.raises(ValueError, match=r"a\.csv:2: no column known as a label; name it: --task\.columns\.label"):
        single(rows)
    with pytest.raises(ValueError, match="all rows have the label '1'; name all labels: --task.labels"):
        single(read_labelled_texts(table(tmp_path / "b.csv", 1, 1)))


def test_words_that_pandas_takes_for_empty_cells(tmp_path):
    for word in ("NA", "None", "null", "N/A"):
        path = table(tmp_path / "a.csv", "x", word, "y")
        with pytest.raises(ValueError, match=rf"a\.csv:3: no label \('{word}'\)(\n.*)+Where '{word}' is a label"):
            read_labelled_texts(path)
        assert single(read_labelled_texts(path, unlabelled=()))[0] == tuple(sorted(["x", word, "y"]))
        assert [row.label for row in read_labelled_texts(path, labels=("x", word, "y"))] == ["x", word, "y"]
        assert len(read_labelled_texts(path, bad_rows=BadRows.SKIP)) == 2
        assert single(read_labelled_texts(table(tmp_path / "a.jsonl", "x", word)))[0] == tuple(sorted(["x", word]))
