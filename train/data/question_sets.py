"""Which questions of a file are trained on."""

from collections.abc import Sequence

from train.data.questions import Question
from train.metrics.squad import normalised


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
