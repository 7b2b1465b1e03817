"""Rows of real and of broken files: every value, every line number, every refusal."""

import csv
import json
from collections import Counter
from pathlib import Path

import datasets
import pytest

from train.data.labelled_texts import Columns, read_labelled_texts
from train.data.labels import LabelledText, infer_labels, label_ids

COLA = Columns(text="3", label="1")


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def refusal(path: Path | str, **arguments) -> str:
    with pytest.raises(ValueError) as caught:
        read_labelled_texts(path, **arguments)
    return str(caught.value)


@pytest.mark.parametrize("opening", ["\n", " \t\n\n", "\ufeff\n", "\n\ufeff", ",\n"])
def test_blank_lines_before_the_header_are_skipped(tmp_path, opening):
    path = write(tmp_path, "a.csv", opening + "text,label\na,x\nb,y\n")
    lines = opening.count("\n")
    assert [(row.text, row.source) for row in read_labelled_texts(path)] == [
        ("a", f"{path}:{lines + 2}"),
        ("b", f"{path}:{lines + 3}"),
    ]
    assert "2 fields, expected 1: '# notes' (the header, line 1)" in refusal(
        write(tmp_path, "b.tsv", "# notes\ntext\tlabel\na\tx\n")
    )
    assert "no line holds anything" in refusal(write(tmp_path, "c.csv", ",,\n,,\n"))


def test_a_test_set_with_a_header_beside_files_without_one(tmp_path):
    """As GLUE's CoLA: the columns of train.tsv have numbers, test.tsv has a header and no labels."""
    train = read_labelled_texts(write(tmp_path, "train.tsv", "gj04\t1\t\tOne.\ngj04\t0\t*\tTwo.\n"), columns=COLA)
    test = write(tmp_path, "test.tsv", "index\tsentence\n0\tThree.\n")
    rows = read_labelled_texts(test, columns=COLA, train=train)
    assert [(row.text, row.label, row.source) for row in rows] == [("Three.", None, f"{test}:2")]
    assert rows.columns == {"text": "sentence"}
    numbered = Columns(text="1", label="0")
    short = read_labelled_texts(write(tmp_path, "short.tsv", "1\tOne.\n0\tTwo.\n"), columns=numbered)
    assert [row.text for row in read_labelled_texts(test, columns=numbered, train=short)] == ["Three."]
    with_header = write(tmp_path, "header.tsv", "label\tsentence\n1\tOne.\n")
    assert [row.label for row in read_labelled_texts(with_header, columns=numbered, train=short)] == ["1"]
    assert "header.tsv:1: a header, 'label', 'sentence'; give the columns by name" in refusal(
        with_header, columns=numbered
    )
    assert "'3' must be there" in refusal(write(tmp_path, "o.tsv", "a\tb\nc\td\n"), columns=COLA, train=train)


# Real files.


@pytest.mark.parametrize(
    ("name", "count", "pairs"),
    [
        ("glue/CoLA/train.tsv", 8551, False),
        ("glue/CoLA/dev.tsv", 1043, False),
        ("glue/MRPC/train.tsv", 3667, True),
        ("glue/MRPC/dev.tsv", 408, True),
        ("glue/RTE/train.tsv", 2490, True),
        ("glue/RTE/dev.tsv", 277, True),
        ("glue/SST-2/train.tsv", 67349, False),
        ("glue/SST-2/dev.tsv", 872, False),
        ("glue/STS-B/train.tsv", 5749, True),
        ("glue/STS-B/dev.tsv", 1500, True),
        ("glue/WNLI/train.tsv", 635, True),
        ("glue/WNLI/dev.tsv", 71, True),
        ("samples/STS-B/train.tsv", 9, True),
        ("samples/STS-B/dev.tsv", 9, True),
        ("tnews_1k/toutiao_category_train.txt", 1000, False),
        ("tnews_1k/toutiao_category_dev.txt", 1000, False),
        ("tnews_1k/toutiao_category_test.txt", 1000, False),
        ("fewclue_tnews/train_few_all.json", 1185, False),
        ("fewclue_tnews/dev_few_all.json", 1098, False),
    ],
)
def test_real_files_have_the_stated_rows(data_dir, name, count, pairs):
    path = data_dir / "tasks" / name
    rows = read_labelled_texts(path, columns=COLA if "CoLA" in name else Columns())
    assert len(rows) == count
    assert all((row.text_pair is not None) == pairs and row.label is not None for row in rows)
    # Every one of these files has one row a line: the last row stands in the last line.
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    assert rows[-1].source == f"{path}:{len(lines)}"


