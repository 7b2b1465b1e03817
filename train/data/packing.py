"""Shapes of batches: sizes to pad to, and several sequences in one row of fixed length."""

import dataclasses
from collections.abc import Sequence

import numpy as np

# The cost of compiling one more length, in positions of padding of one batch: 8 s against 0.014 s a position, measured
# with MiniLM and batches of 32 on two CPU cores. It decides only how much is padded.
COMPILE_COST = 570
# Odd lengths take up to 1.5 times as long to compile, and use vector units poorly.
LENGTH_MULTIPLE = 4
# Rows of packed sequences may be up to this many times as long as the longest sequence: a length that leaves less
# padding may be worth the attention over more positions.
_MAX_LENGTH_RATIO = 1.5


@dataclasses.dataclass(frozen=True)
class PackedShape:
    """The capacity of a row of packed sequences."""

    length: int
    slots: int


@dataclasses.dataclass(frozen=True)
class PackedBatchShape:
    """The shapes of the packed batches of a run."""

    row: PackedShape
    row_counts: tuple[int, ...]  # the numbers of rows, ascending, that batches are filled up to


def choose_padded_sizes(
    needed: np.ndarray, largest: int | None, *, multiple: int, compile_cost: float = COMPILE_COST
) -> tuple[int, ...]:
    """Return the sizes to pad batches to, ascending, that cost least in padding and compilation together.

    Each size is compiled once: with too few sizes batches are mostly padding, with too many the run compiles more than
    it trains. The solution is exact, by dynamic programming over the multiples that hold the batches.

    Args:
        needed: the size that each batch needs, such as the length of its longest sequence.
        largest: no size exceeds it; None for no limit.
        multiple: each size is a multiple of it, except `largest`.
        compile_cost: the cost of one more size, in the unit of `needed` and for all batches.
    """
    needed = np.minimum(-(-needed // multiple) * multiple, np.inf if largest is None else largest).astype(np.int64)
    sizes, counts = np.unique(needed, return_counts=True)
    smaller = np.concatenate([[0], np.cumsum(counts)])  # the number of batches that need less than sizes[k]
    best, start = np.zeros(len(sizes) + 1), np.zeros(len(sizes) + 1, np.int64)
    for k in range(1, len(sizes) + 1):
        # Batches that need sizes[j] to sizes[k - 1] are padded to the last of them. Their own positions are the same
        # for every choice, so all positions can be counted instead of the padding.
        costs = best[:k] + compile_cost + sizes[k - 1] * (smaller[k] - smaller[:k])
        start[k] = np.argmin(costs)
        best[k] = costs[start[k]]
    chosen, k = [], len(sizes)
    while k:
        chosen.append(int(sizes[k - 1]))
        k = int(start[k])
    return tuple(reversed(chosen))


def first_fit(lengths: Sequence[int], shape: PackedShape) -> list[list[int]]:
    """Return the indices of the sequences of each row: longest first, each in the first row with room for it.

    First-fit decreasing (Johnson, 1973), which needs at most 11/9 of the fewest rows possible, plus one.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    rows: list[list[int]] = []
    room: list[int] = []
    for i in order:
        for row, left in enumerate(room):
            if lengths[i] <= left and len(rows[row]) < shape.slots:
                break
        else:
            row = len(rows)
            rows.append([])
            room.append(shape.length)
        rows[row].append(i)
        room[row] -= lengths[i]
    return rows


def best_fit(lengths: Sequence[int], shape: PackedShape) -> list[list[int]]:
    """Return the indices of the sequences of each row: longest first, each in the fullest row with room for it.

    Best-fit decreasing (Johnson, 1973), for the many short sequences of pretraining: its time grows with the number of
    sequences and not with that of rows. Rows are kept by the room they have left, and the bits of one integer say which
    amounts of room occur.
    """
    rows: list[list[int]] = []
    rows_by_room: list[list[int]] = [[] for _ in range(shape.length + 1)]
    occurring = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[i]
        if fitting := occurring >> length:
            left = length + (fitting & -fitting).bit_length() - 1
            row = rows_by_room[left].pop()
            if not rows_by_room[left]:
                occurring ^= 1 << left
        else:
            left, row = shape.length, len(rows)
            rows.append([])
        rows[row].append(i)
        left -= length
        if len(rows[row]) < shape.slots:
            rows_by_room[left].append(row)
            occurring |= 1 << left
    return rows


def choose_packed_shape(
    batches: Sequence[Sequence[int]], longest: int, *, multiple: int, compile_cost: float
) -> PackedBatchShape:
    """Return the capacity of rows, and the numbers of rows, that cost the fewest positions.

    Row lengths from `longest` to one and a half of it are tried.

    Args:
        batches: the lengths of the sequences of each batch.
        longest: the length of the longest sequence of all epochs.
        multiple: the number of rows is a multiple of it.
        compile_cost: the cost of one more number of rows, in positions of all batches.
    """
    sequences_per_token = sum(map(len, batches)) / sum(map(sum, batches))
    start = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
    best: PackedBatchShape | None = None
    lowest = float("inf")
    for length in range(start, int(start * _MAX_LENGTH_RATIO) + 1, LENGTH_MULTIPLE):
        # Twice as many sequences as an average row holds: short ones gather in the rows that are filled last.
        shape = PackedShape(length, max(1, round(2 * length * sequences_per_token)))
        needed = np.array([len(first_fit(batch, shape)) for batch in batches])
        counts = choose_padded_sizes(needed, None, multiple=multiple, compile_cost=compile_cost / length)
        filled = np.asarray(counts)[np.searchsorted(counts, needed)].sum()
        cost = compile_cost * len(counts) + length * filled
        if best is None or cost < lowest:
            best, lowest = PackedBatchShape(shape, counts), cost
    assert best is not None
    return best


def pack_sequences(
    ids: Sequence[np.ndarray], types: Sequence[np.ndarray], rows: list[list[int]], shape: PackedShape, *, pad_id: int
) -> dict[str, np.ndarray]:
    """Return the arrays of a packed batch, all int32.

    Args:
        rows: the indices of the sequences of each row; a row without any is padding.

    Returns:
        `input_ids` and `token_type_ids` [R, T]; `segment_ids` [R, T] number a row's sequences from 1 (0: padding);
        `position_ids` [R, T] start at 0 in each sequence; `first_positions` [R, P] are the positions where sequences
        start (0 for an empty slot).
    """
    size = (len(rows), shape.length)
    batch = {
        "input_ids": np.full(size, pad_id, np.int32),
        **{name: np.zeros(size, np.int32) for name in ("token_type_ids", "position_ids", "segment_ids")},
        "first_positions": np.zeros((len(rows), shape.slots), np.int32),
    }
    for row, sequences in enumerate(rows):
        start = 0
        for slot, i in enumerate(sequences):
            own = (row, slice(start, start + len(ids[i])))
            batch["input_ids"][own], batch["token_type_ids"][own] = ids[i], types[i]
            batch["position_ids"][own], batch["segment_ids"][own] = np.arange(len(ids[i])), slot + 1
            batch["first_positions"][row, slot] = start
            start += len(ids[i])
    return batch
