"""Silent corruption of a state: a step is computed twice, and copies of the state on several devices are compared."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from train.digest import Device, TreeDigest
from train.multihost.hosts import SINGLE_HOST, HostGroup
from train.step import TrainState, TrainStep

CORRUPT_STATE = 4
"""Exit code of a run whose state was corrupted: 75 would let a scheduler start it again on the same device."""
_SHOWN = 5
_DETERMINISTIC = ("exclude_nondeterministic_ops", "deterministic_ops")  # flags of XLA; the second includes the first


def check_deterministic(every: int) -> None:
    """Check that a step that is computed twice has the same result, if `run.verify_every` asks for some.

    Raises:
        ValueError: XLA may choose programs for GPUs that add in any order.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    is_deterministic = any(f"--xla_gpu_{name}=true" in flags for name in _DETERMINISTIC)
    if every and jax.default_backend() == "gpu" and not is_deterministic:
        raise ValueError(
            f"verify_every is {every}, but on GPUs a step that is computed twice may add in another order: set the "
            f"environment variable XLA_FLAGS=--xla_gpu_{_DETERMINISTIC[0]}=true, or give --run.verify-every 0"
        )


class CorruptState(Exception):
    """Parameters or optimizer state changed by themselves, or two computations of a step differ."""

    exit_code = CORRUPT_STATE


class StateCheck:
    """Checks of the state of a run, one step in `every`; 0: none."""

    def __init__(self, every: int, *, host_group: HostGroup = SINGLE_HOST):
        self._every, self._host_group = every, host_group
        self._last: tuple[int, TreeDigest] | None = None  # the step after which a digest was taken
        self._steps = self._steps_twice = 0

    @property
    def facts(self) -> dict[str, str]:
        """Facts on what was checked, for the summary of the run."""
        text = f"{self._steps_twice} of {self._steps} since the last start, none differed"
        return {"steps computed twice": text} if self._every else {}

    def check(self, state: TrainState, step: int) -> None:
        """Compare the copies of all arrays on several devices, and with those when the state was last seen.

        Raises:
            CorruptState: they differ.
        """
        if not self._every:
            return
        digest = TreeDigest(state)
        self._refuse(digest.differing_copies(), f"after step {step} not equal to the copies on other devices")
        if self._last is not None and self._last[0] == step:
            self._refuse(digest.differences(self._last[1]), f"changed between step {step} and the next one")
        self._last = step, digest

    def run(
        self, train_step: TrainStep, step: int, state: TrainState, *arguments: Any
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Run the train step that leads to step number `step`; one in `every` twice, with the same program.

        The memory of `state` is donated. A step that is run twice needs that of one more state while it runs.

        Raises:
            CorruptState: the state was not as it should be before, or the results differ.
        """
        self._steps += 1
        is_due = self._every and step % self._every == 0
        if is_due or (self._last is not None and self._last[0] == step - 1):
            self.check(state, step - 1)
        if not is_due:
            return train_step(state, *arguments)
        first = TreeDigest(train_step(_copy(state), *arguments)[0])
        state, metrics = train_step(state, *arguments)
        second = TreeDigest(state)
        self._refuse(second.differences(first), f"not the same when step {step} is computed twice")
        self._refuse(second.differing_copies(), f"after step {step} not equal to the copies on other devices")
        self._last = step, second
        self._steps_twice += 1
        return state, metrics

    def _refuse(self, found: Mapping[str, Sequence[Device]], how: str) -> None:
        if not found:
            return
        devices = sorted({device for own in found.values() for device in own}, key=lambda device: device.id)
        names = ", ".join([*list(found)[:_SHOWN], *(["..."] if len(found) > _SHOWN else [])])
        places = ", ".join(map(self._name, devices[:_SHOWN])) + (", ..." if len(devices) > _SHOWN else "")
        raise CorruptState(
            f"{names} on {places}: {how}. Memory is damaged, or a device computes wrongly. Every checkpoint was "
            "checked before it was written: start the run again on another machine, and it goes on from its last one"
        )

    def _name(self, device: Device) -> str:
        several = len(self._host_group.names) > 1
        host = f" of {self._host_group.name(device.process_index)}" if several else ""
        return f"{device.platform} device {device.id}{host}"


@jax.jit
def _copy(state: TrainState) -> TrainState:
    """Copy all arrays, by one program: `jax.device_put` of one after another takes 33 ms for 78 arrays on 8 devices."""
    return jax.tree.map(jnp.copy, state)
