"""Pieces of long texts, tokenized in parts, equal those of the whole text."""

import unicodedata

import numpy as np
import pytest

from flaxbert.text import pieces
from flaxbert.tokenizer import WordPieceTokenizer

TEXTS = [
    "Zoe\u0308 fl\u00e4nge   in\tGelsenkirchen,\nantidisestablishmentarianism [MASK] [MASK] \U0001f600 x\u200b y. " * 9,
    "",
    "\u6771\u4eac\u306f\u65e5\u672c\u306e\u9996\u90fd\n" * 12,
    "without any blank" * 20,
    " \u0301a  b ",
]


@pytest.fixture(scope="module", params=["bert-base-uncased", "bert-base-cased"])
def tokenizer(request, data_dir):
    return WordPieceTokenizer.load(data_dir / "tokenizers" / request.param)


@pytest.mark.parametrize("length", [1, 7, 60, 10**6])
def test_parts_make_no_difference(tokenizer, monkeypatch, length):
    monkeypatch.setattr(pieces, "_PART_LENGTH", length)
    found = pieces.encode_texts(tokenizer, TEXTS)
    for text, own, whole in zip(TEXTS, found, tokenizer.encode_pieces(TEXTS), strict=True):
        assert own.ids.tolist() == whole.ids
        spans = np.asarray(whole.offsets, int).reshape(-1, 2)
        with_marks = own.offsets - spans  # the marks that the normaliser removes belong to their letters
        assert not with_marks[:, 0].any() and {*with_marks[:, 1].tolist()} <= {0, 1}, text
        assert all(unicodedata.category(text[end]) == "Mn" for end in spans[with_marks[:, 1] == 1, 1]), text
        # Numbers of words may be left out where a word has no pieces; which pieces share one is the same.
        assert np.diff(own.words).astype(bool).tolist() == np.diff(whole.word_ids).astype(bool).tolist()


def test_texts_are_tokenized_in_batches_of_limited_length(tokenizer, monkeypatch):
    lengths = []

    def encode_pieces(self, texts):
        lengths.append(sum(map(len, texts)))
        return encode(self, texts)

    encode = WordPieceTokenizer.encode_pieces
    monkeypatch.setattr(WordPieceTokenizer, "encode_pieces", encode_pieces)
    monkeypatch.setattr(pieces, "_PART_LENGTH", 1000)
    texts = ["word " * 2000, *["some words"] * 500]
    assert [len(own.ids) for own in pieces.encode_texts(tokenizer, texts)] == [2000, *[2] * 500]
    assert max(lengths) < 2010 and len(lengths) < 20
