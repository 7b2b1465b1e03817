"""Text to tokens, sentence by sentence."""

import dataclasses
import gc
import itertools
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer

UNKNOWN = "[UNK]"


@dataclasses.dataclass(frozen=True)
class TokenChunk:
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
    """Turns pieces of text into `TokenChunk`; the same for the same text, wherever it runs."""

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

    def __call__(self, text: str) -> TokenChunk:
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
        return TokenChunk(
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


def text_chunks(lines: Iterator[str], *, size: int = 2**19) -> Iterator[str]:
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


# Marks with the quotes and brackets that close after them, and blanks. It takes all there are and never goes back: else
# a line of full stops would take hours.
_END = re.compile(r"[.!?…؟।。！？]++[\"'’”»)\]」』）》]*+(\s*+)")
_NEEDS_NO_BLANK = "。！？"
_OPENING = "\"'‘“«(["
# What a full stop after it does not end a sentence, whatever follows; and what it does not before a number.
_TITLES = frozenset(
    ["mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "rev", "hon", "gen", "col", "capt", "lt", "sgt", "gov", "sen"]
    + ["rep", "pres", "mt", "ft", "vs", "cf", "al", "eg", "ie", "viz", "ed", "eds", "dept", "inc", "ltd", "co", "corp"]
    + ["bros", "univ", "ph.d"]
)
_BEFORE_NUMBERS = frozenset(
    ["approx", "ca", "est", "no", "nos", "vol", "vols", "p", "pp", "fig", "figs", "art", "jan", "feb", "mar", "apr"]
    + ["jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec"]
)
_INITIALS = re.compile(r"(?:[a-z]\.)+[a-z]")  # u.s, e.g


def split_sentences(paragraph: str) -> Iterator[str]:
    """The sentences of a paragraph, blanks around them left out; at least one of a paragraph that is not blank.

    A sentence ends with . ! ? … ؟ । before a blank that no small letter follows, but for full stops after initials and
    common English abbreviations; and with 。！？, whatever follows. Where the text of a language without such marks is
    to be cut, give it one sentence a line.
    """
    start = 0
    for found in _END.finditer(paragraph):
        end = found.end()
        if end < len(paragraph) and (found[1] or found[0][0] in _NEEDS_NO_BLANK) and _ends(paragraph, start, found):
            yield paragraph[start:end].strip()
            start = end
    if rest := paragraph[start:].strip():
        yield rest


def _ends(text: str, start: int, found: re.Match[str]) -> bool:
    mark = text[found.start()]
    if mark in _NEEDS_NO_BLANK:
        return True
    if text[found.end() : found.end() + 4].lstrip(_OPENING)[:1].islower():
        return False
    if mark != "." or not text[found.start() + 1].isspace():
        return True
    before = text[max(start, found.start() - 20) : found.start()]
    word = before[before.rfind(" ") + 1 :].lstrip(_OPENING)
    if len(word) == 1 and word.isupper():
        return False
    if len(word) > 6:
        return True
    word = word.lower()
    if word in _BEFORE_NUMBERS:
        return not text[found.end()].isdigit()
    return not (word in _TITLES or ("." in word and _INITIALS.fullmatch(word)))


_tokenizer: SentenceTokenizer | None = None


def start_worker(make: Callable[[], SentenceTokenizer]) -> None:
    """Makes the tokenizer of this process."""
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a thread for each process
    _tokenizer = make()
    gc.disable()  # millions of lists of numbers, and no cycle among them
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends its processes
    threading.Thread(target=_end_with_parent, daemon=True).start()


def tokenise_in_worker(piece: str) -> TokenChunk:
    """The tokens of a piece of text."""
    assert _tokenizer is not None
    return _tokenizer(piece)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
