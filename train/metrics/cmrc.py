"""Exact match and F1 of Chinese answers, by the rule of CMRC 2018 (its script cmrc2018_evaluate.py)."""

import re
from collections.abc import Sequence

from train.metrics.squad import Gold, Texts, best_scores, f1_of_counts, means

# The script's own list: that ’ is on it and ‘ is not, is its way. "……" never matches there, being two characters.
_PUNCTUATION = str.maketrans("", "", "-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_CHINESE = re.compile("([\u4e00-\u9fa5])")
_CLOSING = r"[\])}>\"' ]*\Z"
_SINGLE = ';@#$%&?!()\\[\\]{}<>«»“‘„"\u2012-\u2015'
# A run of dots, a mark of its own, a comma but not within a number, the last full stop, a word.
_WORDS = re.compile(rf"\.{{2,}}|[{_SINGLE}]|,(?!\d)|\.(?={_CLOSING})|(?:[^\s{_SINGLE},.]|,(?=\d)|\.(?!\.|{_CLOSING}))+")


def exact(answer: str, prediction: str) -> float:
    """1 where both are the same but for case and Chinese punctuation, else 0."""
    return float(_plain(answer) == _plain(prediction))


def f1(answer: str, prediction: str) -> float:
    """F1 of the longest run of characters and words that both have in common; 0 where there is none."""
    wanted, found = _segments(answer), _segments(prediction)
    return f1_of_counts(_longest_common(wanted, found), len(wanted), len(found))


def cmrc(predictions: Texts, answers: Gold) -> dict[str, float]:
    """ "exact" and "f1" of the best-matching answer, and their mean, "average"; percentages."""
    found = means(best_scores(exact, predictions, answers), best_scores(f1, predictions, answers))
    return {**found, "average": (found["exact"] + found["f1"]) / 2}


def _plain(text: str) -> str:
    return text.lower().strip().translate(_PUNCTUATION)


def _segments(text: str) -> list[str]:
    """Each Chinese character; what is between them as words.

    The script leaves those words to nltk. This follows its rules for numbers, marks and full stops, but does not know
    English contractions, nor sentences within an answer.
    """
    parts = _CHINESE.split(_plain(text))
    return [segment for part in parts for segment in ([part] if _CHINESE.match(part) else _WORDS.findall(part))]


def _longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest run that is in both."""
    longest, before = 0, [0] * (len(second) + 1)
    for one in first:
        now = [0]
        now += [before[j] + 1 if one == other else 0 for j, other in enumerate(second)]
        longest, before = max(longest, *now), now
    return longest