def test_real_columns_are_the_right_ones(data_dir):
    def first(name, **arguments):
        row = read_labelled_texts(data_dir / "tasks" / name, **arguments)[0]
        return row.text, row.text_pair, row.label

    assert first("glue/CoLA/dev.tsv", columns=COLA) == ("The sailors rode the breeze clear of the rocks.", None, "1")
    text, pair, label = first("glue/MRPC/dev.tsv")
    assert text.startswith("He said the foodservice pie") and pair.startswith('" The foodservice pie') and label == "1"
    assert first("glue/STS-B/train.tsv") == ("A plane is taking off.", "An air plane is taking off.", "5.000")
    assert first("glue/SST-2/train.tsv") == ("hide new secretions from the parental units ", None, "0")
    text, pair, label = first("glue/RTE/dev.tsv")
    assert text.startswith("Dana Reeve") and pair == "Christopher Reeve had an accident." and label == "not_entailment"
    assert first("tnews_1k/toutiao_category_train.txt") == ("股票中的突破形态", None, "104")
    by_name = Columns(label="label_name")
    assert first("tnews_1k/toutiao_category_train.txt", columns=by_name)[2] == "news_finance"
    assert first("fewclue_tnews/train_few_all.json") == ("孩子跟谁睡，就是谁的孩子", None, "100")


def test_real_labels(data_dir):
    folder = data_dir / "tasks"
    train = infer_labels(read_labelled_texts(folder / "tnews_1k/toutiao_category_train.txt"))
    test = read_labelled_texts(folder / "tnews_1k/toutiao_category_test.txt")
    assert len(train) == 14 and set(infer_labels(test)) - set(train) == {"114"}
    with pytest.raises(ValueError, match=r"test\.txt:\d+: label '114' is not allowed; near names: '1\d\d', "):
        label_ids(test, train)
    rte = read_labelled_texts(folder / "glue/RTE/train.tsv")
    assert infer_labels(rte) == ("entailment", "not_entailment")
    assert Counter(label_ids(rte, infer_labels(rte))) == Counter(0 if r.label == "entailment" else 1 for r in rte)


def test_real_files_of_other_tasks_are_refused(data_dir):
    folder = data_dir / "tasks"
    assert "columns found: 'premise', 'choice1'" in refusal(folder / "superglue_copa/train.jsonl")
    assert "'label' is {'name'" in refusal(folder / "cluener/train.jsonl")
    assert "columns found: 'gj04', '1', ''" in refusal(folder / "glue/CoLA/dev.tsv")
    assert "'paragraphs', 'title'; none known as a text" in refusal(folder / "xquad/xquad.en.json")


# Which columns.


@pytest.mark.parametrize(
    ("header", "text", "pair", "label"),
    [
        ("text label", 0, None, 1),
        ("Label Text", 1, None, 0),
        ("sentence title class", 0, None, 2),
        ("title content label", 1, None, 2),
        ("label sentence1 sentence2", 1, 2, 0),
        ("sentence2 sentence1 similarity", 1, 0, 2),
        ("id sentence1 score label", 1, None, 3),
        ("id text text_pair labels", 1, 2, 3),
        ("question1 question2 is_duplicate", 0, 1, 2),
        ("index question sentence label", 1, 2, 3),
        ("premise hypothesis gold_label label1", 0, 1, 2),
        ("premise hypo label", 0, 1, 2),  # XNLI's translations of MNLI's training set
        ("language gold_label sentence1_parse sentence2_parse sentence1 sentence2 genre label1", 4, 5, 1),  # XNLI
        ("index genre sentence1_binary_parse sentence1 sentence2 label1 gold_label", 3, 4, 6),  # MNLI of GLUE
        ("id sentence text_pair", 1, None, None),
        ("question label", None, None, None),
    ],
)
def test_columns_by_convention(tmp_path, header, text, pair, label):
    names = header.split()
    path = write(tmp_path, "a.tsv", "\t".join(names) + "\n" + "\t".join(f"cell{i}" for i in range(len(names))))
    if text is None:
        assert "columns found: 'question', 'label'; none known as a text" in refusal(path)
        return
    [row] = read_labelled_texts(path)
    expected = [None if i is None else f"cell{i}" for i in (text, pair, label)]
    assert [row.text, row.text_pair, row.label] == expected


