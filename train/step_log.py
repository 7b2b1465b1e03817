"""Metrics of training steps: fetched one step late, reported with speed and time left; count of skipped updates."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.layers import Params
from train.config import Config
from train.flops import peak_flops, train_flops
from train.optim import schedule
from train.report import Reporter
from train.tasks.task import Task, TokenCounts


class TooManySkipped(FloatingPointError):
    """`run.stop_after_skipped` updates in a row were skipped."""


class StepLog:
    """The log of a run's training steps.

    Attributes:
        skipped: updates that were skipped so far, because their loss or gradient was not finite.
        skipped_in_row: updates that were skipped since the last one that was applied.
    """

    def __init__(
        self,
        config: Config,
        task: Task,
        reporter: Reporter,
        total_steps: int,
        *,
        loss_terms: Sequence[str] = (),
        fraction: float = 1.0,
        skipped: int = 0,
    ):
        """Start the clock; tokens are counted in this fraction of each batch, whose rows are taken to be alike.

        `skipped` updates were skipped before the run was resumed.
        """
        self._task, self._limit, self.skipped, self.skipped_in_row = task, config.run.stop_after_skipped, skipped, 0
        self._log_every, self._total_steps, self._fraction = config.run.log_every, total_steps, fraction
        self._sizes, self._loss_terms, self._reporter = task.config, loss_terms, reporter
        self._learning_rate, self._peak = schedule(config.optim, total_steps), peak_flops()
        self._pending: tuple[int, Mapping[str, jax.Array]] | None = None
        self._compiled = False
        self._done: float | None = None  # when the pending step was done, if that is known
        self._restart(time.perf_counter())

    def before_step(self) -> None:
        """Note the time if the last step is done, before the next one is started.

        On the CPU the call that starts a step may last as long as the step, which is no time of the step before.
        """
        loss: Any = None if self._pending is None else self._pending[1]["loss"]
        if loss is not None and loss.is_ready():
            self._done = time.perf_counter()

    def add(self, step: int, metrics: Mapping[str, jax.Array], counts: TokenCounts) -> None:
        """Take a step that was started; wait for the step before it and report that.

        Raises:
            TooManySkipped: the step before was skipped, and as many before it as are allowed.
        """
        self.flush()
        self._steps, self._counts = self._steps + 1, self._counts + counts
        self._pending = step, metrics

    def flush(self) -> None:
        """Wait for the last step that was added, and report it.

        Raises:
            TooManySkipped: it was skipped, and as many before it as are allowed.
        """
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        fetched = jax.device_get(metrics)
        done, self._done = self._done or time.perf_counter(), None
        loss, norm = float(fetched["loss"]), float(fetched["gradient_norm"])
        self._reporter.advance(step)
        if step == 1 or step % self._log_every == 0 or step == self._total_steps:
            terms = zip(self._loss_terms, fetched["terms"].tolist(), strict=True) if self._loss_terms else ()
            rate = np.asarray(self._learning_rate(step - 1 - self.skipped)).item()
            self._report(step, {"loss": loss, **dict(terms), "learning_rate": rate, "gradient_norm": norm}, done)
        if math.isfinite(loss) and math.isfinite(norm):
            self.skipped_in_row = 0
        else:
            self._count_skipped(step, loss, norm)

    def _count_skipped(self, step: int, loss: float, norm: float) -> None:
        self.skipped, self.skipped_in_row = self.skipped + 1, self.skipped_in_row + 1
        epoch, batch = divmod(step - 1, self._task.steps_per_epoch)
        members = getattr(self._task.train, "members", None)  # training sets without numbered rows lack it
        rows = None if members is None else [int(row) for row in members(step - 1)]
        values = {"loss": loss, "gradient_norm": norm}
        self._reporter.skipped(step, values, batch=f"batch {batch} of epoch {epoch}", rows=rows)
        if self.skipped_in_row >= self._limit:
            first = step - self.skipped_in_row + 1
            raise TooManySkipped(
                f"{self.skipped_in_row} updates in a row were skipped, steps {first} to {step}: loss {loss}, gradient "
                f"norm {norm}"
            )

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which time does not count as training."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def _report(self, step: int, metrics: Mapping[str, float], done: float) -> None:
        seconds = max(done - self._since, 1e-9)
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
        self._restart(done)

    def _restart(self, since: float) -> None:
        self._steps, self._counts, self._since = 0, TokenCounts(), since


def describe_parameters(params: Params) -> str:
    """Return a sentence on the cause of skipped updates, damaged parameters or the batches, and what to do."""
    largest = jax.device_get(jax.jit(lambda tree: jax.tree.map(lambda x: jnp.max(jnp.abs(x)), tree))(params))
    by_path = {"/".join(key.key for key in path): float(x) for path, x in jax.tree_util.tree_leaves_with_path(largest)}
    damaged = [path for path, value in by_path.items() if not math.isfinite(value)]
    if damaged:
        return (
            f"Parameters are not finite: {', '.join(damaged[:5])}{', ...' if damaged[5:] else ''}. They came so from "
            "--model.pretrained, or memory is damaged: check those weights, or start the run again on another machine."
        )
    path = max(by_path, key=by_path.__getitem__)
    return (
        f"All parameters are finite, the largest is {by_path[path]:.3g} in {path}. If that is far beyond a trained "
        "model's, memory is damaged or the run diverges: start it again, or with a lower --optim.learning-rate. "
        "Otherwise check the rows of these batches."
    )
