"""Which sizes to pad batches to, where every size compiles anew."""

import numpy as np

# What one more length to compile for costs, in positions of padding of one batch: eight seconds against 0.014, measured
# with MiniLM and batches of 32 on two CPU cores. Only how much is padded hangs on it.
COMPILING = 570
# XLA takes up to half as long again to compile odd lengths, and vector units are made for even ones.
MULTIPLE = 4


def sizes_to_compile(
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
