"""Labels, or a number, for texts and pairs of texts."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import jax

from flaxbert.pipelines.batching import Row
from flaxbert.pipelines.pipeline import Pipeline, at_least, fields_of, text_of

Text = str | tuple[str, str]


@dataclasses.dataclass(frozen=True)
class Label:
    """A label's name and its score: a probability, or of a regression the number itself."""

    name: str
    score: float


@dataclasses.dataclass(frozen=True)
class Classification:
    """The labels of a text, the highest score first."""

    labels: tuple[Label, ...]

    @property
    def best(self) -> Label:
        """The label of the highest score."""
        return self.labels[0]


@dataclasses.dataclass(frozen=True, eq=False)
class TextClassificationPipeline(Pipeline[Text, Classification]):
    """The labels of a text, or of a pair of texts, with their scores.

    The config's `problem_type` says what scores are: of one label among several a softmax, of several labels each a
    sigmoid, of a regression the model's numbers. Where it says nothing, a single label is a sigmoid and several are a
    softmax. All of it as transformers' pipeline "text-classification".

    Attributes:
        top_k: labels of each answer; all where None.
    """

    top_k: int | None = None

    architectures: ClassVar = ("BertForSequenceClassification",)

    def __post_init__(self):
        super().__post_init__()
        if self.top_k is not None:
            at_least("top_k", self.top_k, 1)

    def __call__(self, texts: Iterable[Text]) -> list[Classification]:
        """The labels of each text or pair.

        Raises:
            TypeError, ValueError: names the first input that is neither, or is empty.
        """
        return list(self.stream(texts))

    def _checked(self, item: Any, place: str) -> Text:
        if isinstance(item, str):
            return text_of(item, place)
        first, second = fields_of(item, place, "a text, or a pair of texts")
        return text_of(first, f"{place}[0]"), text_of(second, f"{place}[1]")

    def _rows(self, items: Sequence[Text], places: Sequence[str]) -> list[list[Row]]:
        pairs = [(item, None) if isinstance(item, str) else item for item in items]
        return [[row] for row in self._encoded([text for text, _ in pairs], [pair for _, pair in pairs])]

    def _forward(self, params: Any, batch: Any) -> jax.Array:
        config = self.model.config
        logits = self._outputs(params, batch).logits
        if config.problem_type == "regression":
            return logits
        if config.problem_type == "multi_label_classification" or config.num_labels == 1:
            return jax.nn.sigmoid(logits)
        return jax.nn.softmax(logits, axis=-1)

    def _result(self, item: Text, rows: Sequence[Row], outputs: Sequence[Any]) -> Classification:
        scores = zip(self.model.config.id2label, outputs[0], strict=True)
        labels = sorted((Label(name, float(score)) for name, score in scores), key=lambda label: -label.score)
        return Classification(tuple(labels[: self.top_k]))
