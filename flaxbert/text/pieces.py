"""Pieces of texts as arrays; a long text is tokenized in parts, so that the memory does not depend on its length."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from flaxbert.tokenizer import WordPieceTokenizer

# Characters that are tokenized at once: the tokenizers library takes about 500 bytes for each while it works.
_PART_LENGTH = 2**16


@dataclasses.dataclass(frozen=True)
class TextPieces:
    """Pieces of a text, without special tokens and not truncated.

    Attributes:
        ids: [T], int32.
        offsets: [T, 2], int32; start and end of each piece, in characters of the text.
        words: [T], int32; number of the word that each piece belongs to, ascending.
    """

    ids: np.ndarray
    offsets: np.ndarray
    words: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Part:
    """A part of text number `index` that begins at the character `start`."""

    index: int
    start: int
    text: str


def encode_texts(tokenizer: WordPieceTokenizer, texts: Sequence[str]) -> list[TextPieces]:
    """Return the pieces of each text, the same as without a division into parts."""
    encoded: list[list[TextPieces]] = [[] for _ in texts]
    for parts in _batches(_parts(texts, at_line_ends=tokenizer.has_word_pieces)):
        encodings = tokenizer.encode_pieces([part.text for part in parts])
        for part, encoding in zip(parts, encodings, strict=True):
            earlier = encoded[part.index]
            first_word = next((int(before.words[-1]) + 1 for before in reversed(earlier) if len(before.words)), 0)
            offsets = np.asarray(encoding.offsets, np.int32).reshape(-1, 2) + np.int32(part.start)
            words = np.asarray(encoding.word_ids, np.int32) + np.int32(first_word)
            earlier.append(TextPieces(np.asarray(encoding.ids, np.int32), offsets, words))
    return [
        TextPieces(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.offsets for part in parts]),
            np.concatenate([part.words for part in parts]),
        )
        for parts in encoded
    ]


def _parts(texts: Sequence[str], *, at_line_ends: bool) -> Iterator[_Part]:
    """Divide long texts before single blanks, where every tokenizer has a boundary; at line ends too if asked for."""
    blank = re.compile(r"(?<=\S)[ \n](?=\S)" if at_line_ends else r"(?<=\S) (?=\S)")
    for index, text in enumerate(texts):
        start = 0
        while len(text) - start > _PART_LENGTH:
            found = blank.search(text, start + _PART_LENGTH)
            if found is None:
                break
            yield _Part(index, start, text[start : found.start()])
            start = found.start()
        yield _Part(index, start, text[start:])


def _batches(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """Group parts to batches of about `_PART_LENGTH` characters."""
    batch, length = [], 0
    for part in parts:
        batch.append(part)
        length += len(part.text)
        if length >= _PART_LENGTH:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch
