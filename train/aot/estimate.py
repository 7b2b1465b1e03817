"""Compilation of a config's train step for a slice, and the estimate of its memory, time and collectives."""

import dataclasses
import functools
import math
import re
import time
from typing import Any

import jax
import numpy as np
from jax.errors import JaxRuntimeError
from jaxtyping import PyTree

from train.aot.collectives import TpuSlice
from train.aot.cost import Cost, estimate_cost
from train.aot.hlo import parse_program
from train.aot.sharding_check import ShardingCheck
from train.compilation import without_compilation_cache
from train.config import Config
from train.distributed import Placement
from train.flops import Chip, train_flops
from train.optim import make_optimizer
from train.step import TrainState, compile_step, state_shapes, state_shardings
from train.tasks.task import TokenCounts, TrainSpec


class DoesNotFit(RuntimeError):
    """The compiler found that the step needs more memory than a device has."""


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """Train step as the trainer would run it, with the shapes and shardings it was compiled for."""

    executable: jax.stages.Compiled
    state: TrainState
    """Shapes."""
    shardings: TrainState
    batch: dict[str, jax.ShapeDtypeStruct]
    rows: int
    """Batch rows that all devices compute at once: those of one gradient accumulation step."""
    placement: Placement
    spec: TrainSpec
    token_counts: TokenCounts
    """Sums over the batch on all devices."""
    seconds: float
    """Time of the compilation."""


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Memory in bytes on one device.

    Parameters, optimizer and batch are sizes of the arrays alone; the rest are the compiler's figures, which include
    the padding of tiles.
    """

    parameters: int
    optimizer: int
    batch: int
    arguments: int
    """Sum of the above as laid out on the device."""
    outputs: int
    """New arrays; not those that reuse the memory of an argument (the donated state)."""
    temporaries: int
    """Activations, gradients and all other intermediate arrays."""
    program: int
    """Machine code."""
    capacity: int
    """HBM of the device."""

    @property
    def total(self) -> int:
        """Return the memory that the step needs."""
        return self.arguments + self.outputs + self.temporaries + self.program

    @property
    def free(self) -> int:
        """Return the remaining memory; negative if the step does not fit."""
        return self.capacity - self.total


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Estimate of one step; only the compilation time is measured."""

    topology: str
    chip: Chip
    mesh: dict[str, int]
    memory: MemoryEstimate
    cost: Cost
    sharding: ShardingCheck
    tokens: int
    """Tokens of a step without padding, over all devices."""
    model_flops: float
    """FLOPs of a step over all devices, see `train.flops`."""
    compile_seconds: float

    @property
    def devices(self) -> int:
        """Return the number of devices of the mesh."""
        return math.prod(self.mesh.values())

    @property
    def tokens_per_second(self) -> float:
        """Return the throughput of all devices."""
        return self.tokens / self.cost.seconds

    @property
    def mfu(self) -> float:
        """Return the model FLOPs utilisation: model FLOP/s over the peak FLOP/s of all devices."""
        peak = self.devices * self.chip.peak_flops / self.chip.devices
        return self.model_flops / self.cost.seconds / peak


def compile_config(config: Config, placement: Placement) -> CompiledStep:
    """Compile the train step of `config` for the devices of `placement`, from shapes alone, without using a device.

    Data are read only by tasks whose shapes depend on them; pretrained weights are never read.

    Raises:
        FileNotFoundError, ValueError: the settings or the data are invalid.
        DoesNotFit: a device has too little memory; the message states how much is missing.
    """
    if config.distillation.teacher is not None:
        raise ValueError(
            "distillation is not estimated: the step has no teacher here; give --distillation.teacher None"
        )
    if config.length_adaptation.enabled:
        raise ValueError("length-adaptive training is not estimated; give --no-length-adaptation.enabled")
    spec: TrainSpec = config.task.train_spec(config)
    model = spec.architecture(spec.config, rules=placement.rules, **config.model.attributes)
    placement.check_model(model)
    optimizer = make_optimizer(config.optim, config.run.total_steps(spec.steps_per_epoch))
    shardings = state_shardings(model, optimizer, placement)
    batch = {name: jax.ShapeDtypeStruct(rows.shape, rows.dtype) for name, rows in spec.batch.items()}
    accumulation = config.run.gradient_accumulation_steps
    rows = next(iter(batch.values())).shape[0]
    placement.check_rows("batch_size", rows, gradient_accumulation_steps=accumulation)
    state = state_shapes(model, optimizer)

    loss = functools.partial(spec.loss, model)
    step = compile_step(loss, optimizer, placement, shardings, gradient_accumulation_steps=accumulation)
    lowered = step.lower(state, batch, np.uint32(config.run.seed))
    started = time.perf_counter()
    executable = compile_lowered(lowered)
    return CompiledStep(
        executable=executable,
        state=state,
        shardings=shardings,
        batch=batch,
        rows=rows // accumulation,
        placement=placement,
        spec=spec,
        token_counts=spec.token_counts(spec.batch),
        seconds=time.perf_counter() - started,
    )


