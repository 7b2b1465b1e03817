"""Metrics of training steps: fetched one step late, checked to be finite, reported with speed and time left."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from train.config import Config
from train.flops import peak_flops, train_flops
from train.optim import schedule
from train.report import Reporter
from train.tasks.task import Task, TokenCounts


class StepLog:
    """The log of a run's training steps."""

    def __init__(
        self,
        config: Config,
        task: Task,
        reporter: Reporter,
        total_steps: int,
        *,
        loss_terms: Sequence[str] = (),
        fraction: float = 1.0,
    ):
        """Start the clock; tokens are counted in this fraction of each batch, whose rows are taken to be alike."""
        self._log_every, self._total_steps, self._fraction = config.run.log_every, total_steps, fraction
        self._sizes, self._loss_terms, self._reporter = task.config, loss_terms, reporter
        self._learning_rate, self._peak = schedule(config.optim, total_steps), peak_flops()
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._compiled = False
        self._restart()

    def add(self, step: int, metrics: Mapping[str, jax.Array], counts: TokenCounts) -> None:
        """Take a step that was started; wait for the step before it and report that.

        Raises:
            FloatingPointError: the loss or the gradient of the step before is not finite.
        """
        self.flush()
        self._steps, self._counts = self._steps + 1, self._counts + counts
        self._pending = step, metrics

    def flush(self) -> None:
        """Wait for the last step that was added, and report it.

        Raises:
            FloatingPointError: its loss or gradient is not finite.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        fetched = jax.device_get(metrics)
        loss, norm = float(fetched["loss"]), float(fetched["gradient_norm"])
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise FloatingPointError(
                f"step {step}: loss {loss}, gradient norm {norm}; the last checkpoint is from an earlier step. "
                "Lower the learning rate, or check the data of this step"
            )
        self._reporter.advance(step)
        if step == 1 or step % self._log_every == 0 or step == self._total_steps:
            terms = zip(self._loss_terms, fetched["terms"].tolist(), strict=True) if self._loss_terms else ()
            rate = np.asarray(self._learning_rate(step - 1)).item()
            self._report(step, {"loss": loss, **dict(terms), "learning_rate": rate, "gradient_norm": norm})

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which time does not count as training."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def _report(self, step: int, metrics: Mapping[str, float]) -> None:
        seconds = max(time.perf_counter() - self._since, 1e-9)
        # The time left is unknown after the first step, most of which is compilation.
        left = seconds / max(self._steps, 1) * (self._total_steps - step) if self._compiled else math.inf
        self._compiled = True
        flops = train_flops(self._sizes, **dataclasses.asdict(self._counts)) / self._fraction
        self._reporter.progress(
            step,
            metrics,
            tokens_per_second=self._counts.tokens / self._fraction / seconds,
            mfu=None if self._peak is None else flops / seconds / self._peak,
            eta_seconds=left,
        )
        self._restart()

    def _restart(self) -> None:
        self._steps, self._counts, self._since = 0, TokenCounts(), time.perf_counter()
