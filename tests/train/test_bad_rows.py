"""Malformed rows in every reader: each is refused with its line and reason, or skipped and listed, and nothing else."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from train.data.bad_rows import BAD_ROWS_FILE, BadRow, BadRows, ReadRows, write_bad_rows
from train.data.choice_questions import read_choice_questions
from train.data.labelled_texts import read_labelled_texts
from train.data.pretraining.reader import TextReader
from train.data.questions import read_squad
from train.data.tagged_sentences import read_tagged_sentences
from train.tasks.problems import make_problem, without_bad_targets

READER = Callable[[Path, BadRows], tuple[int, list[BadRow]]]


def texts(path, bad_rows):
    rows = read_labelled_texts(path, bad_rows=bad_rows)
    kind = "regression" if "score" in path.read_text(errors="replace") else "single_label_classification"
    labels = () if kind == "regression" else ("a", "b")
    rows = without_bad_targets(make_problem(kind, rows, labels=labels, separator=","), rows)
    return len(rows), rows.bad.rows


def several_labels(path, bad_rows):
    rows = read_labelled_texts(path, bad_rows=bad_rows, separator=",")
    problem = make_problem("multi_label_classification", rows, labels=("a", "b"), separator=",")
    rows = without_bad_targets(problem, rows)
    return len(rows), rows.bad.rows


def choices(path, bad_rows):
    rows = read_choice_questions(path, bad_rows=bad_rows)
    return len(rows), rows.bad.rows


def sentences(path, bad_rows):
    rows = read_tagged_sentences(path, bad_rows=bad_rows)
    return len(rows), rows.bad.rows


def questions(path, bad_rows):
    rows = read_squad(path, bad_rows=bad_rows).rows
    return len(rows), rows.bad.rows


def corpus(path, bad_rows):
    reader = TextReader([str(path)], bad_rows=bad_rows)
    return len([line for line in reader if line]), reader.skipped


def lines(*rows: str | bytes) -> bytes:
    return b"".join((row if isinstance(row, bytes) else row.encode()) + b"\n" for row in rows)


@dataclasses.dataclass(frozen=True)
class Form:
    """A reader, a file of two good rows around a bad one, and the place of the bad one in messages."""

    read: READER
    ending: str
    before: bytes
    after: bytes
    source: str
    kinds: dict[str | bytes, str]  # the reason of each malformed row


JSON = {
    b'{"text": "\xe4", "label": "a"}': "byte 0xe4 at character 11 is not UTF-8",
    '{"text": "x", "label": "a"': "not JSON",
    '{"text": "x", "text": "y", "label": "a"}': "an object has the key 'text' twice",
    '{"text": "x", "label": "a", "more": [{"n": 1, "n": 2}]}': "an object has the key 'n' twice",
    '{"text": null, "label": "a"}': "'text' is None, expected a string",
    '{"text": 5, "label": "a"}': "'text' is 5, expected a string",
    '{"text": true, "label": "a"}': "'text' is True, expected a string",
    '{"text": ["x"], "label": "a"}': r"'text' is \['x'\], expected a string",
    '{"text": "", "label": "a"}': "'text': nothing but blanks",
    '{"text": " \\u200b\\u00a0", "label": "a"}': "'text': nothing but blanks",
    '{"text": "x\\u0000", "label": "a"}': "'text': a NUL character",
    '{"text": "\\ud800", "label": "a"}': "'text': a lone surrogate",
    '{"label": "a"}': "no 'text' beside 'label'",
    '["x", "a"]': "is not an object",
    "[" * 9999: "not readable as JSON",
    "": "a blank line",
}
LABELS = {
    '{"text": "x", "label": null}': "no label",
    '{"text": "x", "label": "c"}': "label 'c' is not allowed",
    '{"text": "x", "label": {"a": 1}}': "'label' is .* expected a string or a number",
    '{"text": "x", "label": ["a"]}': "'label' is the list",
}
TSV = {
    b"\xe4\ta": "byte 0xe4 at character 1 is not UTF-8",
    "x": "1 fields, expected 2",
    "x\ta\tb": "3 fields, expected 2",
    "\ta": "'text': nothing but blanks",
    "x\x00\ta": "a NUL character",
    "x\t": "no label",
    "x\tc": "label 'c' is not allowed",
    "": "a blank line",
}
CSV = {
    b"\xe4,a": "byte 0xe4 at character 1 is not UTF-8",
    "x": "1 fields, expected 2",
    "x,a,b": "3 fields, expected 2",
    '"x,a': "not CSV up to line",
    '"x"y,a': "not CSV up to line 3",
    '" ",a': "'text': nothing but blanks",
    "x\x00,a": "a NUL character",
    "x,": "no label",
}
PAIR = {
    '{"text": "x", "text_pair": null, "label": "a"}': "'text_pair' is None",
    '{"text": "x", "text_pair": "", "label": "a"}': "'text_pair': nothing but blanks",
    '{"text": "x", "text_pair": 1.5, "label": "a"}': "'text_pair' is 1.5",
    '{"text": "x", "label": "a"}': "no 'text_pair'",
}
CHOICES = {
    '{"question": "q", "choices": ["x"], "label": 0}': "there must be at least 2",
    '{"question": "q", "choices": ["x", null, "y"], "label": 0}': "an empty choice before",
    '{"question": "q", "choices": ["x", 5], "label": 0}': "is 5, expected a string",
    '{"question": "q", "choices": ["x", "y"], "label": 2}': "'label' is 2",
    '{"question": "", "choices": ["x", "y"], "label": 1}': "'question': nothing but blanks",
    '{"question": "q", "question": "r", "choices": ["x", "y"], "label": 1}': "the key 'question' twice",
}
CONLL = {
    "x": "1 columns",
    "x\tO\tO": "3 columns",
    "\tO": "no word",
    "x\tZ-PER": "'Z-PER' is no tag",
    b"\xe4\tO": "byte 0xe4 at character 1 is not UTF-8",
    "x\x00\tO": "a NUL character",
}
TOKENS = {
    '{"tokens": ["x", "y"], "tags": ["O"]}': "2 words, but 1 tags",
    '{"tokens": [], "tags": []}': "no words",
    '{"tokens": ["x", null], "tags": ["O", "O"]}': "has None at index 1",
    '{"tokens": "x", "tags": ["O"]}': "expected a list of strings",
    '{"tokens": ["x"], "tags": [1]}': "name all tags in the order of their numbers",
    '{"tokens": ["x"], "tokens": ["y"], "tags": ["O"]}': "the key 'tokens' twice",
}
SPANS = {
    '{"text": "ab", "label": {"T": {"b": [[1, 2]]}}}': "lie outside the text",
    '{"text": "ab", "label": {"T": {"b": [[0, 0]]}}}': "at .* stands 'a'",
    '{"text": "ab", "label": {"T": {"b": [[1]]}}}': "are not",
    '{"text": "ab", "label": {"T": {"b": [[1, 1]], "b": [[0, 0]]}}}': "the key 'b' twice",
}


def question(**changes) -> str:
    return json.dumps({"id": "2", "context": "in Rome", "question": "q", "answers": found("Rome", 3)} | changes)


def found(text, start):
    return [{"text": text, "answer_start": start}]


SQUAD = {
    question(answers=found("Rome", 30)): "an answer is not at its 'answer_start', 30",
    question(answers=found("Rome", -5)): "an answer is not at its 'answer_start', -5",
    question(answers=found("Paris", 3)): "'Rome' is, not 'Paris'|there is 'Rome', not 'Paris'",
    question(answers=found("Rome", "3")): "'answer_start' is '3', expected a whole number",
    question(answers=found(5, 3)): "'text' is 5, expected a string",
    question(answers=found("", 3)): "'text': nothing but blanks",
    question(answers="Rome"): "'answers' is 'Rome', expected a list",
    question(context=None): "'context' is None",
    question(context=" "): "'context': nothing but blanks",
    question(question=7): "'question' is 7",
    question(id=None): "'id' is None",
    question(is_impossible=True): "'is_impossible' is true, and yet",
    question(is_impossible="no"): "'is_impossible' is 'no'",
    question(answers=[]): "no 'answers', and no 'is_impossible'",
    question(context="\ud800 in"): "'context': a lone surrogate",
    question()[:-1] + ', "question": "r"}': "the key 'question' twice",
    question().replace('"text"', '"text": "x", "text"'): "the key 'text' twice",
    "5": "is not an object",
}
ARTICLES = {
    '{"title": "t", "paragraphs": null}': "no list 'paragraphs'",
    '{"title": "t", "title": "u", "paragraphs": []}': "the key 'title' twice",
}
good = {
    "text": ('{"text": "x", "label": "a"}', '{"text": "y", "label": "b"}'),
    "pair": ('{"text": "x", "text_pair": "u", "label": "a"}', '{"text": "y", "text_pair": "v", "label": "b"}'),
    "choice": ('{"question": "q", "choices": ["x", "y"], "label": 0}',) * 2,
    "tokens": ('{"tokens": ["x"], "tags": ["B-T"]}',) * 2,
    "spans": ('{"text": "ab", "label": {"T": {"b": [[1, 1]]}}}',) * 2,
    "question": (question(id="1"), question(id="3")),
}
articles = [
    json.dumps({"title": "t", "paragraphs": [{"context": "in Rome", "qas": [json.loads(row)]}]})
    for row in good["question"]
]


def json_lines(read, name, kinds, ending=".jsonl"):
    return Form(read, ending, lines(good[name][0]), lines(good[name][1]), ":2", kinds)


def squad_file(rows, kinds):
    before, after = b'{"data": [' + rows[0].encode() + b",", b"," + rows[1].encode() + b"]}"
    return Form(questions, ".json", before, after, ": data[1]", kinds)


FORMS = {
    "json lines": json_lines(texts, "text", JSON | LABELS),
    "json lines of a .json": json_lines(texts, "text", JSON, ".json"),
    "pairs": json_lines(texts, "pair", PAIR),
    "several labels": json_lines(several_labels, "text", {'{"text": "x", "label": ["a", "c"]}': "label 'c'"}),
    "numbers": Form(
        texts,
        ".tsv",
        lines("text\tscore", "x\t1.5"),
        lines("y\t2"),
        ":3",
        {"x\tinf": "label 'inf'", "x\tb": "label 'b'", "x\t": "no label"},
    ),
    "tsv": Form(texts, ".tsv", lines("text\tlabel", "x\ta"), lines("y\tb"), ":3", TSV),
    "csv": Form(texts, ".csv", lines("text,label", "x,a"), lines("y,b"), ":3", CSV),
    "array": Form(
        texts,
        ".json",
        b"[" + good["text"][0].encode() + b",\n",
        b",\n" + good["text"][1].encode() + b"]",
        "[1]",
        {row: reason for row, reason in JSON.items() if row not in ("", "[" * 9999) and row not in list(JSON)[:2]},
    ),
    "choices": json_lines(choices, "choice", CHOICES),
    "columns of words": Form(sentences, ".conll", lines("a\tO", ""), lines("", "b\tB-T"), ":3", CONLL),
    "lists of words": json_lines(sentences, "tokens", TOKENS),
    "spans of characters": json_lines(sentences, "spans", SPANS),
    "questions": json_lines(questions, "question", SQUAD),
    "questions of a file": squad_file(good["question"], SQUAD),
    "articles": squad_file(articles, ARTICLES),
    "plain text": Form(
        corpus, ".txt", lines("x"), lines("y"), ":2", {b"\xe4": "byte 0xe4 at character 1", "a\x00b": "a NUL character"}
    ),
    "records": json_lines(corpus, "text", {row: why for row, why in JSON.items() if row}),
}
CASES = [
    pytest.param(form, row, reason, id=f"{name}: {reason[:30]} {number}")
    for name, form in FORMS.items()
    for number, (row, reason) in enumerate(form.kinds.items())
]


def test_at_least_fifty_kinds():
    assert len({reason for form in FORMS.values() for reason in form.kinds.values()}) >= 50


@pytest.mark.parametrize(("form", "row", "reason"), CASES)
def test_a_bad_row_is_refused_by_line_or_skipped_and_listed(tmp_path, form, row, reason):
    path = tmp_path / f"rows{form.ending}"
    content = row if isinstance(row, bytes) else row.encode("utf-8", "surrogatepass")
    end = b"" if form.after.startswith(b",") else b"\n"
    path.write_bytes(form.before + content + end + form.after)
    with pytest.raises(ValueError, match=reason) as refused:
        form.read(path, BadRows.ERROR)
    assert f"{path}{form.source}: " in str(refused.value) and "--task.bad-rows skip" in str(refused.value)
    count, bad = form.read(path, BadRows.SKIP)
    assert count == 2 and [row.source for row in bad] == [f"{path}{form.source}"]


def test_data_of_bad_rows_alone_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines('{"text": 5, "label": "a"}', '{"text": "x", "label": null}'))
    with pytest.raises(ValueError, match=r"2 of 2 rows can't be used(.*\n)+None is left"):
        texts(path, BadRows.SKIP)


def test_bad_rows_are_listed_in_a_file(tmp_path):
    write_bad_rows(tmp_path, {"train": []})
    assert not (tmp_path / BAD_ROWS_FILE).exists()
    train = [BadRow("a.tsv:10", "no text"), BadRow("a.tsv:3", "no label")]  # found one kind after the other
    write_bad_rows(tmp_path, {"train": train, "dev": [BadRow("b.tsv:1", "x")]})
    assert list(map(json.loads, (tmp_path / BAD_ROWS_FILE).read_text().splitlines())) == [
        {"set": "train", "source": "a.tsv:3", "reason": "no label"},
        {"set": "train", "source": "a.tsv:10", "reason": "no text"},
        {"set": "dev", "source": "b.tsv:1", "reason": "x"},
    ]


def test_later_bad_rows_do_not_change_the_rows_that_they_were_among():
    rows = ReadRows([BadRow("a:1", ""), BadRow("a:2", "")])
    rows.bad.policy = BadRows.SKIP
    kept = rows.without([BadRow("a:1", "no")], "")
    assert (len(rows), rows.left_out, len(kept), kept.left_out) == (2, 0, 1, 1)


def write_parquet(path: Path, values, **options) -> bytes:
    table = pyarrow.table({"text": values})
    pyarrow.parquet.write_table(table, path, compression="none", use_dictionary=False, **options)
    return path.read_bytes()


def test_a_flipped_bit_in_a_parquet_page_with_a_checksum(tmp_path):
    path = tmp_path / "a.parquet"
    content = write_parquet(path, ["alpha", "beta", "gamma", "delta"], write_page_checksum=True, row_group_size=2)
    path.write_bytes(content.replace(b"gamma", b"gamme"))
    with pytest.raises(ValueError, match=rf"{path}, rows 3 to 4: damaged: .*--task.bad-rows skip"):
        corpus(path, BadRows.ERROR)
    assert corpus(path, BadRows.SKIP)[0] == 2
    assert [row.source for row in corpus(path, BadRows.SKIP)[1]] == [f"{path}, rows 3 to 4"]
    with pytest.raises(ValueError, match=rf"{path}: damaged: "):
        read_labelled_texts(tmp_path)


def test_files_of_a_folder_are_checked_once(tmp_path, monkeypatch):
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("text,label\nx,a\n")
    checked = []
    monkeypatch.setattr("train.data.sources.read_table", lambda file, name: checked.append(file.name) or [])
    for split in ("train", "test", "train"):
        read_labelled_texts(tmp_path, split=split)
    assert sorted(checked) == ["test.csv", "train.csv"]
    (tmp_path / "test.csv").write_text("text,label\nx,a\ny,b\n")
    read_labelled_texts(tmp_path, split="test")
    assert sorted(checked) == ["test.csv", "test.csv", "train.csv"]


def test_bad_rows_of_parquet_files(tmp_path):
    path = tmp_path / "a.parquet"
    content = write_parquet(path, ["alpha", "beta", None, " ", "gamma"])
    path.write_bytes(content.replace(b"beta", b"b\xe4ta"))
    count, bad = corpus(path, BadRows.SKIP)
    assert count == 2 and [str(row).removeprefix(str(path)).split(" (")[0] for row in bad] == [
        ", row 2: 'text': not UTF-8",
        ", row 3: 'text' is None, expected a string",
        ", row 4: 'text': nothing but blanks",
    ]
    write_parquet(path, [1, 2])
    with pytest.raises(ValueError, match=r"row 1: 'text' is 1, expected a string"):
        corpus(path, BadRows.ERROR)


def test_bad_rows_of_data_sets(tmp_path):
    """The library itself reads numbers as texts, and the last of two values of a key."""
    rows = ['{"text": "x", "label": "a"}', '{"text": 5, "label": "a"}', '{"text": "y", "text": "z", "label": "b"}']
    (tmp_path / "train.jsonl").write_bytes(lines(*rows, '{"text": "y", "label": "b"}'))
    for read in (texts_of_folder, corpus_of_folder):
        with pytest.raises(ValueError, match=rf"{tmp_path}/train.jsonl:2: 'text' is 5"):
            read(tmp_path, BadRows.ERROR)
        count, bad = read(tmp_path, BadRows.SKIP)
        assert count == 2 and [row.source for row in bad] == [f"{tmp_path}/train.jsonl:{n}" for n in (2, 3)]


def texts_of_folder(path, bad_rows):
    rows = read_labelled_texts(path, bad_rows=bad_rows)
    return len(rows), rows.bad.rows


def corpus_of_folder(path, bad_rows):
    reader = TextReader([f"datasets:{path}"], bad_rows=bad_rows)
    return len([line for line in reader if line]), reader.skipped


def test_malformed_lines_of_a_folder_of_tables(tmp_path):
    (tmp_path / "train.csv").write_bytes(lines("text,label", "x,a", "y"))
    with pytest.raises(ValueError, match=r"/train.csv:3: 1 fields, expected 2(.*\n)+.*give this file instead"):
        read_labelled_texts(tmp_path)


def test_a_run_counts_bad_rows_and_lists_them(classification, tmp_path):
    file = Path(classification.task.train)
    file.write_text(file.read_text() + "without a label\n")
    with pytest.raises(ValueError, match="1 fields, expected"):
        classification.task.prepare(classification)
    config = dataclasses.replace(classification, task=dataclasses.replace(classification.task, bad_rows=BadRows.SKIP))
    task = config.task.prepare(config)
    number = len(file.read_text().splitlines())
    assert task.facts["train bad rows skipped"] == 1
    assert [row.source for row in task.bad_rows["train"]] == [f"{file}:{number}"]
    assert task.digests == config.task.prepare(config).digests
