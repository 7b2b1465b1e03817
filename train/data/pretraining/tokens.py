"""Text to tokens, sentence by sentence, and the processes that do it.

This module imports neither flaxbert nor jax: each process that tokenises imports it, and needs neither.
"""

import collections
import dataclasses
import gc
import itertools
import multiprocessing
import os
import re
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer

_MARKS_SAMPLE, _MARKS_SHARE = 4096, 0.02  # characters of a chunk that are looked at; lost marks a character
# Marks with the quotes and brackets that close after them, and blanks. Possessive quantifiers (++): with backtracking a
# line of full stops would take hours.
_SENTENCE_END = re.compile(r"[.!?…؟।。！？]++[\"'’”»)\]」』）》]*+(\s*+)")
_ENDS_WITHOUT_BLANK = "。！？"
_OPENING = "\"'‘“«(["
# Abbreviations whose full stop does not end a sentence, whatever follows, and those before a number.
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


@dataclasses.dataclass(frozen=True)
class TokenChunk:
    """The tokens of a chunk of a corpus."""

    ids: np.ndarray
    lengths: np.ndarray  # tokens of each sentence, at least 1 [S]
    ends: np.ndarray  # for each end of a document the number of the chunk's sentences before it [E]
    word_starts: np.ndarray | None  # whether a token begins a word [N]; None if the tokenizer's own marks (##) tell
    unknown: int  # the number of unknown tokens


def id_dtype(vocab_size: int) -> np.dtype:
    """Return the smaller of uint16 and uint32 that holds the ids of a vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


class SentenceTokenizer:
    """A function from a chunk of text to its `TokenChunk`; the same for the same text, wherever it runs."""

    def __init__(self, tokenizer: str, *, split: bool, words: Sequence[str] = ()):
        """Load the content of a tokenizer.json.

        With `split` lines are paragraphs to be split into sentences; else each line is a sentence. `words` are those
        of a language that writes no blanks between them: neighbouring characters that form one of them are one word.
        """
        self._backend = Tokenizer.from_str(tokenizer)
        self._backend.encode_special_tokens = True  # "[MASK]" in a text is not the token [MASK]
        self._dtype = id_dtype(max(self._backend.get_vocab().values()) + 1)
        unknown = getattr(self._backend.model, "unk_token", None)  # a byte-level model needs none
        self._unknown = None if unknown is None else self._backend.token_to_id(unknown)
        self._split = split
        self._words, self._longest = frozenset(words), max(map(len, words), default=0)

    def __call__(self, text: str) -> TokenChunk:
        """Return the tokens of lines as `TextReader` yields them, joined by line feeds."""
        sentences: list[str] = []
        ends = []  # in sentences, before those without tokens are dropped
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
        kept_before = np.concatenate([[0], np.cumsum(lengths > 0)])
        return TokenChunk(
            ids=ids,
            lengths=lengths[lengths > 0],
            ends=kept_before[ends] if ends else np.zeros(0, np.int64),
            word_starts=self._word_starts(lists) if self._words else None,
            unknown=0 if self._unknown is None else int(np.count_nonzero(ids == self._unknown)),
        )

    def _word_starts(self, sentences: list[list[int]]) -> np.ndarray:
        """Find words from left to right, each time the longest of the list (forward maximum matching)."""
        starts = []
        for ids in sentences:
            tokens = [str(self._backend.id_to_token(i)) for i in ids]
            index = 0
            while index < len(tokens):
                count = self._match(tokens, index)
                starts += [True] + [False] * (count - 1)
                index += count
        return np.array(starts, bool)

    def _match(self, tokens: Sequence[str], index: int) -> int:
        """Return the number of tokens of the word that begins at `index`."""
        run = list(itertools.takewhile(lambda token: len(token) == 1, tokens[index : index + self._longest]))
        for count in range(len(run), 1, -1):
            if "".join(run[:count]) in self._words:
                return count
        return 1 + sum(1 for _ in itertools.takewhile(lambda token: token.startswith("##"), tokens[index + 1 :]))


def note_lost_marks(chunks: Iterator[str], tokenizer: Tokenizer, *, flags: str = "--") -> Iterator[str]:
    """Return the chunks; print a note once if the tokenizer strips many marks of a script, such as Thai vowel signs.

    Accents of Latin, Greek and Cyrillic letters do not count: stripping them is what lower-casing is known for.
    """
    seen, lost = 0, collections.Counter[str]()
    noted = tokenizer.normalizer is None
    for chunk in chunks:
        if not noted:
            sample = chunk[:_MARKS_SAMPLE]
            seen += len(sample)
            lost += _script_marks(sample) - _script_marks(tokenizer.normalizer.normalize_str(sample))
            script, count = max(lost.items(), key=lambda item: item[1], default=("", 0))
            noted = count > _MARKS_SHARE * seen
            if noted:
                print(
                    f"note: the tokenizer strips marks from {script} letters, such as vowel signs ({count:,} in "
                    f"{seen:,} characters), as lower-casing does; to keep them give {flags}no-lowercase, or a cased "
                    f"{flags}tokenizer",
                    file=sys.stderr,
                )
        yield chunk


def _script_marks(text: str) -> collections.Counter[str]:
    decomposed = unicodedata.normalize("NFD", text)
    marks = (mark for mark in decomposed if ord(mark) > 0x36F and unicodedata.category(mark) == "Mn")
    names = (unicodedata.name(mark, "unnamed").removeprefix("COMBINING ") for mark in marks)
    return collections.Counter(name.split()[0].capitalize() for name in names)


def text_chunks(lines: Iterator[str], *, size: int = 2**19) -> Iterator[str]:
    """Join lines into chunks of about `size` characters; the bounds depend on the text alone."""
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


def split_sentences(paragraph: str) -> Iterator[str]:
    """Return the sentences of a paragraph without blanks around them; at least one if it is not blank.

    A sentence ends with . ! ? … ؟ । before a blank that no lower-case letter follows, except for full stops after
    initials and common English abbreviations; and with 。！？, whatever follows. Texts of languages with other marks
    should have a sentence a line.
    """
    start = 0
    for mark in _SENTENCE_END.finditer(paragraph):
        end = mark.end()
        if end < len(paragraph) and (mark[1] or mark[0][0] in _ENDS_WITHOUT_BLANK) and _ends(paragraph, start, mark):
            yield paragraph[start:end].strip()
            start = end
    if rest := paragraph[start:].strip():
        yield rest


def _ends(text: str, start: int, found: re.Match[str]) -> bool:
    """Return whether the sentence that began at `start` ends with the mark."""
    mark = text[found.start()]
    if mark in _ENDS_WITHOUT_BLANK:
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


_tokenizer: SentenceTokenizer | None = None  # of this process


def start_worker(make: Callable[[], SentenceTokenizer]) -> None:
    """Prepare a worker process; `make` makes its tokenizer."""
    global _tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process
    _tokenizer = make()
    gc.disable()  # millions of lists of numbers, and no cycle among them
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its processes
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def tokenise_in_worker(chunk: str) -> TokenChunk:
    """Tokenise a chunk of text in a process that `start_worker` has prepared."""
    assert _tokenizer is not None
    return _tokenizer(chunk)


def _exit_with_parent() -> None:
    """Exit when the parent is killed: else the process would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
