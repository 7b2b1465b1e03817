"""Tagged sentences of real and of broken files, and their tags as labels."""

import json
from collections import Counter
from pathlib import Path

import datasets
import pytest

from flaxbert.text.tags import TagScheme, entity_spans
from train.data.bad_rows import BadRows
from train.data.tagged_examples import InvalidTags, convert_scheme, infer_tags, scheme_of_sentences, tag_ids
from train.data.tagged_sentences import Separator, TagColumns, TaggedSentence, character_tags, read_tagged_sentences

UNER = TagColumns(word=1, tag=2)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def refusal(path: Path | str, **arguments) -> str:
    with pytest.raises(ValueError) as caught:
        read_tagged_sentences(path, **arguments)
    return str(caught.value)


# Real files.


@pytest.mark.parametrize(
    ("name", "columns", "count", "words", "found"),
    [
        ("wnut17/wnut17train.conll", TagColumns(), 3394, 62730, {"person": 660, "location": 548, "group": 264}),
        ("wnut17/emerging.dev.conll", TagColumns(), 1009, 15733, {"person": 470, "creative-work": 105}),
        ("wnut17/emerging.test.annotated", TagColumns(), 1287, 23394, {"person": 429, "corporation": 66}),
        ("uner_en_ewt/en_ewt-ud-dev.iob2", UNER, 2001, 25149, {"LOC": 399, "ORG": 224, "PER": 343}),
        ("samples/GermEval/train.txt", TagColumns(), 11, 190, {}),
        ("samples/GermEval/dev.txt", TagColumns(), 11, 192, {}),
    ],
)
def test_real_files_of_columns(data_dir, name, columns, count, words, found):
    sentences = read_tagged_sentences(data_dir / "tasks" / name, columns=columns)
    assert len(sentences) == count and sum(len(s.words) for s in sentences) == words
    kinds = Counter(span.type for s in sentences for span in entity_spans(s.tags))
    assert kinds.items() >= found.items()
    assert scheme_of_sentences(sentences) is TagScheme.IOB2
    assert convert_scheme(sentences, TagScheme.IOB2, written=TagScheme.IOB2, invalid=InvalidTags.REFUSE) == (
        sentences,
        0,
    )


def test_real_places_and_a_hash_that_is_a_word(data_dir):
    first, second, *_ = read_tagged_sentences(data_dir / "tasks/uner_en_ewt/en_ewt-ud-dev.iob2", columns=UNER)
    assert first.source.endswith("en_ewt-ud-dev.iob2:4") and first.words[6:8] == ("tampa", "bay")
    assert first.tags[6:8] == ("B-LOC", "I-LOC") and second.words[0] == "I"
    germeval = read_tagged_sentences(data_dir / "tasks/samples/GermEval/dev.txt")
    assert sum(sentence.words.count("#") for sentence in germeval) == 1


def test_real_character_spans(data_dir):
    sentences = read_tagged_sentences(data_dir / "tasks/cluener/train.jsonl")
    assert len(sentences) == 10748
    assert "".join(sentences[0].words[:4]) == "浙商银行"
    assert sentences[0].tags[:4] == ("B-company", "I-company", "I-company", "I-company")
    with_overlaps = [s for s in sentences if s.left_out]
    assert [s.source.rpartition(":")[2] for s in with_overlaps] == ["1507"]
    # 23,971 places in the file, and those that overlap another have no tags.
    assert sum(len(entity_spans(s.tags)) for s in sentences) == 23971 - sum(s.left_out for s in with_overlaps)


# Written ones.


def test_columns_comments_and_documents(tmp_path):
    text = "\ufeff-DOCSTART- -X- O O\r\n\r\nEU NNP I-NP I-ORG\r\n# NN O O\r\n\r\n# a remark\r\nUN NNP I-NP I-ORG\r\n"
    sentences = read_tagged_sentences(write(tmp_path, "a.txt", text))
    assert [(s.words, s.tags, s.source[-2:]) for s in sentences] == [
        (("EU", "#"), ("I-ORG", "O"), ":3"),
        (("UN",), ("I-ORG",), ":7"),
    ]
    assert scheme_of_sentences(sentences) is TagScheme.IOB1
    germeval = "#\thttp://a.b [2009]\n1\tBayern München\tB-ORG\tB-LOC\n2\tsiegt\tO\tO\n\t\n"
    (sentence,) = read_tagged_sentences(write(tmp_path, "b.tsv", germeval), columns=UNER)
    assert sentence.words == ("Bayern München", "siegt") and sentence.tags == ("B-ORG", "O")
    blanks = TagColumns(word=1, tag=-2, separator=Separator.BLANKS)
    assert read_tagged_sentences(write(tmp_path, "c", "1\ta  O\tx\n"), columns=blanks)[0].words == ("a",)


