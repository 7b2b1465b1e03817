"""Exact means over a whole evaluation set: sums and weights add up over batches, and are divided once."""

from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np

from flaxbert.losses import Loss
from train.distributed import Placement
from train.step import Batch, Params

# (params, batch) -> sums and weights by metric name
Measure = Callable[[Params, Batch], dict[str, Loss]]


def compile_measure(measure: Measure, placement: Placement) -> Measure:
    """The jitted measure, its results on every device."""
    return jax.jit(measure, out_shardings=placement.replicated)


def evaluate(
    measure: Measure, params: Params, batches: Iterable[Mapping[str, np.ndarray]], placement: Placement
) -> dict[str, float]:
    """Runs a compiled measure over all batches and returns the mean of each metric.

    Rows that only fill up the last batch carry weight 0 and count nowhere, so the batch size does not change the
    result. Sums over batches are taken in float64.
    """
    pending: list[dict[str, Loss]] = [measure(params, placement.batch(batch)) for batch in batches]
    totals: dict[str, list[float]] = {}
    for result in jax.device_get(pending):
        for name, loss in result.items():
            total = totals.setdefault(name, [0.0, 0.0])
            total[0] += float(loss.sum)
            total[1] += float(loss.weight)
    return {name: total / weight if weight else 0.0 for name, (total, weight) in totals.items()}
