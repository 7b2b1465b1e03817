"""Workload of the speed benchmark, on which the implementations are timed."""

import dataclasses
from typing import Literal

import numpy as np

from flaxbert import BertConfig
from flaxbert.losses import IGNORE
from train.flops import train_flops

Pass = Literal["train", "forward"]
"""Train step (dropout 0.1, AdamW), or forward pass with the loss."""
_MASKED_SHARE = 0.15


@dataclasses.dataclass(frozen=True)
class Workload:
    """Batch of sentence pairs with masked tokens for a model."""

    name: str
    """Model size."""
    config: BertConfig
    rows: int
    length: int
    dtype: str
    """ "float32", or "bfloat16" for matrix products with float32 parameters."""
    fill: float = 1.0
    """Fraction of the positions that are not padding, the same for every row."""

    @property
    def tokens_per_row(self) -> int:
        """Return the number of tokens of a row that are not padding."""
        return max(8, round(self.fill * self.length))

    @property
    def predictions(self) -> int:
        """Return the number of masked tokens of a row."""
        return round(_MASKED_SHARE * self.tokens_per_row)

    def batch(self, seed: int) -> dict[str, np.ndarray]:
        """Return random token ids in two segments, with 15 % of the positions to predict, and random labels."""
        generator = np.random.default_rng(seed)
        is_token = np.arange(self.length) < self.tokens_per_row
        shape = (self.rows, self.length)
        ids = np.where(is_token, generator.integers(5, self.config.vocab_size, shape), self.config.pad_token_id or 0)
        second = is_token & (np.arange(self.length) >= self.tokens_per_row // 2)
        positions = np.stack(
            [np.sort(generator.choice(self.tokens_per_row, self.predictions, replace=False)) for _ in range(self.rows)]
        )
        labels = generator.integers(5, self.config.vocab_size, positions.shape)
        return {
            "input_ids": ids.astype(np.int32),
            "attention_mask": np.broadcast_to(is_token, shape).astype(np.int32),
            "token_type_ids": np.broadcast_to(second, shape).astype(np.int32),
            "masked_lm_positions": positions.astype(np.int32),
            "masked_lm_labels": labels.astype(np.int32),
            "next_sentence_labels": generator.integers(2, size=self.rows).astype(np.int32),
        }

    def flops(self, *, training: bool) -> float:
        """Return the model FLOPs of a train step or forward pass over the tokens, without any recomputation."""
        tokens = self.rows * self.tokens_per_row
        squares, predictions = tokens * self.tokens_per_row, self.rows * self.predictions
        step = train_flops(self.config, tokens=tokens, squares=squares, predictions=predictions)
        return step if training else step / 3


def labels_of_all_positions(batch: dict[str, np.ndarray]) -> np.ndarray:
    """Return masked-LM labels [B, T] as PyTorch's classes take them: -100 except at the masked positions."""
    labels = np.full(batch["input_ids"].shape, IGNORE, np.int64)
    np.put_along_axis(labels, batch["masked_lm_positions"], batch["masked_lm_labels"].astype(np.int64), axis=1)
    return labels
