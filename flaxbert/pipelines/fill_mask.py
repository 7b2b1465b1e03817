"""Pipeline that fills [MASK] tokens."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.families import HeadKind
from flaxbert.layers import Params
from flaxbert.outputs import PreTrainingOutput
from flaxbert.pipelines.batching import InputSequence, chunked
from flaxbert.pipelines.pipeline import Pipeline, require_at_least, require_text

# Number of masks per sequence that are scored at once. The decoder takes a few hundredths of the encoder's time for
# four positions, so one shape serves texts with one mask and with more. Texts with more masks are several sequences.
_MASKS_PER_SEQUENCE = 4
_WORD_START = "▁"
_CONTINUATION = "##"


@dataclasses.dataclass(frozen=True)
class Filling:
    """Token for one mask, and the text in which it replaces that mask; "##ing" is joined to the word before it."""

    token: str
    id: int
    probability: float
    text: str


@dataclasses.dataclass(frozen=True)
class FilledText:
    """Fillings of each mask of a text, the most probable first; every mask is filled independently of the others."""

    masks: tuple[tuple[Filling, ...], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class FillMaskPipeline(Pipeline[str, FilledText]):
    """Most probable tokens for every [MASK] of a text, equal to those of transformers' pipeline "fill-mask".

    A text without [MASK], or with one beyond `max_length`, raises a ValueError.

    Attributes:
        top_k: number of fillings of each mask.
        targets: words to choose from, each one token of the vocabulary; None chooses from the whole vocabulary. The
            probabilities are relative to the whole vocabulary in both cases.
    """

    top_k: int = 5
    targets: tuple[str, ...] | None = None

    heads: ClassVar = (HeadKind.MASKED_LM, HeadKind.PRETRAINING)

    def __post_init__(self):
        super().__post_init__()
        require_at_least("top_k", self.top_k, 1)
        if self.targets is not None and not len(self._target_ids):
            raise ValueError("targets is empty; name a word, or give None for the whole vocabulary")

    @functools.cached_property
    def _target_ids(self) -> np.ndarray:
        """Distinct ids of the targets [N]."""
        assert self.targets is not None
        ids = []
        unknown = self.tokenizer.token_id(self.tokenizer.special_tokens.unknown)
        for word, pieces in zip(self.targets, self.tokenizer.piece_ids(self.targets), strict=True):
            token_id = self.tokenizer.backend.token_to_id(word)  # of "##ing", which is three pieces as a text
            if token_id is None and (len(pieces) != 1 or pieces == [unknown]):
                tokens = ", ".join(self.tokenizer.tokens(pieces)) or "nothing"
                raise ValueError(
                    f"targets: {word!r} is no token of the vocabulary but {tokens}; a mask takes one token"
                )
            ids.append(pieces[0] if token_id is None else token_id)
        return np.array(list(dict.fromkeys(ids)), np.int32)

    def _check(self, item: object, name: str) -> str:
        text = require_text(item, name)
        mask = self.tokenizer.special_tokens.mask
        if mask not in text:
            raise ValueError(f"{name} holds no {mask}: {text!r:.60}")
        return text

    def _encode(self, items: Sequence[str], names: Sequence[str]) -> list[list[InputSequence]]:
        mask, encoded = self.tokenizer.special_tokens.mask, []
        mask_id = self.tokenizer.token_id(mask)
        all_sequences = self._encode_pairs((text, None) for text in items)
        for text, name, sequence in zip(items, names, all_sequences, strict=True):
            positions = [position for position, token in enumerate(sequence.ids) if token == mask_id]
            if len(positions) != text.count(mask):
                raise ValueError(f"{name}: a {mask} lies beyond its first {self._longest} tokens; shorten the text")
            sequences = []
            for part in chunked(positions, _MASKS_PER_SEQUENCE):
                padded = np.zeros(_MASKS_PER_SEQUENCE, np.int32)
                padded[: len(part)] = part
                sequences.append(dataclasses.replace(sequence, extra={"positions": padded}))
            encoded.append(sequences)
        return encoded

    def _forward(self, params: Params, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        out = self._model_outputs(params, batch, masked_lm_positions=batch["positions"])
        logits = out.prediction_logits if isinstance(out, PreTrainingOutput) else out.logits
        normalizer = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        if self.targets is None:
            ids = np.arange(self.model.config.vocab_size)
        else:
            ids = self._target_ids
            logits = logits[..., ids]
        best, indices = jax.lax.top_k(logits, min(self.top_k, len(ids)))
        return {"ids": jnp.asarray(ids)[indices], "probabilities": jnp.exp(best - normalizer)}

    def _decode(
        self, item: str, sequences: Sequence[InputSequence], outputs: Iterable[Mapping[str, np.ndarray]]
    ) -> FilledText:
        # The last sequence is padded to a full number of masks.
        outputs = list(outputs)
        ids = np.concatenate([output["ids"] for output in outputs])
        probabilities = np.concatenate([output["probabilities"] for output in outputs])
        mask = self.tokenizer.special_tokens.mask
        parts, filled = item.split(mask), []
        for index in range(1, len(parts)):
            before, after = mask.join(parts[:index]), mask.join(parts[index:])
            filled.append(self._fillings(before, after, ids[index - 1], probabilities[index - 1]))
        return FilledText(tuple(filled))

    def _fillings(self, before: str, after: str, ids: np.ndarray, probabilities: np.ndarray) -> tuple[Filling, ...]:
        """Return the fillings of the mask between two parts of a text."""
        fillings = []
        for token, token_id, probability in zip(self.tokenizer.tokens(ids), ids, probabilities, strict=True):
            if token.startswith(_WORD_START):  # of SentencePiece; decoding drops the blank before the first word
                filled = f"{before.rstrip()} {self.tokenizer.decode([token_id])}".lstrip() + after
            elif not self.tokenizer.has_word_pieces:  # a byte-level token holds the space before it
                filled = before.rstrip() + self.tokenizer.decode([token_id]) + after
            elif token.startswith(_CONTINUATION) and len(token) > len(_CONTINUATION):
                filled = before.rstrip() + token.removeprefix(_CONTINUATION) + after
            else:
                filled = before + token + after
            fillings.append(Filling(token, int(token_id), float(probability), filled))
        return tuple(fillings)
