"""Batches of pretraining rows from a token store; each is a pure function of the seed and of its number."""

import bisect
import dataclasses
import functools
import itertools
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from flaxbert.losses import IGNORE
from train.data.packing import PackedShape, best_fit
from train.data.pretraining.masking import Masking, MaskingRule, random_key
from train.data.pretraining.segments import ExampleBuilder, PretrainingExamples, as_spans, document_spans
from train.data.pretraining.store import TokenStore
from train.distributed import WHOLE_BATCH, HostBatch, HostShard

# The examples of a block are built at once and shuffled; the documents of a block differ in every epoch.
_BLOCK_TOKENS = 2**21
_CACHED_BLOCKS = 3  # threads may be ahead of each other


@dataclasses.dataclass(frozen=True)
class PretrainingRowShape:
    """The capacity of a row."""

    length: int  # tokens, T
    slots: int | None  # examples at most, P; None if a row is a single example
    predictions: int  # predicted positions at most, M

    @classmethod
    def of(cls, rule: MaskingRule, *, max_length: int, row_length: int | None = None) -> "PretrainingRowShape":
        """Return the shape of rows of one example each, or of `row_length` tokens that several share."""
        if row_length is None:
            return cls(max_length, None, rule.predictions(max_length))
        # Short examples gather in the rows that are filled last. Where documents are short (Wikipedia's introductions),
        # pairs have half the allowed length: with half these slots a twentieth of rows of 512 tokens was padding.
        slots = 4 * -(-row_length // max_length) + 4
        return cls(row_length, slots, rule.predictions(row_length, slots))


@dataclasses.dataclass(frozen=True)
class RowBuilder:
    """Builds the arrays of a batch."""

    store: TokenStore
    masking: Masking
    shape: PretrainingRowShape
    two_segments: bool  # whether the second range of an example has token type 1, and its label is a target

    def __call__(self, examples: PretrainingExamples, rows: Sequence[Sequence[int]]) -> HostBatch:
        """Return the batch of R rows, each given as the indices of its examples; a row without any is padding.

        Returns:
            `input_ids` and, with two segments, `token_type_ids` [R, T]; `masked_lm_positions` and `masked_lm_labels`
            [R, M]. With one example a row `attention_mask` [R, T]; with several `segment_ids` (from 1; 0 is padding)
            and `position_ids` [R, T] and `first_positions` [R, P]. With two segments `next_sentence_labels`, [R] or
            [R, P]. Labels that no loss counts are -100.
        """
        cls, sep = self.masking.cls_sep
        shape = (len(rows), self.shape.length)
        slots = self.shape.slots or 1
        ids = np.full(shape, self.store.tokenizer.special_ids[0], np.int32)
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
        known_starts = None if word_starts is None else starts
        batch = self.masking(ids, segments, positions, keys, word_starts=known_starts, slots=self.shape.predictions)
        if self.two_segments:
            batch["token_type_ids"] = types
            batch["next_sentence_labels"] = labels if self.shape.slots else labels[:, 0]
        if self.shape.slots is None:
            return {**batch, "attention_mask": (segments > 0).astype(np.int32)}
        return {**batch, "segment_ids": segments, "position_ids": positions, "first_positions": firsts}

    def divide(self, examples: PretrainingExamples) -> list[list[int]]:
        """Divide examples over rows; return the indices of the examples of each row."""
        if self.shape.slots is None:
            return [[example] for example in range(len(examples))]
        return best_fit(examples.lengths.tolist(), PackedShape(self.shape.length, self.shape.slots))


@dataclasses.dataclass(frozen=True)
class _Block:
    """The examples of a block, the indices of the examples of each row, and a permutation of the rows."""

    examples: PretrainingExamples
    rows: list[list[int]]
    order: np.ndarray


@dataclasses.dataclass
class TrainBatches:
    """Endless training batches; an epoch shows each document once.

    Each block yields as many rows as block 0 of epoch 0: rows of larger blocks are dropped and rows of smaller ones
    repeated. This concerns less than a percent of the rows, and different ones in each epoch.

    Attributes:
        documents: the numbers of the documents to train on.
        copies: the number of different epochs, which are then repeated (Google's dupe_factor, static masks); None if
            all epochs differ.
        first_row: the row of the first epoch with which batch 0 begins.
    """

    store: TokenStore
    documents: np.ndarray
    _: dataclasses.KW_ONLY
    build_examples: ExampleBuilder
    build_rows: RowBuilder
    size: int
    seed: int
    copies: int | None = None
    first_row: int = 0
    host_shard: HostShard = WHOLE_BATCH

    def __post_init__(self):
        self._spans = document_spans(self.store, self.documents)
        self._tokens = self.store.sentences[self._spans[:, 2]] - self.store.sentences[self._spans[:, 1]]
        self._block_count = max(1, round(int(self._tokens.sum()) / _BLOCK_TOKENS))
        self._lock = threading.Lock()
        self._cached: dict[tuple[int, int], _Block] = {}
        self._last_division: tuple[int, list[np.ndarray]] | None = None

    @functools.cached_property
    def rows_of_block(self) -> int:
        """Rows that each block yields in an epoch."""
        return len(self._block(0, 0).rows)

    @property
    def rows_of_epoch(self) -> int:
        """Rows of an epoch."""
        return self._block_count * self.rows_of_block

    def __getitem__(self, index: int) -> HostBatch:
        """Return batch `index`; its rows may be of two epochs."""
        rows = self.first_row + index * self.size + self.host_shard.rows(self.size)
        batches = []
        for number in np.unique(rows // self.rows_of_block):
            own = rows[rows // self.rows_of_block == number] % self.rows_of_block
            epoch, block_number = divmod(int(number), self._block_count)
            block = self._block(epoch, block_number)
            members = [block.rows[i] for i in block.order[own % len(block.rows)]]
            batches.append(self.build_rows(block.examples, members))
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def _block(self, epoch: int, number: int) -> _Block:
        with self._lock:
            if (epoch, number) not in self._cached:
                while len(self._cached) >= _CACHED_BLOCKS:
                    del self._cached[next(iter(self._cached))]
                self._cached[epoch, number] = self._build_block(epoch, number)
            return self._cached[epoch, number]

    def _build_block(self, epoch: int, number: int) -> _Block:
        content = epoch if self.copies is None else epoch % self.copies
        spans = as_spans(self._spans[self._divide(content)[number]])
        examples = self.build_examples(spans, random_key(self.seed, content, number))
        rows = self.build_rows.divide(examples)
        order = np.random.default_rng([self.seed, epoch, number]).permutation(len(rows))
        return _Block(examples, rows, order)

    def _divide(self, content: int) -> list[np.ndarray]:
        """Return the indices of the document spans of each block of an epoch."""
        if self._last_division is None or self._last_division[0] != content:
            order = np.random.default_rng([self.seed, content]).permutation(len(self._spans))
            # The tokens are divided evenly; a span belongs to the block in which its middle falls.
            ends = np.cumsum(self._tokens[order])
            bounds = np.arange(1, self._block_count) * (ends[-1] / self._block_count)
            blocks = np.split(order, np.searchsorted(ends - self._tokens[order] / 2, bounds))
            self._last_division = content, blocks  # the next block is almost always of the same epoch
        return self._last_division[1]


@dataclasses.dataclass
class HeldOutBatches:
    """Batches with each example of some documents once, masked alike every time; the last ends with padding."""

    store: TokenStore
    documents: np.ndarray
    _: dataclasses.KW_ONLY
    build_examples: ExampleBuilder
    build_rows: RowBuilder
    size: int
    host_shard: HostShard = WHOLE_BATCH

    def __post_init__(self):
        self._examples = self.build_examples(as_spans(document_spans(self.store, self.documents)), random_key(0))
        self._rows = self.build_rows.divide(self._examples)

    def __len__(self) -> int:
        return -(-len(self._rows) // self.size)

    def __iter__(self) -> Iterator[HostBatch]:
        rows = self._rows
        for start in range(0, len(rows), self.size):
            own = (start + self.host_shard.rows(self.size)).tolist()
            yield self.build_rows(self._examples, [rows[i] if i < len(rows) else [] for i in own])


class StagedBatches:
    """The batches of several stages one after another.

    A stage continues where the one before it stopped, as a fraction of the epoch: at the next row if their rows have
    the same shape; otherwise at the same document, to within a block.
    """

    def __init__(self, stages: Sequence[TrainBatches], steps: Sequence[int]):
        """Join the stages, given the steps of all but the last, which has no end."""
        self._firsts = [0, *itertools.accumulate(steps)]
        self._stages = []
        epochs = 0.0
        for batches, count in zip(stages, [*steps, 0], strict=True):
            first_row = round(epochs * batches.rows_of_epoch)
            self._stages.append(dataclasses.replace(batches, first_row=first_row))
            epochs = (first_row + count * batches.size) / batches.rows_of_epoch

    def __getitem__(self, index: int) -> HostBatch:
        """Return the batch of step `index`, from 0."""
        stage = bisect.bisect_right(self._firsts, index) - 1
        return self._stages[stage][index - self._firsts[stage]]
