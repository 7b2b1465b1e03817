"""Evaluation over a whole set: sums and weights are added over its batches and divided once, so means are exact."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import jax
from flax import struct
from jaxtyping import PyTree

from flaxbert.encoder_decoder import AnyModel
from flaxbert.files import JsonValue
from flaxbert.layers import Params
from flaxbert.losses import Loss
from train.compilation import Precompiled
from train.distributed import HostBatch, Placement
from train.preemption import Preemption
from train.report import Reporter
from train.step import Batch

if TYPE_CHECKING:
    from train.tasks.task import Task

DEV = "dev"  # name of the set that is evaluated during training


@struct.dataclass
class EvalStepOutput:
    """Result of one batch: metrics as sums and weights by name, and model outputs [B, ...] that later metrics need."""

    metrics: dict[str, Loss]
    outputs: PyTree = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of a whole set: the mean of each metric, and the outputs of each batch."""

    means: dict[str, float]
    outputs: list[PyTree]


EvalStep = Callable[[Params, Batch], EvalStepOutput]


def compile_eval_step(eval_step: EvalStep, placement: Placement) -> jax.stages.Wrapped:
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


class Evaluator:
    """Evaluate sets of a task and report their metrics; each set only once for the same step."""

    def __init__(
        self,
        task: "Task",
        model: AnyModel,
        placement: Placement,
        reporter: Reporter,
        *,
        best: str | None,
        preemption: Preemption,
    ):
        """Prepare the eval step, which is compiled at the first batch; `best` is `run.best`."""
        self._task, self._placement, self._reporter, self._best = task, placement, reporter, best
        self._compiled = Precompiled(compile_eval_step(functools.partial(task.eval_step, model), placement))
        self._preemption = preemption
        self._step, self._evaluations = -1, dict[str, Evaluation]()

    def evaluate(self, params: Params, step: int, names: Iterable[str]) -> dict[str, Evaluation]:
        """Return the evaluations of the sets with these names, by name."""
        if step != self._step:
            self._step, self._evaluations = step, {}
        for name in names:
            if name not in self._evaluations:
                found = evaluate(self._eval_step, params, self._task.evaluations[name], self._placement)
                metrics = self._task.compute_metrics(name, found, earlier=self._evaluations)
                means = {**found.means, **metrics}
                self._reporter.evaluation(step, name, means)
                self._evaluations[name] = dataclasses.replace(found, means=means)
        return {name: self._evaluations[name] for name in names}

    def metrics(self, step: int) -> dict[str, JsonValue]:
        """Return the metrics of the sets that were evaluated at this step; None stands for one that is not finite."""
        found = self._evaluations if step == self._step else {}
        return {
            name: {metric: value if math.isfinite(value) else None for metric, value in evaluation.means.items()}
            for name, evaluation in found.items()
        }

    def _eval_step(self, params: Params, batch: Batch) -> EvalStepOutput:
        self._compiled.compile_for(batch, params, batch)
        with self._preemption.launching():
            return self._compiled(params, batch)

    def evaluate_dev(self, params: Params, step: int) -> float | None:
        """Evaluate dev, if the task has it; return the metric that chooses the best model, higher is better."""
        names = [DEV] if DEV in self._task.evaluations else []
        self.evaluate(params, step, names)
        return self.score(step)

    def score(self, step: int) -> float | None:
        """Return the metric of dev that chooses the best model, if dev was evaluated at this step; higher is better."""
        if self._best is None or step != self._step or DEV not in self._evaluations:
            return None
        value = self._evaluations[DEV].means[self._best]
        return -value if lower_is_better(self._best) else value


def lower_is_better(metric: str) -> bool:
    """Return whether a lower value of the metric is the better one."""
    return metric.endswith("loss") or metric == "perplexity"
