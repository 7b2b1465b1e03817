"""Masked-LM inputs: choice of the tokens to predict, and their replacement (Devlin et al., 2018, section 3.1).

The random numbers are counter-based: functions of keys alone.
"""

import dataclasses
import functools

import numpy as np

from flaxbert.losses import IGNORE
from flaxbert.tokenizer import WordPieceTokenizer

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)

# Second keys of a token's random bits, one for each purpose.
_SELECTION, _REPLACEMENT, _RANDOM_TOKEN = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class MaskingRule:
    """Number of tokens to predict.

    Attributes:
        rate: the fraction of tokens that are chosen.
        exact: whether each example has exactly this fraction, rounded, at least one token, special tokens counted as in
            Google's code; else each token, or word, is drawn independently (as in RoBERTa).
        whole_words: whether the tokens of a word are chosen together. An exact fraction is not exceeded then: words
            that would exceed it are skipped, as in Google's code.
        most: tokens chosen of one example, at most; None for no limit but the rate.
        masked, random: shares of the chosen tokens that become [MASK], or a random token; the others stay.
    """

    rate: float = 0.15
    exact: bool = True
    whole_words: bool = False
    most: int | None = None
    masked: float = 0.8
    random: float = 0.1

    def __post_init__(self):
        if not 0.0 < self.rate < 1.0:
            raise ValueError(f"the masking rate is {self.rate}; it must lie between 0 and 1")
        if self.most is not None and self.most < 1:
            raise ValueError(f"max_predictions is {self.most}; it must be at least 1")

    def predictions(self, length: int, examples: int = 1) -> int:
        """Return the number of positions to predict in a row of `length` tokens and so many examples, at most.

        If the fraction is not exact, one row in thousands has more chosen tokens; the last ones then stay as they are.
        """
        if self.exact:
            count = int(self.rate * length + 0.5 * examples)  # the number of each example is rounded by itself
        else:
            count = int(np.ceil(self.rate * length + 4 * np.sqrt(length * self.rate * (1 - self.rate))))
        count = min(max(count, examples, 1), length)
        return count if self.most is None else min(count, self.most * examples)


