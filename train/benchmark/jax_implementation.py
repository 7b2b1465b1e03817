"""This project's implementation of the benchmark's workload."""

import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert import AttentionImplementation, BertForPreTraining, Remat, save_pretrained
from flaxbert.layers import Params
from train.benchmark.workload import Pass, Workload
from train.distributed import MeshShape, Placement
from train.evaluate import compile_eval_step
from train.optim import Optim, make_optimizer
from train.step import Batch, compile_step, create_state, state_shardings
from train.tasks.pretraining import pretraining_loss


class JaxImplementation:
    """The train step of `python -m train`, and the forward pass of an evaluation, on the first device."""

    def __init__(self, work: Workload, *, scan: bool, seed: int = 0):
        """Initialise parameters and batch from the seed."""
        self.name = "flaxbert"
        self.compile_seconds: dict[Pass, float] = {}
        self.peak_bytes: dict[Pass, int | None] = {}
        self._model = BertForPreTraining(
            work.config,
            dtype=jnp.dtype(work.dtype),
            scan=scan,
            remat=Remat.NONE,
            attn_implementation=AttentionImplementation.EAGER,
            vocab_multiple=128,
        )
        placement = Placement.of(MeshShape(), jax.devices()[:1])
        optimizer = make_optimizer(Optim(), 10_000)
        shardings = state_shardings(self._model, optimizer, placement)
        self._state = create_state(self._model, optimizer, shardings, seed=seed)
        self._batch = placement.batch(work.batch(seed))
        self._seed = np.uint32(seed)

        def loss(params: Params, batch: Batch, key: jax.Array | None) -> Any:
            return pretraining_loss(self._model, params, batch, key)

        def eval_step(params: Params, batch: Batch) -> Any:
            return pretraining_loss(self._model, params, batch, None).mean

        # Jitted functions; `Any` because their declared types have no `lower`.
        self._step: Any = compile_step(loss, optimizer, placement, shardings)
        self._eval_step: Any = compile_eval_step(eval_step, placement)
        self._compiled: dict[Pass, Any] = {}

    def save(self, folder: Path) -> None:
        """Write the initial parameters, for other implementations to load."""
        save_pretrained(folder, self._model, self._state.params)

    def loss(self) -> float:
        """Return the loss of the batch with the initial parameters, without dropout."""
        self._compile("forward")
        return float(self._compiled["forward"](self._state.params, self._batch))

    def prepare(self, kind: Pass) -> None:
        """Compile a pass, and run it three times."""
        self._compile(kind)
        self.run(kind, 3)

    def _compile(self, kind: Pass) -> None:
        """Compile a pass once, and note the time and the memory that the compiler plans (unknown on a CPU)."""
        if kind in self._compiled:
            return
        start = time.perf_counter()
        if kind == "train":
            lowered = self._step.lower(self._state, self._batch, self._seed)
        else:
            lowered = self._eval_step.lower(self._state.params, self._batch)
        self._compiled[kind] = lowered.compile()
        self.compile_seconds[kind] = time.perf_counter() - start
        stats = self._compiled[kind].memory_analysis()
        arguments = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
        peak = arguments + stats.temp_size_in_bytes
        self.peak_bytes[kind] = None if jax.default_backend() == "cpu" else peak

    def run(self, kind: Pass, steps: int) -> float:
        """Run a number of passes; return the seconds until the last one has finished."""
        function = self._compiled[kind]
        start = time.perf_counter()
        result = None
        for _ in range(steps):
            if kind == "train":
                self._state, result = function(self._state, self._batch, self._seed)
            else:
                result = function(self._state.params, self._batch)
        jax.block_until_ready(result)
        return time.perf_counter() - start
