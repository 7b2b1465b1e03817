"""Long texts as overlapping windows, and which of them has the say about each position."""

from collections.abc import Sequence

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


def owners(places: Sequence[tuple[int, int]], length: int) -> np.ndarray:
    """For each of `length` positions the number of the window in which it has most context [length], the first of
    equals.

    As the maximum context of Google BERT's run_squad: the smaller of the numbers of positions before it and after it
    in the window, and a hundredth of the window's length.
    """
    start, end = np.asarray(places).T[:, :, None]
    positions = np.arange(length)[None]
    before, after = positions - start, end - 1 - positions
    context = np.minimum(before, after) + 0.01 * (end - start)
    return np.where((before >= 0) & (after >= 0), context, -np.inf).argmax(axis=0)
