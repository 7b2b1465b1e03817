"""Several token sequences in one row of a batch: static shapes with hardly any padding."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from train.data.padding import sizes_to_compile

# Rows of other lengths than the longest sequence's are tried up to this many times it: a row that leaves
# less over may be worth the attention over more positions.
_LONGEST_ROW = 1.5


@dataclasses.dataclass(frozen=True)
class RowShape:
    """What a row holds: at most `slots` sequences, at most `length` tokens together."""

    length: int
    slots: int


def first_fit(lengths: Sequence[int], shape: RowShape) -> list[list[int]]:
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
) -> tuple[RowShape, tuple[int, ...]]:
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

    def candidate(length: int) -> tuple[float, RowShape, tuple[int, ...]]:
        # Twice as many sequences as an average row holds: short ones gather in the last rows to be filled.
        shape = RowShape(length, max(1, round(2 * length * per_token)))
        needed = np.array([len(first_fit(batch, shape)) for batch in batches])
        rows = sizes_to_compile(needed, None, multiple=multiple, compiling=compiling / length)
        filled = np.asarray(rows)[np.searchsorted(rows, needed)].sum()
        return compiling * len(rows) + length * filled, shape, rows

    candidates = map(candidate, range(start, int(start * _LONGEST_ROW) + 1, step))
    _, shape, rows = min(candidates, key=lambda found: found[0])
    return shape, rows


def pack(
    ids: Sequence[np.ndarray], types: Sequence[np.ndarray], rows: list[list[int]], shape: RowShape, *, pad_id: int
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
