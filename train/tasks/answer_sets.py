"""Questions to be answered: their answers from a model's scores, how good these are, and files of them."""

import dataclasses
import enum
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxbert.files import atomic_write
from flaxbert.text.answers import RankedAnswers, rank_answers
from flaxbert.text.windows import QuestionWindow
from train.data.questions import SquadQuestion
from train.metrics.cmrc import cmrc
from train.metrics.squad import best_threshold, squad1, squad2


class Rule(enum.Enum):
    """By which rule predicted answers are compared with given ones."""

    SQUAD = "squad"
    """Words but for case, punctuation and articles; 2.0's rule where some questions have no answer, else 1.1's."""
    CMRC = "cmrc"
    """Chinese: characters, and the longest run of them that both have. Only where all questions have answers."""


@dataclasses.dataclass(frozen=True)
class AnswerSet:
    """Questions to evaluate on.

    Attributes:
        questions: with distinct ids.
        windows: of each question.
        taught_empty: whether the model has been taught that a question may have no answer.
        rule: how answers are compared.
        n_best: starts and ends to look at in a window, and answers to tell of a question.
        max_answer: tokens of an answer.
    """

    questions: Sequence[SquadQuestion]
    windows: Sequence[Sequence[QuestionWindow]]
    taught_empty: bool
    rule: Rule
    n_best: int
    max_answer: int

    def __post_init__(self):
        lacking = next((question for question in self.questions if question.impossible), None)
        if self.rule is Rule.CMRC and lacking is not None:
            raise ValueError(
                f"{lacking.source}: has no answer; the rule {Rule.CMRC.value!r} needs one of every question"
            )

    @functools.cached_property
    def gold(self) -> dict[str, list[str]]:
        """The texts of each question's answers, by its id."""
        return {question.id: [answer.text for answer in question.answers] for question in self.questions}

    @functools.cached_property
    def labelled(self) -> bool:
        """Whether the answers are known."""
        return any(question.answers or question.impossible for question in self.questions)

    @functools.cached_property
    def may_be_empty(self) -> bool:
        """Whether some question has no answer; where nothing is known, whether the model might say so."""
        return any(question.impossible for question in self.questions) or (self.taught_empty and not self.labelled)

    def answers(self, logits: Sequence[np.ndarray]) -> dict[str, RankedAnswers]:
        """The answers to each question, by its id, from the scores [2, T] of all windows in their order."""
        following = iter(logits)
        found = {}
        for question, windows in zip(self.questions, self.windows, strict=True):
            starts, ends = zip(*(next(following) for _ in windows), strict=True)
            how: dict[str, Any] = {"n_best": self.n_best, "max_answer": self.max_answer}
            found[question.id] = rank_answers(
                question.context, windows, starts, ends, may_be_empty=self.may_be_empty, **how
            )
        return found

    def best_threshold(self, answers: Mapping[str, RankedAnswers]) -> float:
        """That of null odds with the best F1; 0 where no question lacks an answer."""
        if not (self.labelled and self.may_be_empty):
            return 0.0
        return best_threshold(_best(answers), self.gold, _null_odds(answers))

    def compute_metrics(self, answers: Mapping[str, RankedAnswers], threshold: float) -> dict[str, float]:
        """Exact match and F1, by the rule that fits; nothing where the answers are not known."""
        if not self.labelled:
            return {}
        if self.rule is Rule.CMRC:
            return cmrc(_best(answers), self.gold)
        if not self.may_be_empty:
            return squad1(_best(answers), self.gold)
        threshold = threshold if self.taught_empty else math.inf
        found = squad2(_best(answers), self.gold, _null_odds(answers), threshold=threshold)
        return {**found, "threshold": threshold} if self.taught_empty else found

    def write(self, folder: Path, name: str, answers: Mapping[str, RankedAnswers], threshold: float) -> None:
        """Writes predictions_NAME.json, nbest_predictions_NAME.json and null_odds_NAME.json, as run_squad does.

        The last one only where a question may have no answer. The evaluation scripts of SQuAD read the first and the
        last: with the threshold found, or 0, the first is as they expect it.
        """
        limit = threshold if self.may_be_empty and self.taught_empty else None
        _write(folder / f"predictions_{name}.json", {n: found.text(limit) for n, found in answers.items()})
        _write(folder / f"nbest_predictions_{name}.json", {n: _candidates(found) for n, found in answers.items()})
        if self.may_be_empty:
            _write(folder / f"null_odds_{name}.json", _null_odds(answers))


def _best(answers: Mapping[str, RankedAnswers]) -> dict[str, str]:
    return {number: found.best for number, found in answers.items()}


def _null_odds(answers: Mapping[str, RankedAnswers]) -> dict[str, float]:
    return {number: found.null_odds for number, found in answers.items()}


def _candidates(answers: RankedAnswers) -> list[dict[str, str | float]]:
    names = ("text", "probability", "start_logit", "end_logit")
    return [{name: getattr(candidate, name) for name in names} for candidate in answers.candidates]


def _write(file: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(file) as aside:
        text = json.dumps(content, indent=2, ensure_ascii=False)
        aside.write_text(text + "\n", encoding="utf-8", newline="\n")
