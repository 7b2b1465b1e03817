"""Exact match and F1 of predicted answers, as in SQuAD 1.1, SQuAD 2.0 and CMRC 2018.

Values are percentages. Those of SQuAD equal the official scripts (evaluate-v1.1.py, evaluate-v2.0.py) to the last
digit; those of CMRC follow cmrc2018_evaluate.py. All mappings have question ids as keys.
"""

import collections
import itertools
import math
import re
import string
from collections.abc import Callable, Mapping, Sequence

Predictions = Mapping[str, str]
References = Mapping[str, Sequence[str]]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ENGLISH_PUNCTUATION = str.maketrans("", "", string.punctuation)
# The CMRC script's own list: it has ’ but not ‘, and its "……" never matches a single character.
_CHINESE_PUNCTUATION = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_CHINESE = re.compile("([\u4e00-\u9fa5])")
_CLOSING = r"[\])}>\"' ]*\Z"
_SINGLE = ';@#$%&?!()\\[\\]{}<>«»“‘„"\u2012-\u2015'
# A run of dots, a mark of its own, a comma but not within a number, the last full stop, a word.
_WORDS = re.compile(rf"\.{{2,}}|[{_SINGLE}]|,(?!\d)|\.(?={_CLOSING})|(?:[^\s{_SINGLE},.]|,(?=\d)|\.(?!\.|{_CLOSING}))+")


def squad1_metrics(predictions: Predictions, references: References) -> dict[str, float]:
    """Return "exact" and "f1" by the rules of SQuAD 1.1; each question has at least one reference answer."""
    return _percentages(
        exact=best_scores(exact_match, predictions, references), f1=best_scores(token_f1, predictions, references)
    )


def squad2_metrics(
    predictions: Predictions, references: References, null_odds: Mapping[str, float], *, threshold: float
) -> dict[str, float]:
    """Return "exact" and "f1" by the rules of SQuAD 2.0, and everything else that its script reports.

    These are "HasAns_..." and "NoAns_..." for questions with and without answers (and "..._total"), and "best_exact"
    and "best_f1", the values at the thresholds "best_exact_thresh" and "best_f1_thresh".

    Args:
        predictions: the best answer that is not empty.
        references: an empty sequence where the question has no answer.
        null_odds: score of "no answer" minus that of the best answer.
        threshold: where the null odds are above it, the prediction counts as empty.
    """
    has_answer = {name: bool(texts) for name, texts in references.items()}
    usable = _usable(references)
    raw = {
        "exact": best_scores(exact_match, predictions, usable),
        "f1": best_scores(token_f1_or_empty, predictions, usable),
    }
    scores = {
        kind: {
            name: float(not has_answer[name]) if null_odds[name] > threshold else score
            for name, score in by_question.items()
        }
        for kind, by_question in raw.items()
    }
    metrics = _percentages(**scores)
    for prefix, answerable in (("HasAns", True), ("NoAns", False)):
        names = [name for name, has in has_answer.items() if has is answerable]
        if names:
            part = _percentages(**{kind: {name: scores[kind][name] for name in names} for kind in scores})
            metrics |= {f"{prefix}_{kind}": value for kind, value in part.items()} | {f"{prefix}_total": len(names)}
    for kind, by_question in raw.items():
        best, best_threshold = _best_threshold(predictions, by_question, null_odds, has_answer)
        metrics |= {f"best_{kind}": best, f"best_{kind}_thresh": best_threshold}
    return metrics


def best_null_threshold(predictions: Predictions, references: References, null_odds: Mapping[str, float]) -> float:
    """Return the threshold of the null odds with the highest F1.

    It is "best_f1_thresh" of `squad2_metrics`, except where that is not a threshold with this F1: the official script
    counts answers with equal null odds one by one, and says 0 where it is best to answer nothing, although answers
    with negative odds would be given.
    """
    usable, has_answer = _usable(references), {name: bool(texts) for name, texts in references.items()}
    scores = best_scores(token_f1_or_empty, predictions, usable)
    total = best = sum(not has for has in has_answer.values())
    threshold = min(0.0, math.nextafter(min(null_odds.values()), -math.inf))
    for odds, names in itertools.groupby(sorted(scores, key=null_odds.__getitem__), key=null_odds.__getitem__):
        total += sum(scores[name] if has_answer[name] else -bool(predictions[name]) for name in names)
        if total > best:
            best, threshold = total, odds
    return threshold


