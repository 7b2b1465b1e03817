"""The best answers to a question, from the scores of all windows of its context."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from flaxbert.text.windows import QuestionWindow


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A possible answer: `text` is context[start:end], empty where it says that there is no answer.

    `probability` is a softmax over the candidates' scores, start_logit + end_logit.
    """

    text: str
    start: int
    end: int
    start_logit: float
    end_logit: float
    probability: float = 0.0

    @property
    def score(self) -> float:
        """The higher, the better."""
        return self.start_logit + self.end_logit


@dataclasses.dataclass(frozen=True)
class RankedAnswers:
    """What is known about the answer to a question.

    Attributes:
        candidates: best first.
        null_odds: by how much "there is no answer" scores better than the best candidate that is one.
    """

    candidates: tuple[Candidate, ...]
    null_odds: float

    @property
    def best(self) -> str:
        """The best answer's text; empty where no window has any."""
        return next((candidate.text for candidate in self.candidates if candidate.text), "")

    def text(self, threshold: float | None) -> str:
        """The best answer's text, empty where the odds that there is none exceed the threshold (None: never)."""
        return "" if threshold is not None and self.null_odds > threshold else self.best


def rank_answers(
    context: str,
    windows: Sequence[QuestionWindow],
    start_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    *,
    n_best: int = 20,
    max_answer: int = 30,
    may_be_empty: bool = False,
) -> RankedAnswers:
    """Answers by the rules of run_squad.

    Of every window the `n_best` best starts and ends are paired. A pair counts whose start has its maximum of context
    here, whose end is not before it and both in the context. That there is no answer scores as [CLS] does for both,
    in the window where that is least. Unlike run_squad, padding is never among the best; where nothing is found, the
    odds are, as in Hugging Face's scripts, against a score of 0.

    Args:
        context: of the question.
        windows: those of `question_windows`, of one question.
        start_logits: of each window [T] or more; those beyond its tokens are not looked at.
        end_logits: likewise.
        n_best: candidates to return; the same text counts once, with its best score.
        max_answer: tokens of an answer.
        may_be_empty: whether "no answer" is a candidate. It is one more where it is not among the best.

    Raises:
        ValueError: there is no window, or one with more tokens than scores; or `n_best` has no room for an answer.
    """
    if n_best < 1 + may_be_empty:
        raise ValueError(f'n_best is {n_best}; must be at least 1, or 2 where "no answer" is a candidate')
    starts, ends = _cut(windows, start_logits), _cut(windows, end_logits)
    spans = [_spans(*of_one, n_best, max_answer) for of_one in zip(windows, starts, ends, strict=True)]
    (characters, scores) = (np.concatenate(parts) for parts in zip(*spans, strict=True))
    null = min(((s[0], e[0]) for s, e in zip(starts, ends, strict=True)), key=sum)
    if may_be_empty:
        characters, scores = np.append(characters, [[0, 0]], axis=0), np.append(scores, [null], axis=0)
    order = np.argsort(-scores.sum(axis=1), kind="stable")
    ranked = (
        Candidate(context[first:last], int(first), int(last), float(start), float(end))
        for (first, last), (start, end) in zip(characters[order], scores[order], strict=True)
    )
    found = _distinct(ranked, n_best)
    if may_be_empty and all(candidate.text for candidate in found):
        found.append(Candidate("", 0, 0, float(null[0]), float(null[1])))
    best = next((candidate.score for candidate in found if candidate.text), 0.0)
    return RankedAnswers(_with_probabilities(found), float(sum(null)) - best)


def _cut(windows: Sequence[QuestionWindow], logits: Sequence[np.ndarray]) -> list[np.ndarray]:
    if not windows:
        raise ValueError("no windows: a question has at least one")
    for window, given in zip(windows, logits, strict=True):
        if len(given) < len(window.ids):
            raise ValueError(f"{len(given)} scores for a window of {len(window.ids)} tokens")
    # In float64, so that a sum of two is exact, as that of Python's floats in the reference.
    return [np.asarray(given, np.float64)[: len(window.ids)] for window, given in zip(windows, logits, strict=True)]


def _spans(
    window: QuestionWindow, starts: np.ndarray, ends: np.ndarray, n_best: int, max_answer: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of a window's allowed pairs: from and up to which character [N, 2], score as start and as end [N, 2]."""
    first, last = (np.argsort(-logits, kind="stable")[:n_best] - window.first for logits in (starts, ends))
    count = len(window.offsets)
    first, last = first[(first >= 0) & (first < count)], last[(last >= 0) & (last < count)]
    first = first[window.has_max_context[first]]
    length = last[None] - first[:, None] + 1
    i, j = np.nonzero((length >= 1) & (length <= max_answer))
    first, last = first[i], last[j]
    characters = np.stack([window.offsets[first, 0], window.offsets[last, 1]], axis=1)
    scores = np.stack([starts[window.first + first], ends[window.first + last]], axis=1)
    some = characters[:, 0] < characters[:, 1]
    return characters[some], scores[some]


def _distinct(ranked: Iterable[Candidate], count: int) -> list[Candidate]:
    """The first so many whose texts differ."""
    found: dict[str, Candidate] = {}
    for candidate in ranked:
        if len(found) == count:
            break
        found.setdefault(candidate.text, candidate)
    return list(found.values())


def _with_probabilities(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    if not candidates:
        return ()
    scores = np.array([candidate.score for candidate in candidates])
    weights = np.exp(scores - scores.max())
    chances = (weights / weights.sum()).tolist()
    return tuple(dataclasses.replace(c, probability=chance) for c, chance in zip(candidates, chances, strict=True))
