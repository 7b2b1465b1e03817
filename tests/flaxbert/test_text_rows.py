"""Rows of text from lines and tables, and how those are refused that are none."""

import pytest

from flaxbert.cli.text_rows import Shape, counted, file_rows, line_rows, usable

SINGLE = Shape(1, 1, "a text")
EITHER = Shape(1, 2, "a text, or a pair of texts")
PAIR = Shape(2, 2, "a pair of texts")
CHOICES = Shape(2, None, "a prompt and its choices")


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def rows(path, shape, columns=()):
    return list(usable(file_rows(path, shape, columns)))


def test_lines(tmp_path):
    assert list(usable(line_rows(["a\tb\n", "c\r\n"], "x", EITHER))) == [("a", "b"), ("c",)]
    assert list(usable(line_rows(["a\tb"], "x", SINGLE))) == [("a\tb",)]
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
        with pytest.raises(ValueError, match=f"columns found: 'id', 'sentence1', .*none known as {shape.what}"):
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
        counted(file_rows(file, EITHER))
    said = str(raised.value).split("\n")
    assert said[0] == "7 of 8 rows can't be used:" and said[6:] == ["  and 2 more"]
    assert said[1:4] == [
        f"  {file}:2: empty",
        f"  {file}:3: 3 texts; expected a text, or a pair of texts",
        f"  {file}:4: not UTF-8",
    ]
    with pytest.raises(ValueError, match="a.txt:2: empty"):
        rows(file, EITHER)
    objects = written(tmp_path / "a.jsonl", '{"text": 3}\n[]\n{"text"\n{"text": "x", "y": 1}\n')
    with pytest.raises(ValueError, match=r"(?s)3 of 4.*:1: 3 is no string.*:2: .*not an object.*:3: not JSON"):
        counted(file_rows(objects, SINGLE))
    ragged = written(tmp_path / "a.csv", 'text,b\n1,2\n1\n"a,\n')
    with pytest.raises(ValueError, match=r"(?s)2 of 3.*:3: 1 fields; the header has 2.*:4: not CSV"):
        counted(file_rows(ragged, SINGLE))
    assert counted(file_rows(written(tmp_path / "b.txt", "a\nb"), SINGLE)) == 2


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="ending '.xml' is none of .txt, .tsv, .csv, .jsonl"):
        counted(file_rows(tmp_path / "a.xml", SINGLE))
    with pytest.raises(ValueError, match="there are no rows"):
        counted(file_rows(written(tmp_path / "a.tsv", "text\n"), SINGLE))
    with pytest.raises(FileNotFoundError):
        counted(file_rows(tmp_path / "none.txt", SINGLE))
