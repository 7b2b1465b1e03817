"""Sliding windows over long texts, and run_squad's max-context rule."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from flaxbert.encoded_text import PairTemplate, join_pair
from flaxbert.text.pieces import TextPieces, encode_texts
from flaxbert.tokenizer import WordPieceTokenizer


def sliding_windows(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Return `(start, end)` of the windows of `size` positions that cover `length` positions.

    Neighbouring windows share `overlap` positions. The last window is moved to the left until it is full, so it may
    share more. A text that is not longer than `size` is one window.

    Raises:
        ValueError: `size` is below 1, or `overlap` is not within 0 to size - 1.
    """
    if size < 1 or not 0 <= overlap < size:
        raise ValueError(f"windows of {size} positions can't share {overlap}; allowed: 0 to {size - 1}")
    if length <= size:
        return [(0, length)]
    starts = [*range(0, length - size, size - overlap), length - size]
    return [(start, start + size) for start in starts]


def max_context_windows(spans: Sequence[tuple[int, int]], length: int) -> np.ndarray:
    """Return for each position the index of the window in which it has the most context [length].

    The context of a position is the smaller of the numbers of positions before it and after it in the window, plus a
    hundredth of the window's length, as in Google BERT's run_squad. The first of several equal windows is taken.

    Args:
        spans: `(start, end)` of each window.
        length: number of positions of the text.
    """
    best = np.full(length, -np.inf)
    windows = np.zeros(length, np.int32)
    for index, (start, end) in enumerate(spans):
        positions = np.arange(end - start)
        context = np.minimum(positions, positions[::-1]) + 0.01 * (end - start)
        better = context > best[start:end]
        best[start:end][better] = context[better]
        windows[start:end][better] = index
    return windows


@dataclasses.dataclass(frozen=True)
class WindowingOptions:
    """Sizes of the windows over the context of a question. Exactly one of `step` and `overlap` is given.

    Where n tokens of context fit into a window, the overlap v is the step n - v. n depends on the length of the
    question.

    Raises:
        ValueError: both or none of `step` and `overlap` are given, or a number is outside the range that is allowed.
    """

    max_length: int = 384
    """Tokens of a window: `[CLS] question [SEP] part of the context [SEP]`, or with the context first."""
    max_query: int = 64
    """Maximum number of question tokens; further tokens are cut off."""
    step: int | None = None
    """Tokens from the start of a window to the start of the next one: Google's doc_stride."""
    overlap: int | None = None
    """Tokens that neighbouring windows share: the stride of Hugging Face's tokenizers."""
    context_first: bool = False
    """The part of the context precedes the question."""

    def __post_init__(self):
        if (self.step is None) == (self.overlap is None):
            raise ValueError(f"give exactly one of step ({self.step}) and overlap ({self.overlap}), the other as None")
        if self.max_query < 1 or self._context_room(self.max_query) < 1:
            raise ValueError(
                f"max_query is {self.max_query}; allowed: 1 to {self.max_length - 4}, so that windows of max_length "
                f"{self.max_length} hold three special tokens and some context, too"
            )
        if self.step is not None and self.step < 1:
            raise ValueError(f"step is {self.step}; must be at least 1")
        room = self._context_room(self.max_query)
        if self.overlap is not None and not 0 <= self.overlap < room:
            raise ValueError(
                f"overlap is {self.overlap}; allowed: 0 to {room - 1}, less than the tokens of context beside a "
                f"question of max_query {self.max_query}"
            )

    def context_spans(
        self, question_length: int, context_length: int, *, special_tokens: int = 3
    ) -> list[tuple[int, int]]:
        """Return `(start, end)`, in tokens of the context, of each window's part of the context.

        Raises:
            ValueError: the tokenizer's special tokens leave too few tokens of context.
        """
        room = self._context_room(min(question_length, self.max_query)) + 3 - special_tokens
        if room <= (self.overlap or 0):
            raise ValueError(
                f"windows of {self.max_length} tokens hold {room} tokens of context beside a question of "
                f"{question_length} and {special_tokens} special tokens; choose a smaller max_query or overlap"
            )
        # A step longer than the window would leave tokens out.
        step = room - self.overlap if self.overlap is not None else min(self.step or room, room)
        count = 1 + max(0, -(-(context_length - room) // step))
        return [(start, min(start + room, context_length)) for start in range(0, count * step, step)]

    def _context_room(self, question_length: int) -> int:
        return self.max_length - question_length - 3


@dataclasses.dataclass(frozen=True)
class QuestionWindow:
    """Model input `[CLS] question [SEP] part of the context [SEP]` of T tokens, N of them context tokens.

    With `WindowingOptions.context_first` the two parts change places.

    Attributes:
        ids: [T], int32.
        types: [T], int32; token types, 0 up to the first [SEP], then 1.
        first: position of the first context token.
        offsets: [N, 2]; `(start, end)` of each context token, in characters of the context.
        has_max_context: [N]; True where the token has more context in this window than in any other.
        covered: `(start, end)` of the context's characters that belong to no token outside this window. The tokenizer
            may drop characters, so they may reach beyond the offsets of the first and last token.
    """

    ids: np.ndarray
    types: np.ndarray
    first: int
    offsets: np.ndarray
    has_max_context: np.ndarray
    covered: tuple[int, int]

    def positions(self, start: int, end: int) -> tuple[int, int] | None:
        """Return the positions of the first and last token of context[start:end], or None if a part is missing."""
        if not len(self.offsets) or start < self.covered[0] or end > self.covered[1]:
            return None
        first = int(np.searchsorted(self.offsets[:, 1], start, side="right"))
        last = int(np.searchsorted(self.offsets[:, 0], end, side="left")) - 1
        return (self.first + first, self.first + last) if first <= last else None


def question_windows(
    tokenizer: WordPieceTokenizer, questions: Sequence[str], contexts: Sequence[str], options: WindowingOptions
) -> list[list[QuestionWindow]]:
    """Return the windows of each question and its context, at least one per question.

    A context that several questions share is tokenized once.
    """
    distinct = list(dict.fromkeys(contexts))
    pieces = dict(zip(distinct, encode_texts(tokenizer, distinct), strict=True))
    return [
        _split_context(ids, context, pieces[context], tokenizer.pair_template, options)
        for ids, context in zip(tokenizer.piece_ids(questions), contexts, strict=True)
    ]


def _split_context(
    question: Sequence[int], text: str, context: TextPieces, template: PairTemplate, options: WindowingOptions
) -> list[QuestionWindow]:
    """Return the windows of one question over a context, whose text and pieces are given."""
    question = question[: options.max_query]
    first = len(template.before.ids)
    if not options.context_first:
        first += len(question) + len(template.between.ids)
    spans = options.context_spans(len(question), len(context.ids), special_tokens=template.size)
    max_context = max_context_windows(spans, len(context.ids))
    windows = []
    for index, (start, end) in enumerate(spans):
        part = context.ids[start:end].tolist()
        parts = (part, question) if options.context_first else (question, part)
        encoded = join_pair(template, *parts)
        windows.append(
            QuestionWindow(
                ids=np.asarray(encoded.ids, np.int32),
                types=np.asarray(encoded.type_ids, np.int32),
                first=first,
                offsets=context.offsets[start:end],
                has_max_context=max_context[start:end] == index,
                covered=(
                    0 if start == 0 else int(context.offsets[start - 1, 1]),
                    len(text) if end == len(context.ids) else int(context.offsets[end, 0]),
                ),
            )
        )
    return windows
