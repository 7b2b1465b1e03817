"""A vector for every text."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from flaxbert.config import BertConfig
from flaxbert.pipelines import sentence_folder
from flaxbert.pipelines.batching import Row
from flaxbert.pipelines.pipeline import Pipeline, text_of
from flaxbert.pipelines.sentence_folder import Pooling


@dataclasses.dataclass(frozen=True, eq=False)
class SentenceEmbeddingPipeline(Pipeline[str, np.ndarray]):
    """Texts as vectors, equal to those of sentence-transformers' `encode`.

    `from_pretrained` takes what is not given from the folder's modules.json and the files beside it.

    Attributes:
        pooling: of the tokens' vectors: their mean, [CLS]'s, or the largest number of each column.
        normalize: bring vectors to length 1, so that their dot product is the cosine.
        prompt: what stands before every text.
    """

    pooling: Pooling = Pooling.MEAN
    normalize: bool = False
    prompt: str = ""

    architectures: ClassVar = ("BertModel",)

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, dtype: DTypeLike = jnp.float32, **options: Any) -> Self:
        """Loads a model folder, one of sentence-transformers with its settings; see `Pipeline.from_pretrained`."""
        told = dataclasses.asdict(sentence_folder.read(Path(folder)))
        if told["max_length"] is not None:
            told["max_length"] = min(told["max_length"], BertConfig.from_pretrained(folder).max_position_embeddings)
        given = {name: value for name, value in options.items() if value is not None}
        return super().from_pretrained(folder, dtype=dtype, **{**told, **given})

    def __call__(self, texts: Iterable[str]) -> np.ndarray:
        """The vectors [N, D] of N texts, float32.

        Raises:
            TypeError, ValueError: names the first text that is none, or is empty.
        """
        vectors = list(self.stream(texts))
        return np.stack(vectors) if vectors else np.zeros((0, self.model.config.hidden_size), np.float32)

    def _checked(self, item: Any, place: str) -> str:
        return self.prompt + text_of(item, place)

    def _rows(self, items: Sequence[str], places: Sequence[str]) -> list[list[Row]]:
        return [[row] for row in self._encoded(items, [None] * len(items))]

    def _forward(self, params: Any, batch: Any) -> jax.Array:
        states = self._outputs(params, batch).last_hidden_state.astype(jnp.float32)
        vectors = pooled(states, batch["attention_mask"], self.pooling)
        if not self.normalize:
            return vectors
        return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)

    def _result(self, item: str, rows: Sequence[Row], outputs: Sequence[Any]) -> np.ndarray:
        return outputs[0]


def pooled(states: jax.Array, mask: jax.Array, pooling: Pooling) -> jax.Array:
    """One vector a row, [B, D], of the tokens' vectors [B, T, D]; padding, where `mask` [B, T] is 0, does not count."""
    if pooling is Pooling.CLS:
        return states[:, 0]
    real = mask[:, :, None] != 0
    if pooling is Pooling.MAX:
        return jnp.max(jnp.where(real, states, jnp.finfo(states.dtype).min), axis=1)
    return jnp.sum(jnp.where(real, states, 0), axis=1) / jnp.maximum(jnp.sum(real, axis=1), 1)
