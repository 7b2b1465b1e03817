"""`python -m train.aot.pods --json FILE`: BERT's pretraining on slices of many sizes, estimated, as one table.

Each estimate is that of `python -m train.aot`, made in a process of its own and kept in FILE at once: the same command
goes on where it was stopped. Weak scaling is against one chip of the same kind with the same rows for each chip, so
that the batch grows with the slice. Also where several chips take the same rows (`fsdp+tensor`): rows are counted for
each chip, and every chip has as much to compute as the one.
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

from train.aot.pods_table import Line, table
from train.aot.presets import Preset
from train.aot.topology import parse_topology

_CONFIGS = {"base_128": 80, "base_512": 40, "large_128": 80, "large_512": 20}
"""Of configs/pretrain_NAME.py, with the rows of a chip that has 16 GiB; one with 32 has twice as many, and so on.

Fives, which no size of a model is a multiple of: whole batches can be told from everything else.
"""
_TOPOLOGIES = ("v5e:4x4", "v5e:16x16", "v4:4x4x8", "v6e:16x16", "v5p:8x8x16")


@dataclasses.dataclass(frozen=True)
class Case:
    """What is estimated."""

    config: str
    topology: str
    preset: Preset

    @property
    def rows(self) -> int:
        """Of each chip: the 16 GiB of a v5e times a power of two."""
        chip, _ = parse_topology(self.topology)
        return _CONFIGS[self.config] * 2 ** int(math.log2(chip.hbm_bytes / 2**34))

    @property
    def command(self) -> list[str]:
        """What estimates it, after the interpreter."""
        config = f"configs/pretrain_{self.config}.py"
        how = ["--preset", self.preset.value, "--rows-per-device", str(self.rows)]
        return ["-m", "train.aot", config, "--topology", self.topology, *how, "--json"]

    @property
    def key(self) -> str:
        """The same for the same case."""
        return " ".join(self.command)


def main(arguments: list[str]) -> int:
    """Estimates what FILE does not hold yet, and prints the table of what it holds; 0, or 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m train.aot.pods", description=__doc__, allow_abbrev=False)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="a line for each estimate")
    parser.add_argument("--configs", nargs="+", choices=list(_CONFIGS), default=list(_CONFIGS))
    parser.add_argument("--topologies", nargs="+", default=list(_TOPOLOGIES))
    presets = [preset.value for preset in Preset]
    parser.add_argument("--presets", nargs="+", choices=presets, default=presets)
    parser.add_argument("--table", action="store_true", help="print the table of FILE, and estimate nothing")
    own = parser.parse_args(arguments)
    try:
        asked = [] if own.table else list(cases(own.configs, own.topologies, [Preset(name) for name in own.presets]))
        done = {line.key for line in read(own.json)}
        missing = [case for case in asked if case.key not in done]
        for number, case in enumerate(missing, 1):
            print(f"{number}/{len(missing)}: python {case.key}", file=sys.stderr)
            line = estimate(case)
            with own.json.open("a") as file:
                file.write(json.dumps(dataclasses.asdict(line)) + "\n")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(read(own.json)))
    return 0


def cases(configs: Sequence[str], topologies: Sequence[str], presets: Sequence[Preset]) -> Iterator[Case]:
    """For each config and kind of chip one chip, then every slice with every preset."""
    for config in configs:
        kinds: set[str] = set()
        for topology in topologies:
            chip, shape = parse_topology(topology)
            alone = f"{chip.name}:{'x'.join('1' * len(shape))}"
            if alone not in kinds:
                yield Case(config, alone, Preset.REPLICATED)
            kinds.add(alone)
            if topology != alone:
                yield from (Case(config, topology, preset) for preset in presets)


def estimate(case: Case) -> Line:
    """One case, in a process of its own: the compiler has been seen to end its process.

    Raises:
        ValueError: what the process complained of, but for a step that does not fit and a compiler that crashed.
    """
    done = subprocess.run([sys.executable, *case.command], capture_output=True, text=True)
    if done.returncode > 1 or (done.returncode == 1 and not done.stdout and "does not fit" not in done.stderr):
        raise ValueError(f"python {case.key} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    if done.returncode < 0:
        error = f"the compiler crashed (signal {-done.returncode})"
    else:
        error = None if done.stdout else done.stderr.splitlines()[0]
    found = None if error else json.loads(done.stdout)
    if found is not None:
        del found["estimated"]["costliest"]  # nine tenths of it, and in no table
        del found["compile_seconds"]  # of the machine, and of what else it did
    return Line(
        key=case.key,
        config=case.config,
        topology=case.topology,
        preset=case.preset.value,
        rows=case.rows,
        versions=", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu")),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        estimate=found,
        error=error,
    )


def read(file: Path) -> list[Line]:
    """The lines that a file holds; none where it is not there."""
    return [Line(**json.loads(line)) for line in file.read_text().splitlines()] if file.is_file() else []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
