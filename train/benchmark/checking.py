"""Time train steps with `--run.verify-every`, with the ledger, and with neither.

    python -m train.benchmark.checking

Blocks of steps with each of them, in turns, after steps that compile. Prints the mean seconds of a step of each block
as it ends, and as JSON the medians over the blocks, also as multiples of the one without checks, and the medians of the
seconds of the digests. The ledger's digests of batches are computed between the steps; a run computes them beside.
"""

import dataclasses
import itertools
import json
import operator
import statistics
import sys
import tempfile
import time
from pathlib import Path

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
from train.ledger import DigestedBatches, Ledger
from train.optim import Optim, make_optimizer
from train.state_check import StateCheck
from train.step import Batch, compile_step, create_state, state_shardings
from train.tasks.pretraining import pretraining_loss


@dataclasses.dataclass(frozen=True)
class CheckingBenchmark:
    """Time train steps of BERT with and without checks of the state."""

    hidden_size: int = 128
    """Width of the layers."""
    layers: int = 2
    rows: int = 8
    """Rows of a batch."""
    length: int = 128
    """Tokens of a row."""
    blocks: int = 5
    """Blocks of steps with each of the checks."""
    steps: int = 100
    """Steps of a block; checks that are further apart are left out."""


@dataclasses.dataclass(frozen=True)
class Checks:
    """Steps between checks, as the settings `run.verify_every` and `run.ledger_every`; 0: never."""

    verify_every: int = 0
    ledger_every: int = 0

    def __str__(self):
        named = [f"{name.replace('_', '-')} {every}" for name, every in vars(self).items() if every]
        return f"step, {named[0] if named else 'no checks'}"


CHECKS = (Checks(), Checks(verify_every=100), Checks(ledger_every=100), Checks(verify_every=10), Checks(verify_every=1))


class Training:
    """Training of BERT on one batch, whose state goes on from block to block."""

    def __init__(self, settings: CheckingBenchmark, folder: Path):
        """Make the model, the batch and a ledger in `folder`."""
        size = settings.hidden_size
        config = BertConfig(
            hidden_size=size,
            num_hidden_layers=settings.layers,
            num_attention_heads=size // 64,
            intermediate_size=4 * size,
        )
        model, placement = BertForPreTraining(config), Placement.of(MeshShape())
        optimizer = make_optimizer(Optim(), 10**6)
        shardings = state_shardings(model, optimizer, placement)

        def loss(params: Params, batch: Batch, key: jax.Array | None) -> Loss:
            return pretraining_loss(model, params, batch, key)

        self._train_step = compile_step(loss, optimizer, placement, shardings)
        self.state, self._step = create_state(model, optimizer, shardings, seed=0), 0
        host_batch = Workload("", config, settings.rows, settings.length, "float32").batch(0)
        self._batch = placement.batch(host_batch)
        self._batches = DigestedBatches([host_batch], placement.host_shard, is_first_host=True)
        self._ledger = Ledger(folder, every=100, step=0, parameters=self.digest_parameters())

    def digest_parameters(self) -> str:
        """Digest the parameters as for a line of the ledger."""
        return TreeDigest(self.state.params).text

    def digest_batch(self) -> int:
        """Digest the bytes of the batch."""
        return self._batches[0][1]

    def seconds_per_step(self, steps: int, checks: Checks) -> float:
        """Train a block of steps with checks."""
        state_check, started = StateCheck(checks.verify_every), time.perf_counter()
        for number in range(1, steps + 1):
            self._step += 1
            self.state, _ = state_check.run(self._train_step, self._step, self.state, self._batch, np.uint32(0))
            if checks.ledger_every:
                self._ledger.add(self.digest_batch())
                if number % checks.ledger_every == 0:
                    self._ledger.write(self._step, self.digest_parameters)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - started) / steps


def measure(settings: CheckingBenchmark, folder: Path) -> dict[str, float]:
    """Return medians of seconds, and shares, by name; `folder` is for the ledger."""
    training = Training(settings, folder)
    seconds: dict[Checks, list[float]] = {
        checks: [] for checks in CHECKS if max(checks.verify_every, checks.ledger_every) <= settings.steps
    }
    training.seconds_per_step(2, Checks(verify_every=1, ledger_every=1))  # compiles
    for block, (checks, found) in itertools.product(range(settings.blocks), seconds.items()):
        found.append(training.seconds_per_step(settings.steps, checks))
        print(f"block {block + 1} of {settings.blocks}: {checks}: {found[-1]:.5f} s", file=sys.stderr, flush=True)
    medians = {str(checks): statistics.median(found) for checks, found in seconds.items()}
    plain = seconds.pop(Checks())
    shares = {
        f"{checks}, times that of no checks": statistics.median(map(operator.truediv, found, plain))
        for checks, found in seconds.items()
    }
    digests = {"the parameters": training.digest_parameters, "a batch": training.digest_batch}
    return {
        "million parameters": sum(leaf.size for leaf in jax.tree.leaves(training.state.params)) / 1e6,
        **medians,
        **shares,
        **{f"digest of {n}": statistics.median(timed(f)[0] for _ in range(20)) for n, f in digests.items()},
    }


def main(arguments: list[str]) -> None:
    """Print the medians."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(tyro.cli(CheckingBenchmark, args=arguments), Path(folder))
    print(json.dumps({name: round(value, 5) for name, value in found.items()}, indent=1))


if __name__ == "__main__":
    restart_with_malloc_settings()
    run_steps_in_main_thread()
    main(sys.argv[1:])
