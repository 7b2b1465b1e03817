"""Dynamic masking for masked-LM training (Devlin et al., 2018, section 3.1; new masks each epoch as in RoBERTa)."""

import dataclasses

import numpy as np

from flaxbert.losses import IGNORE
from flaxbert.tokenizer import MASK, PAD, WordPieceTokenizer


@dataclasses.dataclass(frozen=True)
class Masking:
    """The rule: how many positions are predicted and what stands there instead.

    Exactly `rate` of a row's tokens (rounded, at least one, special tokens counted as in Google's code) are chosen
    among those that are not special; of these 80 % become [MASK], 10 % a random token, 10 % stay.
    """

    vocab_size: int
    mask_id: int
    pad_id: int
    special_ids: tuple[int, ...]
    rate: float
    length: int  # of a whole row

    def __post_init__(self):
        if not 0.0 < self.rate < 1.0:
            raise ValueError(f"the masking rate is {self.rate}; it must lie between 0 and 1")

    @classmethod
    def of(cls, tokenizer: WordPieceTokenizer, *, rate: float, length: int) -> "Masking":
        """The rule for rows of up to `length` tokens."""
        special = tokenizer.special_ids
        return cls(tokenizer.vocab_size, tokenizer.id(MASK), tokenizer.id(PAD), special, rate, length)

    @property
    def slots(self) -> int:
        """Predicted positions per row: a static shape; unused ones carry the label -100."""
        return max(1, round(self.rate * self.length))

    def __call__(self, ids: np.ndarray, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """Masks one row.

        Args:
            ids: [T].
            generator: the only source of chance.

        Returns:
            `input_ids` [T] with tokens replaced, `masked_lm_positions` [P] in order, and `masked_lm_labels` [P]: the
            original ids there, -100 in unused slots.
        """
        candidates = np.flatnonzero(~np.isin(ids, self.special_ids))
        count = min(self.slots, max(1, round(self.rate * len(ids))), len(candidates))
        chosen = np.sort(generator.choice(candidates, size=count, replace=False))
        fate = generator.random(count)
        random_ids = generator.integers(self.vocab_size, size=count)
        replaced = np.where(fate < 0.8, self.mask_id, np.where(fate < 0.9, random_ids, ids[chosen]))
        masked = ids.copy()
        masked[chosen] = replaced
        positions = np.zeros(self.slots, np.int32)
        labels = np.full(self.slots, IGNORE, np.int32)
        positions[:count], labels[:count] = chosen, ids[chosen]
        return {"input_ids": masked, "masked_lm_positions": positions, "masked_lm_labels": labels}
