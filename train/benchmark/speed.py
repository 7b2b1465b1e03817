"""Speed of a pretraining step and forward pass beside PyTorch's `transformers`, on one device.

    python -m train.benchmark --sizes base large --lengths 128 512 --rows 32 --dtype bfloat16 --json speed.json

All implementations have the same parameters and batch, and their losses are compared first. Then each one runs for
some seconds in every round, so that a slow phase of the machine affects all of them; the table has the median over the
rounds with the lowest and highest.
"""

import dataclasses
import datetime
import gc
import importlib.metadata
import json
import platform
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jax
import tyro

from flaxbert import BertConfig
from flaxbert.files import atomic_write
from train.benchmark.workload import Pass, Workload
from train.flops import device_peak

if TYPE_CHECKING:  # PyTorch may not be installed
    from train.benchmark.implementations import JaxImplementation, TorchImplementation

    Implementation = JaxImplementation | TorchImplementation

_LOSS_TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}  # largest difference of two losses


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Time pretraining (masked words and next sentences) beside PyTorch, on JAX's default device."""

    sizes: tuple[Literal["tiny", "mini", "small", "medium", "base", "large"], ...] = ("base",)
    """Model sizes, by the names of Turc et al. (2019) and Devlin et al. (2018)."""
    lengths: tuple[int, ...] = (128,)
    """Tokens of a row, padding included."""
    rows: int = 8
    """Rows of a batch."""
    fill: float = 1.0
    """Fraction of a row that is not padding."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of matrix products; parameters are float32."""
    kinds: tuple[Pass, ...] = ("train", "forward")
    """A train step (dropout 0.1, AdamW), or the forward pass with the loss."""
    attention_dropout: float = 0.1
    """Dropout of attention probabilities in train steps; with 0, flaxbert trains with cuDNN's attention on GPUs."""
    peers: tuple[Literal["eager", "sdpa", "compile"], ...] = ("eager", "sdpa")
    """PyTorch with attention as matrix products, with its fused attention, or that with torch.compile."""
    scan: bool = False
    """Run the layers of flaxbert in one loop, which compiles faster, instead of unrolled."""
    rounds: int = 5
    """Turns of each implementation."""
    seconds: float = 2.0
    """Approximate length of a turn."""
    json: Path | None = None
    """File for all results."""

    def __post_init__(self):
        for name in ("rows", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0.0 < self.fill <= 1.0 or self.seconds <= 0:
            raise ValueError(f"fill is {self.fill} and seconds {self.seconds}; allowed: 0 to 1, and more than 0")
        if wrong := [length for length in self.lengths if not 16 <= length <= 512]:
            raise ValueError(f"lengths {wrong}: allowed are 16 to 512")


@dataclasses.dataclass(frozen=True)
class SpeedResult:
    """Times of one implementation for one pass over one workload; unknown values are None."""

    size: str
    length: int
    rows: int
    dtype: str
    kind: str
    implementation: str
    step_seconds: float
    lowest_seconds: float
    highest_seconds: float
    sequences_per_second: float
    tokens_per_second: float
    teraflops_per_second: float
    mfu: float | None
    peak_bytes: int | None
    compile_seconds: float
    loss: float


def main(arguments: list[str]) -> int:
    """Measure and print a table; return 0, 1 if the losses differ, or 2 if PyTorch is missing."""
    settings = tyro.cli(Benchmark, args=arguments, prog="python -m train.benchmark", description=__doc__)
    try:
        import torch  # noqa: F401
    except ImportError:
        print("error: the benchmark needs PyTorch to compare with; pip install -e '.[torch]'", file=sys.stderr)
        return 2
    results: list[SpeedResult] = []
    print("\n".join(speed_table([])), flush=True)
    try:
        for work in workloads(settings):
            measured = measure(work, settings)
            results += measured
            # Printed at once, because the operating system kills the process if a later workload exceeds its memory.
            print("\n".join(speed_table(measured)[2:]), flush=True)
            if settings.json is not None:
                record = {"environment": describe_environment(), "results": [vars(result) for result in results]}
                with atomic_write(settings.json) as aside:
                    aside.write_text(json.dumps(record, indent=2) + "\n")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def workloads(settings: Benchmark) -> list[Workload]:
    """Return the workloads of all sizes at all lengths."""
    rate = settings.attention_dropout
    configs: dict[str, BertConfig] = {
        name: getattr(BertConfig, name)(attention_probs_dropout_prob=rate) for name in settings.sizes
    }
    return [
        Workload(name, config, settings.rows, length, settings.dtype, settings.fill)
        for name, config in configs.items()
        for length in settings.lengths
    ]


def measure(work: Workload, settings: Benchmark) -> list[SpeedResult]:
    """Time all implementations on a workload.

    Raises:
        ValueError: their losses differ.
    """
    from train.benchmark.implementations import JaxImplementation, TorchImplementation

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    flaxbert = JaxImplementation(work, scan=settings.scan)
    with tempfile.TemporaryDirectory() as folder:
        flaxbert.save(Path(folder) / "model")
        peers = [TorchImplementation(work, peer, Path(folder) / "model", device=device) for peer in settings.peers]
    implementations: list[Implementation] = [flaxbert, *peers]
    losses = [implementation.loss() for implementation in implementations]
    listed = ", ".join(f"{i.name} {loss:.6f}" for i, loss in zip(implementations, losses, strict=True))
    print(f"{work.name}, {work.rows} x {work.length}, {work.dtype}: losses {listed}", file=sys.stderr)
    if max(losses) - min(losses) > _LOSS_TOLERANCE[work.dtype]:
        raise ValueError(f"the losses differ by more than {_LOSS_TOLERANCE[work.dtype]}: {listed}")
    results = []
    for kind in settings.kinds:
        times = take_turns(implementations, kind, rounds=settings.rounds, seconds=settings.seconds)
        for implementation, seconds, loss in zip(implementations, times, losses, strict=True):
            results.append(_result(work, kind, implementation, seconds, loss))
    gc.collect()  # frees the parameters before the next workload
    return results


def take_turns(
    implementations: "Sequence[Implementation]", kind: Pass, *, rounds: int, seconds: float
) -> list[list[float]]:
    """Return the seconds of one pass of each implementation in each round."""
    steps = []
    for implementation in implementations:
        implementation.prepare(kind)
        steps.append(max(1, round(seconds / implementation.run(kind, 1))))
    times: list[list[float]] = [[] for _ in implementations]
    for _ in range(rounds):
        for implementation, count, own in zip(implementations, steps, times, strict=True):
            implementation.run(kind, 1)  # not timed: caches and threads still belong to the previous implementation
            own.append(implementation.run(kind, count) / count)
    return times


def _result(
    work: Workload, kind: Pass, implementation: "Implementation", seconds: list[float], loss: float
) -> SpeedResult:
    median = statistics.median(seconds)
    flops = work.flops(training=kind == "train") / median
    peak = device_peak(jax.devices()[0].device_kind)
    return SpeedResult(
        size=work.name,
        length=work.length,
        rows=work.rows,
        dtype=work.dtype,
        kind=kind,
        implementation=implementation.name,
        step_seconds=median,
        lowest_seconds=min(seconds),
        highest_seconds=max(seconds),
        sequences_per_second=work.rows / median,
        tokens_per_second=work.rows * work.tokens_per_row / median,
        teraflops_per_second=flops / 1e12,
        mfu=None if peak is None else flops / peak,
        peak_bytes=implementation.peak_bytes[kind],
        compile_seconds=implementation.compile_seconds[kind],
        loss=loss,
    )


def speed_table(results: Sequence[SpeedResult]) -> list[str]:
    """Return the lines of a Markdown table."""
    head = ["model", "batch", "", "", "ms (lowest to highest)", "sequences/s", "tokens/s", "TFLOP/s", "MFU", "memory"]
    lines = [head + ["compiled in"], ["---"] * (len(head) + 1)]
    for r in results:
        spread = f"{1e3 * r.step_seconds:.1f} ({1e3 * r.lowest_seconds:.1f} to {1e3 * r.highest_seconds:.1f})"
        speed = [f"{r.sequences_per_second:,.1f}", f"{r.tokens_per_second:,.0f}", f"{r.teraflops_per_second:.3g}"]
        mfu = "" if r.mfu is None else f"{r.mfu:.1%}"
        memory = "" if r.peak_bytes is None else f"{r.peak_bytes / 2**30:.2f} GiB"
        compiled = f"{r.compile_seconds:.1f} s" if r.compile_seconds else ""
        batch = f"{r.rows} x {r.length}, {r.dtype}"
        lines.append([r.size, batch, r.kind, r.implementation, spread, *speed, mfu, memory, compiled])
    return ["| " + " | ".join(line) + " |" for line in lines]


def describe_environment() -> dict[str, object]:
    """Return the device, machine, versions, command and date of the measurement."""
    packages = ("jax", "jaxlib", "torch", "transformers")
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "machine": f"{platform.machine()}, {_processor()}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "command": ["python", "-m", "train.benchmark", *sys.argv[1:]],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)", file.read_text() if file.is_file() else "", re.MULTILINE)
    return found[1] if found else "?"
