"""Inputs of `flaxbert predict` from lines and tables, and the errors about those that cannot be used."""

import json

import pytest

from flaxbert.cli.text_inputs import InputShape, count_inputs, file_inputs, line_inputs, usable_texts
from train.data.choice_questions import read_choice_questions
from train.data.labelled_texts import Columns, read_labelled_texts
from train.data.tagged_sentences import read_tagged_sentences

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
    lines = ["fine", " ", "a\tb\tc", "\udcff", *[""] * 4, "last"]
    file = written(tmp_path / "a.txt", "\n".join(lines).encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(ValueError) as raised:
        count_inputs(file_inputs(file, EITHER))
    said = str(raised.value).split("\n")
    assert said[0] == "7 of 9 rows can't be used:" and said[6:] == ["  and 2 more"]
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


WORDS = InputShape(1, 1, "a text", may_be_words=True)


def test_blank_last_lines_and_empty_last_rows_are_no_inputs(tmp_path):
    for name, content in (
        ("a.txt", "a\nb\n\n \n\t\n"),
        ("a.tsv", "text\tid\na\t1\nb\t2\n\n\t\n"),
        ("a.csv", "text,b\na,\nb,\n,\n"),
    ):
        assert rows(written(tmp_path / name, content), SINGLE) == [("a",), ("b",)]


def test_lines_that_end_with_a_carriage_return_alone(tmp_path):
    assert rows(written(tmp_path / "a.txt", "one\rtwo\r"), SINGLE) == [("one",), ("two",)]
    assert rows(written(tmp_path / "a.csv", 'text,label\r"a\rb",1\rc,0'), SINGLE) == [("a\nb",), ("c",)]


@pytest.mark.parametrize("name, separator", [("a.tsv", "\t"), ("a.csv", ",")])
def test_tables_without_header_by_number_also_with_further_fields(tmp_path, name, separator):
    lines = ["gj04\t1\t\tOne.", "gj04\t0\t*\tTwo.\tmore\teven more"]
    file = written(tmp_path / name, "\n".join(lines).replace("\t", separator))
    assert rows(file, SINGLE, ["3"]) == [("One.",), ("Two.",)]
    assert [row.text for row in read_labelled_texts(file, columns=Columns(text="3", label="1"))] == ["One.", "Two."]
    with pytest.raises(ValueError, match=f"{name}:1: no '4' beside '0', '1', '2', '3'"):
        rows(file, SINGLE, ["4"])


@pytest.mark.parametrize(
    "content",
    [
        '{"text": "a"}\n{"text": "b"}\n',
        '[{"text": "a"}, {"text": "b"}]',
        '[\n  {"text": "a"},\n  {"text": "b"}\n]\n',
        '[{"text": "a"},\n{"text": "b"}]\n',
        '{"data": [{"text": "a"}, {"text": "b"}], "version": 1}',
        '{\n "data": [\n{"text": "a"},\n{"text": "b"}]}',
    ],
)
def test_json_of_lines_of_an_array_or_of_an_object_with_data(tmp_path, content):
    file = written(tmp_path / "a.json", content)
    assert rows(file, SINGLE) == [("a",), ("b",)]
    assert [row.text for row in read_labelled_texts(file)] == ["a", "b"]


def test_json_documents_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="a.json: not readable as JSON: .*line 2"):
        rows(written(tmp_path / "a.json", '[{"text": "a"},\n{"text"'), SINGLE)
    with pytest.raises(ValueError, match=r"a.json\[1\]: 3 is not an object"):
        rows(written(tmp_path / "a.json", '[{"text": "a"}, 3]'), SINGLE)


def test_json_lines_in_a_file_without_ending(tmp_path):
    assert rows(written(tmp_path / "wiki_00", '\ufeff{"id": 1, "text": "a"}\n{"id": 2, "text": "b"}\n'), SINGLE) == [
        ("a",),
        ("b",),
    ]
    with pytest.raises(ValueError, match="ending '' is none of .txt, .tsv"):
        rows(written(tmp_path / "text", "plain\n"), SINGLE)


def test_cells_of_any_length(tmp_path):
    long = "word " * 40_000
    assert rows(written(tmp_path / "a.csv", f'text,label\n"{long}",1\n'), SINGLE) == [(long,)]


def test_titles_of_tnews_are_not_taken_for_lines(tmp_path):
    file = written(tmp_path / "a.txt", "65_!_101_!_news_culture_!_A title_!_a,b\n66_!_102_!_news_sports_!_Another_!_\n")
    assert rows(file, SINGLE) == rows(file, EITHER) == [("A title",), ("Another",)]
    assert [row.text for row in read_labelled_texts(file)] == ["A title", "Another"]


