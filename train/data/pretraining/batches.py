"""Batches of pretraining rows by number: a pure function of (seed, number), whatever came before."""

import bisect
import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from train.data.corpus.store import TokenStore
from train.data.host_shard import WHOLE_BATCH, HostShard
from train.data.packing import PackedShape, best_fit
from train.data.pretraining.examples import PretrainingExamples, key_of
from train.data.pretraining.rows import RowBuilder
from train.data.pretraining.segments import DocumentSpan

ExampleBuilder = Callable[[Iterable[DocumentSpan], int], PretrainingExamples]
"""Makes the examples of some documents; chance is a function of the key."""

# A block's examples are made at once, and shuffled among each other; documents are dealt to blocks anew every epoch.
_BLOCK = 2**21  # tokens
# Longer documents go to several blocks: else the examples of a book would stand together.
_PART = 2**14  # tokens
_KEPT = 3  # blocks, for threads that are ahead of each other


@dataclasses.dataclass(frozen=True)
class _Block:
    examples: PretrainingExamples
    rows: list[list[int]]
    shuffled: np.ndarray  # numbers of rows


@dataclasses.dataclass
class TrainBatches:
    """Endless batches.

    An epoch shows every document once. It has as many rows for each block as the first block of all has; of a block
    with more, some are left out, and of one with fewer, some come twice: a fraction of a percent, and others in each
    epoch.

    Attributes:
        store: the tokens.
        documents: numbers of those to train on.
        make: the examples of documents.
        build: the arrays of rows.
        size: rows of a batch.
        seed: of everything that chance decides.
        copies: how many different epochs there are, which then come again (Google's dupe_factor, static masks); None
            for ever new ones.
        first_row: with which row of the first epoch batch 0 begins.
        host_shard: of the rows of a batch, those that are built.
    """

    store: TokenStore
    documents: np.ndarray
    make: ExampleBuilder
    build: RowBuilder
    size: int
    seed: int
    first_row: int = dataclasses.field(default=0, kw_only=True)
    copies: int | None = None
    host_shard: HostShard = WHOLE_BATCH

    def __post_init__(self):
        self._parts = document_parts(self.store, self.documents)
        self._tokens = self.store.sentences[self._parts[:, 2]] - self.store.sentences[self._parts[:, 1]]
        self._blocks = max(1, round(int(self._tokens.sum()) / _BLOCK))
        self._lock = threading.Lock()
        self._kept: dict[tuple[int, int], _Block] = {}
        self._last_dealt: tuple[int, list[np.ndarray]] | None = None

    @functools.cached_property
    def rows_of_block(self) -> int:
        """Rows that an epoch takes of each block."""
        return len(self._block(0, 0).rows)

    @property
    def rows_of_epoch(self) -> int:
        """Rows of an epoch."""
        return self._blocks * self.rows_of_block

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Batch `index`; its rows may be of two epochs."""
        wanted = self.first_row + index * self.size + self.host_shard.rows(self.size)
        batches = []
        for number in np.unique(wanted // self.rows_of_block):
            own = wanted[wanted // self.rows_of_block == number] % self.rows_of_block
            epoch, block_number = divmod(int(number), self._blocks)
            block = self._block(epoch, block_number)
            rows = [block.rows[i] for i in block.shuffled[own % len(block.rows)]]
            batches.append(self.build(block.examples, rows))
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def _block(self, epoch: int, number: int) -> _Block:
        with self._lock:
            if (epoch, number) not in self._kept:
                while len(self._kept) >= _KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[epoch, number] = self._made(epoch, number)
            return self._kept[epoch, number]

    def _made(self, epoch: int, number: int) -> _Block:
        shown = epoch if self.copies is None else epoch % self.copies
        parts = self._parts[self._dealt(shown)[number]]
        examples = self.make(map(tuple, parts.tolist()), key_of(self.seed, shown, number))
        rows = rows_of(examples, self.build)
        shuffled = np.random.default_rng([self.seed, epoch, number]).permutation(len(rows))
        return _Block(examples, rows, shuffled)

    def _dealt(self, shown: int) -> list[np.ndarray]:
        """The parts of documents of every block."""
        if self._last_dealt is None or self._last_dealt[0] != shown:
            order = np.random.default_rng([self.seed, shown]).permutation(len(self._parts))
            # A part belongs to the block in which its middle falls, when the tokens are divided evenly.
            ends = np.cumsum(self._tokens[order])
            bounds = np.arange(1, self._blocks) * (ends[-1] / self._blocks)
            dealt = np.split(order, np.searchsorted(ends - self._tokens[order] / 2, bounds))
            self._last_dealt = shown, dealt  # the next block almost always wants it again
        return self._last_dealt[1]


@dataclasses.dataclass(frozen=True)
class HeldOutBatches:
    """Every example of some documents once, with the same masks each time; the last batch is filled up with padding."""

    store: TokenStore
    documents: np.ndarray
    make: ExampleBuilder
    build: RowBuilder
    size: int
    host_shard: HostShard = WHOLE_BATCH

    @functools.cached_property
    def _all(self) -> tuple[PretrainingExamples, list[list[int]]]:
        parts = document_parts(self.store, self.documents)
        examples = self.make(map(tuple, parts.tolist()), key_of(0))
        return examples, rows_of(examples, self.build)

    def __len__(self) -> int:
        return -(-len(self._all[1]) // self.size)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        examples, rows = self._all
        for start in range(0, len(rows), self.size):
            own = (start + self.host_shard.rows(self.size)).tolist()
            yield self.build(examples, [rows[i] if i < len(rows) else [] for i in own])


def rows_of(examples: PretrainingExamples, build: RowBuilder) -> list[list[int]]:
    """The examples of each row."""
    if build.shape.slots is None:
        return [[example] for example in range(len(examples))]
    return best_fit(examples.lengths.tolist(), PackedShape(build.shape.length, build.shape.slots))


def document_parts(store: TokenStore, documents: np.ndarray) -> np.ndarray:
    """[N, 3]: documents, the longest in parts: number of the document, first sentence, one past the last."""
    first, last = store.documents[documents], store.documents[documents + 1]
    starts, ends = store.sentences[first], store.sentences[last]
    counts = np.maximum(1, np.rint((ends - starts) / _PART).astype(np.int64))
    whole = np.stack([documents, first, last], axis=1)[counts == 1]
    several = []
    for i in np.flatnonzero(counts > 1).tolist():
        wanted = starts[i] + np.arange(1, counts[i]) * ((ends[i] - starts[i]) / counts[i])
        cuts = np.unique([first[i], *np.searchsorted(store.sentences, wanted).clip(first[i], last[i]), last[i]])
        several.append(np.stack([np.full(len(cuts) - 1, documents[i]), cuts[:-1], cuts[1:]], axis=1))
    return np.concatenate([whole, *several])


@dataclasses.dataclass(frozen=True)
class Stage:
    """The beginning of a run, before its own settings hold; what is None is as in those."""

    steps: int
    """Updates."""
    batch_size: int | None = None
    """Rows of a batch."""
    max_length: int | None = None
    """Tokens of an example."""
    row_length: int | None = None
    """Of rows that examples share, where they do."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise ValueError(f"{field.name} of a stage is {value}; it must be at least 1")


class StagedBatches:
    """The batches of one stage after another.

    A stage goes on where the one before it has come to, as a share of the epoch: with rows of the same kind at the very
    next row; where rows differ in length, at the same place among the epoch's documents, to within a block of them.
    """

    def __init__(self, stages: Sequence[TrainBatches], steps: Sequence[int]):
        """Takes all stages, and the steps of all but the last, which has no end."""
        self._firsts = [0, *itertools.accumulate(steps)]
        self._stages = []
        place = 0.0  # in epochs
        for batches, count in zip(stages, [*steps, 0], strict=True):
            first = round(place * batches.rows_of_epoch)
            self._stages.append(dataclasses.replace(batches, first_row=first))
            place = (first + count * batches.size) / batches.rows_of_epoch

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The batch of step `index`, from 0."""
        stage = bisect.bisect_right(self._firsts, index) - 1
        return self._stages[stage][index - self._firsts[stage]]
