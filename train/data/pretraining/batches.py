"""Batches of pretraining rows by number: a pure function of (seed, number), whatever came before."""

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from train.data.corpus.store import TokenStore
from train.data.host_shard import WHOLE_BATCH, HostShard
from train.data.pretraining.examples import Examples
from train.data.pretraining.next_sentence import Part
from train.data.pretraining.numbers import key_of
from train.data.pretraining.packing import best_fit
from train.data.pretraining.rows import RowBuilder

Maker = Callable[[Iterable[Part], int], Examples]
"""Makes the examples of some documents; chance is a function of the key."""

# A block's examples are made at once, and shuffled among each other; documents are dealt to blocks anew every epoch.
_BLOCK = 2**21  # tokens
# Longer documents go to several blocks: else the examples of a book would stand together.
_PART = 2**14  # tokens
_KEPT = 3  # blocks, for threads that are ahead of each other


@dataclasses.dataclass(frozen=True)
class _Block:
    examples: Examples
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
    make: Maker
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
    make: Maker
    build: RowBuilder
    size: int
    host_shard: HostShard = WHOLE_BATCH

    @functools.cached_property
    def _all(self) -> tuple[Examples, list[list[int]]]:
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


def rows_of(examples: Examples, build: RowBuilder) -> list[list[int]]:
    """The examples of each row."""
    if build.shape.slots is None:
        return [[example] for example in range(len(examples))]
    return best_fit(examples.lengths.tolist(), room=build.shape.length, slots=build.shape.slots)


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
