"""Which tokens are hidden, and what stands there instead (Devlin et al., 2018, section 3.1)."""

import dataclasses
import functools

import numpy as np

from flaxbert.losses import IGNORE
from flaxbert.tokenizer import CLS, MASK, SEP, WordPieceTokenizer
from train.data.pretraining.examples import mixed, uniform

_CHOICE, _FATE, _WORD = 1, 2, 3  # what a token's random bits are drawn for


@dataclasses.dataclass(frozen=True)
class Masking:
    """The rule by which tokens that are not special are chosen; of them 80 % become [MASK], 10 % any token of the
    vocabulary, 10 % stay.

    Attributes:
        vocab_size: of the tokenizer.
        mask_id: of [MASK].
        cls_sep: of [CLS] and [SEP].
        continues: [V], whether a token goes on with a word (##).
        rate: share of tokens.
        exact: whether each example has exactly that share, rounded and at least one, special tokens counted as in
            Google's code; else each token, or word, is drawn on its own (as RoBERTa does).
        whole_words: whether the tokens of a word are chosen together. An exact share is not exceeded then: words that
            would are passed over, as in Google's code.
        most: tokens chosen of one example, at most; None for no other bound than the rate's.
    """

    vocab_size: int
    mask_id: int
    cls_sep: tuple[int, int]
    special_ids: tuple[int, ...]
    continues: np.ndarray
    rate: float = 0.15
    exact: bool = True
    whole_words: bool = False
    most: int | None = None

    def __post_init__(self):
        if not 0.0 < self.rate < 1.0:
            raise ValueError(f"the masking rate is {self.rate}; it must lie between 0 and 1")
        if self.most is not None and self.most < 1:
            raise ValueError(f"max_predictions is {self.most}; it must be at least 1")

    @classmethod
    def of(cls, tokenizer: WordPieceTokenizer, **rule) -> "Masking":
        """The rule for a tokenizer."""
        continues = np.zeros(tokenizer.vocab_size, bool)
        for token, number in tokenizer.backend.get_vocab().items():
            continues[number] = token.startswith("##")
        ends = tokenizer.token_id(CLS), tokenizer.token_id(SEP)
        return cls(tokenizer.vocab_size, tokenizer.token_id(MASK), ends, tokenizer.special_ids, continues, **rule)

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
        """Hides tokens of rows.

        Args:
            ids: [R, T].
            segments: [R, T], the examples of a row, from 1; 0 is padding.
            offsets: [R, T], places in the example.
            keys: uint64 [R, T], of the random numbers of a token's example.
            slots: M, positions of a row that are predicted at most; any more are left as they are.
            word_starts: [R, T], where words begin; None where the tokens tell.

        Returns:
            `input_ids` [R, T], `masked_lm_positions` [R, M] in order (0 where unused) and `masked_lm_labels` [R, M],
            the ids that stood there (-100 where unused).
        """
        rows, length = ids.shape
        bits = mixed(keys, offsets).reshape(-1)
        groups = (np.arange(rows)[:, None] * (segments.max() + 1) + segments).reshape(-1)
        open_to_choice = np.flatnonzero((segments > 0).reshape(-1) & ~self._special[ids].reshape(-1))
        starts = None
        if self.whole_words:
            starts = (~self.continues[ids] if word_starts is None else word_starts).reshape(-1)
        chosen = self._chosen(open_to_choice, bits, groups, starts)
        row, column = np.divmod(chosen, length)
        number = np.arange(len(chosen)) - np.searchsorted(row, row)  # in its row
        fits = number < slots
        chosen, row, column, number = chosen[fits], row[fits], column[fits], number[fits]
        fate = uniform(mixed(bits[chosen], _FATE))
        words = (uniform(mixed(bits[chosen], _WORD)) * self.vocab_size).astype(np.int32)
        there = ids.reshape(-1)[chosen]
        masked = ids.copy()
        masked.reshape(-1)[chosen] = np.where(fate < 0.8, self.mask_id, np.where(fate < 0.9, words, there))
        positions = np.zeros((rows, slots), np.int32)
        labels = np.full((rows, slots), IGNORE, np.int32)
        positions[row, number], labels[row, number] = column, there
        return {"input_ids": masked, "masked_lm_positions": positions, "masked_lm_labels": labels}

    def _chosen(
        self, tokens: np.ndarray, bits: np.ndarray, groups: np.ndarray, starts: np.ndarray | None
    ) -> np.ndarray:
        """Which of the tokens, by place in all rows, ascending; `starts` tells where words begin that stay whole."""
        if not len(tokens):
            return tokens
        if starts is not None:
            # A word ends with its example too, and at a special token.
            apart = np.concatenate([[True], (np.diff(tokens) != 1) | (np.diff(groups[tokens]) != 0)])
            unit = np.cumsum(starts[tokens] | apart) - 1
        else:
            unit = np.arange(len(tokens))
        firsts = tokens[np.concatenate([[True], np.diff(unit) > 0])]
        drawn = mixed(bits[firsts], _CHOICE)
        taken = self._units(drawn, groups[firsts], np.bincount(unit), np.bincount(groups))
        return tokens[taken[unit]]

    def _units(self, bits: np.ndarray, group: np.ndarray, lengths: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Which units (words, or tokens) of each group are taken: those with the smallest bits that there is room for.

        Args:
            bits, group, lengths: [U], random bits, group and tokens of each unit.
            sizes: tokens of each group, special ones included.
        """
        room = np.maximum(1, np.rint(self.rate * sizes).astype(np.int64)) if self.exact else sizes.astype(np.int64)
        if self.most is not None:
            room = np.minimum(room, self.most)
        order = np.lexsort((bits, group))
        if not self.exact:
            order = order[uniform(bits[order]) < self.rate]
        taken = np.zeros(len(bits), bool)
        in_order = group[order]
        place = np.flatnonzero(np.concatenate([[True], np.diff(in_order) > 0])) if len(order) else order
        ends = np.append(place[1:], len(order))
        while len(place):  # the next unit of every group that has one and room left
            unit = order[place]
            fits = lengths[unit] <= room[group[unit]]
            taken[unit[fits]] = True
            room[group[unit[fits]]] -= lengths[unit[fits]]
            place = place + 1
            more = (place < ends) & (room[group[unit]] > 0)
            place, ends = place[more], ends[more]
        return taken

    @functools.cached_property
    def _special(self) -> np.ndarray:
        """[V], whether a token is special."""
        special = np.zeros(self.vocab_size, bool)
        special[list(self.special_ids)] = True
        return special

    def predictions(self, length: int, examples: int = 1) -> int:
        """Positions that are predicted in a row of so many tokens and examples, at most: what its arrays have room for.

        A share that is not exact may want more, once in thousands of rows; the last ones are then left as they are.
        """
        if self.exact:
            # Each example's share is rounded by itself.
            most = int(self.rate * length + 0.5 * examples)
        else:
            most = int(np.ceil(self.rate * length + 4 * np.sqrt(length * self.rate * (1 - self.rate))))
        most = max(most, examples, 1)
        return min(most, length, *([] if self.most is None else [self.most * examples]))
