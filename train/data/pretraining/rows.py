"""Rows of a batch: one example each, or several that share it, with their tokens and masks."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from flaxbert.losses import IGNORE
from train.data.corpus.store import TokenStore
from train.data.pretraining.examples import PretrainingExamples
from train.data.pretraining.masking import Masking


@dataclasses.dataclass(frozen=True)
class PretrainingRowShape:
    """What a row holds.

    Attributes:
        length: tokens.
        slots: examples, at most; None where a row is one example and no more.
        predictions: positions that are predicted, at most.
    """

    length: int
    slots: int | None
    predictions: int

    @classmethod
    def of(cls, masking: Masking, *, max_length: int, row_length: int | None = None) -> "RowShape":
        """Of rows of one example of up to `max_length` tokens each, or of `row_length` tokens that several share."""
        if row_length is None:
            return cls(max_length, None, masking.predictions(max_length))
        # Short examples gather in the last rows to be filled. Pairs are half as long as they may be where documents are
        # short (Wikipedia's introductions, 512 tokens): with half these slots a twentieth of such rows was padding.
        slots = 4 * -(-row_length // max_length) + 4
        return cls(row_length, slots, masking.predictions(row_length, slots))


@dataclasses.dataclass(frozen=True)
class RowBuilder:
    """Makes the arrays of a batch.

    Attributes:
        store: of the tokens.
        masking: what is hidden.
        shape: of the rows.
        two_segments: whether the second span has a token type of its own, and its label is asked for.
    """

    store: TokenStore
    masking: Masking
    shape: PretrainingRowShape
    two_segments: bool

    def __call__(self, examples: PretrainingExamples, rows: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        """The batch of these rows, each a list of examples; an empty one is padding, and counts nowhere.

        Returns:
            `input_ids` and, where there are two segments, `token_type_ids` [R, T]; `masked_lm_positions` and
            `masked_lm_labels` [R, M]. With one example a row `attention_mask` [R, T]; with several `segment_ids` (from
            1; 0 is padding) and `position_ids` [R, T] and `first_positions` [R, P]. `next_sentence_labels` [R] or
            [R, P]. Labels that do not count are -100.
        """
        tokenizer, (cls, sep) = self.store.tokenizer, self.masking.cls_sep
        shape = (len(rows), self.shape.length)
        slots = self.shape.slots or 1
        ids = np.full(shape, tokenizer.special_ids[0], np.int32)
        types, segments, positions = (np.zeros(shape, np.int32) for _ in range(3))
        keys, starts = np.zeros(shape, np.uint64), np.zeros(shape, bool)
        firsts = np.zeros((len(rows), slots), np.int32)
        labels = np.full((len(rows), slots), IGNORE, np.int32)
        tokens, word_starts = self.store.tokens, self.store.word_starts
        for row, members in enumerate(rows):
            place = 0
            for slot, example in enumerate(members):
                begin = place
                ids[row, place] = cls
                place += 1
                for number, (start, end) in enumerate(examples.spans_of(example)):
                    stop = place + end - start
                    ids[row, place:stop] = tokens[start:end]
                    if word_starts is not None:
                        starts[row, place:stop] = word_starts[start:end]
                    ids[row, stop] = sep
                    types[row, place : stop + 1] = number
                    place = stop + 1
                segments[row, begin:place] = slot + 1
                positions[row, begin:place] = np.arange(place - begin)
                keys[row, begin:place] = examples.keys[example]
                firsts[row, slot], labels[row, slot] = begin, examples.labels[example]
        given = starts if word_starts is not None else None
        batch = self.masking(ids, segments, positions, keys, word_starts=given, slots=self.shape.predictions)
        if self.two_segments:
            batch["token_type_ids"] = types
            batch["next_sentence_labels"] = labels if self.shape.slots else labels[:, 0]
        if self.shape.slots is None:
            return {**batch, "attention_mask": (segments > 0).astype(np.int32)}
        return {**batch, "segment_ids": segments, "position_ids": positions, "first_positions": firsts}