def test_lists_of_words_and_tags(tmp_path):
    rows = [{"tokens": ["a", "b"], "ner_tags": ["B-X", "O"]}, {"tokens": ["c"], "tags": ["O"], "id": 7}]
    path = write(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert read_tagged_sentences(path) == [
        TaggedSentence(("a", "b"), ("B-X", "O"), f"{path}:1"),
        TaggedSentence(("c",), ("O",), f"{path}:2"),
    ]


def test_a_data_set(tmp_path):
    names = datasets.ClassLabel(names=["O", "B-X"])
    features = datasets.Features(
        {"id": datasets.Value("string"), "tokens": datasets.List(datasets.Value("string"))}
        | {"ner_tags": datasets.List(names)}
    )
    rows = {"id": ["0"], "tokens": [["a", "b"]], "ner_tags": [[1, 0]]}
    datasets.DatasetDict({"dev": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(str(tmp_path / "d"))
    (sentence,) = read_tagged_sentences(f"datasets:{tmp_path / 'd'}", split="dev")
    assert (sentence.words, sentence.tags) == (("a", "b"), ("B-X", "O"))


def test_overlapping_spans_leave_the_longest():
    label = {"book": {"bcd": [[1, 3]]}, "name": {"b": [[1, 1]], "de": [[3, 4]], "f": [[5, 5]]}}
    assert character_tags("abcdef", label) == (["O", "B-book", "I-book", "I-book", "O", "B-name"], 2)


# What is refused.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; expected: a word a line"),
        (" \n\t\n", "is empty; expected: a word a line"),
        ("# a\n-DOCSTART- O\n", "no words; expected: a word a line"),
        ("a\tO\nb\n", r"1 of 2 rows can't be used:\s+\S+:2: 1 columns \('b'\), expected 2\s.*2 of them, as on line 1"),
        ("a\tO\n#b\n", r":2: 1 columns \('#b'\), expected 2"),
        ("a\tO\n\n\tO\n", ":3: no word"),
        ("a\tO\nb\tPER\n", ":2: 'PER' is no tag; allowed: O, and B-, I-, E- or S- with a type"),
        ("a\tO\nb\t1\n" + "c\tx\n" * 9, r"10 of 11 rows(?s:.*):6: 'x' is no tag.*\s+and 5 more"),
        (b"a\tO\n\xe4\tO\n", ":2: byte 0xe4 at character 1 is not UTF-8"),
        ("a\n", "one column, 'a', so words without tags"),
    ],
)
def test_broken_columns(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_tagged_sentences(write(tmp_path, "a.conll", content))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[1]", "is not an object"),
        ('{"tokens": ["a"]}', "neither 'tokens' with 'tags' nor 'text' with 'label', but 'tokens'"),
        ('{"tokens": ["a", "b"], "tags": ["O"]}', "2 words, but 1 tags"),
        ('{"tokens": [], "tags": []}', "no words"),
        ('{"tokens": ["a"], "tags": [3]}', "'tags' holds numbers; name all tags"),
        ('{"tokens": "a", "tags": ["O"]}', "'tokens' is 'a', expected a list of strings"),
        ('{"tokens": ["\\ud800"], "tags": ["O"]}', "'tokens', index 0: a lone surrogate"),
        ('{"text": "ab", "label": {"x": {"a": [[0, 2]]}}}', r"offsets \[0, 2\] lie outside the text, which has 2"),
        ('{"text": "ab", "label": {"x": {"a": [[1, 1]]}}}', r"'a': at \[1, 1\] stands 'b'"),
        ('{"text": "ab", "label": {"x": {"a": [[0]]}}}', r"offsets \[0\] are not \[first, last\]"),
        ('{"text": "ab", "label": {"x y": {}}}', "label 'x y' must be a word"),
    ],
)
def test_broken_json(tmp_path, row, message):
    path = write(tmp_path, "a.jsonl", '{"tokens": ["a"], "tags": ["O"]}\n' + row + "\n")
    with pytest.raises(ValueError, match=r"1 of 2 rows can't be used:\s+\S+:2: .*" + message):
        read_tagged_sentences(path)


def test_wrong_columns_files_and_splits(tmp_path):
    path = write(tmp_path, "a.conll", "1\ta\tO\n")
    assert "word is column 3, tag is column -1; found 3 columns: '1', 'a', 'O'" in refusal(
        path, columns=TagColumns(word=3)
    )
    assert "two of 0 to 2, or -3 to -1" in refusal(path, columns=TagColumns(word=2))
    assert "is for data sets" in refusal(path, split="dev")
    with pytest.raises(FileNotFoundError, match="b.conll does not exist; give a file of columns"):
        read_tagged_sentences(tmp_path / "b.conll")


# Tags as labels.


