"""A question and its context as one or several inputs that a model can hold."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from flaxbert.tokenizer import CLS, SEP, WordPieceTokenizer
from flaxbert.windows import owners


@dataclasses.dataclass(frozen=True)
class Windowing:
    """How a context is cut; exactly one of `step` and `overlap` is given.

    With n tokens of context to a window, windows of the overlap v are those of the step n - v; n depends on the
    length of the question.
    """

    max_length: int = 384
    """Tokens of a window: `[CLS] question [SEP] part of the context [SEP]`."""
    max_query: int = 64
    """Tokens of the question; those beyond are cut off."""
    step: int | None = None
    """Tokens from the start of a window to that of the next: Google's doc_stride."""
    overlap: int | None = None
    """Tokens that a window has in common with the next: the stride of Hugging Face's tokenizers."""

    def __post_init__(self):
        if (self.step is None) == (self.overlap is None):
            raise ValueError(f"give exactly one of step ({self.step}) and overlap ({self.overlap}), the other as None")
        if self.max_query < 1 or self._room(self.max_query) < 1:
            raise ValueError(
                f"max_query is {self.max_query}; allowed: 1 to {self.max_length - 4}, so that windows of max_length "
                f"{self.max_length} hold three special tokens and some context, too"
            )
        if self.step is not None and self.step < 1:
            raise ValueError(f"step is {self.step}; must be at least 1")
        if self.overlap is not None and not 0 <= self.overlap < self._room(self.max_query):
            raise ValueError(
                f"overlap is {self.overlap}; allowed: 0 to {self._room(self.max_query) - 1}, less than the tokens of "
                f"context beside a question of max_query {self.max_query}"
            )

    def parts(self, question: int, context: int) -> list[tuple[int, int]]:
        """First token, and the one after the last, of each window's part of a context of so many tokens."""
        room = self._room(min(question, self.max_query))
        # A step longer than the window would leave tokens out.
        step = room - self.overlap if self.overlap is not None else min(self.step or room, room)
        count = 1 + max(0, -(-(context - room) // step))
        return [(start, min(start + room, context)) for start in range(0, count * step, step)]

    def _room(self, question: int) -> int:
        return self.max_length - question - 3


@dataclasses.dataclass(frozen=True)
class Window:
    """`[CLS] question [SEP] part of the context [SEP]`, T tokens; P of them are of the context.

    Attributes:
        ids: [T], int32.
        types: [T], int32, 0 up to the first [SEP].
        first: position of the first token of the context.
        offsets: [P, 2], the characters of the context that each of its tokens stands for: from, up to.
        has_max_context: [P], whether this is, of all windows with this token, the one that shows most around it.
    """

    ids: np.ndarray
    types: np.ndarray
    first: int
    offsets: np.ndarray
    has_max_context: np.ndarray

    def positions(self, start: int, end: int) -> tuple[int, int] | None:
        """Positions of the first and the last token of context[start:end]; None where not all of it is here."""
        if not len(self.offsets) or start < self.offsets[0, 0] or end > self.offsets[-1, 1]:
            return None
        first = int(np.searchsorted(self.offsets[:, 1], start, side="right"))
        last = int(np.searchsorted(self.offsets[:, 0], end, side="left")) - 1
        return (self.first + first, self.first + last) if first <= last else None


def make_windows(
    tokenizer: WordPieceTokenizer, questions: Sequence[str], contexts: Sequence[str], windowing: Windowing
) -> list[list[Window]]:
    """The windows of each question and its context, at least one; a context that several share is read once."""
    distinct = {context: number for number, context in enumerate(dict.fromkeys(contexts))}
    read = []
    for encoding in tokenizer.encode_alone(list(distinct)):
        offsets = np.asarray(encoding.offsets, np.int32).reshape(-1, 2)
        read.append((np.asarray(encoding.ids, np.int32), offsets))
    cls, sep = tokenizer.id(CLS), tokenizer.id(SEP)
    found = []
    for ids, context in zip(tokenizer.pieces(questions), contexts, strict=True):
        head = np.asarray([cls, *ids[: windowing.max_query], sep], np.int32)
        pieces, offsets = read[distinct[context]]
        parts = windowing.parts(len(head) - 2, len(pieces))
        best = owners(parts, len(pieces))
        windows = []
        for number, (start, end) in enumerate(parts):
            tokens = np.concatenate([head, pieces[start:end], np.asarray([sep], np.int32)])
            types = (np.arange(len(tokens)) >= len(head)).astype(np.int32)
            windows.append(Window(tokens, types, len(head), offsets[start:end], best[start:end] == number))
        found.append(windows)
    return found
