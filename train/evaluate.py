"""Exact means over a whole evaluation set: sums and weights add up over batches, and are divided once."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import struct

from flaxbert.losses import Loss
from train.distributed import Placement
from train.step import Batch, Params


@struct.dataclass
class EvalStepOutput:
    """What an evaluation finds out about a batch: sums and weights by metric name, and outputs to keep."""

    metrics: dict[str, Loss]
    outputs: Any = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The mean of each metric over a whole set, and the outputs of each batch."""

    means: dict[str, float]
    outputs: list[Any]


EvalStep = Callable[[Params, Batch], EvalStepOutput]


def compile_eval_step(eval_step: EvalStep, placement: Placement) -> EvalStep:
    """The jitted eval step, its results on every device."""

    def placed(params: Params, batch: Batch) -> EvalStepOutput:
        with placement.tracing():
            return eval_step(params, batch)

    return jax.jit(placed, out_shardings=placement.replicated)


def evaluate(
    eval_step: EvalStep, params: Params, batches: Iterable[Mapping[str, np.ndarray]], placement: Placement
) -> Evaluation:
    """Runs a compiled eval step over all batches.

    Rows that only fill up the last batch carry weight 0 and count nowhere, so the batch size does not change the
    means; a metric that nothing counts in has none. Sums over batches are taken in float64.
    """
    pending = [eval_step(params, placement.batch(batch)) for batch in batches]
    totals: dict[str, list[float]] = {}
    outputs = []
    for measured in jax.device_get(pending):
        outputs.append(measured.outputs)
        for name, loss in measured.metrics.items():
            total = totals.setdefault(name, [0.0, 0.0])
            total[0] += float(loss.sum)
            total[1] += float(loss.weight)
    means = {name: total / weight for name, (total, weight) in totals.items() if weight}
    return Evaluation(means, outputs)
