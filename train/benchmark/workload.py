"""What is timed: a model's sizes, a batch of pairs with masked words, and how much work they are."""

import dataclasses

import numpy as np

from flaxbert import BertConfig
from flaxbert.losses import IGNORE
from train.flops import train_flops

_RATE = 0.15


@dataclasses.dataclass(frozen=True)
class Workload:
    """A batch for a model.

    Attributes:
        name: of the model's size.
        config: its sizes.
        rows, length: of the batch.
        dtype: "float32", or "bfloat16" for products while parameters stay float32.
        fill: share of positions that are no padding, the same for every row.
    """

    name: str
    config: BertConfig
    rows: int
    length: int
    dtype: str
    fill: float = 1.0

    @property
    def real(self) -> int:
        """Tokens of a row that are no padding."""
        return max(8, round(self.fill * self.length))

    @property
    def predictions(self) -> int:
        """Masked words of a row."""
        return round(_RATE * self.real)

    def batch(self, seed: int) -> dict[str, np.ndarray]:
        """Random words in two segments, a seventh of them to be predicted."""
        chance = np.random.default_rng(seed)
        there = np.arange(self.length) < self.real
        shape = (self.rows, self.length)
        ids = np.where(there, chance.integers(5, self.config.vocab_size, shape), self.config.pad_token_id or 0)
        second = there & (np.arange(self.length) >= self.real // 2)
        positions = np.stack(
            [np.sort(chance.choice(self.real, self.predictions, replace=False)) for _ in range(self.rows)]
        )
        labels = chance.integers(5, self.config.vocab_size, positions.shape)
        return {
            "input_ids": ids.astype(np.int32),
            "attention_mask": np.broadcast_to(there, shape).astype(np.int32),
            "token_type_ids": np.broadcast_to(second, shape).astype(np.int32),
            "masked_lm_positions": positions.astype(np.int32),
            "masked_lm_labels": labels.astype(np.int32),
            "next_sentence_labels": chance.integers(2, size=self.rows).astype(np.int32),
        }

    def flops(self, *, training: bool) -> float:
        """Of a step over the batch, or of its forward pass: the model's, over real tokens; nothing counts twice."""
        tokens = self.rows * self.real
        squares, predictions = tokens * self.real, self.rows * self.predictions
        whole = train_flops(self.config, tokens=tokens, squares=squares, predictions=predictions)
        return whole if training else whole / 3


def labels_of_all_positions(batch: dict[str, np.ndarray]) -> np.ndarray:
    """[B, T], as PyTorch's classes take them: -100 but at the masked positions."""
    labels = np.full(batch["input_ids"].shape, IGNORE, np.int64)
    np.put_along_axis(labels, batch["masked_lm_positions"], batch["masked_lm_labels"].astype(np.int64), axis=1)
    return labels
