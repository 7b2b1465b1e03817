"""One run for each of several seeds, and what their figures are together."""

import dataclasses
import statistics
from pathlib import Path

from flaxbert.files import atomic_write
from train.compilation import compilation_cache
from train.config import Config
from train.loop import run
from train.summary import METRICS_FILE, last_evaluations, markdown_table, read_record


def run_seeds(config: Config) -> Path:
    """Runs `config` once for each of its seeds, each in a folder of its own; returns the folder of all.

    summary.md there holds the mean of every figure of the last evaluations, and the standard deviation of a sample
    (n - 1). Started again it goes on where it was.

    Raises:
        FileNotFoundError, ValueError: as `train.loop.run`; and where there are several hosts.
    """
    folder, seeds = config.run.folder, config.run.seeds
    if config.hosts.detect or config.hosts.coordinator is not None:
        raise ValueError(
            f"seeds is {seeds}, which one process runs one after another; on hosts start each by --run.seed"
        )
    figures: dict[tuple[str, str], list[float]] = {}
    with compilation_cache(folder / "compiled" if config.run.compilation_cache else None):
        for seed in seeds:
            own = dataclasses.replace(config.run, folder=folder / f"seed-{seed}", seed=seed, seeds=())
            print(f"seed {seed}, {seeds.index(seed) + 1} of {len(seeds)}", flush=True)
            found = run(dataclasses.replace(config, run=own))
            for name, line in last_evaluations(read_record(found / METRICS_FILE)).items():
                for figure, value in line.items():
                    figures.setdefault((name, figure), []).append(value)
    head = ["data", "figure", "mean", "deviation", *(f"seed {seed}" for seed in seeds)]
    rows = [[*key, statistics.fmean(values), _deviation(values), *values] for key, values in figures.items()]
    lines = [f"# {folder.name}: {len(seeds)} seeds", "", *markdown_table(head, rows), ""]
    with atomic_write(folder / "summary.md") as aside:
        aside.write_text("\n".join(lines), encoding="utf-8")
    for name, figure, mean, deviation, *_ in rows:
        print(f"{name} {figure}: {mean:.4f}, deviation {deviation:.4f}")
    print(f"summary: {folder / 'summary.md'}")
    return folder


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