def test_columns_given_by_name(tmp_path):
    path = write(tmp_path, "a.tsv", "sentence1\tsentence2\tlabel\tother\na\tb\tc\td")

    def cells(**names):
        [row] = read_labelled_texts(path, columns=Columns(**names))
        return row.text, row.text_pair, row.label

    assert cells(text="other") == ("d", None, "c")
    assert cells(text="sentence1") == ("a", "b", "c")
    assert cells(text="sentence1", text_pair="") == ("a", None, "c")
    assert cells(text="label") == ("c", None, None)
    assert cells(label="sentence1", text="sentence2") == ("b", None, "a")
    assert cells(text_pair="sentence2") == ("a", "b", "c")
    assert cells(label="") == ("a", "b", None)
    assert cells(text="other", text_pair="sentence1", label="sentence2") == ("d", "a", "b")
    for wrong in (
        Columns(text="Sentence1"),
        Columns(label="gold"),
        Columns(text="sentence1", text_pair="sentence1"),
        Columns(label="other", text="other"),
    ):
        message = refusal(path, columns=wrong)
        assert "columns found: 'sentence1', 'sentence2', 'label', 'other'; " in message
        assert "must be there, for one use each" in message and str(path) in message


def test_a_column_has_one_use(tmp_path):
    path = write(tmp_path, "a.tsv", "sentence\ttext\tlabel\na\tb\tc")
    [row] = read_labelled_texts(path, columns=Columns(label="sentence"))
    assert (row.text, row.label) == ("b", "a")
    [row] = read_labelled_texts(path, columns=Columns(text_pair="sentence"))
    assert (row.text, row.text_pair) == ("b", "a")


def test_numbered_columns_mean_no_header(tmp_path):
    for name, separator in (("a.tsv", "\t"), ("a.csv", ",")):
        path = write(tmp_path, name, f"x{separator}text\ny{separator}label\n")
        rows = read_labelled_texts(path, columns=Columns(text="1", label="0"))
        assert rows == [LabelledText("text", None, "x", f"{path}:1"), LabelledText("label", None, "y", f"{path}:2")]
        assert read_labelled_texts(path, columns=Columns(text="0"))[0].label is None
        assert "'2' must be there" in refusal(path, columns=Columns(text="2"))
        assert "'text' must be there" in refusal(path, columns=Columns(text="text", label="1"))
        assert "none known as a text" in refusal(path, columns=Columns(label="1"))
    path = write(tmp_path, "a.jsonl", '{"0": "text", "1": 7}')
    assert read_labelled_texts(path, columns=Columns(text="0", label="1")) == [
        LabelledText("text", None, "7", f"{path}:1")
    ]


def test_header_with_a_name_twice_is_refused(tmp_path):
    assert "a.csv:1: columns named twice: 'text'" in refusal(write(tmp_path, "a.csv", "text,text,label\na,b,c"))
    assert read_labelled_texts(write(tmp_path, "b.csv", "text, label,,\na,b,,"))[0].label == "b"


