"""The best of several continuations of a prompt."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import jax
import numpy as np

from flaxbert.pipelines.batching import Row
from flaxbert.pipelines.pipeline import Pipeline, fields_of, text_of

Question = tuple[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Choice:
    """The number of the best choice, from 0, and the probability of each."""

    best: int
    probabilities: tuple[float, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class MultipleChoicePipeline(Pipeline[Question, Choice]):
    """Which of its choices a prompt goes with; prompts may differ in how many they have.

    Every choice is a row of its own, `[CLS] prompt [SEP] choice [SEP]`: the model scores each by itself, so nothing is
    padded to the largest number of choices. Probabilities are a softmax over the choices that there are.
    """

    architectures: ClassVar = ("BertForMultipleChoice",)

    def __call__(self, questions: Iterable[Question]) -> list[Choice]:
        """The choice of each question: a pair of a prompt and a list of choices.

        Raises:
            TypeError, ValueError: names the first input that is no such pair, or has no choices.
        """
        return list(self.stream(questions))

    def _checked(self, item: Any, place: str) -> Question:
        prompt, choices = fields_of(item, place, "a pair of a prompt and a list of choices")
        if not isinstance(choices, list | tuple) or not choices:
            raise TypeError(f"{place}[1] is {choices!r:.60}; expected a list of choices, one at least")
        checked = [text_of(choice, f"{place}[1][{number}]") for number, choice in enumerate(choices)]
        return text_of(prompt, f"{place}[0]"), checked

    def _rows(self, items: Sequence[Question], places: Sequence[str]) -> list[list[Row]]:
        pairs = [(prompt, choice) for prompt, choices in items for choice in choices]
        rows = iter(self._encoded([prompt for prompt, _ in pairs], [choice for _, choice in pairs]))
        return [[next(rows) for _ in choices] for _, choices in items]

    def _forward(self, params: Any, batch: Any) -> jax.Array:
        one_choice = {name: array[:, None] for name, array in batch.items()}
        return self._outputs(params, one_choice).logits[:, 0]

    def _result(self, item: Question, rows: Sequence[Row], outputs: Sequence[Any]) -> Choice:
        scores = np.array(outputs, np.float32)
        weights = np.exp(scores - scores.max())
        return Choice(int(scores.argmax()), tuple((weights / weights.sum()).tolist()))
