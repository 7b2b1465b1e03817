"""Command `python -m train.aot.pods --json FILE`: estimates of BERT's pretraining on many slices, as one table.

Each estimate is made by `python -m train.aot` in a separate process and appended to FILE at once, so that the same
command continues an interrupted table. Weak scaling compares with one chip of the same generation and the same rows of
a device; the batch grows with the slice. Rows are counted for each device also where several compute the same rows
(`fsdp+tensor`), so that every chip has as much work as the single one.
"""

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from flaxbert.files import JsonObject
from train.aot.topology import Preset, parse_topology

_CONFIGS = {"base_128": 80, "base_512": 40, "large_128": 80, "large_512": 20}
"""For each configs/pretrain_NAME.py, the rows of a device with 16 GiB; one with 32 GiB has twice as many, and so on.

The factor 5 divides no size of a model, so that `whole_batches` can recognise arrays of the whole batch.
"""
_TOPOLOGIES = ("v5e:4x4", "v5e:16x16", "v4:4x4x8", "v6e:16x16", "v5p:8x8x16", "tpu7x:4x4x4")
_HEAD = (
    "config",
    "slice",
    "devices",
    "preset",
    "rows a device",
    "memory",
    "step",
    "collectives",
    "MFU",
    "weak scaling",
)


@dataclasses.dataclass(frozen=True)
class PodCase:
    """Config, slice and preset of one estimate."""

    config: str
    topology: str
    preset: Preset

    @property
    def rows(self) -> int:
        """Return the rows of each device, of which a tpu7x chip has two: those for 16 GiB times a power of two."""
        chip, _ = parse_topology(self.topology)
        return _CONFIGS[self.config] * 2 ** int(math.log2(chip.hbm_bytes / chip.devices / 2**34))

    @property
    def command(self) -> list[str]:
        """Return the arguments of the Python interpreter that make the estimate."""
        config = f"configs/pretrain_{self.config}.py"
        flags = ["--topology", self.topology, "--preset", self.preset.value, "--rows-per-device", str(self.rows)]
        return ["-m", "train.aot", config, *flags, "--json"]

    @property
    def key(self) -> str:
        """Return the command as text, which identifies the case in a file."""
        return " ".join(self.command)


@dataclasses.dataclass(frozen=True)
class PodEstimate:
    """Line of the file: a case with its estimate, or with the reason why there is none."""

    key: str
    config: str
    topology: str
    preset: str
    rows: int
    """Rows of each device."""
    versions: str
    date: str
    estimate: JsonObject | None
    """The JSON of `python -m train.aot` without operations; None if there is no program."""
    error: str | None
    """Reason why there is no program."""

    @property
    def seconds(self) -> float | None:
        """Return the time of a step; None if there is no program."""
        return None if self.estimate is None else self.estimate["estimated"]["step_seconds"]

    @property
    def comparable(self) -> tuple[str, str, int]:
        """Return config, generation and rows of a device: what two lines must share to be compared."""
        return self.config, self.topology.partition(":")[0], self.rows

    @property
    def single_chip(self) -> bool:
        """Return whether the slice is one chip."""
        return set(self.topology.partition(":")[2].split("x")) == {"1"}


def main(arguments: list[str]) -> int:
    """Make the estimates that FILE lacks, and print its table; return 0, or 2 for an error of the user."""
    parser = argparse.ArgumentParser(prog="python -m train.aot.pods", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="file with a line for each estimate")
    parser.add_argument("--configs", nargs="+", choices=list(_CONFIGS), default=list(_CONFIGS))
    parser.add_argument("--topologies", nargs="+", default=list(_TOPOLOGIES))
    presets = [preset.value for preset in Preset]
    parser.add_argument("--presets", nargs="+", choices=presets, default=presets)
    parser.add_argument("--table", action="store_true", help="only print the table of FILE, without new estimates")
    own = parser.parse_args(arguments)
    try:
        cases = [] if own.table else pod_cases(own.configs, own.topologies, [Preset(name) for name in own.presets])
        done = {line.key for line in read_pod_estimates(own.json)}
        missing = [case for case in cases if case.key not in done]
        for number, case in enumerate(missing, 1):
            print(f"{number}/{len(missing)}: python {case.key}", file=sys.stderr)
            line = estimate_case(case)
            with own.json.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(line)) + "\n")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(pods_table(read_pod_estimates(own.json)))
    return 0


