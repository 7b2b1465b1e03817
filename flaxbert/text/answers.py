"""Rank the answer spans of a question, by the rules of Google BERT's run_squad.

Spans are counted in characters of the context, so that scripts without spaces between words work as well.
"""

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flaxbert.text.windows import QuestionWindow

_log = logging.getLogger("flaxbert")

_SETTINGS_KEY, _TASK = "task_specific_params", "question-answering"  # of config.json, as transformers calls them
# The settings with their lowest values, which have the types of all values.
_SETTINGS = {
    "max_length": 1,
    "max_query": 1,
    "step": 1,
    "overlap": 0,
    "n_best": 1,
    "max_answer": 1,
    "context_first": False,
    "null_threshold": -math.inf,
}


def answer_settings_keys(settings: Mapping[str, float | None], keys: Mapping[str, object]) -> dict[str, object]:
    """Return the keys of a config.json with the settings of a run, so that predictions can use them."""
    others = keys.get(_SETTINGS_KEY)
    saved = {name: settings[name] for name in _SETTINGS if settings.get(name) is not None}
    return {**keys, _SETTINGS_KEY: {**(others if isinstance(others, dict) else {}), _TASK: saved}}


def saved_answer_settings(keys: Mapping[str, object]) -> dict[str, float]:
    """Return the settings of answers in the keys of a config.json; warn of values that cannot be theirs."""
    tasks = keys.get(_SETTINGS_KEY)
    saved = tasks.get(_TASK) if isinstance(tasks, dict) else None
    values = saved if isinstance(saved, dict) else {}
    settings = {}
    for name, lowest in _SETTINGS.items():
        value: Any = values.get(name)
        if type(lowest) is float and type(value) is int:
            value = float(value)
        if type(value) is type(lowest) and value >= lowest:
            settings[name] = value
        elif value is not None:
            _log.warning("%s of %s in config.json is %r, which it cannot be, and is not used", name, _TASK, value)
    return settings


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Possible answer `text` = context[start:end]; an empty text means "no answer".

    `probability` is a softmax over the scores of all ranked candidates.
    """

    text: str
    start: int
    end: int
    start_logit: float
    end_logit: float
    probability: float = 0.0

    @property
    def score(self) -> float:
        """Sum of start logit and end logit."""
        return self.start_logit + self.end_logit


@dataclasses.dataclass(frozen=True)
class RankedAnswers:
    """Ranked answers of one question.

    Attributes:
        candidates: highest score first.
        null_odds: score of "no answer" minus the score of the best candidate with a text (run_squad's score_diff).
    """

    candidates: tuple[Candidate, ...]
    null_odds: float

    @property
    def best(self) -> str:
        """Text of the best candidate that has one; empty if none has."""
        return next((candidate.text for candidate in self.candidates if candidate.text), "")

    def text(self, threshold: float | None) -> str:
        """Return the best text, or an empty text if `null_odds` exceeds the threshold; None is never exceeded."""
        return "" if threshold is not None and self.null_odds > threshold else self.best


class AnswerLogits(NamedTuple):
    """The scores of a window's T tokens as the start and as the end of an answer.

    Attributes:
        start_logits: [T].
        end_logits: [T], or [G, T] given each of `starts`.
        starts: [G], positions to pair with ends, the first of which is [CLS]; None pairs all.
    """

    start_logits: np.ndarray
    end_logits: np.ndarray
    starts: np.ndarray | None = None


def rank_answers(
    context: str,
    windows: Sequence[QuestionWindow],
    logits: Sequence[AnswerLogits],
    *,
    n_best: int = 20,
    max_answer: int = 30,
    may_be_empty: bool = False,
) -> RankedAnswers:
    """Return the best answers to one question from the logits of all windows of its context.

    The `n_best` highest starts and ends of every window are paired, or the given starts and the `n_best` highest ends
    of each. A pair is a candidate if its start has its maximum context in this window, its end is not before its start,
    and both are context tokens. "No answer" has the score of [CLS] as start and end, in the window where this score is
    lowest. Unlike run_squad, padding is never a candidate. If no span is found, `null_odds` compares with a score of 0,
    as Hugging Face's scripts do.

    Args:
        context: of the question.
        windows: all windows of the question, from `question_windows`.
        logits: of each window, of all its tokens or more; those beyond its tokens are ignored.
        n_best: number of candidates to return. Candidates with equal texts count once, with the best score.
        max_answer: maximum number of tokens of an answer.
        may_be_empty: make "no answer" a candidate. It is added to the `n_best` if it is not among them.

    Raises:
        ValueError: there is no window, a window has more tokens than logits, or `n_best` is too small.
    """
    if n_best < 1 + may_be_empty:
        raise ValueError(f'n_best is {n_best}; must be at least 1, or 2 where "no answer" is a candidate')
    cut = _without_padding(windows, logits)
    spans = [_window_spans(window, own, n_best, max_answer) for window, own in zip(windows, cut, strict=True)]
    characters, scores = (np.concatenate(parts) for parts in zip(*spans, strict=True))
    null = min(((own.start_logits[0], own.end_logits.flat[0]) for own in cut), key=sum)
    if may_be_empty:
        characters, scores = np.append(characters, [[0, 0]], axis=0), np.append(scores, [null], axis=0)
    order = np.argsort(-scores.sum(axis=1), kind="stable")
    ranked = (
        _candidate(context, int(first), int(last), start_logit=float(start), end_logit=float(end))
        for (first, last), (start, end) in zip(characters[order], scores[order], strict=True)
        if first == last or not context[first:last].isspace()  # tokens of blanks alone are no answer
    )
    candidates = _distinct_texts(ranked, n_best)
    if may_be_empty and all(candidate.text for candidate in candidates):
        candidates.append(Candidate("", 0, 0, float(null[0]), float(null[1])))
    best = next((candidate.score for candidate in candidates if candidate.text), 0.0)
    return RankedAnswers(_with_probabilities(candidates), float(sum(null)) - best)


def _without_padding(windows: Sequence[QuestionWindow], logits: Sequence[AnswerLogits]) -> list[AnswerLogits]:
    """Return each window's logits without padding, in float64.

    In float64 the sum of two logits is exact, as it is for Python's floats in run_squad.
    """
    if not windows:
        raise ValueError("no windows: a question has at least one")
    cut = []
    for window, given in zip(windows, logits, strict=True):
        count, sizes = len(window.ids), [np.shape(array)[-1] for array in given[:2]]
        if min(sizes) < count:
            raise ValueError(f"{min(sizes)} scores for a window of {count} tokens")
        start_logits, end_logits = (np.asarray(array, np.float64)[..., :count] for array in given[:2])
        cut.append(AnswerLogits(start_logits, end_logits, given.starts))
    return cut


def _window_spans(
    window: QuestionWindow, logits: AnswerLogits, n_best: int, max_answer: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the candidates of a window: `(start, end)` in characters [N, 2], start and end logit [N, 2]."""
    start_logits, end_logits, starts = logits
    if starts is None:
        starts, end_logits = np.argsort(-start_logits, kind="stable")[:n_best], end_logits[None]
    count, first = len(window.offsets), starts - window.first
    usable = (first >= 0) & (first < count)
    usable[usable] = window.has_max_context[first[usable]]
    first = first[usable]
    last = np.argsort(-end_logits, axis=1, kind="stable")[:, :n_best] - window.first
    last, end_logits = (np.broadcast_to(x, (len(starts), x.shape[1]))[usable] for x in (last, end_logits))
    length = last - first[:, None] + 1
    i, j = np.nonzero((last >= 0) & (last < count) & (length >= 1) & (length <= max_answer))
    first, last = first[i], last[i, j]
    characters = np.stack([window.offsets[first, 0], window.offsets[last, 1]], axis=1)
    scores = np.stack([start_logits[window.first + first], end_logits[i, window.first + last]], axis=1)
    not_empty = characters[:, 0] < characters[:, 1]
    return characters[not_empty], scores[not_empty]


def _candidate(context: str, first: int, last: int, *, start_logit: float, end_logit: float) -> Candidate:
    """Return context[first:last] without blanks around it: byte-level tokenizers have tokens of blanks."""
    text = context[first:last]
    first, last = first + len(text) - len(text.lstrip()), last - len(text) + len(text.rstrip())
    return Candidate(context[first:last], first, last, start_logit, end_logit)


def _distinct_texts(ranked: Iterable[Candidate], count: int) -> list[Candidate]:
    """Return the first `count` candidates whose texts differ."""
    by_text: dict[str, Candidate] = {}
    for candidate in ranked:
        if len(by_text) == count:
            break
        by_text.setdefault(candidate.text, candidate)
    return list(by_text.values())


def _with_probabilities(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    if not candidates:
        return ()
    scores = np.array([candidate.score for candidate in candidates])
    exponentials = np.exp(scores - scores.max())
    probabilities = (exponentials / exponentials.sum()).tolist()
    return tuple(
        dataclasses.replace(candidate, probability=probability)
        for candidate, probability in zip(candidates, probabilities, strict=True)
    )
