"""Answers to questions, found in contexts of any length."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import jax

from flaxbert.pipelines.batching import Row
from flaxbert.pipelines.pipeline import Pipeline, at_least, fields_of, text_of
from flaxbert.text.answers import Candidate, rank_answers
from flaxbert.text.windows import QuestionWindow, WindowingOptions, question_windows

_MAX_QUERY = 64  # run_squad's
_SPECIAL = 3  # [CLS], and two [SEP]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a context says to a question: `text` is context[start:end], empty where it has no answer.

    `probability` is among the candidates that were ranked, `n_best` of them; `candidates` are the best of these, the
    likeliest first, without "there is no answer" where that is not among the best. `null_odds` says by how much it
    scores better than the best text.
    """

    text: str
    start: int
    end: int
    probability: float
    null_odds: float
    candidates: tuple[Candidate, ...]


@dataclasses.dataclass(frozen=True)
class _Part(Row):
    """A window of a context."""

    _: dataclasses.KW_ONLY
    window: QuestionWindow


@dataclasses.dataclass(frozen=True, eq=False)
class QuestionAnsweringPipeline(Pipeline[tuple[str, str], Answer]):
    """The part of a context that answers a question, by the rules of Google's run_squad.

    A question and a context longer than `max_length` are read in overlapping windows, each with the question. Settings
    equal to those of an evaluation give its answers.

    Attributes:
        top_k: candidates of each answer.
        n_best: starts and ends of each window that are paired, and candidates that probabilities are among; `top_k`
            where that is more.
        max_answer: tokens of an answer.
        max_query: tokens of a question; those beyond are cut off. 64 where None, or a third of a shorter window.
        step: tokens from the start of a window to that of the next; instead of `overlap`.
        overlap: tokens of context that a window shares with the next; where neither is given, a quarter of what the
            longest question leaves of a window.
        null_threshold: there is no answer where the null odds exceed this; None, for models that were taught no such
            questions, always takes the best text.
    """

    top_k: int = 5
    n_best: int = 20
    max_answer: int = 30
    max_query: int | None = None
    step: int | None = None
    overlap: int | None = None
    null_threshold: float | None = None

    architectures: ClassVar = ("BertForQuestionAnswering",)

    def __post_init__(self):
        super().__post_init__()
        at_least("top_k", self.top_k, 1)
        at_least("n_best", self.n_best, 1)
        at_least("max_answer", self.max_answer, 1)
        if self.null_threshold is not None and math.isnan(self.null_threshold):
            raise ValueError("null_threshold is not a number")
        if self.model.config.type_vocab_size < 2:
            raise ValueError("the model has one token type; questions and their contexts need two")
        _ = self._windowing  # which checks its numbers

    def __call__(self, questions: Iterable[tuple[str, str]]) -> list[Answer]:
        """The answer to each question: a pair of the question and its context.

        Raises:
            TypeError, ValueError: names the first input that is no such pair.
        """
        return list(self.stream(questions))

    @functools.cached_property
    def _windowing(self) -> WindowingOptions:
        longest = self._longest
        query = min(_MAX_QUERY, longest // 3) if self.max_query is None else self.max_query
        usual = max(0, longest - query - _SPECIAL) // 4 if self.step is None else None
        return WindowingOptions(longest, query, self.step, usual if self.overlap is None else self.overlap)

    def _checked(self, item: Any, place: str) -> tuple[str, str]:
        question, context = fields_of(item, place, "a pair of a question and its context")
        return text_of(question, f"{place}[0]"), text_of(context, f"{place}[1]")

    def _rows(self, items: Sequence[tuple[str, str]], places: Sequence[str]) -> list[list[Row]]:
        questions, contexts = zip(*items, strict=True)
        found = question_windows(self.tokenizer, questions, contexts, self._windowing)
        return [[self._part(window) for window in own] for own in found]

    def _part(self, window: QuestionWindow) -> Row:
        return _Part(window.ids.tolist(), window.types.tolist(), window=window)

    def _forward(self, params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        out = self._outputs(params, batch)
        return out.start_logits, out.end_logits

    def _result(self, item: tuple[str, str], rows: Sequence[Row], outputs: Sequence[Any]) -> Answer:
        starts, ends = zip(*outputs, strict=True)
        may_be_empty = self.null_threshold is not None
        answers = rank_answers(
            item[1],
            [row.window for row in rows if isinstance(row, _Part)],
            starts,
            ends,
            n_best=max(self.n_best, self.top_k, 1 + may_be_empty),
            max_answer=self.max_answer,
            may_be_empty=may_be_empty,
        )
        text = answers.text(self.null_threshold)
        nothing = Candidate("", 0, 0, 0.0, 0.0)  # of a context without tokens
        best = next((candidate for candidate in answers.candidates if candidate.text == text), nothing)
        shown = answers.candidates[: self.top_k]
        return Answer(best.text, best.start, best.end, best.probability, answers.null_odds, shown)
