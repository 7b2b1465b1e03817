"""Inputs of `flaxbert predict` from lines and tables, and the errors about those that cannot be used."""

import pytest

from flaxbert.cli.text_inputs import InputShape, count_inputs, file_inputs, line_inputs, usable_texts
from train.data.choice_questions import read_choice_questions
from train.data.labelled_texts import read_labelled_texts

SINGLE = InputShape(1, 1, "a text")
EITHER = InputShape(1, 2, "a text, or a pair of texts")
PAIR = InputShape(2, 2, "a pair of texts")
CHOICES = InputShape(2, None, "a prompt and its choices")


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(path, shape, columns=()):
    return list(usable_texts(file_inputs(path, shape, columns)))


def test_lines(tmp_path):
    assert list(usable_texts(line_inputs(["a\tb\n", "c\r\n"], "x", EITHER))) == [("a", "b"), ("c",)]
    assert list(usable_texts(line_inputs(["a\tb"], "x", SINGLE))) == [("a\tb",)]
    file = written(tmp_path / "a.txt", "\ufeffone\x0ctwo\u2028three\rfour\nlast")  # which are no line ends
    assert rows(file, SINGLE) == [("one\x0ctwo\u2028three\rfour",), ("last",)]
    with pytest.raises(ValueError, match="a .txt has no columns"):
        rows(file, SINGLE, ["text"])


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.tsv", 'id\tsentence1\tsentence2\tlabel\n1\t"a\tb, c\t0\n2\td\te\t1\n'),
        ("a.csv", 'id,sentence1,sentence2,label\n1,"""a","b, c",0\n2,d,e,1\n'),
        ("a.jsonl", '{"id": 1, "sentence1": "\\"a", "sentence2": "b, c"}\n{"sentence1": "d", "sentence2": "e"}\n'),
    ],
)
def test_tables_by_usual_names_and_by_given_ones(tmp_path, name, content):
    file = written(tmp_path / name, content)
    assert rows(file, PAIR) == rows(file, EITHER) == [('"a', "b, c"), ("d", "e")]
    assert rows(file, SINGLE, ["sentence2"]) == [("b, c",), ("e",)]
    assert rows(file, PAIR, ["sentence2", "sentence1"]) == [("b, c", '"a'), ("e", "d")]
    for shape in (SINGLE, CHOICES):
        with pytest.raises(ValueError, match=f"columns found: 'id', 'sentence1', .*none known as {shape.description}"):
            rows(file, shape)
    with pytest.raises(ValueError, match=f"{name}:[12]: no 'nothing' beside "):
        rows(file, SINGLE, ["nothing"])


def test_choices_may_differ_in_number(tmp_path):
    table = written(tmp_path / "a.tsv", "choice1\tprompt\tchoice2\tchoice3\na\tp\tb\tc\nd\tq\te\t\n")
    assert rows(table, CHOICES) == [("p", "a", "b", "c"), ("q", "d", "e")]
    objects = written(tmp_path / "a.jsonl", '{"prompt": "p", "choices": ["a", "b", "c"]}\n')
    assert rows(objects, CHOICES) == [("p", "a", "b", "c")]


def test_all_bad_rows_are_counted_and_five_shown(tmp_path):
    lines = ["fine", " ", "a\tb\tc", "\udcff", *[""] * 4]
    file = written(tmp_path / "a.txt", "\n".join(lines).encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(ValueError) as raised:
        count_inputs(file_inputs(file, EITHER))
    said = str(raised.value).split("\n")
    assert said[0] == "7 of 8 rows can't be used:" and said[6:] == ["  and 2 more"]
    assert said[1:4] == [
        f"  {file}:2: empty",
        f"  {file}:3: 3 texts; expected a text, or a pair of texts",
        f"  {file}:4: byte 0xff at character 1 is not UTF-8; convert the text to UTF-8",
    ]
    with pytest.raises(ValueError, match="a.txt:2: empty"):
        rows(file, EITHER)
    objects = written(tmp_path / "a.jsonl", '{"text": 3}\n[]\n{"text"\n{"text": "x", "y": 1}\n')
    with pytest.raises(ValueError, match=r"(?s)3 of 4.*:1: 3 is not a string.*:2: .*not an object.*:3: not JSON"):
        count_inputs(file_inputs(objects, SINGLE))
    ragged = written(tmp_path / "a.csv", 'text,b\n1,2\n1\n"a,\n')
    with pytest.raises(
        ValueError, match=r"(?s)2 of 3.*:3: 1 fields, expected 2: 'text', 'b'.*:4: not CSV up to line 4"
    ):
        count_inputs(file_inputs(ragged, SINGLE))
    assert count_inputs(file_inputs(written(tmp_path / "b.txt", "a\nb"), SINGLE)) == 2


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="ending '.xml' is none of .txt, .tsv, .csv, .jsonl, .json"):
        count_inputs(file_inputs(tmp_path / "a.xml", SINGLE))
    with pytest.raises(ValueError, match="there are no rows"):
        count_inputs(file_inputs(written(tmp_path / "a.tsv", "text\n"), SINGLE))
    with pytest.raises(FileNotFoundError):
        count_inputs(file_inputs(tmp_path / "none.txt", SINGLE))


@pytest.mark.parametrize(
    "header",
    ["#1 String\t#2 String", "Sentence", "sentence_a\tsentence_b", "premise\thypo", "Text\tlabel", "sentence1\tscore"],
)
def test_headers_of_training_files_are_understood(tmp_path, header):
    path = written(tmp_path / "a.tsv", f"{header}\n" + "\t".join("ab"[: header.count("\t") + 1]))
    [row] = read_labelled_texts(path)
    assert rows(path, EITHER) == [(row.text,) if row.text_pair is None else (row.text, row.text_pair)]


@pytest.mark.parametrize(
    "header, cells",
    [
        ("premise,question,choice1,choice2", "p,cause,a,b"),
        ("context,question,answer0,answer1", "c,q,a,b"),
        ("sent1,sent2,ending0,ending1", "s,t,a,b"),
    ],
)
def test_headers_of_multiple_choice_files_are_understood(tmp_path, header, cells):
    path = written(tmp_path / "a.csv", f"{header}\n{cells}\n")
    [question] = read_choice_questions(path)
    assert rows(path, CHOICES) == [(question.context, *question.choices)]


def test_of_several_known_columns_training_and_prediction_take_the_same(tmp_path):
    path = written(tmp_path / "a.tsv", "text\tsentence\ttitle\na\tb\tc\n")
    [row] = read_labelled_texts(path)
    assert rows(path, SINGLE) == rows(path, EITHER) == [(row.text,)] == [("b",)]
