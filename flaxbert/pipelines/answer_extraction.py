"""Pipeline that answers questions with a part of a context of any length."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import ClassVar

import jax

from flaxbert.config import BertConfig
from flaxbert.families import HeadKind, architecture_of
from flaxbert.layers import Params
from flaxbert.pipelines.batching import InputSequence
from flaxbert.pipelines.pipeline import Pipeline, require_at_least, require_text_pair
from flaxbert.text.answers import AnswerLogits, Candidate, rank_answers, saved_answer_settings
from flaxbert.text.windows import QuestionWindow, WindowingOptions, question_windows

_MAX_QUERY = 64  # the default of run_squad
_SPECIAL_TOKENS = 3  # [CLS] and two [SEP]


@dataclasses.dataclass(frozen=True)
class ExtractedAnswer:
    """Answer `text` = context[start:end]; an empty text means that the context has no answer.

    Attributes:
        probability: relative to all ranked candidates (`n_best`).
        null_odds: score of "no answer" minus the score of the best text.
        candidates: the `top_k` best candidates, highest score first; "no answer" is included only if it is among them.
    """

    text: str
    start: int
    end: int
    probability: float
    null_odds: float
    candidates: tuple[Candidate, ...]


@dataclasses.dataclass(frozen=True)
class _ContextWindow(InputSequence):
    """Model input of a window."""

    _: dataclasses.KW_ONLY
    window: QuestionWindow


@dataclasses.dataclass(frozen=True, eq=False)
class QuestionAnsweringPipeline(Pipeline[tuple[str, str], ExtractedAnswer]):
    """Part of a context that answers a question, for pairs of both, by the rules of Google's run_squad.

    A context that is too long for `max_length` is split into overlapping windows, each with the question.
    `from_pretrained` takes attributes that are not given from the run that trained the model: the answers are its own.

    Attributes:
        top_k: number of candidates of each answer.
        n_best: number of starts and ends of each window that are paired, and of candidates that are ranked; at least
            `top_k` are taken.
        max_answer: maximum number of tokens of an answer.
        max_query: maximum number of tokens of a question; further tokens are cut off. None is 64, or a third of a
            shorter window.
        step: tokens from the start of a window to the start of the next one; an alternative to `overlap`.
        overlap: tokens of context that neighbouring windows share. If neither is given, a quarter of the room that the
            longest question leaves in a window.
        context_first: put the context before the question, for models that were trained so.
        null_threshold: the answer is empty if `null_odds` exceeds this. None, for models that were not trained with
            unanswerable questions, always takes the best text, and so does infinity.
    """

    top_k: int = 5
    n_best: int = 20
    max_answer: int = 30
    max_query: int | None = None
    step: int | None = None
    overlap: int | None = None
    context_first: bool = False
    null_threshold: float | None = None

    heads: ClassVar = (HeadKind.QUESTION_ANSWERING, HeadKind.ANSWER_POINTER)

    def __post_init__(self):
        super().__post_init__()
        require_at_least("top_k", self.top_k, 1)
        require_at_least("n_best", self.n_best, 1)
        require_at_least("max_answer", self.max_answer, 1)
        threshold = self.null_threshold
        is_number = isinstance(threshold, Real) and not isinstance(threshold, bool) and not math.isnan(threshold)
        if threshold is not None and not is_number:
            raise ValueError(f"null_threshold is {threshold!r}; it must be a number, or None")
        if not self.takes_pairs:
            raise ValueError("the model has one token type; questions and their contexts need two")
        self._windowing_options()  # raises an error for numbers out of range

    @classmethod
    def _saved_options(cls, folder: Path, config: BertConfig, options: Mapping[str, object]) -> Mapping[str, object]:
        """Return the settings of the run that trained the model."""
        saved = saved_answer_settings(config.unused)
        if "max_length" in saved:
            saved["max_length"] = min(saved["max_length"], config.max_sequence_length)
        if "step" in options or "overlap" in options:
            saved = {name: value for name, value in saved.items() if name not in ("step", "overlap")}
        return saved

    @property
    def _candidates(self) -> int:
        return max(self.n_best, self.top_k, 1 + (self.null_threshold is not None))

    def _windowing_options(self) -> WindowingOptions:
        max_query = min(_MAX_QUERY, self._longest // 3) if self.max_query is None else self.max_query
        overlap = self.overlap
        if self.step is None and overlap is None:
            overlap = max(0, self._longest - max_query - _SPECIAL_TOKENS) // 4
        return WindowingOptions(self._longest, max_query, self.step, overlap, self.context_first)

    def _check(self, item: object, name: str) -> tuple[str, str]:
        return require_text_pair(item, name, "a pair of a question and its context")

    def _encode(self, items: Sequence[tuple[str, str]], names: Sequence[str]) -> list[list[InputSequence]]:
        questions, contexts = zip(*items, strict=True)
        windows = question_windows(self.tokenizer, questions, contexts, self._windowing_options())
        return [
            [_ContextWindow(window.ids, window.types, window=window) for window in of_question]
            for of_question in windows
        ]

    def _forward(self, params: Params, batch: Mapping[str, jax.Array]) -> AnswerLogits:
        if architecture_of(self.model).head is HeadKind.ANSWER_POINTER:
            out = self._model_outputs(params, batch, beams=self._candidates)
            return AnswerLogits(out.start_logits, out.end_logits_by_start, out.starts)
        out = self._model_outputs(params, batch)
        return AnswerLogits(out.start_logits, out.end_logits)

    def _decode(
        self, item: tuple[str, str], sequences: Sequence[InputSequence], outputs: Iterable[AnswerLogits]
    ) -> ExtractedAnswer:
        answers = rank_answers(
            item[1],
            [sequence.window for sequence in sequences if isinstance(sequence, _ContextWindow)],
            list(outputs),
            n_best=self._candidates,
            max_answer=self.max_answer,
            may_be_empty=self.null_threshold is not None,
        )
        text = answers.text(self.null_threshold)
        no_candidate = Candidate("", 0, 0, 0.0, 0.0)  # for a context without tokens
        best = next((candidate for candidate in answers.candidates if candidate.text == text), no_candidate)
        return ExtractedAnswer(
            best.text, best.start, best.end, best.probability, answers.null_odds, answers.candidates[: self.top_k]
        )
