"""Long texts as overlapping windows, and which of them has the say about each position."""

import numpy as np


def windows(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Where windows of `size` positions start and end, so that together they cover `length` positions.

    Neighbours share `overlap` positions, the last two more, so that no window is shorter than the text allows.

    Raises:
        ValueError: a size below 1, or an overlap that leaves no step forward.
    """
    if size < 1 or not 0 <= overlap < size:
        raise ValueError(f"windows of {size} positions can't share {overlap}; allowed: 0 to {size - 1}")
    if length <= size:
        return [(0, length)]
    starts = [*range(0, length - size, size - overlap), length - size]
    return [(start, start + size) for start in starts]


def owners(places: list[tuple[int, int]], length: int) -> np.ndarray:
    """For each of `length` positions the number of the window in which it has most context [length].

    Context is the shorter of what stands before it and after it in the window, as the maximum context of Google BERT's
    run_squad; the earlier window where two are equal.
    """
    positions, most = np.arange(length), np.full(length, -1)
    owner = np.zeros(length, np.int64)
    for number, (start, end) in enumerate(places):
        context = np.minimum(positions - start, end - 1 - positions)
        better = context > most
        owner[better], most[better] = number, context[better]
    return owner
