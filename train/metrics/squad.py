"""Exact match and F1 of answers, by the rules of SQuAD 1.1 and SQuAD 2.0.

Figures are percentages, and equal those of the official scripts to the last digit (evaluate-v1.1.py, evaluate-v2.0.py).
Texts are by the id of the question.
"""

import collections
import re
import string
from collections.abc import Callable, Mapping, Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

Score = Callable[[str, str], float]
Texts = Mapping[str, str]
Gold = Mapping[str, Sequence[str]]


def normalised(text: str) -> str:
    """The text without case, ASCII punctuation, English articles and superfluous blanks, in this order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(answer: str, prediction: str) -> float:
    """1 where both are the same after normalisation, else 0."""
    return float(normalised(answer) == normalised(prediction))


def f1(answer: str, prediction: str) -> float:
    """F1 of the words that both have in common, as often as both have them; 0 where there is none."""
    words, found = normalised(answer).split(), normalised(prediction).split()
    return f1_of_counts(sum((collections.Counter(words) & collections.Counter(found)).values()), len(words), len(found))


def f1_or_empty(answer: str, prediction: str) -> float:
    """As `f1`; but where a text is empty after normalisation, 1 if both are (SQuAD 2.0)."""
    if not normalised(answer) or not normalised(prediction):
        return exact(answer, prediction)
    return f1(answer, prediction)


def squad1(predictions: Texts, answers: Gold) -> dict[str, float]:
    """ "exact" and "f1" of the best-matching answer, by the rules of SQuAD 1.1; a question has at least one answer."""
    return means(best_scores(exact, predictions, answers), best_scores(f1, predictions, answers))


def squad2(predictions: Texts, answers: Gold, null_odds: Mapping[str, float], *, threshold: float) -> dict[str, float]:
    """ "exact" and "f1" by the rules of SQuAD 2.0, and what it reports beside them.

    Those are "HasAns_..." and "NoAns_..." of questions with and without answers (with "..._total"), and "best_exact"
    and "best_f1", which the thresholds "best_exact_thresh" and "best_f1_thresh" would reach.

    Args:
        predictions: the best answer that is not empty.
        answers: none where there is no answer.
        null_odds: how sure it is that there is none.
        threshold: odds beyond it empty the prediction.
    """
    has_answer = {name: bool(texts) for name, texts in answers.items()}
    # Answers of nothing but punctuation and articles don't count as one, and yet the question has an answer.
    gold = {name: [text for text in texts if normalised(text)] or [""] for name, texts in answers.items()}
    raw = {"exact": best_scores(exact, predictions, gold), "f1": best_scores(f1_or_empty, predictions, gold)}
    kept = {
        kind: {n: float(not has_answer[n]) if null_odds[n] > threshold else s for n, s in scores.items()}
        for kind, scores in raw.items()
    }
    found = means(kept["exact"], kept["f1"])
    for prefix, wanted in (("HasAns", True), ("NoAns", False)):
        names = [name for name, has in has_answer.items() if has is wanted]
        if names:
            part = means(*({name: kept[kind][name] for name in names} for kind in ("exact", "f1")))
            found |= {f"{prefix}_{kind}": value for kind, value in part.items()} | {f"{prefix}_total": len(names)}
    for kind, scores in raw.items():
        found[f"best_{kind}"], found[f"best_{kind}_thresh"] = _best_threshold(
            predictions, scores, null_odds, has_answer
        )
    return found


def best_threshold(predictions: Texts, answers: Gold, null_odds: Mapping[str, float]) -> float:
    """The threshold of null odds with the best F1, "best_f1_thresh" of `squad2`."""
    return squad2(predictions, answers, null_odds, threshold=0.0)["best_f1_thresh"]


def _best_threshold(
    predictions: Texts, scores: Mapping[str, float], null_odds: Mapping[str, float], has_answer: Mapping[str, bool]
) -> tuple[float, float]:
    """The best mean of all thresholds, and the threshold; at first all are empty, then one after another counts."""
    total = best = sum(not has for has in has_answer.values())
    threshold = 0.0
    for name in sorted(scores, key=null_odds.__getitem__):
        total += scores[name] if has_answer[name] else -bool(predictions[name])
        if total > best:
            best, threshold = total, null_odds[name]
    return 100.0 * best / len(scores), threshold


def best_scores(score: Score, predictions: Texts, answers: Gold) -> dict[str, float]:
    """By question, the score of the prediction against that answer which it matches best."""
    return {name: max(score(text, predictions[name]) for text in texts) for name, texts in answers.items()}


def means(exacts: Mapping[str, float], f1s: Mapping[str, float]) -> dict[str, float]:
    """ "exact" and "f1" of all questions, as percentages."""
    return {
        "exact": 100.0 * sum(exacts.values()) / len(exacts),
        "f1": 100.0 * sum(f1s.values()) / len(f1s),
    }


def f1_of_counts(common: int, wanted: int, found: int) -> float:
    """The harmonic mean of precision and recall; 0 where nothing is in common."""
    if common == 0:
        return 0.0
    precision, recall = 1.0 * common / found, 1.0 * common / wanted
    return (2 * precision * recall) / (precision + recall)
