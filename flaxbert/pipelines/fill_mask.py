"""Words for [MASK]."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.pipelines.batching import Row
from flaxbert.pipelines.pipeline import Pipeline, at_least, text_of
from flaxbert.tokenizer import MASK, UNK

# Masks of a row that are scored at once. The decoder's work for the four is a few hundredths of the encoder's, so one
# shape serves texts with one mask and with more; those with more still are several rows.
_SLOTS = 4
_CONTINUED = "##"


@dataclasses.dataclass(frozen=True)
class Filling:
    """One word for one mask: the token, its id and probability, and the text with it in place.

    Of `text` the other masks stay; a token like "##ing" is joined to the word before it.
    """

    token: str
    id: int
    probability: float
    text: str


@dataclasses.dataclass(frozen=True)
class FilledText:
    """The fillings of each mask of a text, in its order, the likeliest first; each mask is filled on its own."""

    masks: tuple[tuple[Filling, ...], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class FillMaskPipeline(Pipeline[str, FilledText]):
    """The likeliest words for every [MASK] of a text.

    Probabilities are of the whole vocabulary, and equal to those of transformers' pipeline "fill-mask".

    Attributes:
        top_k: fillings of each mask.
        targets: only these words are considered, each one token of the vocabulary; probabilities stay those among all.
    """

    top_k: int = 5
    targets: tuple[str, ...] | None = None

    architectures: ClassVar = ("BertForMaskedLM", "BertForPreTraining")

    def __post_init__(self):
        super().__post_init__()
        at_least("top_k", self.top_k, 1)
        if self.targets is not None and not len(self._target_ids):
            raise ValueError("targets is empty; name a word, or give None for the whole vocabulary")

    def __call__(self, texts: Iterable[str]) -> list[FilledText]:
        """The fillings of each text.

        Raises:
            TypeError, ValueError: names the first text that is none, holds no [MASK], or one beyond `max_length`.
        """
        return list(self.stream(texts))

    @functools.cached_property
    def _target_ids(self) -> np.ndarray:
        """The ids of the targets [N], none twice."""
        assert self.targets is not None
        ids = []
        for word, pieces in zip(self.targets, self.tokenizer.piece_ids(self.targets), strict=True):
            whole = self.tokenizer.backend.token_to_id(word)  # "##ing", say, which is three pieces as a text
            if whole is None and (len(pieces) != 1 or pieces == [self.tokenizer.token_id(UNK)]):
                said = ", ".join(self.tokenizer.tokens(pieces)) or "nothing"
                raise ValueError(f"targets: {word!r} is no token of the vocabulary but {said}; a mask takes one token")
            ids.append(pieces[0] if whole is None else whole)
        return np.array(list(dict.fromkeys(ids)), np.int32)

    def _checked(self, item: Any, place: str) -> str:
        text = text_of(item, place)
        if MASK not in text:
            raise ValueError(f"{place} holds no {MASK}: {text!r:.60}")
        return text

    def _rows(self, items: Sequence[str], places: Sequence[str]) -> list[list[Row]]:
        mask, found = self.tokenizer.token_id(MASK), []
        for text, place, row in zip(items, places, self._encoded(items, [None] * len(items)), strict=True):
            positions = [position for position, token in enumerate(row.ids) if token == mask]
            if len(positions) != text.count(MASK):
                raise ValueError(f"{place}: a {MASK} lies beyond its first {self._longest} tokens; shorten the text")
            parts = (positions[start : start + _SLOTS] for start in range(0, len(positions), _SLOTS))
            slots = (np.array(part + [0] * (_SLOTS - len(part)), np.int32) for part in parts)
            found.append([dataclasses.replace(row, more={"positions": slot}) for slot in slots])
        return found

    def _forward(self, params: Any, batch: Any) -> dict[str, jax.Array]:
        out = self._outputs(params, batch, masked_lm_positions=batch["positions"])
        logits = out.prediction_logits if type(self.model).__name__ == "BertForPreTraining" else out.logits
        among_all = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        ids = np.arange(self.model.config.vocab_size) if self.targets is None else self._target_ids
        best, places = jax.lax.top_k(logits if self.targets is None else logits[..., ids], min(self.top_k, len(ids)))
        return {"ids": jnp.asarray(ids)[places], "probabilities": jnp.exp(best - among_all)}

    def _result(self, item: str, rows: Sequence[Row], outputs: Sequence[Any]) -> FilledText:
        slots = itertools.chain.from_iterable(
            zip(output["ids"], output["probabilities"], strict=True) for output in outputs
        )
        masks = zip(range(item.count(MASK)), slots, strict=False)  # the slots after the last mask are empty
        return FilledText(tuple(self._fillings(item, number, *found) for number, found in masks))

    def _fillings(self, text: str, number: int, ids: np.ndarray, probabilities: np.ndarray) -> tuple[Filling, ...]:
        parts = text.split(MASK)
        before, after = MASK.join(parts[: number + 1]), MASK.join(parts[number + 1 :])
        fillings = []
        for token, id_, probability in zip(self.tokenizer.tokens(ids), ids, probabilities, strict=True):
            joined = token.startswith(_CONTINUED) and len(token) > len(_CONTINUED)
            start = before.rstrip() + token.removeprefix(_CONTINUED) if joined else before + token
            fillings.append(Filling(token, int(id_), float(probability), start + after))
        return tuple(fillings)