def cmrc_metrics(predictions: Predictions, references: References) -> dict[str, float]:
    """Return "exact" and "f1" by the rules of CMRC 2018, and their mean, "average"."""
    metrics = _percentages(
        exact=best_scores(cmrc_exact_match, predictions, references), f1=best_scores(cmrc_f1, predictions, references)
    )
    return {**metrics, "average": (metrics["exact"] + metrics["f1"]) / 2}


def best_scores(
    score: Callable[[str, str], float], predictions: Predictions, references: References
) -> dict[str, float]:
    """Return for each question the score against the reference answer that the prediction matches best."""
    return {name: max(score(text, predictions[name]) for text in texts) for name, texts in references.items()}


def normalise_answer(text: str) -> str:
    """Remove case, ASCII punctuation, English articles and superfluous spaces, in this order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_ENGLISH_PUNCTUATION)).split())


def exact_match(reference: str, prediction: str) -> float:
    """Return 1 where both texts are equal after normalisation, else 0."""
    return float(normalise_answer(reference) == normalise_answer(prediction))


def token_f1(reference: str, prediction: str) -> float:
    """Return the F1 of the words in common, counted with repetition; 0 where there is none."""
    expected, predicted = normalise_answer(reference).split(), normalise_answer(prediction).split()
    common = collections.Counter(expected) & collections.Counter(predicted)
    return _f1(common.total(), len(expected), len(predicted))


def token_f1_or_empty(reference: str, prediction: str) -> float:
    """Return `token_f1`; where a text is empty after normalisation, 1 if both are, else 0 (SQuAD 2.0)."""
    if not normalise_answer(reference) or not normalise_answer(prediction):
        return exact_match(reference, prediction)
    return token_f1(reference, prediction)


def cmrc_exact_match(reference: str, prediction: str) -> float:
    """Return 1 where both texts are equal without case and Chinese punctuation, else 0."""
    return float(_normalise_chinese(reference) == _normalise_chinese(prediction))


def cmrc_f1(reference: str, prediction: str) -> float:
    """Return the F1 of the longest run of characters and words in common; 0 where there is none."""
    expected, predicted = chinese_segments(reference), chinese_segments(prediction)
    return _f1(_longest_common_run(expected, predicted), len(expected), len(predicted))


def _usable(references: References) -> dict[str, list[str]]:
    """Drop reference answers of only punctuation and articles, with which the question still counts as answerable."""
    return {name: [text for text in texts if normalise_answer(text)] or [""] for name, texts in references.items()}


def _percentages(**scores: Mapping[str, float]) -> dict[str, float]:
    return {kind: 100.0 * sum(values.values()) / len(values) for kind, values in scores.items()}


def _f1(common: int, expected: int, predicted: int) -> float:
    if common == 0:
        return 0.0
    precision, recall = 1.0 * common / predicted, 1.0 * common / expected
    return (2 * precision * recall) / (precision + recall)


def _best_threshold(
    predictions: Predictions,
    scores: Mapping[str, float],
    null_odds: Mapping[str, float],
    has_answer: Mapping[str, bool],
) -> tuple[float, float]:
    """Return the best percentage over all thresholds, and its threshold.

    At first every prediction counts as empty; then, in the order of the null odds, one after another counts as it is.
    """
    total = best = sum(not has for has in has_answer.values())
    threshold = 0.0
    for name in sorted(scores, key=null_odds.__getitem__):
        total += scores[name] if has_answer[name] else -bool(predictions[name])
        if total > best:
            best, threshold = total, null_odds[name]
    return 100.0 * best / len(scores), threshold


def _normalise_chinese(text: str) -> str:
    return text.lower().strip().translate(_CHINESE_PUNCTUATION)


def chinese_segments(text: str) -> list[str]:
    """Split into single Chinese characters, and into words between them.

    The official script splits those words with nltk. This follows nltk's rules for numbers, marks and full stops, but
    not for English contractions, nor for several sentences in one answer.
    """
    parts = _CHINESE.split(_normalise_chinese(text))
    return [segment for part in parts for segment in ([part] if _CHINESE.match(part) else _WORDS.findall(part))]


def _longest_common_run(first: Sequence[str], second: Sequence[str]) -> int:
    longest, previous = 0, [0] * (len(second) + 1)
    for one in first:
        current = [0]
        current += [previous[j] + 1 if one == other else 0 for j, other in enumerate(second)]
        longest, previous = max(longest, *current), current
    return longest
