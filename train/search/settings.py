"""Settings of a search, and the flags of its command: those of the run and these."""

import dataclasses
from pathlib import Path
from typing import Literal

from train.config import Config, TaskSettingsT, expand_home


@dataclasses.dataclass(frozen=True)
class Search:
    """Evolutionary search over length configurations, with the defaults of the published one."""

    model: Path | None = None
    """Folder of the adapted model; by default that of the config's run."""
    baseline: Path | None = None
    """A model of the same sizes that was not adapted; its metric is reported beside that of each named point."""
    folder: Path | None = None
    """Folder for the state and the results; by default "search" in the run's folder. A search found here goes on."""
    metric: str | None = None
    """Metric of the dev set to search for; by default `run.best`."""
    cost: Literal["flops", "latency"] = "flops"
    """Cost of a configuration: matrix products of one row, or the measured time of an evaluation batch on this device.
    The limits below are always shares of the full model's FLOPs."""
    min_flops: float | None = None
    """Least share of the full model's FLOPs; by default that of the smallest sub-model of training."""
    max_flops: float = 1.0
    """Largest share of the full model's FLOPs."""
    layers: bool = False
    """Search for layers to leave out, too."""
    population: int = 20
    """Configurations of constant ratio to start from, beside the full and the smallest one."""
    iterations: int = 30
    """Rounds of mutations and crossovers of the Pareto front; a finished search goes on with more."""
    mutations: int = 30
    """New mutations of a round."""
    crossovers: int = 30
    """New crossovers of a round."""
    mutation_probability: float = 0.5
    """Probability of each layer's length to be drawn anew in a mutation."""
    points: tuple[float, ...] = (0.7, 0.5, 0.35)
    """Shares of the full model's cost: the best configuration within each is a named point, such as "50%"."""
    seed: int = 0
    """Seed of all draws."""

    def __post_init__(self):
        expand_home(self)
        for name in ("population", "iterations", "mutations", "crossovers", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not 0 < self.mutation_probability <= 1:
            raise ValueError(f"mutation_probability is {self.mutation_probability}; allowed: above 0, up to 1")
        if not 0 <= (self.min_flops or 0) < self.max_flops <= 1:
            given = f"min_flops is {self.min_flops} and max_flops {self.max_flops}"
            raise ValueError(f"{given}; allowed: 0 <= min_flops < max_flops <= 1")
        if not all(0 < share < 1 for share in self.points):
            raise ValueError(f"points is {self.points}; each must be above 0 and below 1")


@dataclasses.dataclass(frozen=True)
class SearchConfig(Config[TaskSettingsT]):
    """A run and the search for configurations of its model."""

    search: Search = Search()
