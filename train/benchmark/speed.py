"""Pretraining's step and forward pass beside PyTorch's `transformers`: same device, weights and batch, in turns.

    python -m train.benchmark --sizes base large --lengths 128 512 --rows 32 --dtype bfloat16 --json speed.json

Losses are compared first. Then every contestant runs for some seconds in each round, so that what slows the machine
down for a while slows all of them; medians over the rounds are shown with the lowest and highest.
"""

import dataclasses
import datetime
import gc
import importlib.metadata
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import tyro

from flaxbert import BertConfig
from flaxbert.files import atomic_write
from train.benchmark.contestant import Contestant
from train.benchmark.ours import Ours
from train.benchmark.workload import Workload
from train.flops import device_peak

_CLOSE = {"float32": 1e-4, "bfloat16": 3e-2}  # of two losses, in nats


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Times pretraining (masked words and next sentences) beside PyTorch, on the device that JAX takes."""

    sizes: tuple[Literal["tiny", "mini", "small", "medium", "base", "large"], ...] = ("base",)
    """Models, by the names of Turc et al. (2019) and Devlin et al. (2018)."""
    lengths: tuple[int, ...] = (128,)
    """Tokens of a row."""
    rows: int = 8
    """Of a batch."""
    fill: float = 1.0
    """Share of a row that is no padding."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products; parameters are float32."""
    kinds: tuple[Literal["train", "forward"], ...] = ("train", "forward")
    """A step (dropout 0.1, AdamW), or loss alone."""
    peers: tuple[Literal["eager", "sdpa", "compile"], ...] = ("eager", "sdpa")
    """PyTorch with attention as products, with its fused attention, and that through torch.compile."""
    scan: bool = False
    """Ours with one loop over the layers, which compiles faster, instead of unrolled."""
    rounds: int = 5
    """Turns of each contestant."""
    seconds: float = 2.0
    """Of a turn, about."""
    json: Path | None = None
    """A file for all that was measured."""

    def __post_init__(self):
        for name in ("rows", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0.0 < self.fill <= 1.0 or self.seconds <= 0:
            raise ValueError(f"fill is {self.fill} and seconds {self.seconds}; allowed: 0 to 1, and more than 0")
        if wrong := [length for length in self.lengths if not 16 <= length <= 512]:
            raise ValueError(f"lengths {wrong}: allowed are 16 to 512")


@dataclasses.dataclass(frozen=True)
class Result:
    """One contestant's times for one kind of pass over one workload; what is not known is None."""

    size: str
    length: int
    rows: int
    dtype: str
    kind: str
    contestant: str
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
    """Measures, and prints a table; 1 where the losses differ, 2 for a mistake."""
    settings = tyro.cli(Benchmark, args=arguments, prog="python -m train.benchmark", description=__doc__)
    try:
        import torch  # noqa: F401
    except ImportError:
        print("error: the peer is PyTorch: pip install -e '.[torch]'", file=sys.stderr)
        return 2
    results: list[Result] = []
    print("\n".join(table([])), flush=True)
    try:
        for work in workloads(settings):
            found = measure(work, settings)
            results += found
            # Each at once: a later one may not fit into memory, and an operating system then just ends the process.
            print("\n".join(table(found)[2:]), flush=True)
            if settings.json is not None:
                record = {"environment": environment(), "results": [dataclasses.asdict(result) for result in results]}
                with atomic_write(settings.json) as aside:
                    aside.write_text(json.dumps(record, indent=2) + "\n")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def workloads(settings: Benchmark) -> list[Workload]:
    """All sizes at all lengths."""
    configs: dict[str, BertConfig] = {name: getattr(BertConfig, name)() for name in settings.sizes}
    return [
        Workload(name, config, settings.rows, length, settings.dtype, settings.fill)
        for name, config in configs.items()
        for length in settings.lengths
    ]


def measure(work: Workload, settings: Benchmark) -> list[Result]:
    """Times all contestants on a workload.

    Raises:
        ValueError: their losses differ.
    """
    from train.benchmark.torch_peer import TorchPeer

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    ours = Ours(work, scan=settings.scan)
    with tempfile.TemporaryDirectory() as folder:
        ours.save(Path(folder) / "model")
        peers = [TorchPeer(work, peer, Path(folder) / "model", device=device) for peer in settings.peers]
    contestants: list[Contestant] = [ours, *peers]
    losses = [contestant.loss() for contestant in contestants]
    told = ", ".join(f"{c.name} {loss:.6f}" for c, loss in zip(contestants, losses, strict=True))
    print(f"{work.name}, {work.rows} x {work.length}, {work.dtype}: losses {told}", file=sys.stderr)
    if max(losses) - min(losses) > _CLOSE[work.dtype]:
        raise ValueError(f"the losses differ by more than {_CLOSE[work.dtype]}: {told}")
    results = []
    for kind in settings.kinds:
        times = take_turns(contestants, kind, rounds=settings.rounds, seconds=settings.seconds)
        for contestant, seconds, loss in zip(contestants, times, losses, strict=True):
            results.append(_result(work, kind, contestant, seconds, loss))
    gc.collect()  # the weights, before the next ones are made
    return results


def take_turns(contestants: Sequence[Contestant], kind: str, *, rounds: int, seconds: float) -> list[list[float]]:
    """Seconds of one step of each contestant in each round."""
    steps = []
    for contestant in contestants:
        contestant.prepare(kind)
        steps.append(max(1, round(seconds / contestant.run(kind, 1))))
    times: list[list[float]] = [[] for _ in contestants]
    for _ in range(rounds):
        for contestant, count, own in zip(contestants, steps, times, strict=True):
            contestant.run(kind, 1)  # caches and threads are the other's
            own.append(contestant.run(kind, count) / count)
    return times


def _result(work: Workload, kind: str, contestant: Contestant, seconds: list[float], loss: float) -> Result:
    median = statistics.median(seconds)
    flops = work.flops(training=kind == "train") / median
    peak = device_peak(jax.devices()[0].device_kind)
    return Result(
        size=work.name,
        length=work.length,
        rows=work.rows,
        dtype=work.dtype,
        kind=kind,
        contestant=contestant.name,
        step_seconds=median,
        lowest_seconds=min(seconds),
        highest_seconds=max(seconds),
        sequences_per_second=work.rows / median,
        tokens_per_second=work.rows * work.real / median,
        teraflops_per_second=flops / 1e12,
        mfu=None if peak is None else flops / peak,
        peak_bytes=contestant.peak_bytes(kind),
        compile_seconds=contestant.compile_seconds[kind],
        loss=loss,
    )


def table(results: Sequence[Result]) -> list[str]:
    """Lines of markdown."""
    head = ["model", "batch", "", "", "ms (lowest to highest)", "sequences/s", "tokens/s", "TFLOP/s", "MFU", "memory"]
    lines = [head + ["compiled in"], ["---"] * (len(head) + 1)]
    for r in results:
        spread = f"{1e3 * r.step_seconds:.1f} ({1e3 * r.lowest_seconds:.1f} to {1e3 * r.highest_seconds:.1f})"
        speed = [f"{r.sequences_per_second:,.1f}", f"{r.tokens_per_second:,.0f}", f"{r.teraflops_per_second:.3g}"]
        mfu = "" if r.mfu is None else f"{r.mfu:.1%}"
        memory = "" if r.peak_bytes is None else f"{r.peak_bytes / 2**30:.2f} GiB"
        compiled = f"{r.compile_seconds:.1f} s" if r.compile_seconds else ""
        batch = f"{r.rows} x {r.length}, {r.dtype}"
        lines.append([r.size, batch, r.kind, r.contestant, spread, *speed, mfu, memory, compiled])
    return ["| " + " | ".join(line) + " |" for line in lines]


def environment() -> dict[str, Any]:
    """On what it was measured, and when."""
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
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "?")