def compile_lowered(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Return `lowered.compile()`.

    Raises:
        DoesNotFit: the program needs too much memory; the message has the compiler's figures and the largest arrays.
    """
    try:
        with without_compilation_cache():
            return lowered.compile()
    except JaxRuntimeError as error:
        found = re.search(r"Used (\S+) of (\S+) hbm\. Exceeded hbm capacity by (\S+)\.\s", str(error))
        if found is None:
            raise
        used, capacity, missing = found.groups()
        message = f"the step does not fit: it needs {used} of the {capacity} of a device, {missing} too much"
        raise DoesNotFit("\n".join([f"{message}. Largest arrays:", *_largest_arrays(str(error))])) from error


def _largest_arrays(message: str) -> list[str]:
    """Return the five largest arrays in the compiler's two lists (of the program, of arguments and outputs)."""
    entry = (
        r"Size: ([\d.]+)([BKMGT])\n(?:\s+Operator: op_name=\"([^\"]*)\"\n)?\s+Shape: (\S+)\n(?:.*\n)?\s+XLA label: (.*)"
    )
    arrays = [
        (float(size) * 1024.0 ** "BKMGT".index(unit), f"{size + unit:>9}  {shape}  {operator or label}")
        for size, unit, operator, shape, label in re.findall(entry, message)
    ]
    return [line for _, line in sorted(arrays, key=lambda item: -item[0])[:5]]


def estimate_step(compiled: CompiledStep, topology: str, chip: Chip) -> Estimate:
    """Return the estimate of a compiled step on a slice of this chip; `topology` is its name."""
    mesh = compiled.placement.mesh
    program, tpu_slice = parse_program(compiled.executable.as_text() or ""), TpuSlice.of(chip, mesh)
    return Estimate(
        topology=topology,
        chip=chip,
        mesh=dict(mesh.shape),
        memory=_memory(compiled, round(chip.hbm_bytes / chip.devices)),
        cost=estimate_cost(program, tpu_slice),
        sharding=ShardingCheck.of(
            program, tpu_slice, rows=compiled.rows, parameters=compiled.state.params, batch=compiled.batch
        ),
        tokens=compiled.token_counts.tokens,
        model_flops=train_flops(compiled.spec.config, **dataclasses.asdict(compiled.token_counts)),
        compile_seconds=compiled.seconds,
    )


def _memory(compiled: CompiledStep, capacity: int) -> MemoryEstimate:
    stats: Any = compiled.executable.memory_analysis()
    sharding = compiled.placement.batch_sharding
    return MemoryEstimate(
        parameters=_device_bytes(compiled.state.params, compiled.shardings.params),
        optimizer=_device_bytes(compiled.state.opt_state, compiled.shardings.opt_state),
        batch=_device_bytes(compiled.batch, jax.tree.map(lambda _: sharding, compiled.batch)),
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
        temporaries=stats.temp_size_in_bytes,
        program=stats.generated_code_size_in_bytes,
        capacity=capacity,
    )


def _device_bytes(shapes: PyTree, shardings: PyTree) -> int:
    """Return the bytes of a tree of global shapes on the device that holds most of it."""
    sizes = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, shapes, shardings)
    return sum(jax.tree.leaves(sizes))