def test_invalid_tags_are_repaired_and_counted_or_refused():
    sentences = [TaggedSentence(tuple("abc"), ("B-X", "I-X", "I-Y"), "f:1")]
    sentences.append(TaggedSentence(tuple("d-e"), ("I-X", "O", "I-X"), "f:5"))
    assert scheme_of_sentences(sentences) is TagScheme.IOB2
    how = {"written": TagScheme.IOB2}
    found, count = convert_scheme(sentences, TagScheme.IOB2, invalid=InvalidTags.REPAIR, **how)
    assert [s.tags for s in found] == [("B-X", "I-X", "B-Y"), ("B-X", "O", "B-X")] and count == 3
    found, count = convert_scheme(sentences, TagScheme.BIOES, invalid=InvalidTags.REPAIR, **how)
    assert [s.tags for s in found] == [("B-X", "E-X", "S-Y"), ("S-X", "O", "S-X")] and count == 3
    message = (
        r"2 of 2 rows(?s:.*)f:1: I-Y of 'c', word 3, after I-X, is not IOB2\s+f:5: I-X of 'd', word 1, at the beginning"
    )
    with pytest.raises(ValueError, match=message):
        convert_scheme(sentences, TagScheme.IOB2, invalid=InvalidTags.REFUSE, **how)


def test_labels():
    sentences = [TaggedSentence(("a", "b"), ("B-Y", "B-X"), "f:1")]
    labels = infer_tags(sentences, TagScheme.IOB2)
    assert labels == ("O", "B-X", "I-X", "B-Y", "I-Y")
    assert infer_tags(sentences, TagScheme.BIOES)[:5] == ("O", "B-X", "I-X", "E-X", "S-X")
    assert tag_ids(sentences, labels)["B-Y"] == 3
    with pytest.raises(ValueError, match="f:1: tag 'B-Y' is not allowed; near names: 'B-X'"):
        tag_ids(sentences, labels[:3])
    for wrong in (("B-X",), ("O", "O"), ("O", "X")):
        with pytest.raises(ValueError, match="labels must be distinct, and O one of them|'X' is no tag"):
            tag_ids([], wrong)


# Sets as they are met in practice.


def test_prefixes_of_other_schemes(tmp_path):
    (bilou,) = read_tagged_sentences(write(tmp_path, "a.conll", "a B-X\nb I-X\nc L-X\nd U-Y\ne O\n"))
    assert bilou.tags == ("B-X", "I-X", "E-X", "S-Y", "O")
    (bmes,) = read_tagged_sentences(write(tmp_path, "b.conll", "a B-X\nb M-X\nc E-X\nd S-Y\n"))
    assert bmes.tags == ("B-X", "I-X", "E-X", "S-Y")
    assert scheme_of_sentences([bilou]) is scheme_of_sentences([bmes]) is TagScheme.BIOES


def test_marks_of_documents_and_blanks_after_a_tag(tmp_path):
    text = "#begin document (bc/cctv); part 000\nBonn\tB-LOC \n\n#end document\nRome\tB-LOC\n"
    sentences = read_tagged_sentences(write(tmp_path, "a.conll", text))
    assert [sentence.words for sentence in sentences] == [("Bonn",), ("Rome",)]
    assert sentences[0].tags == ("B-LOC",) and sentences.columns == {"word": "0 of 2", "tag": "1 of 2"}


def test_words_without_tags_and_csv_are_refused(tmp_path):
    assert "words without tags" in refusal(write(tmp_path, "a.txt", "Bonn\nis\n\nRome\n"))
    assert "a .csv is not read" in refusal(write(tmp_path, "a.csv", "Sentence #,Word,POS,Tag\nSentence: 1,Bonn,NN,O\n"))


def test_numbers_of_tags(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"words": ["Bonn", "is"], "labels": [1, 0]}\n')
    assert "holds numbers; name all tags in the order of their numbers: --task.labels" in refusal(path)
    (sentence,) = read_tagged_sentences(path, labels=("O", "B-LOC"))
    assert sentence.tags == ("B-LOC", "O")
    assert "holds 1; the numbers of 1 tags are 0 to 0" in refusal(path, labels=("O",))


def test_sentences_without_words_are_left_out(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"tokens": [], "tags": []}\n{"tokens": ["a"], "tags": ["O"]}\n')
    assert "1 of 2 rows" in refusal(path) and "--task.bad-rows skip" in refusal(path)
    sentences = read_tagged_sentences(path, bad_rows=BadRows.SKIP)
    assert [sentence.words for sentence in sentences] == [("a",)] and sentences.left_out == 1


def test_declared_tags_keep_their_ids(tmp_path):
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(datasets.ClassLabel(names=names))}
    )
    rows = {"tokens": [["Otto", "is"]], "ner_tags": [[1, 0]]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    read = read_tagged_sentences(tmp_path / "set")
    sentences, _ = convert_scheme(read, TagScheme.IOB2, written=TagScheme.IOB2, invalid=InvalidTags.REPAIR)
    assert infer_tags(sentences, TagScheme.IOB2) == tuple(names)  # types that train lacks, and not by the alphabet
    assert infer_tags(sentences, TagScheme.BIOES) == tuple(names)


def test_lists_that_are_spelled_in_a_string(tmp_path):
    path = write(tmp_path, "a.jsonl", json.dumps({"tokens": "['a', 'b']", "ner_tags": "['O' 'B-X']"}) + "\n")
    (sentence,) = read_tagged_sentences(path)
    assert (sentence.words, sentence.tags) == (("a", "b"), ("O", "B-X"))
