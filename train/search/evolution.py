"""Evolution of length configurations (Kim and Cho, 2021; after Wang et al., 2020), as clovaai's implementation does it.

All draws are functions of the seed and the round. A search that goes on therefore repeats its draws, finds what it has
measured already, and ends as if it had not been interrupted.
"""

import dataclasses
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from train.sandwich import smallest_submodel
from train.search.settings import Search

_MIN_TOKENS = 2
_MAX_TRIES = 100  # draws for each configuration that is wanted: a small space of them may be exhausted


@dataclasses.dataclass(frozen=True)
class Configuration:
    """The layers that run, and the tokens after each layer of the model."""

    layers: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def full(cls, layers: int, length: int) -> "Configuration":
        """Return that of the full model, for rows of `length` tokens."""
        return cls(tuple(range(layers)), (length,) * layers)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """The metric of a configuration, the cost that the search compares, and the FLOPs of a row.

    Attributes:
        score: the metric, negative where lower values are better.
    """

    score: float
    cost: float
    flops: float


Measurements = Mapping[Configuration, Measurement]


@dataclasses.dataclass(frozen=True)
class Space:
    """The configurations of a search: numbers of layers and tokens, and the allowed FLOPs.

    Attributes:
        flops: the FLOPs of a configuration.
        least, most: the allowed FLOPs.
    """

    layers: int
    length: int
    flops: Callable[[Configuration], float]
    least: float
    most: float

    @property
    def full(self) -> Configuration:
        """The full model."""
        return Configuration.full(self.layers, self.length)

    def allows(self, configuration: Configuration) -> bool:
        """Return whether the FLOPs are within the limits."""
        return self.least <= self.flops(configuration) <= self.most


def evolve(
    settings: Search,
    space: Space,
    smallest: Configuration,
    measure: Callable[[Configuration], Measurement],
    *,
    report: Callable[[int, Measurements], None] = lambda number, measured: None,
) -> dict[Configuration, Measurement]:
    """Return all configurations that were measured; `report` is called after the first ones and after each round."""
    measured: dict[Configuration, Measurement] = {}

    def add(configurations: Collection[Configuration]) -> None:
        measured.update({configuration: measure(configuration) for configuration in configurations})

    first = [space.full, smallest, *constant_ratios(space, smallest, settings.population)]
    # The full model is always measured, because costs are compared with its.
    add([space.full, *(one for one in dict.fromkeys(first) if one != space.full and space.allows(one))])
    report(0, measured)
    for number in range(1, settings.iterations + 1):
        generator = np.random.default_rng([settings.seed, number])
        parents = list(with_extremes(measured))
        for wanted, draw in ((settings.mutations, _mutation), (settings.crossovers, _crossover)):
            new: dict[Configuration, None] = {}
            for _ in range(wanted * _MAX_TRIES):
                if len(new) == wanted:
                    break
                drawn = draw(parents, space, settings, generator)
                if drawn not in measured and space.allows(drawn):
                    new[drawn] = None
            add(new)
        report(number, measured)
    return measured


def smallest_configuration(layers: int, length: int, *, length_drop: float) -> Configuration:
    """Return the smallest sub-model that training has."""
    smallest = smallest_submodel(layers)
    return Configuration(smallest.layers, smallest.lengths(length, length_drop=length_drop))


def constant_ratios(space: Space, smallest: Configuration, count: int) -> list[Configuration]:
    """Return configurations whose layers all keep the same share; their tokens are spaced evenly."""

    def of_ratio(ratio: float) -> Configuration:
        kept = (space.length * ratio**layer for layer in range(1, space.layers + 1))
        return Configuration(space.full.layers, tuple(max(_MIN_TOKENS, round(tokens)) for tokens in kept))

    result = []
    for wanted in np.linspace(sum(smallest.lengths), space.length * space.layers, count + 2)[1:-1]:
        low, high = 0.0, 1.0
        for _ in range(40):  # bisection
            middle = (low + high) / 2
            low, high = (low, middle) if sum(of_ratio(middle).lengths) > wanted else (middle, high)
        result.append(of_ratio(low))
    return result


def pareto_front(measured: Measurements) -> dict[Configuration, Measurement]:
    """Return the configurations that are better than all that cost no more, by ascending cost."""
    front: dict[Configuration, Measurement] = {}
    best = -np.inf
    for configuration, found in sorted(measured.items(), key=lambda item: (item[1].cost, -item[1].score)):
        if found.score > best:
            front[configuration], best = found, found.score
    return front


def with_extremes(measured: Measurements) -> dict[Configuration, Measurement]:
    """Return the Pareto front, and the configurations of the lowest and the highest cost."""
    by_cost = sorted(measured.items(), key=lambda item: item[1].cost)
    return {**pareto_front(measured), **dict([by_cost[0], by_cost[-1]])}


def _mutation(
    parents: Sequence[Configuration], space: Space, settings: Search, generator: np.random.Generator
) -> Configuration:
    """Draw some lengths of a parent anew, each between the next old one and the new one before it."""
    parent = parents[int(generator.integers(len(parents)))]
    lengths, before = [], space.length
    for old, after in itertools.zip_longest(parent.lengths, parent.lengths[1:], fillvalue=_MIN_TOKENS):
        if generator.random() < settings.mutation_probability:
            old = int(generator.integers(min(after, before), before + 1))
        lengths.append(before := old)
    layers = parent.layers
    if settings.layers:  # one layer in two mutations
        change = int(generator.integers(2 * space.layers))
        changed = set(layers) ^ {change} if change < space.layers else set(layers)
        layers = tuple(sorted(changed)) or layers
    return Configuration(layers, tuple(lengths))


def _crossover(
    parents: Sequence[Configuration], space: Space, settings: Search, generator: np.random.Generator
) -> Configuration:
    """Return the rounded-up mean of the lengths of two parents, with the layers of the first."""
    one, other = (parents[index] for index in generator.integers(len(parents), size=2))
    return Configuration(one.layers, tuple(-(-(a + b) // 2) for a, b in zip(one.lengths, other.lengths, strict=True)))
