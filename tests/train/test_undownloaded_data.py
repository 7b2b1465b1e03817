"""Pointers of git-lfs and HTML pages in the place of data to train on."""

import gzip

import pytest

from tests.flaxbert.test_undownloaded import CONTENTS
from train.data.labelled_texts import read_labelled_texts
from train.data.pretraining.preparation import Preparation, prepare_store
from train.data.pretraining.reader import TextReader
from train.data.pretraining.records import RecordFiles
from train.data.questions import read_squad
from train.data.sources import dataset_rows
from train.data.tagged_sentences import read_tagged_sentences

READERS = {
    **dict.fromkeys(("a.tsv", "a.csv", "b.jsonl", "b.json"), read_labelled_texts),
    **dict.fromkeys(("a.conll", "a.jsonl"), read_tagged_sentences),
    **dict.fromkeys(("squad.json", "squad.jsonl"), read_squad),
    **dict.fromkeys(
        ("a.txt", "wiki_00", "a.txt.gz", "a.parquet", "c.jsonl"), lambda file: list(TextReader([str(file)]))
    ),
    "words.txt": lambda file: prepare_store(Preparation((__file__,), output=file.parent / "out", words=file)),
    "a.tfrecord": RecordFiles.find,
}


@CONTENTS
@pytest.mark.parametrize("name", READERS)
def test_data_that_was_not_downloaded_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        READERS[name](tmp_path / name)


@CONTENTS
def test_a_file_of_a_folder_for_the_datasets_library_that_was_not_downloaded_is_named(tmp_path, content, message):
    (tmp_path / "train.csv").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"train.csv: {message}"):
        dataset_rows(str(tmp_path), "train")


@pytest.mark.parametrize("text", ["<html> is the first tag", "<!DOCTYPE html> begins a page", "<?xml ?>\n<page>"])
def test_a_corpus_about_web_pages_is_read(tmp_path, text):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as file:
        file.write(text)
    for name in ("a.txt", "a.txt.gz"):
        assert list(TextReader([str(tmp_path / name)])) == [*text.split("\n"), ""]