# Lines and quotes.


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("strange", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\ufeff"])
def test_only_newlines_end_a_line(tmp_path, end, strange):
    text = f"one{strange}two"
    lines = {
        "a.tsv": ["text\tlabel", f"{text}\tx", "last\ty"],
        "a.csv": ["text,label", f"{text},x", "last,y"],
        "a.jsonl": [
            '{"text": "first", "label": "x"}',
            json.dumps({"text": text, "label": "x"}),
            '{"text": "last", "label": "y"}',
        ],
        "a.txt": ["1_!_x_!_n_!_first_!_", f"1_!_x_!_n_!_{text}_!_", "1_!_y_!_n_!_last_!_k"],
    }
    for name, content in lines.items():
        path = write(tmp_path, name, "\ufeff" + end.join(content) + end)
        assert read_labelled_texts(path)[-2:] == [
            LabelledText(text, None, "x", f"{path}:2"),
            LabelledText("last", None, "y", f"{path}:3"),
        ]


def test_tsv_keeps_quotes_and_lone_carriage_returns(tmp_path):
    path = write(tmp_path, "a.tsv", 'text\tlabel\n"he said\ta\nit""s\rso"\tb\n"\tc\n')
    assert [row.text for row in read_labelled_texts(path)] == ['"he said', 'it""s\rso"', '"']


def test_csv_cells_span_lines_and_sources_name_the_first(tmp_path):
    path = write(
        tmp_path, "a.csv", 'text,label\r\n"one\r\n""two"", three\r\n\r\nfour",x\r\n5" disk,y\r\n"a\nb",z\r\nc,w\r\n'
    )
    assert read_labelled_texts(path) == [
        LabelledText('one\n"two", three\n\nfour', None, "x", f"{path}:2"),
        LabelledText('5" disk', None, "y", f"{path}:6"),
        LabelledText("a\nb", None, "z", f"{path}:7"),
        LabelledText("c", None, "w", f"{path}:9"),
    ]


def test_long_texts(tmp_path):
    text = "word " * 100_000
    before = csv.field_size_limit(1000)
    for name, content in (("a.csv", f'text,label\n"{text}",x'), ("a.tsv", f"text\tlabel\n{text}\tx")):
        assert read_labelled_texts(write(tmp_path, name, content))[0].text == text
    assert csv.field_size_limit(before) == 1000


def test_blank_lines_at_the_end_are_ignored(tmp_path):
    for name, content in (("a.csv", "text\na\n\n \n"), ("a.tsv", "text\na\n\n\r\n"), ("a.json", '{"text":"a"}\n\n')):
        assert [row.text for row in read_labelled_texts(write(tmp_path, name, content))] == ["a"]


def test_json_labels_are_as_written(tmp_path):
    labels = ['"x"', "3", "-2", "true", "3.5", "12345678901234567890123"]
    path = write(tmp_path, "a.jsonl", "\n".join(f'{{"text": "a", "label": {label}}}' for label in labels))
    assert [row.label for row in read_labelled_texts(path)] == ["x", *labels[1:]]
    path = write(tmp_path, "b.jsonl", '{"text": "\\ud83d\\ude00", "label": "\\u00e9"}')
    assert read_labelled_texts(path) == [LabelledText("😀", None, "é", f"{path}:1")]


# Malformed rows: each names its line, what was found and what is expected.


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.tsv", "text\tlabel\na\tx\nb\nc\ty", "3: 1 fields, expected 2: 'text', 'label'"),
        ("a.tsv", "text\tlabel\na\tx\nb\ty\tz", "3: 3 fields, expected 2"),
        ("a.tsv", "text\tlabel\na\tx\n\nb\ty", "3: a blank line, expected 2"),
        ("a.tsv", "text\tlabel\na\tx\n \ty", "3: 'text': nothing but blanks"),
        ("a.tsv", "text\tlabel\na\tx\nb\t", "3: no label"),
        ("a.tsv", "sentence1\tsentence2\na\tx\nb\t", "3: 'sentence2': nothing but blanks"),
        ("a.tsv", b"text\tlabel\na\tx\ncaf\xe9\ty", "3: byte 0xe9 at character 4 is not UTF-8"),
        ("a.tsv", b"text\tlabel\na\tx\n\xed\xa0\x80\ty", "3: byte 0xed at character 1 is not UTF-8"),
        ("a.tsv", "text\tlabel\na\tx\nb\0\ty", "3: a NUL character"),
        ("a.csv", 'text,label\n"a\nb",x\nb', "4: 1 fields, expected 2"),
        ("a.csv", "text,label\na,x\n\nb,y", "3: a blank line, expected 2"),
        ("a.csv", 'text,label\na,x\n"b"c,y\nd,z', "3: not CSV up to line 3: ',' expected"),
        ("a.csv", 'text,label\na,x\n"b,y\nd,z', "3: not CSV up to line 4: unexpected end"),
        ("a.csv", "text,label\na,x\nb\rc,y\nd,z", "3: not CSV up to line 3: new-line character"),
        ("a.csv", b'text,label\na,x\n"b\n\xff",y', "3: byte 0xff at character 1 of its line 2 is not UTF-8"),
        ("a.csv", 'text,label\na,x\n"b\n\0",y', "3: a NUL character"),
        ("a.txt", "1_!_x_!_n_!_a_!_\n1_!_x_!_n_!_a", "2: 4 fields, expected 5: 'id', 'label', 'label_name'"),
        ("a.txt", "1_!_x_!_n_!_a_!_\n1_!_x_!_n_!__!_k", "2: 'title': nothing but blanks"),
        ("a.txt", b"\xff_!_x_!_n_!_a_!_\n1_!_x_!_n_!_a_!_", "1: byte 0xff"),
        ("a.jsonl", '{"text": "a"}\n{"text": }', "2: not JSON: Expecting value at column 10"),
        ("a.jsonl", '{"text": "a"}\n\n{"text": "b"}', "2: a blank line"),
        ("a.jsonl", '{"text": "a"}\n["b"]', "2: ['b'] is not an object"),
        ("a.jsonl", '{"text": "a"}\n"b"', "2: 'b' is not an object"),
        ("a.jsonl", '{"text": "a"}\n{"text": null}', "2: 'text' is None, expected a string"),
        ("a.jsonl", '{"text": "a"}\n{"text": 5}', "2: 'text' is 5, expected a string"),
        ("a.jsonl", '{"text": "a"}\n{"text": ""}', "2: 'text': nothing but blanks"),
        ("a.jsonl", '{"text": "a"}\n{"text": "\\ud800"}', "2: 'text': a lone surrogate at character 1"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b\\u0000"}', "2: 'text': a NUL character"),
        ("a.jsonl", '{"text": "a"}\n{}', "2: no 'text' beside none"),
        ("a.jsonl", '{"text": "a"}\n' + "[" * 100_000, "2: not readable as JSON: "),
        ("a.jsonl", '{"text": "a"}\n{"text": "b", "n": ' + "9" * 5000 + "}", "2: not readable as JSON: "),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', "2: byte 0xff at character 11 is not UTF-8"),
        ("a.jsonl", '{"text": "a"}\n{"text": "b", "label": 0}', "1: no label"),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n{"text": "b", "label": null}',
            "2: no label",
        ),
        (
            "a.jsonl",
            '{"text": "a", "label": 1}\n{"text": "b", "label": [1]}',
            "2: 'label' is the list [1]; a row with several labels is for --task.problem-type multi_label",
        ),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": NaN}', "2: no label"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": ""}', "2: no label"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, name, content, found):
    path = write(tmp_path, name, content)
    message = refusal(path)
    lines = message.splitlines()
    assert lines[0].startswith("1 of ") and lines[1].startswith(f"  {path}:{found}")
    assert len(lines) == 3 and lines[2].startswith(f"Expected in {path.suffix}: ")


