"""Text to tokens, sentence by sentence."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer

from train.data.corpus.sentences import split_sentences

UNKNOWN = "[UNK]"


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A piece of a corpus.

    Attributes:
        ids: [N], of all sentences one after another.
        lengths: [S], tokens of each sentence, none of them 0.
        ends: [E], for each end of a document how many of the piece's sentences come before it.
        word_starts: [N], whether a token begins a word; None where the tokenizer's own marks (##) tell.
        unknown: how many tokens are [UNK].
    """

    ids: np.ndarray
    lengths: np.ndarray
    ends: np.ndarray
    word_starts: np.ndarray | None
    unknown: int


def id_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds the ids."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


class SentenceTokenizer:
    """Turns pieces of text into `Tokens`; the same for the same text, wherever it runs."""

    def __init__(self, tokenizer: str, *, split: bool, words: Sequence[str] = ()):
        """Makes one.

        Args:
            tokenizer: the content of a tokenizer.json.
            split: whether lines are paragraphs to be cut into sentences; else each is one.
            words: of languages that write none apart: which neighbouring characters are one word.
        """
        self._backend = Tokenizer.from_str(tokenizer)
        self._backend.encode_special_tokens = True  # a text that speaks of [MASK] has no token of its own for it
        self._dtype = id_dtype(max(self._backend.get_vocab().values()) + 1)
        self._unknown = self._backend.token_to_id(UNKNOWN)
        self._split = split
        self._words, self._longest = frozenset(words), max(map(len, words), default=0)

    def __call__(self, text: str) -> Tokens:
        """The tokens of lines as `TextReader` gives them, joined by line feeds."""
        sentences: list[str] = []
        ends = []  # in sentences, of which some may turn out to have no token
        for line in text.split("\n"):
            if not line:
                ends.append(len(sentences))
            elif self._split:
                sentences.extend(split_sentences(line))
            else:
                sentences.append(line)
        encodings = self._backend.encode_batch_fast(sentences, add_special_tokens=False)
        lists = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        ids = np.fromiter(itertools.chain.from_iterable(lists), self._dtype, lengths.sum())
        there = np.concatenate([[0], np.cumsum(lengths > 0)])
        return Tokens(
            ids=ids,
            lengths=lengths[lengths > 0],
            ends=there[ends] if ends else np.zeros(0, np.int64),
            word_starts=self._word_starts(lists) if self._words else None,
            unknown=int(np.count_nonzero(ids == self._unknown)),
        )

    def _word_starts(self, sentences: list[list[int]]) -> np.ndarray:
        """By the longest word of the list at each place, from left to right (forward maximum matching)."""
        starts = []
        for ids in sentences:
            tokens = [str(self._backend.id_to_token(i)) for i in ids]
            place = 0
            while place < len(tokens):
                count = self._match(tokens, place)
                starts += [True] + [False] * (count - 1)
                place += count
        return np.array(starts, bool)

    def _match(self, tokens: Sequence[str], place: int) -> int:
        """Of how many tokens the word that begins there consists."""
        run = list(itertools.takewhile(lambda token: len(token) == 1, tokens[place : place + self._longest]))
        for count in range(len(run), 1, -1):
            if "".join(run[:count]) in self._words:
                return count
        return 1 + sum(1 for _ in itertools.takewhile(lambda token: token.startswith("##"), tokens[place + 1 :]))


def pieces(lines: Iterator[str], *, size: int = 2**19) -> Iterator[str]:
    """Lines in pieces of about `size` characters, whatever tokenises them: their bounds depend on the text alone."""
    held: list[str] = []
    count = 0
    for line in lines:
        held.append(line)
        count += len(line) + 1
        if count >= size:
            yield "\n".join(held)
            held, count = [], 0
    if held:
        yield "\n".join(held)
