"""The train step of a config, compiled for devices that are not there."""

import dataclasses
import re
import time
from typing import Any

import jax
import numpy as np
from jax.errors import JaxRuntimeError

from train.compilation import without_compilation_cache
from train.config import Config
from train.distributed import Placement
from train.optim import make_optimizer
from train.step import TrainState, compile_step, state_shapes, state_shardings
from train.tasks.task import Objective, TokenCounts, TrainSpec


class DoesNotFit(RuntimeError):
    """The compiler found that the step needs more memory than a device has."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The step that the trainer would run, and what it was compiled from."""

    executable: Any
    """A `jax.stages.Compiled`."""
    state: TrainState
    """Shapes."""
    shardings: TrainState
    batch: Any
    """Shapes."""
    rows: int
    """Of the batch, or of one of its micro-batches: what all devices compute at once."""
    placement: Placement
    objective: Objective
    token_counts: TokenCounts
    """Of the batch, over all devices."""
    seconds: float
    """That the compiler took."""


def compile_config(config: Config, placement: Placement) -> Compiled:
    """Compiles the step of `config` for the devices of `placement`, from shapes alone; nothing is put on a device.

    The data are read only by tasks whose shapes depend on them; pretrained weights are not.

    Raises:
        FileNotFoundError, ValueError: what is wrong with the settings or the data.
        DoesNotFit: a device has too little memory; says how much is missing.
    """
    spec: TrainSpec = config.task.train_spec(config)
    objective = spec.objective
    model = objective.architecture(objective.config, **config.model.attributes)
    placement.check_model(model)
    optimizer = make_optimizer(config.optim, config.run.total_steps(spec.steps_per_epoch))
    shardings = state_shardings(model, optimizer, placement)
    batch = {name: jax.ShapeDtypeStruct(rows.shape, rows.dtype) for name, rows in spec.batch.items()}
    parts = config.run.gradient_accumulation_steps
    rows = next(iter(batch.values())).shape[0]
    placement.check_rows("batch_size", rows, gradient_accumulation_steps=parts)
    state = state_shapes(model, optimizer)

    def loss(params: Any, batch: Any, key: jax.Array | None) -> Any:
        return objective.loss(model, params, batch, key)

    step: Any = compile_step(loss, optimizer, placement, shardings, gradient_accumulation_steps=parts)
    lowered = step.lower(state, batch, np.uint32(config.run.seed))
    started = time.perf_counter()
    executable = compile_lowered(lowered)
    seconds = time.perf_counter() - started
    token_counts = objective.token_counts(spec.batch)
    return Compiled(executable, state, shardings, batch, rows // parts, placement, objective, token_counts, seconds)


def compile_lowered(lowered: Any) -> Any:
    """`lowered.compile()`, with words for a program that is too large.

    Raises:
        DoesNotFit: with the compiler's figures, and its largest arrays.
    """
    try:
        with without_compilation_cache():
            return lowered.compile()
    except JaxRuntimeError as error:
        found = re.search(r"Used (\S+) of (\S+) hbm\. Exceeded hbm capacity by (\S+)\.\s", str(error))
        if found is None:
            raise
        used, capacity, missing = found.groups()
        message = f"the step does not fit: the compiler wants {used} of the {capacity} of a device, {missing} too much"
        raise DoesNotFit("\n".join([f"{message}. Largest arrays:", *_largest(str(error))])) from error


def _largest(message: str) -> list[str]:
    """The five largest arrays of the compiler's lists: one of what the program makes, one of arguments and outputs."""
    entry = (
        r"Size: ([\d.]+)([BKMGT])\n(?:\s+Operator: op_name=\"([^\"]*)\"\n)?\s+Shape: (\S+)\n(?:.*\n)?\s+XLA label: (.*)"
    )
    found = [
        (float(size) * 1024.0 ** "BKMGT".index(unit), f"{size + unit:>9}  {shape}  {operator or label}")
        for size, unit, operator, shape, label in re.findall(entry, message)
    ]
    return [line for _, line in sorted(found, key=lambda item: -item[0])[:5]]
