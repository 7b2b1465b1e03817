"""Measurements of length configurations: metrics of the dev set, time and FLOPs, and the record of them on disk."""

import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from flaxbert import PreTrainedModel, length_adaptive
from flaxbert.families import HeadKind, architecture_of
from flaxbert.files import atomic_write
from flaxbert.layers import Params
from train.aot.hlo import parse_program
from train.aot.instruction_cost import matmul_flops
from train.distributed import HostBatch, Placement
from train.evaluate import DEV, EvalStep, compile_eval_step, evaluate
from train.search.evolution import Configuration
from train.tasks.task import Task

_FIRST_TOKEN_HEADS = (HeadKind.SEQUENCE_CLASSIFICATION, HeadKind.NEXT_SENTENCE)
_TIMINGS = 7


@dataclasses.dataclass(frozen=True)
class Measured:
    """Metrics of a configuration by name, and the times of an evaluation batch if they were measured."""

    metrics: Mapping[str, float]
    seconds: float | None = None
    """Median."""
    time_share: float | None = None
    """Median of the share of the time of the full model, which ran in turns with it: other programs on the machine, or
    a warm processor, make a time of another minute incomparable."""


@dataclasses.dataclass(frozen=True)
class Measurer:
    """A model and the batches of the dev set, all of one length, to measure configurations on."""

    task: Task
    model: PreTrainedModel
    params: Params
    batches: Sequence[HostBatch]
    placement: Placement

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.batches[0]["input_ids"].shape[-1]

    def measure(self, configuration: Configuration, *, timed: bool) -> Measured:
        """Compile and evaluate the model with this configuration, by the eval step of the task."""
        eval_step = self._compiled(configuration)
        found = evaluate(eval_step, self.params, self.batches, self.placement)
        metrics = {**found.means, **self.task.compute_metrics(DEV, found, earlier={})}
        seconds, share = self._time(eval_step) if timed else (None, None)
        jax.clear_caches()  # each configuration is a program of its own, and thousands of them would fill the memory
        return Measured(metrics, seconds, share)

    def flops(self, configuration: Configuration) -> float:
        """Return the FLOPs of the matrix products in the layers for one row, by the formula."""
        return length_adaptive.flops(
            self.model.config,
            self.length,
            configuration.lengths,
            configuration.layers,
            first_position_only=architecture_of(self.model).head in _FIRST_TOKEN_HEADS,
        )

    def compiled_flops(self, configuration: Configuration) -> float:
        """Return the FLOPs of the matrix products for one row in the compiled program, the head's included."""
        program = parse_program(self._compiled(configuration).as_text() or "")
        counted = sum(
            matmul_flops(part, line)
            for part in program.computations.values()
            for line in part.instructions
            if line.opcode in ("dot", "convolution")
        )
        return counted * self.placement.data_parallel_size / len(self.batches[0]["input_ids"])

    def _compile(self, configuration: Configuration) -> jax.stages.Compiled:
        """Compile the eval step for the one shape of the batches."""
        chosen = self.model.config.replace(layer_config=configuration.layers, length_config=configuration.lengths)
        step = functools.partial(self.task.eval_step, self.model.clone(config=chosen))
        batch = self.placement.batch(self.batches[0])
        return compile_eval_step(step, self.placement).lower(self.params, batch).compile()

    def _compiled(self, configuration: Configuration) -> jax.stages.Compiled:
        full = Configuration.full(self.model.config.num_hidden_layers, self.length)
        return self._full_step if configuration == full else self._compile(configuration)

    @functools.cached_property
    def _full_step(self) -> jax.stages.Compiled:
        """The eval step of the full model, which other configurations run in turns with."""
        return self._compile(Configuration.full(self.model.config.num_hidden_layers, self.length))

    def _time(self, eval_step: EvalStep) -> tuple[float, float]:
        """Return the median seconds of a batch, and of their share of the full model's, in turns."""
        batch = self.placement.batch(self.batches[0])

        def seconds(step: EvalStep) -> float:
            started = time.perf_counter()
            jax.block_until_ready(step(self.params, batch))
            return time.perf_counter() - started

        seconds(self._full_step)
        times = [(seconds(eval_step), seconds(self._full_step)) for _ in range(_TIMINGS)]
        share = statistics.median(own / full for own, full in times)
        # Two timings of one program differ by noise.
        return statistics.median(own for own, _ in times), 1.0 if eval_step is self._full_step else share


class Record:
    """The measurements so far, in a JSON file that each of them replaces; a search that goes on reads it."""

    def __init__(self, file: Path, subject: Mapping[str, object]):
        """Read the file, if there is one; `subject` is what the measurements depend on.

        Raises:
            ValueError: the file holds measurements of another subject.
        """
        self._file, self._subject = file, json.loads(json.dumps(subject))
        self._measured: dict[Configuration, Measured] = {}
        if not file.exists():
            return
        stored = json.loads(file.read_text(encoding="utf-8"))
        if (device := stored["subject"].pop("device", None)) is not None:  # of a former version
            stored["subject"]["cost"] = "flops" if device == "any" else f"latency on {device}"
        differing = [name for name, value in self._subject.items() if stored["subject"].get(name) != value]
        if differing:
            raise ValueError(
                f"{file} has measurements of another search, which differs in {', '.join(differing)}; choose another "
                "--search.folder, or delete the file"
            )
        for entry in stored["measured"]:
            configuration = Configuration(tuple(entry["layer_config"]), tuple(entry["length_config"]))
            names = ("metrics", "seconds", "time_share")  # former versions have no share
            self._measured[configuration] = Measured(*map(entry.get, names))

    def get(self, configuration: Configuration, *, timed: bool) -> Measured | None:
        """Return what was measured, None if nothing was, or not the time that is needed."""
        found = self._measured.get(configuration)
        return None if found is None or (timed and found.time_share is None) else found

    def add(self, configuration: Configuration, measured: Measured) -> None:
        """Add a measurement, and write the file."""
        self._measured[configuration] = measured
        entries = [
            {
                "layer_config": one.layers,
                "length_config": one.lengths,
                **vars(found),
            }
            for one, found in self._measured.items()
        ]
        with atomic_write(self._file) as aside:
            aside.write_text(json.dumps({"subject": self._subject, "measured": entries}) + "\n", encoding="utf-8")
