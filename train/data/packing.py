"""Several token sequences in one row of a batch: static shapes with hardly any padding."""

import dataclasses
from collections.abc import Sequence

import numpy as np

# Rows of other lengths than the longest sequence's are tried up to this many times it: a row that leaves
# less over may be worth the attention over more positions.
_LONGEST_ROW = 1.5


@dataclasses.dataclass(frozen=True)
class PackedShape:
    """What a row holds: at most `slots` sequences, at most `length` tokens together."""

    length: int
    slots: int


def first_fit(lengths: Sequence[int], shape: PackedShape) -> list[list[int]]:
    """Which sequences (by index) share a row: longest first, each into the first row that has room for it.

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


def choose_shape(
    batches: Sequence[Sequence[int]], longest: int, *, step: int, multiple: int, compiling: float
) -> tuple[PackedShape, tuple[int, ...]]:
    """The shape of rows, and the numbers of rows to fill batches up to, that cost the fewest positions.

    Row lengths from `longest`, which every row must hold, to one and a half of it are tried.

    Args:
        batches: the lengths of their sequences.
        longest: of all sequences that are to come.
        step: of which row lengths are multiples.
        multiple: of which numbers of rows are multiples.
        compiling: cost of one more number of rows, in positions of all batches.
    """
    per_token = sum(map(len, batches)) / sum(map(sum, batches))
    start = -(-longest // step) * step

    def candidate(length: int) -> tuple[float, PackedShape, tuple[int, ...]]:
        # Twice as many sequences as an average row holds: short ones gather in the last rows to be filled.
        shape = PackedShape(length, max(1, round(2 * length * per_token)))
        needed = np.array([len(first_fit(batch, shape)) for batch in batches])
        rows = choose_padded_sizes(needed, None, multiple=multiple, compiling=compiling / length)
        filled = np.asarray(rows)[np.searchsorted(rows, needed)].sum()
        return compiling * len(rows) + length * filled, shape, rows

    candidates = map(candidate, range(start, int(start * _LONGEST_ROW) + 1, step))
    _, shape, rows = min(candidates, key=lambda found: found[0])
    return shape, rows


def pack(
    ids: Sequence[np.ndarray], types: Sequence[np.ndarray], rows: list[list[int]], shape: PackedShape, *, pad_id: int
) -> dict[str, np.ndarray]:
    """Sequences as the arrays of a packed batch; an empty row is all padding.

    `segment_ids` [R, T] counts a row's sequences from 1 (0: padding), `position_ids` [R, T] starts anew with
    each, `first_positions` [R, P] is where each begins (0 where a slot is empty).
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
            here = (row, slice(start, start + len(ids[i])))
            batch["input_ids"][here], batch["token_type_ids"][here] = ids[i], types[i]
            batch["position_ids"][here], batch["segment_ids"][here] = np.arange(len(ids[i])), slot + 1
            batch["first_positions"][row, slot] = start
            start += len(ids[i])
    return batch


# What one more length to compile for costs, in positions of padding of one batch: eight seconds against 0.014, measured
# with MiniLM and batches of 32 on two CPU cores. Only how much is padded hangs on it.
COMPILING = 570
# XLA takes up to half as long again to compile odd lengths, and vector units are made for even ones.
MULTIPLE = 4


def choose_padded_sizes(
    needed: np.ndarray, largest: int | None, *, multiple: int, compiling: float = COMPILING
) -> tuple[int, ...]:
    """The sizes to pad batches to, ascending, for which padding and compiling together cost least.

    Every size compiles anew: too few and small batches are mostly padding, too many and the run compiles more than
    it trains. Solved exactly, by dynamic programming over the multiples that hold the batches.

    Args:
        needed: the size that every batch needs, its longest row for instance; one of the sizes holds the largest.
        largest: no size goes beyond it.
        multiple: of which every size but the largest allowed is one.
        compiling: cost of one more size, in those of one batch.
    """
    needed = np.minimum(-(-needed // multiple) * multiple, np.inf if largest is None else largest).astype(np.int64)
    found, counts = np.unique(needed, return_counts=True)
    before = np.concatenate([[0], np.cumsum(counts)])  # batches smaller than found[k]
    best, start = np.zeros(len(found) + 1), np.zeros(len(found) + 1, np.int64)
    for k in range(1, len(found) + 1):
        # Batches of found[j] to found[k - 1] share the last of these sizes. What they hold themselves is the same
        # whatever is chosen, so all that is computed may stand for the padding.
        costs = best[:k] + compiling + found[k - 1] * (before[k] - before[:k])
        start[k] = np.argmin(costs)
        best[k] = costs[start[k]]
    chosen, k = [], len(found)
    while k:
        chosen.append(int(found[k - 1]))
        k = int(start[k])
    return tuple(reversed(chosen))


def best_fit(lengths: Sequence[int], *, room: int, slots: int) -> list[list[int]]:
    """Which examples (by number) share a row: longest first, each into the fullest row that has room for it.

    Best-fit decreasing (Johnson, 1973), in time that grows with the number of examples and not with that of rows: rows
    are kept by the room they have left, and which of these numbers occur in the bits of one integer.

    Args:
        lengths: of the examples, none above `room`.
        room: tokens of a row.
        slots: examples of a row, at most.
    """
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(room + 1)]
    occurring = 0
    for example in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[example]
        if fitting := occurring >> length:
            left = length + (fitting & -fitting).bit_length() - 1
            row = by_room[left].pop()
            if not by_room[left]:
                occurring ^= 1 << left
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(example)
        left -= length
        if len(rows[row]) < slots:
            by_room[left].append(row)
            occurring |= 1 << left
    return rows
