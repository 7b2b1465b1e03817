"""Whether one text follows another."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import jax

from flaxbert.pipelines.batching import Row
from flaxbert.pipelines.pipeline import Pipeline, fields_of, text_of

_FOLLOWS = 0  # BERT's labels: 0 the next one, 1 a random one


@dataclasses.dataclass(frozen=True)
class Following:
    """The probability that the second text of a pair follows the first."""

    probability: float

    @property
    def follows(self) -> bool:
        """Whether it is likelier than not."""
        return self.probability > 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class NextSentencePipeline(Pipeline[tuple[str, str], Following]):
    """The probability that the second of two texts follows the first (Devlin et al., 2018, section 3.1)."""

    architectures: ClassVar = ("BertForNextSentencePrediction", "BertForPreTraining")

    def __call__(self, pairs: Iterable[tuple[str, str]]) -> list[Following]:
        """The probability of each pair.

        Raises:
            TypeError, ValueError: names the first input that is no pair of texts.
        """
        return list(self.stream(pairs))

    def _checked(self, item: Any, place: str) -> tuple[str, str]:
        first, second = fields_of(item, place, "a pair of texts")
        return text_of(first, f"{place}[0]"), text_of(second, f"{place}[1]")

    def _rows(self, items: Sequence[tuple[str, str]], places: Sequence[str]) -> list[list[Row]]:
        return [[row] for row in self._encoded([first for first, _ in items], [second for _, second in items])]

    def _forward(self, params: Any, batch: Any) -> jax.Array:
        out = self._outputs(params, batch)
        both = type(self.model).__name__ == "BertForPreTraining"
        return jax.nn.softmax(out.seq_relationship_logits if both else out.logits, axis=-1)

    def _result(self, item: tuple[str, str], rows: Sequence[Row], outputs: Sequence[Any]) -> Following:
        return Following(float(outputs[0][_FOLLOWS]))
