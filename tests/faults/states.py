"""A small state whose numbers depend on the step alone, and its restoring: what the harnesses compare with."""

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding

from train.checkpoint.store import Checkpoints
from train.step import TrainState


def state_of(step: int) -> TrainState:
    """Return a state of a few kilobytes."""
    numbers = np.random.default_rng(step).standard_normal((2, 64, 16)).astype(np.float32)
    params = {"kernel": jnp.asarray(numbers[0]), "bias": jnp.asarray(numbers[0, 0])}
    return TrainState(jnp.int32(step), params, {"moments": jnp.asarray(numbers[1])})


def restored(checkpoints: Checkpoints, step: int | None = None) -> TrainState:
    """Restore the state of `step`, or the newest, to the first device."""
    state = state_of(0)
    one = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), state)
    return checkpoints.restore(jax.eval_shape(lambda: state), one, step=step)


def write_states(folder: Path, steps: list[int]) -> Path:
    """Write checkpoints of the states of these steps."""
    with Checkpoints(folder, keep=len(steps)) as checkpoints:
        for step in steps:
            checkpoints.save(state_of(step), step)
    return folder


def digest_of(state: TrainState) -> str:
    """Return the SHA-256 of the bits of parameters, optimizer state and step."""
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    content = [
        f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes() for path, leaf in leaves
    ]
    return hashlib.sha256(b"\0".join(content)).hexdigest()
