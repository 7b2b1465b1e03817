"""A set of questions with the windows of their contexts: ranked answers from logits, their metrics and their files."""

import dataclasses
import enum
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from flaxbert.text.answers import AnswerLogits, RankedAnswers, rank_answers
from flaxbert.text.windows import QuestionWindow
from train.data.questions import SquadQuestion
from train.metrics.squad import best_null_threshold, cmrc_metrics, squad1_metrics, squad2_metrics
from train.tasks.prediction_files import write_text


class MatchingRule(enum.Enum):
    """Rule for comparing a predicted answer with the reference answers."""

    SQUAD = "squad"
    """By words, without case, punctuation and articles; as in SQuAD 2.0 if a question has no answer, else as in 1.1."""
    CMRC = "cmrc"
    """By Chinese characters, and their longest common run; only if every question has an answer."""


@dataclasses.dataclass(frozen=True)
class AnswerSet:
    """Questions to evaluate on.

    Raises:
        ValueError: the rule is CMRC's, and a question has no answer.
    """

    questions: Sequence[SquadQuestion]  # with distinct ids
    windows: Sequence[Sequence[QuestionWindow]]  # those of each question
    trained_on_no_answer: bool  # otherwise the model's score for "no answer" means nothing
    rule: MatchingRule  # `n_best` and `max_answer` as in the settings
    n_best: int
    max_answer: int

    def __post_init__(self):
        unanswerable = next((question for question in self.questions if question.impossible), None)
        if self.rule is MatchingRule.CMRC and unanswerable is not None:
            raise ValueError(
                f"{unanswerable.source}: has no answer; the rule {self.rule.value!r} needs one of every question"
            )

    @functools.cached_property
    def references(self) -> dict[str, list[str]]:
        """Reference answers of each question, by its id."""
        return {question.id: [answer.text for answer in question.answers] for question in self.questions}

    @functools.cached_property
    def labelled(self) -> bool:
        """True if the reference answers are known."""
        return any(question.answers or question.impossible for question in self.questions)

    @functools.cached_property
    def allows_no_answer(self) -> bool:
        """True if "no answer" is a possible prediction: a question has none, or it is unknown whether one has none."""
        return any(question.impossible for question in self.questions) or (
            self.trained_on_no_answer and not self.labelled
        )

    def ranked_answers(self, logits: Sequence[AnswerLogits]) -> dict[str, RankedAnswers]:
        """Return the best answers to each question, by its id; `logits` of each window, in the order of the windows."""
        remaining = iter(logits)
        answers = {}
        for question, windows in zip(self.questions, self.windows, strict=True):
            answers[question.id] = rank_answers(
                question.context,
                windows,
                [next(remaining) for _ in windows],
                n_best=self.n_best,
                max_answer=self.max_answer,
                may_be_empty=self.allows_no_answer,
            )
        return answers

    def best_threshold(self, answers: Mapping[str, RankedAnswers]) -> float:
        """Return the threshold of the null odds with the best F1; 0 if every question has an answer."""
        if not (self.labelled and self.allows_no_answer):
            return 0.0
        return best_null_threshold(_best_texts(answers), self.references, _null_odds(answers))

    def compute_metrics(self, answers: Mapping[str, RankedAnswers], threshold: float) -> dict[str, float]:
        """Return exact match and F1 by the rule of the set; nothing if the reference answers are unknown.

        Includes "threshold" if the model can predict that there is no answer, and some questions have none.
        """
        if not self.labelled:
            return {}
        if self.rule is MatchingRule.CMRC:
            return cmrc_metrics(_best_texts(answers), self.references)
        if not self.allows_no_answer:
            return squad1_metrics(_best_texts(answers), self.references)
        threshold = threshold if self.trained_on_no_answer else math.inf
        metrics = squad2_metrics(_best_texts(answers), self.references, _null_odds(answers), threshold=threshold)
        return {**metrics, "threshold": threshold} if self.trained_on_no_answer else metrics

    def examples(self, answers: Mapping[str, RankedAnswers], threshold: float, count: int) -> list[str]:
        """Return lines with a question, its answer and those of the file, for `count` questions of the whole set.

        A model that never says that there is no answer is shown with questions that may have one.
        """
        limit = self._limit(threshold)
        questions = [question for question in self.questions if limit is not None or not question.impossible]
        lines, count = [], min(count, len(questions))
        for number in range(count):
            question = questions[number * len(questions) // count]
            found = answers[question.id].text(limit) or "no answer"
            known = dict.fromkeys(answer.text for answer in question.answers)
            wanted = " | ".join(known) or ("no answer" if question.impossible else "unknown")
            lines.append(f"{question.question} -> {found} (in the file: {wanted})")
        return lines

    def _limit(self, threshold: float) -> float | None:
        return threshold if self.allows_no_answer and self.trained_on_no_answer else None

    def write(self, folder: Path, name: str, answers: Mapping[str, RankedAnswers], threshold: float) -> None:
        """Write predictions_NAME.json, nbest_predictions_NAME.json and null_odds_NAME.json, as run_squad does.

        The last one only if a question may have no answer. SQuAD's evaluation scripts read the first and the last.
        """
        limit = self._limit(threshold)
        _write_json(folder / f"predictions_{name}.json", {key: value.text(limit) for key, value in answers.items()})
        candidates = {key: _candidates(value) for key, value in answers.items()}
        _write_json(folder / f"nbest_predictions_{name}.json", candidates)
        if self.allows_no_answer:
            _write_json(folder / f"null_odds_{name}.json", _null_odds(answers))


def _best_texts(answers: Mapping[str, RankedAnswers]) -> dict[str, str]:
    return {key: value.best for key, value in answers.items()}


def _null_odds(answers: Mapping[str, RankedAnswers]) -> dict[str, float]:
    return {key: value.null_odds for key, value in answers.items()}


def _candidates(answers: RankedAnswers) -> list[dict[str, str | float]]:
    names = ("text", "probability", "start_logit", "end_logit")
    return [{name: getattr(candidate, name) for name in names} for candidate in answers.candidates]


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
