"""The steps of a run: training, and between its steps reports, evaluations and checkpoints."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flaxbert import PreTrainedModel
from train.checkpoint import Checkpoints
from train.config import Config
from train.data.batches import prefetch
from train.distributed import Placement
from train.evaluate import Evaluation, compile_eval_step, evaluate
from train.meter import Meter
from train.optim import schedule
from train.report import Reporter
from train.step import Params, Step, TrainState
from train.tasks.task import Task

DEV = "dev"  # the set that is evaluated during training


@dataclasses.dataclass
class Trainer:
    """What the steps of a run need beside its state."""

    config: Config
    task: Task
    model: PreTrainedModel
    placement: Placement
    reporter: Reporter
    checkpoints: Checkpoints
    total_steps: int

    def __post_init__(self):
        self._learning_rate = schedule(self.config.optim, self.total_steps)
        self._evaluated: tuple[int, dict[str, Evaluation]] = -1, {}  # at which step, and what was found
        self._eval_step = compile_eval_step(
            lambda params, batch: self.task.eval_step(self.model, params, batch), self.placement
        )

    def loss(self, params: Params, batch: Mapping[str, jax.Array], key: jax.Array | None) -> Any:
        """The task's loss for this run's model."""
        return self.task.loss(self.model, params, batch, key)

    def train(self, state: TrainState, step: Step, first_step: int) -> tuple[TrainState, int]:
        """All steps from `first_step` on, fewer where evaluations get no better: the state, and the last step.

        Metrics of a step are fetched after the next one is under way. The last state is in a checkpoint.
        """
        settings = self.config.run
        seed = np.uint32(settings.seed)
        meter = Meter(self.task.config, self.total_steps, fraction=self.placement.host_shard.fraction)
        pending: tuple[int, dict[str, jax.Array]] | None = None
        number = first_step
        numbered = enumerate(prefetch(self.task.train, first_step, self.total_steps), first_step + 1)
        while not self._out_of_patience(number) and (following := next(numbered, None)) is not None:
            number, host_batch = following
            state, metrics = step(state, self.placement.batch(host_batch), seed)
            meter.add(self.task.token_counts(host_batch))
            if pending is not None:
                self._report(*pending, meter)
            pending = (number, metrics)
            evaluation = _due(number, settings.evaluate_every)
            if number < self.total_steps and (evaluation or _due(number, settings.checkpoint_every)):
                # Looked at first, so that no state of a step that was not finite is kept.
                self._report(*pending, meter)
                pending = None
                with meter.paused():
                    self._keep(state, number, evaluation=evaluation)
        if pending is not None:
            self._report(*pending, meter)
        if number != self.checkpoints.latest:
            self._keep(state, number, evaluation=settings.best is not None)
        return state, number

    def evaluate(self, params: Params, number: int, *, names: Sequence[str]) -> dict[str, Evaluation]:
        """Evaluates the sets of these names that the task has, and reports the figures."""
        known, self._evaluated = self._evaluated, (number, {})
        results = self._evaluated[1]
        for name in names:
            if known[0] == number and name in known[1]:
                results[name] = known[1][name]
            elif name in self.task.evaluations:
                batches = self.task.evaluations[name]
                found = evaluate(self._eval_step, params, batches, self.placement)
                results[name] = dataclasses.replace(
                    found, means={**found.means, **self.task.compute_metrics(name, found)}
                )
                self.reporter.evaluation(number, name, results[name].means)
        return results

    def _keep(self, state: TrainState, number: int, *, evaluation: bool) -> None:
        """Evaluates dev, where asked to; keeps the state where it is due, or might be the best."""
        settings = self.config.run
        score = None
        if evaluation:
            found = self.evaluate(state.params, number, names=(DEV,))
            if settings.best is not None:
                score = _score(settings.best, found[DEV].means)
        if score is not None or number == self.total_steps or _due(number, settings.checkpoint_every):
            self.checkpoints.save(state, number, score=score)

    def _out_of_patience(self, number: int) -> bool:
        """Whether the last evaluations were all worse than the best: a function of the checkpoints that are kept."""
        settings, best = self.config.run, self.checkpoints.best
        if settings.patience is None or settings.evaluate_every is None or best is None or number == best:
            return False
        over = (number - best) // settings.evaluate_every >= settings.patience
        if over:
            self.reporter.message(f"stops at step {number}: no better {settings.best} on dev since step {best}")
        return over

    def _report(self, number: int, metrics: dict[str, jax.Array], meter: Meter) -> None:
        """Waits for the step; raises on a loss that is not finite, writes a report when one is due."""
        fetched = jax.device_get(metrics)
        loss, norm = float(fetched["loss"]), float(fetched["gradient_norm"])
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise FloatingPointError(
                f"step {number}: loss {loss}, gradient norm {norm}; the last checkpoint is before it. "
                "Lower the learning rate, or look at the data of this step"
            )
        self.reporter.advance(number)
        if number == 1 or number % self.config.run.log_every == 0 or number == self.total_steps:
            rate = float(self._learning_rate(number - 1))
            terms = zip(self.task.terms, fetched["terms"].tolist(), strict=True) if self.task.terms else ()
            shown = {"loss": loss, **dict(terms), "learning_rate": rate, "gradient_norm": norm}
            self.reporter.progress(meter.progress(number, shown))


def check_best(config: Config, task: Task) -> None:
    """Raises ValueError where dev has no figure of the name that the config gives."""
    wanted = config.run.best
    if wanted is None:
        return
    if DEV not in task.evaluations:
        raise ValueError(f"best is {wanted!r}, a figure of dev, but there is no dev set: give --task.dev")
    if wanted not in task.metric_names:
        raise ValueError(f"best is {wanted!r}; metrics of this task: {', '.join(task.metric_names)}")


def _due(number: int, every: int | None) -> bool:
    return every is not None and number % every == 0


def _score(figure: str, means: Mapping[str, float]) -> float:
    """The figure, so that the highest is the best."""
    lowest = figure.endswith("loss") or figure == "perplexity"
    return -means[figure] if lowest else means[figure]