def test_all_malformed_rows_are_counted_and_five_are_shown(tmp_path):
    bad = {3, 5, 6, 8, 9, 10, 12}
    lines = ["text\tlabel", *("broken" if n in bad else "text\tx" for n in range(2, 14))]
    path = write(tmp_path, "a.tsv", "\n".join(lines))
    message = refusal(path)
    assert message.startswith("7 of 12 rows") and "\n  and 2 more\n" in message
    assert [line.split(": ")[0] for line in message.splitlines()[1:6]] == [f"  {path}:{n}" for n in (3, 5, 6, 8, 9)]


def test_a_file_with_nothing_readable_is_not_blamed_on_columns(tmp_path):
    assert refusal(write(tmp_path, "a.jsonl", "[\n{},\n]")).startswith("3 of 3 rows can't be used:\n")
    assert "columns found: none" in refusal(write(tmp_path, "b.jsonl", "{}"))


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.json", "a.txt"])
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n"])
def test_an_empty_file_is_refused(tmp_path, name, content):
    assert refusal(write(tmp_path, name, content)).startswith(f"{tmp_path / name} is empty; expected: ")


def test_unreadable_headers_are_refused(tmp_path):
    for name in ("a.tsv", "a.csv"):
        assert "a header but no rows" in refusal(write(tmp_path, name, "text\tlabel\n"))
        assert f"{name}:1: a NUL character (UTF-16" in refusal(write(tmp_path, name, "text\n\na".encode("utf-16-le")))
        assert f"{name}:1: byte 0xff" in refusal(write(tmp_path, name, "text\n\na".encode("utf-16")))
    assert "a.csv:1: not CSV" in refusal(write(tmp_path, "a.csv", '"text"s,label\na,b'))


