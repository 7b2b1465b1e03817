"""Rows of a training set that are held out of it, to evaluate on."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np

R = TypeVar("R")


def held_out(rows: Sequence[R], groups: Sequence[Hashable], share: float, *, seed: int) -> tuple[list[R], list[R]]:
    """Rows to train on, and those of whole groups that together are at least this share of all.

    Groups are drawn by the seed; what is drawn depends on nothing else but their order and sizes.

    Args:
        rows: of the set.
        groups: that of each row: an article, a context, or the row's own text.
        share: between 0 and 1.
        seed: any number from 0.

    Raises:
        ValueError: that leaves nothing to train on.
    """
    sizes = Counter(groups)  # in the order of the rows
    names = list(sizes)
    drawn, count = set(), 0
    for number in np.random.default_rng([seed, len(rows)]).permutation(len(names)):
        if count >= share * len(rows):
            break
        drawn.add(names[number])
        count += sizes[names[number]]
    if len(drawn) == len(names):
        raise ValueError(
            f"a share of {share} takes all of {len(rows)} rows, of {len(names)} article(s) or text(s); hold out less, "
            "or give a file to evaluate on"
        )
    kept = [row for row, group in zip(rows, groups, strict=True) if group not in drawn]
    return kept, [row for row, group in zip(rows, groups, strict=True) if group in drawn]
