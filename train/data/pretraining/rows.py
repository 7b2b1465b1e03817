"""Rows of pretraining batches: one example each, or several that share a row, with their tokens and masks."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from flaxbert.losses import IGNORE
from train.data.corpus.store import TokenStore
from train.data.examples import HostBatch
from train.data.pretraining.example_ranges import PretrainingExamples
from train.data.pretraining.masking import Masking


@dataclasses.dataclass(frozen=True)
class PretrainingRowShape:
    """The capacity of a row.

    Attributes:
        length: tokens, T.
        slots: examples at most, P; None if a row is a single example.
        predictions: predicted positions at most, M.
    """

    length: int
    slots: int | None
    predictions: int

    @classmethod
    def of(cls, masking: Masking, *, max_length: int, row_length: int | None = None) -> "PretrainingRowShape":
        """Return the shape of rows of one example, or of rows of `row_length` tokens that several examples share.

        Args:
            masking: it determines the number of predicted positions.
            max_length: tokens of an example at most.
            row_length: tokens of a row that examples share; None for one example a row.
        """
        if row_length is None:
            return cls(max_length, None, masking.predictions(max_length))
        # Short examples gather in the rows that are filled last. Where documents are short (Wikipedia's introductions),
        # pairs have half the allowed length: with half these slots a twentieth of rows of 512 tokens was padding.
        slots = 4 * -(-row_length // max_length) + 4
        return cls(row_length, slots, masking.predictions(row_length, slots))


@dataclasses.dataclass(frozen=True)
class RowBuilder:
    """Builds the arrays of a batch.

    Attributes:
        store: the tokens.
        masking: the masking of tokens.
        shape: the capacity of rows.
        two_segments: whether the second range of an example has token type 1, and its label is a target.
    """

    store: TokenStore
    masking: Masking
    shape: PretrainingRowShape
    two_segments: bool

    def __call__(self, examples: PretrainingExamples, rows: Sequence[Sequence[int]]) -> HostBatch:
        """Return the batch of R rows, each given as the indices of its examples; a row without any is padding.

        Returns:
            `input_ids` and, with two segments, `token_type_ids` [R, T]; `masked_lm_positions` and `masked_lm_labels`
            [R, M]. With one example a row `attention_mask` [R, T]; with several `segment_ids` (from 1; 0 is padding)
            and `position_ids` [R, T] and `first_positions` [R, P]. With two segments `next_sentence_labels`, [R] or
            [R, P]. Labels that no loss counts are -100.
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
            position = 0
            for slot, example in enumerate(members):
                begin = position
                ids[row, position] = cls
                position += 1
                for number, (start, end) in enumerate(examples.spans_of(example)):
                    stop = position + end - start
                    ids[row, position:stop] = tokens[start:end]
                    if word_starts is not None:
                        starts[row, position:stop] = word_starts[start:end]
                    ids[row, stop] = sep
                    types[row, position : stop + 1] = number
                    position = stop + 1
                segments[row, begin:position] = slot + 1
                positions[row, begin:position] = np.arange(position - begin)
                keys[row, begin:position] = examples.keys[example]
                firsts[row, slot], labels[row, slot] = begin, examples.labels[example]
        batch = self.masking(
            ids,
            segments,
            positions,
            keys,
            word_starts=None if word_starts is None else starts,
            slots=self.shape.predictions,
        )
        if self.two_segments:
            batch["token_type_ids"] = types
            batch["next_sentence_labels"] = labels if self.shape.slots else labels[:, 0]
        if self.shape.slots is None:
            return {**batch, "attention_mask": (segments > 0).astype(np.int32)}
        return {**batch, "segment_ids": segments, "position_ids": positions, "first_positions": firsts}