# Paths and data sets.


def test_paths(tmp_path, monkeypatch):
    write(tmp_path, "train.tsv", "text\na")
    write(tmp_path, "rows.xlsx", "text\na")
    write(tmp_path, "UPPER.TSV", "text\na")
    with pytest.raises(FileNotFoundError, match=r"trian\.tsv does not exist; .* holds 'train\.tsv'"):
        read_labelled_texts(tmp_path / "trian.tsv")
    with pytest.raises(FileNotFoundError, match=r"holds 'UPPER\.TSV', 'rows\.xlsx', 'train\.tsv'"):
        read_labelled_texts(tmp_path / "nowhere" / "zzzz.json")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_labelled_texts(str(tmp_path / "nothing"))
    message = refusal(tmp_path / "rows.xlsx")
    assert "'.xlsx' is none of '.tsv', '.csv', '.jsonl', '.json', '.txt'" in message
    assert "split='dev' is for data sets" in refusal(tmp_path / "train.tsv", split="dev")
    monkeypatch.chdir(tmp_path)
    assert "'.xlsx' is none of" in refusal("rows.xlsx")
    assert read_labelled_texts("UPPER.TSV")[0].source == "UPPER.TSV:2"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_labelled_texts("~/train.tsv")[0].text == "a"


@pytest.fixture
def saved(tmp_path):
    """A saved DatasetDict: class labels, an unlabelled test split, a column that is no scalar."""
    features = datasets.Features(
        {
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "sentence": datasets.Value("string"),
            "tokens": datasets.List(datasets.Value("string")),
        }
    )
    columns = {"sentence": ["a", "b"], "tokens": [["a"], []]}
    train = datasets.Dataset.from_dict({**columns, "label": [1, 0]}, features=features)
    test = datasets.Dataset.from_dict({**columns, "label": [-1, -1]}, features=features)
    broken = datasets.Dataset.from_dict({**columns, "sentence": ["a", None], "label": [1, -1]}, features=features)
    folder = tmp_path / "saved"
    datasets.DatasetDict(train=train, test=test, broken=broken).save_to_disk(folder)
    train.save_to_disk(tmp_path / "single")
    return folder


def test_saved_data_sets(saved, tmp_path):
    rows = read_labelled_texts(saved, split="train")
    assert rows == [
        LabelledText("a", None, "yes", f"datasets:{saved}:0"),
        LabelledText("b", None, "no", f"datasets:{saved}:1"),
    ]
    assert read_labelled_texts(f"datasets:{saved}", split="train") == rows
    assert [row.label for row in read_labelled_texts(saved, split="test")] == [None, None]
    message = refusal(saved, split="broken")
    assert message.startswith("1 of 2 rows") and f"datasets:{saved}:1: 'sentence' is None" in message
    message = refusal(saved, split="broken", columns=Columns(text="label"))
    assert f"datasets:{saved}:1: 'label' is None" in message
    assert "split=None is none of 'train', 'test', 'broken'" in refusal(saved)
    assert "split='dev' is none of 'train', 'test', 'broken'" in refusal(saved, split="dev")
    assert "columns found: 'sentence', 'label'; 'tokens' must" in refusal(
        saved, split="train", columns=Columns("tokens")
    )
    assert [row.text for row in read_labelled_texts(tmp_path / "single")] == ["a", "b"]
    assert "split='test' is none of 'train'" in refusal(tmp_path / "single", split="test")