CONLL = "-DOCSTART- -X- O O\n\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n\n# a remark\nPeter NNP I-NP B-PER\n"


@pytest.mark.parametrize("name", ["train.txt", "eng.train", "a.conll", "a.tsv"])
def test_files_of_tagged_words_are_sentences_for_tag(tmp_path, name):
    file = written(tmp_path / name, CONLL)
    assert rows(file, WORDS) == [("EU rejects",), ("Peter",)]
    assert [" ".join(sentence.words) for sentence in read_tagged_sentences(file)] == ["EU rejects", "Peter"]
    numbered = written(tmp_path / name, "# text\n1\tEU\tB-ORG\n2\tNew York\tO\n\n1\tPeter\tB-PER\n")
    assert rows(numbered, WORDS, ["1"]) == [("EU New York",), ("Peter",)]
    with pytest.raises(ValueError, match="give the number of the column of words"):
        rows(numbered, WORDS, ["word"])
    with pytest.raises(ValueError, match=f"{name}:2: no word in column 7, counted from 0; 3 columns, line 2"):
        rows(numbered, WORDS, ["7"])
    with pytest.raises(ValueError, match="ending|rows can't be used|known as|expected|empty"):
        count_inputs(file_inputs(file, SINGLE))


def test_lists_of_words_in_json_are_sentences_for_tag(tmp_path):
    file = written(tmp_path / "a.jsonl", '{"tokens": ["EU", "rejects"], "ner_tags": ["B-ORG", "O"]}\n')
    assert rows(file, WORDS) == [("EU rejects",)]
    assert rows(written(tmp_path / "a.txt", "O\n\nplain text\n".replace("\n\n", "\n")), WORDS) == [
        ("O",),
        ("plain text",),
    ]
    unlabelled = written(tmp_path / "a.words", "EU NNP\nrejects VBZ\n")
    assert rows(unlabelled, WORDS, ["0"]) == [("EU rejects",)]
    with pytest.raises(ValueError, match="ending '.words' is none of"):
        rows(unlabelled, WORDS)


def test_squad_files_are_questions_with_contexts(tmp_path):
    paragraph = {"context": "c", "qas": [{"id": "1", "question": "q?"}, {"id": "2", "question": "r?", "answers": []}]}
    content = {"version": "v2.0", "data": [{"title": "t", "paragraphs": [paragraph]}]}
    file = written(tmp_path / "a.json", json.dumps(content))
    assert rows(file, PAIR) == [("q?", "c"), ("r?", "c")]
    entries = [{"id": "1", "question": "q?", "context": "c", "answers": {"text": [], "answer_start": []}}]
    assert rows(written(tmp_path / "a.json", json.dumps({"data": entries}, indent=1)), PAIR) == [("q?", "c")]
    broken = {"data": [{"paragraphs": [{"context": "c"}, {"context": 3, "qas": [{"question": "q?"}, 4]}]}]}
    with pytest.raises(ValueError, match=r"(?s)3 of 3.*no list 'qas'.*'context' is 3.*no 'question' beside none"):
        count_inputs(file_inputs(written(tmp_path / "a.json", json.dumps(broken)), PAIR))


def test_texts_in_columns_of_other_names_than_before_are_named(tmp_path):
    file = written(tmp_path / "a.jsonl", '{"sentence1": "a", "sentence2": "b"}\n{"sentence1": "c"}\n')
    with pytest.raises(
        ValueError, match="a.jsonl:2: the texts are in 'sentence1', those before in 'sentence1', 'sentence2'"
    ):
        rows(file, EITHER)


def test_a_header_beside_numbers_of_columns_is_no_input(tmp_path):
    path = written(tmp_path / "a.tsv", "id\ttext\n1\tOne.\n")
    with pytest.raises(ValueError, match=r"a\.tsv:1: a header, 'id', 'text'; give --columns by name instead of by"):
        rows(path, SINGLE, ["1"])
    assert rows(path, SINGLE, ["text"]) == [("One.",)]


def test_names_of_question_and_context_in_any_case_and_the_flag_for_files_of_words(tmp_path):
    path = written(tmp_path / "a.csv", "Context,Question\nIt is here.,Where?\n")
    assert rows(path, PAIR) == [("Where?", "It is here.")]
    words = InputShape(1, 1, "a text", may_be_words=True)
    path = written(tmp_path / "a.conll", "Ann\nsleeps\n")
    with pytest.raises(ValueError, match="for a file with a word a line give --columns 0"):
        rows(path, words)
    assert rows(path, words, ["0"]) == [("Ann sleeps",)]
