import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from flaxbert.tokenizer import WordPieceTokenizer
from tests.train import corpora
from train.data.pretraining.preparation import Preparation, prepare_store
from train.data.pretraining.store import RECORD, StoreWriter, TokenStore
from train.data.pretraining.tokens import SentenceTokenizer, text_chunks

TEXTS = corpora.documents(40)


def parts(texts=TEXTS, *, size=200, **how):
    tokenise = SentenceTokenizer(corpora.tokenizer().backend.to_str(), split=False, **how)
    return list(map(tokenise, text_chunks(iter(corpora.lines(texts)), size=size)))


def write(folder, found, *, saved=None, upto=None):
    folder.mkdir(exist_ok=True)
    with StoreWriter(folder, dtype=np.dtype(np.uint16), word_starts=False, saved=saved) as writer:
        for part in found[:upto]:
            writer.add(part)
        if upto is not None:
            return writer.save()
        corpora.tokenizer().save(folder / "tokenizer", max_length=64)
        writer.finish(corpora.tokenizer(), {"text": ["here"]})
    return TokenStore.open(folder)


def texts_of(store):
    """The documents, decoded."""
    sentences = np.split(store.tokens, store.sentences[1:-1])
    decoded = [" ".join(store.tokenizer.tokens(sentence)) for sentence in sentences]
    bounds = store.documents.tolist()
    return [decoded[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]


@pytest.mark.parametrize("size", [1, 50, 200, 10**6])
def test_what_goes_in_comes_out_however_it_is_cut_in_pieces(tmp_path, size):
    assert texts_of(corpora.store(TEXTS, size=size)) == TEXTS
    assert texts_of(write(tmp_path / "store", parts(size=size))) == TEXTS


def test_sentences_and_documents_without_a_token_are_left_out(tmp_path):
    blank = "\u200b"  # the tokenizer takes it away
    texts = [[blank], ["w1", blank, "w2"], [blank, blank], ["w3", blank]]
    for size in (1, 100):
        for store in (corpora.store(texts, size=size), write(tmp_path / f"s{size}", parts(texts, size=size))):
            assert texts_of(store) == [["w1", "w2"], ["w3"]]


def test_an_interrupted_store_goes_on_from_what_was_saved(tmp_path):
    found = parts()
    whole = write(tmp_path / "whole", found)
    for upto in (0, 1, 7, len(found)):
        folder = tmp_path / f"cut{upto}"
        saved = write(folder, found, upto=upto)
        with StoreWriter(folder, dtype=np.dtype(np.uint16), word_starts=False, saved=saved) as writer:
            for part in found[upto : upto + 3]:  # lost: never saved
                writer.add(part)
        write(folder, found[upto:], saved=saved)
        for name in ("tokens", "sentences", "documents"):
            assert (folder / f"{name}.npy").read_bytes() == (tmp_path / "whole" / f"{name}.npy").read_bytes()
        assert (
            json.loads((folder / RECORD).read_text())["files"]
            == json.loads((tmp_path / "whole" / RECORD).read_text())["files"]
        )
    assert whole.document_count == len(TEXTS)
    (tmp_path / "cut7" / "tokens.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"tokens\.npy: holds less than was recorded"):
        StoreWriter(tmp_path / "cut7", dtype=np.dtype(np.uint16), word_starts=False, saved=saved)


def test_a_text_that_speaks_of_special_tokens_has_none():
    tokenizer = WordPieceTokenizer.from_tokens(
        [*corpora.tokenizer().vocabulary, "[", "]", "mask", "sep"], lowercase=True
    )
    store = corpora.store([["w1 [MASK] w2 [SEP]"]], tokenizer=tokenizer)
    assert texts_of(store) == [["w1 [ mask ] w2 [ sep ]"]]


def test_words_of_a_list():
    tokenizer = WordPieceTokenizer.from_tokens(
        [*corpora.tokenizer().vocabulary, *"自然语言处理很好", "##ing"], lowercase=True
    )
    store = corpora.store(
        [["自然语言处理很好 w1ing 好"]], tokenizer=tokenizer, words=["自然", "语言", "自然语言", "很好"]
    )
    words = np.split(store.tokens, np.flatnonzero(store.word_starts)[1:])
    assert ["".join(tokenizer.tokens(word)) for word in words] == ["自然语言", "处", "理", "很好", "w1##ing", "好"]
    assert corpora.store([["自然"]], tokenizer=tokenizer).word_starts is None


def test_word_starts_belong_to_the_digest():
    tokenizer = corpora.tokenizer(["自", "然", "语"])
    split = corpora.store([["自然语"]], tokenizer=tokenizer, words=["自然"])
    assert split.digest == corpora.store([["自然语"]], tokenizer=tokenizer, words=["自然"]).digest
    assert split.digest != corpora.store([["自然语"]], tokenizer=tokenizer, words=["然语"]).digest


def damage(folder, name, change):
    file = folder / name
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("tokens.npy", lambda data: data[:-2] + b"\0\0", r"tokens\.npy: is damaged"),
        ("sentences.npy", lambda data: data[:-8], r"sentences\.npy: \d+ bytes, \d+ when it was made"),
        ("store.json", lambda data: data[:-9], r"store\.json: not a JSON file"),
        ("store.json", lambda data: b"[]", "not the record of a token store"),
        ("store.json", lambda data: data.replace(b'"version": 1', b'"version": 2'), "version 2 of the format; this"),
        ("store.json", lambda data: data.replace(b'"documents.npy"', b'"elsewhere"'), "names no documents"),
        ("tokenizer/tokenizer.json", lambda data: data.replace(b'"w7"', b'"x7"'), "not the tokenizer that the store"),
    ],
)
def test_a_damaged_store_is_refused(tmp_path, name, change, error):
    write(tmp_path / "store", parts())
    damage(tmp_path / "store", name, change)
    with pytest.raises(ValueError, match=error):
        TokenStore.open(tmp_path / "store")


