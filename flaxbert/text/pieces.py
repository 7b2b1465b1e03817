"""Pieces of texts as arrays; a long text is tokenized in parts, so that the memory does not depend on its length."""

import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from tokenizers import Encoding

from flaxbert.tokenizer import WordPieceTokenizer

# Characters that are tokenized at once: the tokenizers library takes about 500 bytes for each while it works.
_PART_LENGTH = 2**16


@dataclasses.dataclass(frozen=True)
class TextPieces:
    """Pieces of a text, without special tokens and not truncated.

    Attributes:
        ids: [T], int32.
        offsets: [T, 2], int32; start and end of each piece, in characters of the text, see `_character_spans`.
        words: [T], int32; number of the word that each piece belongs to, ascending. Accents that a byte-level tokenizer
            takes for a word of their own belong to that of their letter.
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
            offsets = _character_spans(part.text, encoding) + np.int32(part.start)
            words = np.asarray(encoding.word_ids, np.int32)
            if not (tokenizer.has_word_pieces or part.text.isascii()):
                words = _joined_at_accents(words, part.text, offsets - np.int32(part.start))
            words = words + np.int32(first_word)
            earlier.append(TextPieces(np.asarray(encoding.ids, np.int32), offsets, words))
    return [
        TextPieces(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.offsets for part in parts]),
            np.concatenate([part.words for part in parts]),
        )
        for parts in encoded
    ]


def _character_spans(text: str, encoding: Encoding) -> np.ndarray:
    """Return `(start, end)` of each piece in characters of its text, int32 [N, 2].

    Unlike the encoding's offsets, a span includes the marks after a letter that BERT's normaliser removes: a letter is
    not separated from its accents or vowel signs. Blanks at a span's start are left out.
    """
    spans = np.asarray(encoding.offsets, np.int32).reshape(-1, 2)
    starts = spans[:, 0]
    for i in [i for i, start in enumerate(starts) if text[start : start + 1].isspace()]:
        length = spans[i, 1] - spans[i, 0]
        starts[i] += length - len(text[spans[i, 0] : spans[i, 1]].lstrip())
    if text.isascii():
        return spans
    following = np.append(starts[1:], len(text))
    for i in np.flatnonzero(following > spans[:, 1]):
        while spans[i, 1] < following[i] and _continues_a_letter(text[spans[i, 1]]):
            spans[i, 1] += 1
    return spans


def _joined_at_accents(words: np.ndarray, text: str, offsets: np.ndarray) -> np.ndarray:
    """Return the numbers of words, int32 [N], without an end of a word between a letter, its accents and a letter."""
    begins = np.diff(words, prepend=-1) != 0
    for i in np.flatnonzero(begins[1:] & (offsets[1:, 0] == offsets[:-1, 1])) + 1:
        start, end = offsets[i]
        if start < end and (
            _continues_a_letter(text[start]) or (text[start].isalpha() and _continues_a_letter(text[start - 1]))
        ):
            begins[i] = False
    return np.cumsum(begins, dtype=np.int32) - 1


def _continues_a_letter(character: str) -> bool:
    # The tags of flags such as that of Scotland are format characters.
    return unicodedata.category(character)[0] == "M" or 0xE0020 <= ord(character) <= 0xE007F


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