def pod_cases(configs: Sequence[str], topologies: Sequence[str], presets: Sequence[Preset]) -> Iterator[PodCase]:
    """Yield for each config and generation the single chip, then every slice with every preset."""
    for config in configs:
        generations: set[str] = set()
        for topology in topologies:
            chip, shape = parse_topology(topology)
            single = f"{chip.name}:{'x'.join('1' * len(shape))}"
            if single not in generations:
                yield PodCase(config, single, Preset.REPLICATED)
            generations.add(single)
            if topology != single:
                yield from (PodCase(config, topology, preset) for preset in presets)


def estimate_case(case: PodCase) -> PodEstimate:
    """Make one estimate in a separate process, because the compiler may crash.

    Raises:
        ValueError: the process failed, except for a step that does not fit or a crash of the compiler.
    """
    done = subprocess.run([sys.executable, *case.command], capture_output=True, text=True)
    if done.returncode > 1 or (done.returncode == 1 and not done.stdout and "does not fit" not in done.stderr):
        raise ValueError(f"python {case.key} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    error, estimate = None, None
    if done.returncode < 0:
        error = f"the compiler crashed (signal {-done.returncode})"
    elif not done.stdout:
        error = done.stderr.splitlines()[0]
    else:
        estimate = json.loads(done.stdout)
        del estimate["estimated"]["costliest"]  # nine tenths of the JSON, and not in the table
        del estimate["compile_seconds"]  # depends on this machine and its load
    return PodEstimate(
        key=case.key,
        config=case.config,
        topology=case.topology,
        preset=case.preset.value,
        rows=case.rows,
        versions=", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu")),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        estimate=estimate,
        error=error,
    )


def read_pod_estimates(file: Path) -> list[PodEstimate]:
    """Return the lines of a file; none if the file does not exist."""
    return [PodEstimate(**json.loads(line)) for line in file.read_text().splitlines()] if file.is_file() else []


def pods_table(lines: Sequence[PodEstimate]) -> str:
    """Return a Markdown table, followed by the versions, dates and results of the sharding checks."""
    single = {line.comparable: line.seconds for line in lines if line.single_chip}
    rows = [_HEAD, ("---",) * len(_HEAD), *(_table_row(line, single.get(line.comparable)) for line in lines)]
    text = [f"| {' | '.join(row)} |" for row in rows]
    made = sorted({f"{line.versions}, {line.date}" for line in lines})
    return "\n".join([*text, "", f"Estimated with {'; '.join(made)}.", *_sharding_checks(lines)])


def _table_row(line: PodEstimate, single_chip_seconds: float | None) -> tuple[str, ...]:
    if line.estimate is None or line.seconds is None:
        return (line.config, line.topology, "", line.preset, str(line.rows), line.error or "", "", "", "", "")
    preset, links, scaling = "", "", ""  # not of a single chip
    estimated = line.estimate["estimated"]
    if not line.single_chip:
        preset = line.preset
        sent = sum(collective["seconds"] for collective in estimated["collectives"])
        links = f"{sent * 1e3:.2f} ms, {estimated['seconds']['waiting_links'] * 1e3:.2f} not hidden"
        scaling = "" if single_chip_seconds is None else f"{single_chip_seconds / line.seconds:.1%}"
    gib = {name: count / 2**30 for name, count in estimated["memory_bytes"].items()}
    memory = f"{gib['total']:.1f} of {gib['capacity']:.0f} GiB"
    time, mfu = f"{line.seconds * 1e3:.1f} ms", f"{estimated['mfu']:.1%}"
    chips, rows = str(line.estimate["devices"]), str(line.rows)
    return line.config, line.topology, chips, preset, rows, memory, time, links, mfu, scaling


def _sharding_checks(lines: Sequence[PodEstimate]) -> Iterator[str]:
    """Yield for both sharding checks the number of programs with findings, and the arrays found."""
    for name in ("parameters_gathered_beyond_fsdp", "whole_batches"):
        results = [(line, line.estimate["estimated"][name]) for line in lines if line.estimate is not None]
        known = [(line, arrays) for line, arrays in results if arrays is not None]
        affected = [(line, arrays) for line, arrays in known if arrays]
        unknown = f" ({len(results) - len(known)} unknown)" if len(known) < len(results) else ""
        title = name.replace("_", " ").capitalize()
        yield f"\n{title}: {len(affected) or 'none'} of {len(known)} programs{unknown}."
        for line, arrays in affected:
            texts = [f"{a['shape']['dtype']}{a['shape']['dims']} over {'+'.join(a['axes'])}" for a in arrays]
            yield f"- {line.config} on {line.topology}, {line.preset}: {', '.join(texts)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
