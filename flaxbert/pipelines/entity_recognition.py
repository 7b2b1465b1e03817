"""Pipeline that finds named entities, or other tagged spans, in texts of any length."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

import jax
import numpy as np

from flaxbert.families import HeadKind
from flaxbert.layers import Params
from flaxbert.pipelines.batching import InputSequence
from flaxbert.pipelines.pipeline import Pipeline, require_text
from flaxbert.text.aggregation import Aggregation, Entity, aggregate_entities
from flaxbert.text.pieces import TextPieces, encode_texts
from flaxbert.text.windows import max_context_windows, sliding_windows

_SPECIAL_TOKENS = 2  # [CLS] and [SEP]


@dataclasses.dataclass(frozen=True)
class TaggedText:
    """A text and its entities, in the order of the text."""

    text: str
    entities: tuple[Entity, ...]


@dataclasses.dataclass(frozen=True)
class _TextWindow(InputSequence):
    """A window of a text, and the pieces of the whole text."""

    _: dataclasses.KW_ONLY
    pieces: TextPieces


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

    def _check(self, item: object, name: str) -> str:
        return require_text(item, name)

    def _encode(self, items: Sequence[str], names: Sequence[str]) -> list[list[InputSequence]]:
        return [self._split(pieces) for pieces in encode_texts(self.tokenizer, items)]

    def _split(self, pieces: TextPieces) -> list[InputSequence]:
        special_tokens = self.tokenizer.special_tokens
        cls, sep = self.tokenizer.token_id(special_tokens.cls), self.tokenizer.token_id(special_tokens.sep)
        windows: list[InputSequence] = []
        for start, end in self._window_spans(len(pieces.ids)):
            ids = np.concatenate([[cls], pieces.ids[start:end], [sep]]).astype(np.int32)
            windows.append(_TextWindow(ids, np.zeros_like(ids), pieces=pieces))
        return windows

    def _window_spans(self, length: int) -> list[tuple[int, int]]:
        room = self._longest - _SPECIAL_TOKENS
        return sliding_windows(length, room, room // 4 if self.overlap is None else self.overlap)

    def _forward(self, params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        return jax.nn.softmax(self._model_outputs(params, batch).logits, axis=-1)

    def _decode(self, item: str, sequences: Sequence[InputSequence], outputs: Iterable[np.ndarray]) -> TaggedText:
        first = sequences[0]
        assert isinstance(first, _TextWindow)
        entities = aggregate_entities(
            self._max_context_rows(outputs, len(first.pieces.ids)),
            text=item,
            pieces=first.pieces,
            labels=self.model.config.id2label,
            tokenizer=self.tokenizer,
            strategy=self.aggregation,
        )
        return TaggedText(item, tuple(entities))

    def _max_context_rows(self, outputs: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
        """Yield the probabilities [N] of each piece, taken from the window in which it has the most context."""
        spans = self._window_spans(length)
        # All windows of a text are equally long, so each has the most context for a run of consecutive pieces.
        bounds = np.searchsorted(max_context_windows(spans, length), np.arange(len(spans) + 1)).tolist()
        for (start, _), (first, end), output in zip(spans, itertools.pairwise(bounds), outputs, strict=True):
            yield from output[1 + first - start : 1 + end - start]  # the first is [CLS]
