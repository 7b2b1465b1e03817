"""How fast a run goes: tokens a second, share of the devices' peak, time left."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping

from flaxbert.config import BertConfig
from train.flops import peak_flops, train_flops
from train.report import Progress
from train.tasks.task import TokenCounts


class Meter:
    """Tokens processed and time spent between two reports."""

    def __init__(self, config: BertConfig, total_steps: int, *, fraction: float = 1.0):
        """Starts the clock for a model of these sizes.

        `fraction`: the share of a batch's rows that `add` is told of; the others are taken to be like them.
        """
        self._config, self._total_steps, self._peak = config, total_steps, peak_flops()
        self._fraction = fraction
        self._compiled = False
        self._restart()

    def add(self, token_counts: TokenCounts) -> None:
        """Counts a step."""
        self._steps += 1
        self._token_counts = self._token_counts + token_counts

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count as training."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def progress(self, number: int, metrics: Mapping[str, float]) -> Progress:
        """The report for step `number`; the next one counts from here."""
        seconds = max(time.perf_counter() - self._since, 1e-9)
        # The first step's time is its compilation: it says nothing of the steps to come.
        left = seconds / max(self._steps, 1) * (self._total_steps - number) if self._compiled else math.inf
        self._compiled = True
        flops = train_flops(self._config, **dataclasses.asdict(self._token_counts)) / self._fraction
        report = Progress(
            step=number,
            total_steps=self._total_steps,
            metrics=metrics,
            tokens_per_second=self._token_counts.tokens / self._fraction / seconds,
            mfu=None if self._peak is None else flops / seconds / self._peak,
            eta_seconds=left,
        )
        self._restart()
        return report

    def _restart(self) -> None:
        self._steps, self._token_counts, self._since = 0, TokenCounts(), time.perf_counter()