@dataclasses.dataclass(frozen=True)
class Masking:
    """Masking of tokens; BERT's: of those chosen 80 % become [MASK], 10 % a random token, 10 % stay."""

    rule: MaskingRule
    vocab_size: int
    mask_id: int
    cls_sep: tuple[int, int]  # the ids of [CLS] and [SEP]
    special_ids: tuple[int, ...]  # the ids of special tokens, which are never chosen
    continues: np.ndarray  # whether a token continues a word (##) [V]

    @classmethod
    def of(cls, tokenizer: WordPieceTokenizer, rule: MaskingRule) -> "Masking":
        """Return the masking for the vocabulary of a tokenizer; whole words need a WordPiece tokenizer."""
        if rule.whole_words and not tokenizer.has_word_pieces:
            kind = type(tokenizer.backend.model).__name__
            raise ValueError(f"whole_words needs a WordPiece tokenizer, but this one is {kind}; leave whole_words out")
        continues = np.zeros(tokenizer.vocab_size, bool)
        for token, number in tokenizer.backend.get_vocab().items():
            continues[number] = token.startswith("##")
        special_tokens = tokenizer.special_tokens
        return cls(
            rule,
            vocab_size=tokenizer.vocab_size,
            mask_id=tokenizer.token_id(special_tokens.mask),
            cls_sep=(tokenizer.token_id(special_tokens.cls), tokenizer.token_id(special_tokens.sep)),
            special_ids=tokenizer.special_ids,
            continues=continues,
        )

    def __call__(
        self,
        ids: np.ndarray,
        segments: np.ndarray,
        offsets: np.ndarray,
        keys: np.ndarray,
        *,
        slots: int,
        word_starts: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Mask the tokens of R rows of T tokens.

        Args:
            ids: token ids [R, T].
            segments: the number of the example in its row, from 1; 0 in padding [R, T].
            offsets: the position of each token in its example [R, T].
            keys: the random key of each token's example, uint64 [R, T].
            slots: positions of a row that are predicted at most, M; tokens chosen beyond them stay as they are.
            word_starts: whether a token begins a word [R, T]; None if `continues` tells.

        Returns:
            `input_ids` [R, T], `masked_lm_positions` [R, M], ascending (0 where unused), and `masked_lm_labels` [R, M],
            the original ids (-100 where unused).
        """
        rows, length = ids.shape
        bits = random_bits(keys, offsets).reshape(-1)
        groups = (np.arange(rows)[:, None] * (segments.max() + 1) + segments).reshape(-1)
        candidates = np.flatnonzero((segments > 0).reshape(-1) & ~self._special[ids].reshape(-1))
        starts = None
        if self.rule.whole_words:
            starts = (~self.continues[ids] if word_starts is None else word_starts).reshape(-1)
        chosen = self._choose(candidates, bits, groups, starts)
        row, column = np.divmod(chosen, length)
        slot = np.arange(len(chosen)) - np.searchsorted(row, row)
        fits = slot < slots
        chosen, row, column, slot = chosen[fits], row[fits], column[fits], slot[fits]
        replacement = uniform(random_bits(bits[chosen], _REPLACEMENT))
        random_ids = (uniform(random_bits(bits[chosen], _RANDOM_TOKEN)) * self.vocab_size).astype(np.int32)
        original = ids.reshape(-1)[chosen]
        masked = ids.copy()
        masked.reshape(-1)[chosen] = np.where(
            replacement < self.rule.masked,
            self.mask_id,
            np.where(replacement < self.rule.masked + self.rule.random, random_ids, original),
        )
        positions = np.zeros((rows, slots), np.int32)
        labels = np.full((rows, slots), IGNORE, np.int32)
        positions[row, slot], labels[row, slot] = column, original
        return {"input_ids": masked, "masked_lm_positions": positions, "masked_lm_labels": labels}

    def _choose(
        self, candidates: np.ndarray, bits: np.ndarray, groups: np.ndarray, starts: np.ndarray | None
    ) -> np.ndarray:
        """Return the chosen of `candidates`, flat indices; all ascending. `starts`: words are chosen as a whole."""
        if not len(candidates):
            return candidates
        unit = np.arange(len(candidates))
        if starts is not None:
            # A word also ends at a special token and at the end of its example.
            gap = np.concatenate([[True], (np.diff(candidates) != 1) | (np.diff(groups[candidates]) != 0)])
            unit = np.cumsum(starts[candidates] | gap) - 1
        firsts = candidates[np.concatenate([[True], np.diff(unit) > 0])]
        unit_bits = random_bits(bits[firsts], _SELECTION)
        chosen = self._choose_units(unit_bits, groups[firsts], np.bincount(unit), np.bincount(groups))
        return candidates[chosen[unit]]

    def _choose_units(self, bits: np.ndarray, group: np.ndarray, lengths: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Choose the units (words, or tokens) with the smallest bits in each group, as many as there is room for.

        Return a boolean for each unit [U]; `sizes` are the tokens of each group, special ones included.
        """
        room = (
            np.maximum(1, np.rint(self.rule.rate * sizes).astype(np.int64))
            if self.rule.exact
            else sizes.astype(np.int64)
        )
        if self.rule.most is not None:
            room = np.minimum(room, self.rule.most)
        order = np.lexsort((bits, group))
        if not self.rule.exact:
            order = order[uniform(bits[order]) < self.rule.rate]
        chosen = np.zeros(len(bits), bool)
        in_order = group[order]
        index = np.flatnonzero(np.concatenate([[True], np.diff(in_order) > 0])) if len(order) else order
        ends = np.append(index[1:], len(order))
        while len(index):  # the next unit of every group that has one, and room left
            unit = order[index]
            fits = lengths[unit] <= room[group[unit]]
            chosen[unit[fits]] = True
            room[group[unit[fits]]] -= lengths[unit[fits]]
            index = index + 1
            more = (index < ends) & (room[group[unit]] > 0)
            index, ends = index[more], ends[more]
        return chosen

    @functools.cached_property
    def _special(self) -> np.ndarray:
        return np.isin(np.arange(self.vocab_size), self.special_ids)


def random_bits(*keys: int | np.ndarray) -> np.ndarray:
    """Return 64 random bits, uint64, for every combination of keys, which broadcast against each other.

    The bits are a function of the keys alone, so those of a token depend neither on its batch nor on the order.
    Keys in another order, or one more of them, give unrelated bits. This is SplitMix64 (Steele, Lea and Flood, 2014) in
    counter form: its output function applied to a key and a counter.
    """
    bits = np.zeros(1, np.uint64)  # an array: NumPy warns of scalars that overflow, and overflow is intended here
    for key in keys:
        bits = _mix(bits + _GOLDEN_GAMMA + np.asarray(key).astype(np.uint64))
    return bits


def random_key(*keys: int) -> int:
    """Return `random_bits` as one number."""
    return int(random_bits(*keys)[0])


def uniform(bits: np.ndarray) -> np.ndarray:
    """Return random bits as float64, uniform over [0, 1)."""
    return (bits >> np.uint64(11)) * 2.0**-53


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
