"""The memory of one device that a train step takes."""

import dataclasses
import math
from typing import Any

import jax

from train.step import TrainState


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device. The first three are the arrays themselves; the rest is the compiler's, tiles padded."""

    parameters: int
    optimizer: int
    batch: int
    arguments: int
    """All of the above, as the device lays them out."""
    outputs: int
    """New arrays; those that take the place of an argument (the donated state) are not in it."""
    temporaries: int
    """Activations, gradients and everything else between arguments and outputs."""
    program: int
    """The instructions themselves."""
    capacity: int
    """HBM of the device."""

    @property
    def total(self) -> int:
        """What the step needs."""
        return self.arguments + self.outputs + self.temporaries + self.program

    @property
    def free(self) -> int:
        """What is left; negative where the step does not fit."""
        return self.capacity - self.total

    @classmethod
    def of(
        cls, executable: Any, state: TrainState, shardings: TrainState, batch: Any, batch_sharding: Any, capacity: float
    ) -> "Memory":
        """Of a compiled step and the shapes it was compiled for."""
        stats = executable.memory_analysis()
        return cls(
            parameters=device_bytes(state.params, shardings.params),
            optimizer=device_bytes(state.opt_state, shardings.opt_state),
            batch=device_bytes(batch, jax.tree.map(lambda _: batch_sharding, batch)),
            arguments=stats.argument_size_in_bytes,
            outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
            temporaries=stats.temp_size_in_bytes,
            program=stats.generated_code_size_in_bytes,
            capacity=round(capacity),
        )


def device_bytes(shapes: Any, shardings: Any) -> int:
    """Bytes of a tree of shapes on the device that holds the most of it."""
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, shapes, shardings)
    return sum(jax.tree.leaves(sizes))
