"""Flip one bit of a parameter on one of 8 devices while a run trains, and run steps without a flip.

    python -m tests.faults.flip [--flips 50] [--steps 20000] [--every 5] [--seed 0]

Every bit of the parameters, at every step, is as likely as any other. A run with `--run.verify-every` must end within
that number of steps after the flip, with the parameter and the device in its message. All lines of its ledger at its
checkpoints must be those of an unbroken run, and when it is started again, it must end with that run's parameters. A
run that ends without an alarm has missed the flip, unless its last parameters and optimizer state on every device, and
its ledger, are bit for bit those of the unbroken run: the lowest bits of a bias of 0, for example, are lost in the
next update. Such flips leave no trace, and are counted apart. The steps without a flip are each computed twice, and
must raise no alarm. Prints a line for each flip and a table, and exits with 1 if one of this fails.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.flags import with_devices

os.environ.setdefault("XLA_FLAGS", with_devices(8))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import numpy as np

from tests.faults.progress import print_progress
from tests.faults.targets import small_run
from train.checkpoint.folder import checkpoint_steps
from train.config import Config
from train.digest import Device
from train.ledger import compare, read_ledger
from train.loop import run
from train.state_check import CorruptState, StateCheck
from train.step import TrainState

STEPS = 24
CHECKPOINT_EVERY = 4
FOUND, NO_TRACE = "found", "no trace"


@dataclasses.dataclass(frozen=True)
class Flip:
    """A bit of a parameter, counted from its first, on a device, before the step of this number."""

    step: int
    parameter: int
    bit: int
    device: Device

    @classmethod
    def draw(cls, random: np.random.Generator, params) -> "Flip":
        bits = [leaf.size * leaf.dtype.itemsize * 8 for leaf in jax.tree.leaves(params)]
        parameter = int(random.choice(len(bits), p=np.array(bits) / sum(bits)))
        bit = int(random.integers(bits[parameter]))
        return cls(int(random.integers(1, STEPS + 1)), parameter, bit, jax.devices()[int(random.integers(8))])


def with_flipped_bit(array: jax.Array, bit: int, device: Device) -> jax.Array:
    """Return the array with one bit flipped in the copy of one device."""
    copies = []
    for shard in array.addressable_shards:
        values = np.array(shard.data)
        if shard.device == device:
            values.reshape(-1).view(np.uint8)[bit // 8] ^= 1 << bit % 8
        copies.append(jax.device_put(values, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, copies)


@dataclasses.dataclass
class Observation:
    """The path of the parameter that was flipped, and the state after the newest step of a run."""

    parameter: str = ""
    state: TrainState = dataclasses.field(init=False)

    @property
    def bits(self) -> list[bytes]:
        """The bits of the state, array by array, of every device."""
        shards = [shard for leaf in jax.tree.leaves(self.state) for shard in leaf.addressable_shards]
        return [np.asarray(shard.data).tobytes() for shard in shards]


@contextlib.contextmanager
def flipped(flip: Flip | None) -> Iterator[Observation]:
    """Context in which a run meets a flip."""
    original, observation = StateCheck.run, Observation()

    def with_flip(self, train_step, step, state, *arguments):
        if flip is not None and step == flip.step:
            paths, leaves = zip(*jax.tree_util.tree_leaves_with_path(state.params), strict=True)
            observation.parameter = jax.tree_util.keystr(paths[flip.parameter], simple=True, separator="/")
            leaves = list(leaves)
            leaves[flip.parameter] = with_flipped_bit(leaves[flip.parameter], flip.bit, flip.device)
            state = state.replace(params=jax.tree.unflatten(jax.tree.structure(state.params), leaves))
        observation.state, metrics = original(self, train_step, step, state, *arguments)
        return observation.state, metrics

    StateCheck.run = with_flip
    try:
        yield observation
    finally:
        StateCheck.run = original


def quietly(config: Config) -> Path:
    """Run a config without output."""
    with contextlib.redirect_stdout(io.StringIO()):
        return run(config)


def outcome_of(flip: Flip, config: Config, unbroken: Path, last: Observation) -> str:
    """Run a config with a flip, and again; return FOUND, NO_TRACE or what went wrong.

    `last` is the end of the unbroken run, whose folder is `unbroken`.
    """
    folder, every = config.run.folder, config.run.verify_every
    try:
        with flipped(flip) as observation:
            quietly(config)
        is_same = observation.bits == last.bits and read_ledger(folder) == read_ledger(unbroken)
        return NO_TRACE if is_same else "MISSED"
    except CorruptState as error:
        message = str(error)
    (found, *_) = map(int, re.findall(r"step (\d+)", message))
    if not flip.step - 1 <= found < flip.step + every:
        return f"found at step {found}"
    if f"params/{observation.parameter}" not in message or f"cpu device {flip.device.id}" not in message:
        return f"not named: {message}"
    saved = checkpoint_steps(folder / "checkpoints")
    wanted = {line.step: line for line in read_ledger(unbroken)}
    kept = [line for line in read_ledger(folder) if line.step in saved]
    if any(line.parameters != wanted[line.step].parameters for line in kept):
        return "saved"
    quietly(config)
    sentence, equal = compare(read_ledger(folder), read_ledger(unbroken))
    return FOUND if equal and sentence.startswith(f"equal up to step {STEPS},") else sentence


def run_flips(flips: int, seed: int, *, every: int, folder: Path) -> collections.Counter[str]:
    """Return how often each outcome came; flips without a trace are repeated."""
    config = small_run(
        folder / "unbroken", steps=STEPS, checkpoint_every=CHECKPOINT_EVERY, verify_every=every, ledger_every=1
    )
    with flipped(None) as last:
        unbroken = quietly(config)
    random, outcomes = np.random.default_rng(seed), collections.Counter()
    while outcomes.total() - outcomes[NO_TRACE] < flips and outcomes.total() < 2 * flips:
        flip = Flip.draw(random, last.state.params)
        own = dataclasses.replace(config, run=dataclasses.replace(config.run, folder=folder / str(outcomes.total())))
        outcomes[outcome := outcome_of(flip, own, unbroken, last)] += 1
        print_progress(outcomes.total() - outcomes[NO_TRACE], flips, f"{flip}: {outcome}")
        shutil.rmtree(own.run.folder)
    return outcomes


def main() -> int:
    """Print the table and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=50)
    parser.add_argument("--steps", type=int, default=20000, help="without a flip, each computed twice")
    parser.add_argument("--every", type=int, default=5, help="run.verify_every of the runs with a flip")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # Small programs too: compiling them takes most of the time of a run.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
        outcomes = run_flips(arguments.flips, arguments.seed, every=arguments.every, folder=folder)
        print("| flips | found within the steps, named, not saved, same end | wrong | further ones without a trace |")
        print("| --- | --- | --- | --- |")
        wrong = outcomes.total() - outcomes[FOUND] - outcomes[NO_TRACE]
        print(f"| {outcomes[FOUND] + wrong} | {outcomes[FOUND]} | {wrong} | {outcomes[NO_TRACE]} |", flush=True)
        start, alarm = time.monotonic(), ""
        if arguments.steps:
            every = max(1, arguments.steps // 10)
            try:
                long = small_run(
                    folder / "long", steps=arguments.steps, log_every=every, checkpoint_every=every, verify_every=1
                )
                run(long)  # its lines are the progress
            except CorruptState as error:
                alarm = str(error)
            print(f"{arguments.steps} steps without a flip, {time.monotonic() - start:.0f} s: {alarm or 'no alarm'}")
    return int(bool(alarm) or outcomes[FOUND] < arguments.flips)


if __name__ == "__main__":
    sys.exit(main())
