"""Train a pointer network (`flaxbert.pointer`) to sort numbers, or to find convex hulls of points in the unit square.

    python -m train.benchmark.pointing sort --steps 2000
    python -m train.benchmark.pointing hull --steps 6000

Examples are drawn as they are needed, and those of the evaluation are new. A hull begins at its point of the lowest
index and goes counter-clockwise; a further input vector, at position 0, ends it. As in the paper (Vinyals et al., 2015,
section 3.1), a hull is right if it is the same polygon.
"""

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Literal

import jax
import numpy as np
import optax
import tyro

from flaxbert import layers, losses
from flaxbert.pointer import PointerSizes, declare_pointer_network, pointer_network

IGNORE = losses.IGNORE


@dataclasses.dataclass(frozen=True)
class PointingBenchmark:
    """Train a pointer network."""

    problem: tyro.conf.Positional[Literal["sort", "hull"]]
    """Numbers to sort, or points whose convex hull is to be found."""
    count: tuple[int, int] = (5, 10)
    """Lowest and highest number of points of a hull; the highest one is that of numbers to sort."""
    steps: int = 2000
    batch_size: int = 128
    width: int = 128
    """Size of the states, and of the embedded inputs."""
    bidirectional: bool = True
    """Encode in both directions."""
    learning_rate: float = 2e-3
    """Peak of Adam's rate, which rises over a tenth of the steps and falls to 0 along a cosine."""
    seed: int = 0
    examples: int = 10000
    """Examples to evaluate on."""


@dataclasses.dataclass(frozen=True)
class Examples:
    """Vectors [B, T, I], True where there is one [B, T], and the position of each step [B, U], -100 after the end."""

    inputs: np.ndarray
    mask: np.ndarray
    targets: np.ndarray


def numbers(random: np.random.Generator, rows: int, count: int) -> Examples:
    """Draw numbers in [0, 1] to sort in ascending order."""
    values = random.random((rows, count, 1), np.float32)
    return Examples(values, np.ones((rows, count), bool), np.argsort(values[..., 0], axis=1).astype(np.int32))


def hulls(random: np.random.Generator, rows: int, low: int, high: int) -> Examples:
    """Draw `low` to `high` points for each row; each input is [x, y, 0], and that at position 0 is [0, 0, 1]."""
    points = random.random((rows, high, 2), np.float32)
    used = np.arange(high) < random.integers(low, high + 1, (rows, 1))
    inputs = np.zeros((rows, high + 1, 3), np.float32)
    inputs[:, 1:, :2], inputs[:, 0, 2] = points, 1.0
    mask = np.concatenate([np.ones((rows, 1), bool), used], axis=1)
    return Examples(inputs, mask, convex_hulls(points, used))


def convex_hulls(points: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Return the hull of each row of points [B, N, 2], among those that are `used`, as targets [B, N + 1]."""
    rows, count = used.shape
    to = points[:, None] - points[:, :, None]  # from i to j [B, i, j, 2]
    cross = to[:, :, :, None, 0] * to[:, :, None, :, 1] - to[:, :, :, None, 1] * to[:, :, None, :, 0]
    # An edge of the hull, from i to j, has no point on its right.
    edges = (
        ((cross >= 0) | ~used[:, None, None]).all(axis=3)
        & used[:, :, None]
        & used[:, None]
        & ~np.eye(count, dtype=bool)
    )
    following, each = edges.argmax(axis=2), np.arange(rows)
    first = current = edges.any(axis=2).argmax(axis=1)
    targets, ended = np.full((rows, count + 1), IGNORE, np.int32), np.zeros(rows, bool)
    for step in range(count + 1):
        closed = (step > 0) & (current == first) & ~ended
        targets[:, step] = np.where(closed, 0, np.where(ended, IGNORE, current + 1))
        ended, current = ended | closed, following[each, current]
    return targets


def train(settings: PointingBenchmark) -> tuple[layers.Params, list[float]]:
    """Train on new examples at each step; return the parameters and the losses."""
    draw, sizes = _problem(settings)
    random = np.random.default_rng(settings.seed)
    params = layers.fresh_parameters(declare_pointer_network(sizes), jax.random.key(settings.seed))
    warmup = max(1, settings.steps // 10)
    rate = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, warmup, settings.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    @jax.jit
    def update(params, state, inputs, mask, targets):
        def loss_of(params):
            return losses.pointing(pointer_network(params, inputs, mask, targets=targets).logits, targets).mean

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, loss

    state, history = optimizer.init(params), []
    for _ in range(settings.steps):
        batch = draw(random, settings.batch_size)
        params, state, loss = update(params, state, batch.inputs, batch.mask, batch.targets)
        history.append(float(loss))
    return params, history


def evaluate(params: layers.Params, settings: PointingBenchmark) -> dict[str, float]:
    """Return shares of new examples, each step fed with the model's own choice.

    "positions": steps that point at their target; "sequences": examples without an error; for hulls also "area", the
    area inside the points in the order found (by the shoelace formula, so that crossing edges lower it), over the
    hull's.
    """
    draw, _ = _problem(settings)
    examples = draw(np.random.default_rng([settings.seed, 1]), settings.examples)
    found = np.asarray(jax.jit(pointer_network)(params, examples.inputs, examples.mask).positions)
    if settings.problem == "sort":
        right = found == examples.targets
        return {"positions": float(right.mean()), "sequences": float(right.all(axis=1).mean())}
    pairs = [(_polygon(a), _polygon(b)) for a, b in zip(found, examples.targets, strict=True)]
    areas = [_area(p[a]) / _area(p[b]) for p, (a, b) in zip(examples.inputs, pairs, strict=True)]
    return {
        "sequences": float(np.mean([np.array_equal(_from_lowest(a), b) for a, b in pairs])),
        "area": float(np.mean(areas)),
    }


def _problem(settings: PointingBenchmark) -> tuple[Callable[[np.random.Generator, int], Examples], PointerSizes]:
    low, high = settings.count
    is_hull = settings.problem == "hull"
    sizes = PointerSizes(3 if is_hull else 1, settings.width, settings.width, bidirectional=settings.bidirectional)
    return lambda random, rows: hulls(random, rows, low, high) if is_hull else numbers(random, rows, high), sizes


def _polygon(positions: np.ndarray) -> np.ndarray:
    """Return the positions before the first 0, which ends a hull."""
    ends = np.flatnonzero(positions == 0)
    return positions[: ends[0]] if len(ends) else positions


def _from_lowest(polygon: np.ndarray) -> np.ndarray:
    return np.roll(polygon, -int(polygon.argmin())) if len(polygon) else polygon


def _area(corners: np.ndarray) -> float:
    x, y = corners[:, 0], corners[:, 1]
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


def main(arguments: list[str]) -> int:
    """Train, evaluate, and print the figures; return 0."""
    settings = tyro.cli(PointingBenchmark, args=arguments, prog="python -m train.benchmark.pointing")
    start = time.perf_counter()
    params, history = train(settings)
    figures = {"loss of the last 100 steps": float(np.mean(history[-100:])), **evaluate(params, settings)}
    print(f"{settings.problem}, {settings.steps} steps in {time.perf_counter() - start:.0f} s:")
    print(", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
