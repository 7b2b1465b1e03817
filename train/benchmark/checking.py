"""Time train steps with `--run.verify-every` and without, and the digests of a line of the ledger.

    python -m train.benchmark.checking

Blocks of steps with each value, in turns. Prints the median over the blocks of the mean seconds of a step, and the
medians of the seconds of the digests, as JSON.
"""

import dataclasses
import itertools
import json
import statistics
import sys
import time

import jax
import numpy as np
import tyro

from flaxbert import BertConfig, BertForPreTraining
from flaxbert.layers import Params
from flaxbert.losses import Loss
from train.benchmark.saving import timed
from train.benchmark.workload import Workload
from train.digest import TreeDigest
from train.distributed import MeshShape, Placement
from train.environment import restart_with_malloc_settings, run_steps_in_main_thread
from train.ledger import DigestedBatches
from train.optim import Optim, make_optimizer
from train.state_check import StateCheck
from train.step import Batch, compile_step, create_state, state_shardings
from train.tasks.pretraining import pretraining_loss


@dataclasses.dataclass(frozen=True)
class CheckingBenchmark:
    """Time train steps of BERT with and without checks of the state."""

    hidden_size: int = 256
    """Width of the layers."""
    layers: int = 4
    rows: int = 32
    """Rows of a batch."""
    length: int = 128
    """Tokens of a row."""
    blocks: int = 3
    """Blocks of steps with each value of `--run.verify-every`."""
    steps: int = 100
    """Steps of a block; values that are greater are left out."""


def measure(settings: CheckingBenchmark) -> dict[str, float]:
    """Return medians of seconds by name."""
    size = settings.hidden_size
    config = BertConfig(
        hidden_size=size, num_hidden_layers=settings.layers, num_attention_heads=size // 64, intermediate_size=4 * size
    )
    model, placement = BertForPreTraining(config), Placement.of(MeshShape())
    optimizer = make_optimizer(Optim(), 10**6)
    shardings = state_shardings(model, optimizer, placement)

    def loss(params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        return pretraining_loss(model, params, batch, key)

    step = compile_step(loss, optimizer, placement, shardings)
    state = create_state(model, optimizer, shardings, seed=0)
    host_batch = Workload("", config, settings.rows, settings.length, "float32").batch(0)
    batch, numbers = placement.batch(host_batch), itertools.count(1)
    times: dict[int, list[float]] = {every: [] for every in (0, 100, 10, 1) if every <= settings.steps}
    digests: list[float] = []
    # The first round compiles.
    for _, every in itertools.product(range(settings.blocks + 1), times):
        check, started = StateCheck(every), time.perf_counter()
        for _ in range(settings.steps):
            state, _ = check.run(step, next(numbers), state, batch, np.uint32(0))
        jax.block_until_ready(state)
        times[every].append((time.perf_counter() - started) / settings.steps)
        digests.append(timed(lambda state=state: TreeDigest(state.params).text)[0])
    batches = DigestedBatches([host_batch], placement.host_shard, is_first_host=True)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return {
        "million parameters": parameters / 1e6,
        **{f"step, verify-every {every}": statistics.median(found[1:]) for every, found in times.items()},
        "digest of the parameters": statistics.median(digests[len(times) :]),
        "digest of a batch": statistics.median(timed(lambda: batches[0][1])[0] for _ in range(20)),
    }


def main(arguments: list[str]) -> None:
    """Print the medians."""
    found = measure(tyro.cli(CheckingBenchmark, args=arguments))
    print(json.dumps({name: round(value, 5) for name, value in found.items()}, indent=1))


if __name__ == "__main__":
    restart_with_malloc_settings()
    run_steps_in_main_thread()
    main(sys.argv[1:])
