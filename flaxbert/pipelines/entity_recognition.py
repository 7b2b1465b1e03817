"""Pipeline that finds named entities, or other tagged spans, in texts of any length."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import jax
import numpy as np
from tokenizers import Encoding

from flaxbert.families import HeadKind
from flaxbert.layers import Params
from flaxbert.pipelines.batching import InputSequence
from flaxbert.pipelines.pipeline import Pipeline, require_text
from flaxbert.text.aggregation import Aggregation, Entity, aggregate_entities
from flaxbert.text.windows import max_context_windows, sliding_windows

_SPECIAL_TOKENS = 2  # [CLS] and [SEP]


@dataclasses.dataclass(frozen=True)
class TaggedText:
    """A text and its entities, in the order of the text."""

    text: str
    entities: tuple[Entity, ...]


@dataclasses.dataclass(frozen=True)
class _TextWindow(InputSequence):
    """A window of a text, and the encoding of the whole text."""

    _: dataclasses.KW_ONLY
    encoding: Encoding


@dataclasses.dataclass(frozen=True, eq=False)
class EntityRecognitionPipeline(Pipeline[str, TaggedText]):
    """Entities of texts, equal to those of transformers' pipeline "token-classification" unless that truncates.

    A text longer than `max_length` is split into overlapping windows. The probabilities of a piece are taken from the
    window in which it has the most context. The entities are made from the pieces of the whole text, so windows do not
    split them.

    Attributes:
        aggregation: rule for the tag of a word of several pieces.
        overlap: number of pieces that neighbouring windows share; None is a quarter of a window.
    """

    aggregation: Aggregation = Aggregation.FIRST
    overlap: int | None = None

    heads: ClassVar = (HeadKind.TOKEN_CLASSIFICATION,)

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.aggregation, Aggregation):
            raise ValueError(f"aggregation is {self.aggregation!r}; give one of {', '.join(map(str, Aggregation))}")
        room = self._longest - _SPECIAL_TOKENS
        if self.overlap is not None and not 0 <= self.overlap < room:
            raise ValueError(f"overlap is {self.overlap}; allowed: 0 to {room - 1}, less than a window has pieces")

    def __call__(self, texts: Iterable[str]) -> list[TaggedText]:
        """Return the entities of each text.

        Raises:
            TypeError, ValueError: an input is not a text, or is empty; the message names the first one.
        """
        return list(self.stream(texts))

    def _check(self, item: object, name: str) -> str:
        return require_text(item, name)

    def _encode(self, items: Sequence[str], names: Sequence[str]) -> list[list[InputSequence]]:
        return [self._split(encoding) for encoding in self.tokenizer.encode_pieces(items)]

    def _split(self, encoding: Encoding) -> list[InputSequence]:
        special_tokens, ids = self.tokenizer.special_tokens, encoding.ids
        cls, sep = self.tokenizer.token_id(special_tokens.cls), self.tokenizer.token_id(special_tokens.sep)
        windows = [[cls, *ids[start:end], sep] for start, end in self._window_spans(len(ids))]
        return [_TextWindow(window, [0] * len(window), encoding=encoding) for window in windows]

    def _window_spans(self, length: int) -> list[tuple[int, int]]:
        room = self._longest - _SPECIAL_TOKENS
        return sliding_windows(length, room, room // 4 if self.overlap is None else self.overlap)

    def _forward(self, params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        return jax.nn.softmax(self._model_outputs(params, batch).logits, axis=-1)

    def _decode(self, item: str, sequences: Sequence[InputSequence], outputs: Sequence[np.ndarray]) -> TaggedText:
        first = sequences[0]
        assert isinstance(first, _TextWindow)
        labels, length = self.model.config.id2label, len(first.encoding.ids)
        spans = self._window_spans(length)
        max_context = max_context_windows(spans, length)
        probabilities = np.zeros((length, len(labels)), np.float32)
        for index, ((start, end), output) in enumerate(zip(spans, outputs, strict=True)):
            selected = max_context[start:end] == index
            probabilities[start:end][selected] = output[1 : 1 + end - start][selected]  # without [CLS]
        entities = aggregate_entities(
            probabilities,
            text=item,
            encoding=first.encoding,
            labels=labels,
            tokenizer=self.tokenizer,
            strategy=self.aggregation,
        )
        return TaggedText(item, tuple(entities))
