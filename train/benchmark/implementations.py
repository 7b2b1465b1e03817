"""The benchmark's workload in this project and in PyTorch: `BertForPreTraining` here and of `transformers`."""

import contextlib
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from flaxbert import AttentionImplementation, BertForPreTraining, Remat, save_pretrained
from flaxbert.layers import Params
from flaxbert.losses import Loss
from flaxbert.models import BertModel
from train.benchmark.workload import Pass, Workload, labels_of_all_positions
from train.distributed import MeshShape, Placement
from train.evaluate import EvalStepOutput, compile_eval_step
from train.optim import Optim, make_optimizer
from train.step import Batch, compile_step, create_state, state_shardings
from train.tasks.pretraining import pretraining_loss

_SEED = 0


class JaxImplementation:
    """The train step of `python -m train`, and the forward pass of an evaluation, on the first device."""

    def __init__(self, work: Workload, *, scan: bool):
        """Initialise parameters and batch from `_SEED`."""
        self.name = "flaxbert"
        self.compile_seconds: dict[Pass, float] = {}
        self.peak_bytes: dict[Pass, int | None] = {}
        self._model = BertForPreTraining(
            work.config,
            dtype=jnp.dtype(work.dtype),
            scan=scan,
            remat=Remat.NONE,
            attn_implementation=AttentionImplementation.FUSED,
            vocab_multiple=128,
        )
        placement = Placement.of(MeshShape(), jax.devices()[:1])
        optimizer = make_optimizer(Optim(), 10_000)
        shardings = state_shardings(self._model, optimizer, placement)
        self._state = create_state(self._model, optimizer, shardings, seed=_SEED)
        self._batch = placement.batch(work.batch(_SEED))
        self._seed = np.uint32(_SEED)

        def loss(params: Params, batch: Batch, key: jax.Array | None) -> Loss:
            return pretraining_loss(self._model, params, batch, key)

        def eval_step(params: Params, batch: Batch) -> EvalStepOutput:
            return EvalStepOutput({"loss": pretraining_loss(self._model, params, batch, None)})

        self._step = compile_step(loss, optimizer, placement, shardings)
        self._eval_step = compile_eval_step(eval_step, placement)
        self._compiled: dict[Pass, jax.stages.Compiled] = {}

    def save(self, folder: Path) -> None:
        """Write the initial parameters, for other implementations to load."""
        save_pretrained(folder, self._model, self._state.params)

    def loss(self) -> float:
        """Return the loss of the batch with the initial parameters, without dropout."""
        self._compile("forward")
        return float(self._compiled["forward"](self._state.params, self._batch).metrics["loss"].mean)

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
        assert stats is not None
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


class TorchImplementation:
    """The same parameters, batch, AdamW and clipping in PyTorch; bfloat16 by autocast with float32 parameters."""

    def __init__(self, work: Workload, peer: str, folder: Path, *, device: str):
        """Load the parameters of a model folder; `peer` is "eager", "sdpa", or "compile" (sdpa with torch.compile)."""
        self.name = f"transformers, {peer}"
        self.compile_seconds: dict[Pass, float] = {}
        self.peak_bytes: dict[Pass, int | None] = {}
        transformers.utils.logging.disable_progress_bar()
        attention = "eager" if peer == "eager" else "sdpa"
        model: Any = transformers.BertForPreTraining.from_pretrained(folder, attn_implementation=attention)
        self._plain = model.to(device)
        self._model: Any = torch.compile(self._plain) if peer == "compile" else self._plain
        self._device, self._compiles = device, peer == "compile"
        self._bfloat16 = work.dtype == "bfloat16"
        batch = work.batch(_SEED)
        arrays = {name: batch[name] for name in BertModel.input_names} | {"labels": labels_of_all_positions(batch)}
        arrays |= {"next_sentence_label": batch["next_sentence_labels"]}
        self._batch = {name: torch.tensor(values, dtype=torch.long, device=device) for name, values in arrays.items()}
        self._optimizer: torch.optim.Optimizer | None = None

    def loss(self) -> float:
        """Return the loss of the batch with the initial parameters, without dropout."""
        self._plain.eval()
        with torch.inference_mode(), self._precision():
            return self._plain(**self._batch).loss.item()

    def prepare(self, kind: Pass) -> None:
        """Run a pass once, which compiles it with torch.compile, and then three times."""
        if kind == "train" and self._optimizer is None:
            self._optimizer = torch.optim.AdamW(parameter_groups(self._plain, 0.01), lr=1e-9, fused=True)
        first = self.run(kind, 1)
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        steady = self.run(kind, 3) / 3
        self.compile_seconds[kind] = max(0.0, first - steady) if self._compiles else 0.0
        self.peak_bytes[kind] = torch.cuda.max_memory_allocated() if self._device == "cuda" else None

    def run(self, kind: Pass, steps: int) -> float:
        """Run a number of passes; return the seconds until the last one has finished."""
        self._model.train(kind == "train")
        self._synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            if kind == "train":
                with self._precision():
                    loss = self._model(**self._batch).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self._plain.parameters(), 1.0)
                assert self._optimizer is not None
                self._optimizer.step()
                self._optimizer.zero_grad()
            else:
                with torch.inference_mode(), self._precision():
                    self._model(**self._batch)
        self._synchronize()
        return time.perf_counter() - start

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self._device, torch.bfloat16) if self._bfloat16 else contextlib.nullcontext()

    def _synchronize(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return PyTorch's parameter groups: weight decay for all parameters except biases and LayerNorms."""
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[not (name.endswith("bias") or "LayerNorm" in name)].append(parameter)
    return [{"params": group, "weight_decay": weight_decay * decays} for decays, group in groups.items()]
