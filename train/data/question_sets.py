"""Which questions of a file are trained on, and which are held out."""

from collections.abc import Sequence

import numpy as np

from train.data.questions import Question
from train.metrics.squad import normalised


def held_out(rows: Sequence[Question], share: float, *, seed: int) -> tuple[list[Question], list[Question]]:
    """Questions to train on, and those of whole articles that together have at least this share of all.

    Articles are told by their title, and texts without one are articles of their own. They are drawn by the seed; what
    is drawn depends on nothing else but the articles' names, order and sizes.

    Raises:
        ValueError: that leaves no article to train on.
    """
    names = [question.title or question.context for question in rows]
    articles = list(dict.fromkeys(names))
    sizes = {name: 0 for name in articles}
    for name in names:
        sizes[name] += 1
    drawn, count = set(), 0
    for number in np.random.default_rng([seed, len(rows)]).permutation(len(articles)):
        if count >= share * len(rows):
            break
        drawn.add(articles[number])
        count += sizes[articles[number]]
    if len(drawn) == len(articles):
        raise ValueError(f"a share of {share} takes all of {len(articles)} article(s); hold out less, or give a file")
    kept = [question for question, name in zip(rows, names, strict=True) if name not in drawn]
    return kept, [question for question, name in zip(rows, names, strict=True) if name in drawn]


def without(rows: Sequence[Question], others: Sequence[Question]) -> list[Question]:
    """The questions that are not also among the others: about the same context, the same words."""
    known = {_key(question) for question in others}
    return [question for question in rows if _key(question) not in known]


def trainable(rows: Sequence[Question], *, impossible: bool) -> list[Question]:
    """Those with an answer whose place is known, and where `impossible` those that have none."""
    return [
        question
        for question in rows
        if (question.impossible and impossible) or any(answer.start is not None for answer in question.answers)
    ]


def _key(question: Question) -> tuple[str, str]:
    return normalised(question.question), question.context.strip()
