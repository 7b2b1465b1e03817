"""The contestant that this project is."""

import time
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert import Attention, BertForPreTraining, Remat, save_pretrained
from train.benchmark.contestant import Contestant
from train.benchmark.workload import Workload
from train.distributed import MeshShape, Placement
from train.evaluate import compile_eval_step
from train.optim import Optim, make_optimizer
from train.step import compile_step, create_state, state_shardings
from train.tasks.pretraining_objective import PretrainingObjective


class Ours(Contestant):
    """The train step of `python -m train`, and the forward pass of an evaluation, on the first device."""

    def __init__(self, work: Workload, *, scan: bool, seed: int = 0):
        """Draws the weights."""
        super().__init__("flaxbert")
        how: dict[str, Any] = {"dtype": jnp.dtype(work.dtype), "scan": scan, "remat": Remat.NONE}
        self._model = BertForPreTraining(work.config, **how, attn_implementation=Attention.EAGER, vocab_multiple=128)
        objective = PretrainingObjective(config=work.config, architecture=BertForPreTraining)
        placement = Placement.of(MeshShape(), jax.devices()[:1])
        optimizer = make_optimizer(Optim(), 10_000)
        shardings = state_shardings(self._model, optimizer, placement)
        self._state = create_state(self._model, optimizer, shardings, seed=seed)
        self._batch = placement.batch(work.batch(seed))
        self._seed = np.uint32(seed)

        def loss(params: Any, batch: Any, key: Any) -> Any:
            return objective.loss(self._model, params, batch, key)

        def eval_step(params: Any, batch: Any) -> Any:
            return objective.loss(self._model, params, batch, None).mean

        self._step = compile_step(loss, optimizer, placement, shardings)
        self._eval_step = compile_eval_step(eval_step, placement)
        self._compiled: dict[str, Any] = {}

    def save(self, folder: Path) -> None:
        """Writes the first weights, for others to load."""
        save_pretrained(folder, self._model, self._state.params)

    def loss(self) -> float:
        """Of the batch and the first weights, without dropout."""
        return float(self._program("forward")(self._state.params, self._batch))

    def prepare(self, kind: str) -> None:
        """Compiles it, and runs it three times."""
        self._program(kind)
        self.run(kind, 3)

    def _program(self, kind: str) -> Any:
        if kind not in self._compiled:
            start = time.perf_counter()
            if kind == "train":
                lowered = cast(Any, self._step).lower(self._state, self._batch, self._seed)
            else:
                lowered = cast(Any, self._eval_step).lower(self._state.params, self._batch)
            self._compiled[kind] = lowered.compile()
            self.compile_seconds[kind] = time.perf_counter() - start
        return self._compiled[kind]

    def run(self, kind: str, steps: int) -> float:
        """Seconds that so many of them take, until the last is done."""
        function = self._program(kind)
        start = time.perf_counter()
        result = None
        for _ in range(steps):
            if kind == "train":
                self._state, result = function(self._state, self._batch, self._seed)
            else:
                result = function(self._state.params, self._batch)
        jax.block_until_ready(result)
        return time.perf_counter() - start

    def peak_bytes(self, kind: str) -> int | None:
        """What the compiler says that the program needs; None on a CPU."""
        if jax.default_backend() == "cpu":
            return None
        needs = self._compiled[kind].memory_analysis()
        arguments = needs.argument_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes
        return arguments + needs.temp_size_in_bytes
