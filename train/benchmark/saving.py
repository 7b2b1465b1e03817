"""Time checkpoints of BERT with AdamW: how long a save takes, how long train steps wait for it, what digests cost.

    python -m train.benchmark.saving --folder /tmp/saving

A synchronous save is the digest of the parameters for the ledger, `save` and `wait`. An asynchronous one blocks the
loop for the time of this digest, of `save` and of the next step, to which the state is donated, less the time of an
undisturbed step. Steps beside the writer are slower where both need the same cores; this is reported apart. The step
only multiplies all arrays by a number. Prints medians as JSON.
"""

import dataclasses
import json
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from unittest import mock

import jax
import numpy as np
import tyro

from flaxbert import BertConfig, BertForMaskedLM
from train.checkpoint.manifest import find_damage, write_manifest
from train.checkpoint.store import Checkpoints
from train.digest import TreeDigest
from train.distributed import MeshShape, Placement
from train.environment import restart_with_malloc_settings, run_steps_in_main_thread
from train.step import TrainState

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class SavingBenchmark:
    """Time checkpoints, synchronous and asynchronous ones in turn."""

    folder: Path
    """Empty or new folder on the disk to measure; its checkpoints are deleted."""
    hidden_size: int = 768
    """Width of the 12 layers."""
    runs: int = 5
    """Saves of each kind."""


def random_state(hidden_size: int) -> TrainState:
    """Return parameters and two moments of random numbers, which compress as little as weights do."""
    config = BertConfig(
        hidden_size=hidden_size, num_attention_heads=hidden_size // 64, intermediate_size=4 * hidden_size
    )
    shapes, random = BertForMaskedLM(config).parameter_shapes(), np.random.default_rng(0)
    replicated = Placement.of(MeshShape()).replicated

    def numbers(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        return jax.device_put(random.standard_normal(leaf.shape, dtype=np.float32), replicated)

    params, *moments = (jax.tree.map(numbers, shapes) for _ in range(3))
    return TrainState(jax.device_put(np.float32(0), replicated), params, tuple(moments))


def timed(function: Callable[[], Result]) -> tuple[float, Result]:
    """Return the seconds of a call and its result."""
    started = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - started, result


def measure(settings: SavingBenchmark) -> dict[str, float]:
    """Return medians of seconds and of shares, by name."""
    state = random_state(settings.hidden_size)
    gigabytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9
    step = jax.jit(lambda state: jax.tree.map(lambda a: a * np.float32(0.9999), state), donate_argnums=0)
    rows: list[dict[str, float]] = []
    digesting: list[float] = []

    def timed_manifest(*arguments, **options) -> None:
        digesting.append(timed(lambda: write_manifest(*arguments, **options))[0])

    with (
        mock.patch("train.checkpoint.store.write_manifest", timed_manifest),
        Checkpoints(settings.folder / "checkpoints", keep=1) as checkpoints,
    ):
        for run in range(1, settings.runs + 2):
            undisturbed = []
            for _ in range(5):
                seconds, state = timed(lambda state=state: step(state))
                undisturbed.append(seconds)
            normal = statistics.median(undisturbed)

            def save_and_wait(state=state, number=2 * run) -> float:
                digest, _ = timed(lambda: TreeDigest(state.params).text)
                checkpoints.save(state, number)
                checkpoints.wait()
                return digest

            synchronous, of_parameters = timed(save_and_wait)
            digests = digesting[-1]
            verifying, _ = timed(lambda run=run: find_damage(settings.folder / "checkpoints" / str(2 * run)))
            digest, _ = timed(lambda state=state: TreeDigest(state.params).text)
            saving, _ = timed(lambda state=state, run=run: checkpoints.save(state, 2 * run + 1))
            first, state = timed(lambda state=state: step(state))
            beside = []
            while checkpoints.is_writing:
                seconds, state = timed(lambda state=state: step(state))
                beside.append(seconds)
            checkpoints.wait()
            blocked = digest + saving + first - normal
            rows.append(
                {
                    "synchronous save": synchronous,
                    "digests of the files and manifest": digests,
                    "digest of the parameters": of_parameters,
                    "verification": verifying,
                    "blocked by an asynchronous save": blocked,
                    "undisturbed step": normal,
                    "step beside the writer": statistics.median(beside or [normal]),
                    "blocked / synchronous": blocked / synchronous,
                    "digests / synchronous": (digests + of_parameters) / synchronous,
                }
            )
    rows = rows[1:]  # the first one compiles, and gets its memory from the system
    return {"GB": gigabytes} | {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def main(arguments: list[str]) -> None:
    """Print the medians."""
    settings = tyro.cli(SavingBenchmark, args=arguments)
    settings.folder.mkdir(parents=True, exist_ok=True)
    try:
        print(json.dumps({name: round(value, 4) for name, value in measure(settings).items()}, indent=1))
    finally:
        shutil.rmtree(settings.folder / "checkpoints", ignore_errors=True)


if __name__ == "__main__":
    restart_with_malloc_settings()
    run_steps_in_main_thread()
    main(sys.argv[1:])