def hostile(folder, name, array):
    """A store whose digests are right, and whose arrays are not."""
    np.save(folder / f"{name}.npy", array)
    import hashlib

    record = json.loads((folder / RECORD).read_text())
    data = (folder / f"{name}.npy").read_bytes()
    record["files"][f"{name}.npy"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / RECORD).write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("tokens", lambda a: a + 1000, "an id beyond the vocabulary's 205"),
        ("tokens", lambda a: a.astype(np.float32), "float32.*; expected one axis of uint16 or uint32"),
        ("tokens", lambda a: a[:, None], "expected one axis"),
        ("sentences", lambda a: a[::-1].copy(), r"sentences\.npy: not ascending from 0"),
        ("documents", lambda a: a + 5, r"documents\.npy: not ascending from 0"),
        ("documents", lambda a: a[:0], r"documents\.npy: not ascending from 0"),
        ("documents", lambda a: np.array([a], object), "not an array"),
    ],
)
def test_a_hostile_store_is_refused(tmp_path, name, change, error):
    store = write(tmp_path / "store", parts())
    hostile(tmp_path / "store", name, change(np.array(getattr(store, name))))
    with pytest.raises(ValueError, match=error):
        TokenStore.open(tmp_path / "store")


def test_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no store\.json there; python -m train\.data\.prepare makes"):
        TokenStore.open(tmp_path)


def test_a_store_of_a_former_version_is_read_and_made_again(tmp_path, monkeypatch):
    """`fixtures/token_store.tar.xz` was made at commit 4a809e9: a text, a vocabulary and the store made of them."""
    with tarfile.open(Path(__file__).parent / "fixtures" / "token_store.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    store = TokenStore.open(Path("store"))
    assert store.document_count == 2 and len(store.sentences) - 1 == 5
    words = [store.tokenizer.vocabulary[number] for number in store.of_documents(np.array([0]))[0]]
    assert " ".join(words) == "the cat sat on the mat . the dog ran home . the cat ##s and the dog ##s sat ."
    prepare_store(Preparation(("text.txt",), Path("again"), tokenizer=Path("vocab.txt"), workers=1))
    for name in ("store.json", "tokens.npy", "sentences.npy", "documents.npy"):
        assert Path("store", name).read_bytes() == Path("again", name).read_bytes()
