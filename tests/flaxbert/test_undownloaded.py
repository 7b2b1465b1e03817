"""Pointers of git-lfs and HTML pages in the place of a model's files and of texts to predict."""

import shutil
from pathlib import Path

import pytest

import flaxbert
from flaxbert.cli.text_inputs import InputShape, file_inputs
from flaxbert.conversion.convert import convert
from flaxbert.tokenizer import WordPieceTokenizer
from flaxbert.weights.checkpoint import open_checkpoint
from tests.flaxbert.saved_models import folder_of

FIXTURE = Path(__file__).parent / "fixtures" / "tf1" / "encoder"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 440473133\n"
PAGE = "\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
CONTENTS = pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "a pointer of git-lfs in the place of the file; run `git lfs pull` in its folder, or download it"),
        (PAGE, "a web page in the place of the file; download it again"),
        (f"\ufeff{PAGE}", "a web page"),
    ],
)
VOCABULARY = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\n"


@CONTENTS
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "flax_model.msgpack", "config.json"])
def test_a_file_of_the_model_that_was_not_downloaded_is_named(tmp_path, name, content, message):
    folder = folder_of("BertModel", tmp_path / "model")
    if name != "config.json":
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        flaxbert.from_pretrained(folder)
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        convert(folder, tmp_path / "converted")


@CONTENTS
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "model-00001-of-*.safetensors"])
def test_a_file_of_a_model_in_several_files_that_was_not_downloaded_is_named(tmp_path, name, content, message):
    folder = folder_of("BertModel", tmp_path / "model", max_shard_size=2_000)
    (file,) = folder.glob(name)
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{file.name}: {message}"):
        open_checkpoint(folder)


@CONTENTS
@pytest.mark.parametrize("ending", ["index", "data-00000-of-00001"])
def test_a_file_of_a_tensorflow_checkpoint_that_was_not_downloaded_is_named(tmp_path, ending, content, message):
    folder = shutil.copytree(FIXTURE, tmp_path / "model")
    (file,) = folder.glob(f"*.{ending}")
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{file.name}: {message}"):
        open_checkpoint(folder)


@CONTENTS
@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_a_file_of_the_tokenizer_that_was_not_downloaded_is_named(tmp_path, name, content, message):
    (tmp_path / "vocab.txt").write_text(VOCABULARY)
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        WordPieceTokenizer.load(tmp_path)


def test_a_vocabulary_may_begin_with_any_token(tmp_path):
    (tmp_path / "vocab.txt").write_text(f"version\n{VOCABULARY}")
    assert WordPieceTokenizer.load(tmp_path).vocab_size == 8


@CONTENTS
@pytest.mark.parametrize("name", ["merges.txt", "sentencepiece.bpe.model"])
def test_a_file_of_another_tokenizer_that_was_not_downloaded_is_not_carried(tmp_path, name, content, message):
    folder = folder_of("BertModel", tmp_path / "model")
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        convert(folder, tmp_path / "converted")


@CONTENTS
@pytest.mark.parametrize("name", ["a.txt", "a.tsv", "a.csv", "a.jsonl", "a.json", "a.conll"])
def test_texts_to_predict_that_were_not_downloaded_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        list(file_inputs(tmp_path / name, InputShape(1, 1, "a text", may_be_words=True), columns=["0"]))


@pytest.mark.parametrize(
    "text", ["<html> is the first tag", "<!DOCTYPE html> begins a page", "<?xml is XML", "a <html>\n<p>"]
)
def test_a_text_about_web_pages_is_read(tmp_path, text):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert [item.texts for item in file_inputs(tmp_path / "a.txt", InputShape(1, 1, "a text"))] == [
        (t,) for t in text.split("\n")
    ]
