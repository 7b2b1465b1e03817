"""Named entities, or whatever else a model tags, in texts of any length."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np

from flaxbert.pipelines.batching import Row
from flaxbert.pipelines.pipeline import Pipeline, text_of
from flaxbert.text.aggregation import Aggregation, Entity, aggregate_entities
from flaxbert.text.windows import max_context_windows, sliding_windows
from flaxbert.tokenizer import CLS, SEP

if TYPE_CHECKING:
    from tokenizers import Encoding

_SPECIAL = 2  # [CLS] and [SEP]


@dataclasses.dataclass(frozen=True)
class TaggedText:
    """A text and its entities, in their order."""

    text: str
    entities: tuple[Entity, ...]


@dataclasses.dataclass(frozen=True)
class _Part(Row):
    """A window of a text, and the pieces of the whole text."""

    _: dataclasses.KW_ONLY
    encoding: "Encoding"


@dataclasses.dataclass(frozen=True, eq=False)
class EntityRecognitionPipeline(Pipeline[str, TaggedText]):
    """The entities of a text, equal to those of transformers' pipeline "token-classification" where that cuts nothing.

    A text longer than `max_length` is read in overlapping windows of so many tokens. What is said of a piece is taken
    from the window in which it has most context; the pieces of the whole text then are made into entities at once, so
    that no entity ends where a window does.

    Attributes:
        aggregation: how the pieces of a word agree on a tag.
        overlap: pieces that neighbouring windows share; a quarter of a window where None.
    """

    aggregation: Aggregation = Aggregation.FIRST
    overlap: int | None = None

    architectures: ClassVar = ("BertForTokenClassification",)

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.aggregation, Aggregation):
            raise ValueError(f"aggregation is {self.aggregation!r}; give one of {', '.join(map(str, Aggregation))}")
        room = self._longest - _SPECIAL
        if self.overlap is not None and not 0 <= self.overlap < room:
            raise ValueError(f"overlap is {self.overlap}; allowed: 0 to {room - 1}, less than a window has pieces")

    def __call__(self, texts: Iterable[str]) -> list[TaggedText]:
        """The entities of each text.

        Raises:
            TypeError, ValueError: names the first text that is none, or is empty.
        """
        return list(self.stream(texts))

    def _checked(self, item: Any, place: str) -> str:
        return text_of(item, place)

    def _rows(self, items: Sequence[str], places: Sequence[str]) -> list[list[Row]]:
        return [self._parts(encoding) for encoding in self.tokenizer.encode_pieces(items)]

    def _parts(self, encoding: "Encoding") -> list[Row]:
        cls, sep, ids = self.tokenizer.token_id(CLS), self.tokenizer.token_id(SEP), encoding.ids
        tokens = [[cls, *ids[start:end], sep] for start, end in self._places(len(ids))]
        return [_Part(window, [0] * len(window), encoding=encoding) for window in tokens]

    def _places(self, length: int) -> list[tuple[int, int]]:
        room = self._longest - _SPECIAL
        return sliding_windows(length, room, room // 4 if self.overlap is None else self.overlap)

    def _forward(self, params: Any, batch: Any) -> jax.Array:
        return jax.nn.softmax(self._outputs(params, batch).logits, axis=-1)

    def _result(self, item: str, rows: Sequence[Row], outputs: Sequence[Any]) -> TaggedText:
        first = rows[0]
        assert isinstance(first, _Part)
        labels, length = self.model.config.id2label, len(first.encoding.ids)
        places = self._places(length)
        owner = max_context_windows(places, length)
        probabilities = np.zeros((length, len(labels)), np.float32)
        for number, ((start, end), output) in enumerate(zip(places, outputs, strict=True)):
            own = owner[start:end] == number
            probabilities[start:end][own] = output[1 : 1 + end - start][own]  # without [CLS]
        found = aggregate_entities(
            probabilities,
            text=item,
            encoding=first.encoding,
            labels=labels,
            tokenizer=self.tokenizer,
            strategy=self.aggregation,
        )
        return TaggedText(item, tuple(found))
