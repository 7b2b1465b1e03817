"""Evaluation over a whole set: sums and weights are added over its batches and divided once, so means are exact."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
from flax import struct

from flaxbert.layers import Params
from flaxbert.losses import Loss
from train.data.host_batches import HostBatch
from train.distributed import Placement
from train.step import Batch


@struct.dataclass
class EvalStepOutput:
    """Result of one batch: metrics as sums and weights by name, and model outputs [B, ...] that later metrics need."""

    metrics: dict[str, Loss]
    outputs: Any = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of a whole set: the mean of each metric, and the outputs of each batch."""

    means: dict[str, float]
    outputs: list[Any]


EvalStep = Callable[[Params, Batch], EvalStepOutput]


def compile_eval_step(eval_step: EvalStep, placement: Placement) -> EvalStep:
    """Return the jitted eval step; its results are on every device."""

    def traced(params: Params, batch: Batch) -> EvalStepOutput:
        with placement.tracing():
            return eval_step(params, batch)

    return jax.jit(traced, out_shardings=placement.replicated)


def evaluate(eval_step: EvalStep, params: Params, batches: Iterable[HostBatch], placement: Placement) -> Evaluation:
    """Run a compiled eval step over all batches.

    Rows that fill up the last batch have weight 0, so the batch size does not change the means. A metric whose weight
    is 0 over the whole set has no mean. Sums over batches are float64.
    """
    pending = [eval_step(params, placement.batch(batch)) for batch in batches]
    totals: dict[str, list[float]] = {}
    outputs = []
    for result in jax.device_get(pending):
        outputs.append(result.outputs)
        for name, loss in result.metrics.items():
            total = totals.setdefault(name, [0.0, 0.0])
            total[0] += float(loss.sum)
            total[1] += float(loss.weight)
    means = {name: total / weight for name, (total, weight) in totals.items() if weight}
    return Evaluation(means, outputs)