def test_a_folder_of_csv_files(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "pairs").mkdir()
    write(tmp_path / "pairs", "train.csv", "sentence1,sentence2,label\na,b,3\nc,d,4\n")
    rows = read_labelled_texts(tmp_path / "pairs")
    assert [(row.text, row.text_pair, row.label) for row in rows] == [("a", "b", "3"), ("c", "d", "4")]


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ("imdb", ("imdb", None)),
        ("datasets:stanfordnlp/imdb", ("stanfordnlp/imdb", None)),
        ("nyu-mll/glue:mrpc", ("nyu-mll/glue", "mrpc")),
        ("datasets:odd.tsv", ("odd.tsv", None)),
    ],
)
def test_names_go_to_load_dataset(tmp_path, monkeypatch, source, arguments):
    calls = []

    def load_dataset(*positional, **named):
        calls.append((positional, named))
        return datasets.Dataset.from_dict({"text": ["a"], "label": [1.5]})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    name = source.removeprefix("datasets:")
    assert read_labelled_texts(source, split="train[:1]") == [LabelledText("a", None, "1.5", f"datasets:{name}:0")]
    assert calls == [(arguments, {"split": "train[:1]"})]


@pytest.mark.parametrize(("error", "kind"), [(ConnectionError, FileNotFoundError), (ValueError, ValueError)])
def test_a_data_set_that_cannot_be_loaded(tmp_path, monkeypatch, error, kind):
    def load_dataset(*_, **__):
        raise error("the reason")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(kind, match=r"'no/such' is no file \('\.tsv', .* no data set that can be loaded: the reason"):
        read_labelled_texts("no/such", split="train")


# Labels.


def labelled(*labels: str | None) -> list[LabelledText]:
    return [LabelledText("text", None, label, f"file.tsv:{n}") for n, label in enumerate(labels, 2)]


def test_label_ids_follow_the_given_order():
    assert label_ids(labelled("b", "a", "b"), ["b", "a"]) == [0, 1, 0]
    assert label_ids([], ["a"]) == []


def test_unknown_labels_are_named():
    with pytest.raises(ValueError) as caught:
        label_ids(labelled("positive", "postive", None, "zzz"), ("negative", "positive"))
    assert str(caught.value).splitlines() == [
        "3 of 4 rows can't be used:",
        "  file.tsv:3: label 'postive' is not allowed; near names: 'positive'",
        "  file.tsv:4: no label",
        "  file.tsv:5: label 'zzz' is not allowed",
        "Allowed labels: 'negative', 'positive'. Correct these rows, give all labels: --task.labels (without a "
        "value: those of the training data), or skip and list them: --task.bad-rows skip.",
    ]
    with pytest.raises(ValueError, match="distinct and at least one, got none"):
        label_ids(labelled("a"), [])
    with pytest.raises(ValueError, match="distinct and at least one, got 'a', 'a'"):
        label_ids(labelled("a"), ["a", "a"])


def test_inferred_labels_are_sorted():
    assert infer_labels(labelled("b", "a", "b", "B")) == ("B", "a", "b")
    assert infer_labels(labelled("10", "9", "-1", "2.5", "9")) == ("-1", "2.5", "9", "10")
    assert infer_labels(labelled("10", "9", "x")) == ("10", "9", "x")
    assert infer_labels(labelled("10", "9", "1_0", "nan")) == ("10", "1_0", "9", "nan")
    with pytest.raises(ValueError, match=r"1 of 2 rows.*\n  file\.tsv:3: no label\n"):
        infer_labels(labelled("a", None))
    with pytest.raises(ValueError, match="no labels to infer"):
        infer_labels([])
