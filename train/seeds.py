"""Runs with several seeds, one after another, and the mean and deviation of their metrics."""

import dataclasses
import statistics
from pathlib import Path

from flaxbert.files import atomic_write
from train.compilation import compilation_cache
from train.config import Config
from train.loop import run
from train.summary import METRICS_FILE, last_evaluations, markdown_table, read_record


def run_seeds(config: Config) -> Path:
    """Run `config` once with each of its seeds, each in a subfolder; return the folder of all.

    summary.md there holds the mean of every metric of the last evaluations and its sample standard deviation (n - 1).
    A restarted command resumes where it was interrupted.

    Raises:
        FileNotFoundError, ValueError: as of `train.loop.run`; or the config names several hosts.
    """
    folder, seeds = config.run.folder, config.run.seeds
    if config.hosts.detect or config.hosts.coordinator is not None:
        raise ValueError(
            f"seeds is {seeds}, which a single host runs one after another; on several hosts start one run for "
            "each seed with --run.seed"
        )
    metrics: dict[tuple[str, str], list[float]] = {}
    with compilation_cache(folder / "compiled" if config.run.compilation_cache else None):
        for seed in seeds:
            settings = dataclasses.replace(config.run, folder=folder / f"seed-{seed}", seed=seed, seeds=())
            print(f"seed {seed}, {seeds.index(seed) + 1} of {len(seeds)}", flush=True)
            seed_folder = run(dataclasses.replace(config, run=settings))
            for name, line in last_evaluations(read_record(seed_folder / METRICS_FILE)).items():
                for metric, value in line.items():
                    metrics.setdefault((name, metric), []).append(value)
    head = ["data", "metric", "mean", "deviation", *(f"seed {seed}" for seed in seeds)]
    rows = [[*key, statistics.fmean(values), _deviation(values), *values] for key, values in metrics.items()]
    lines = [f"# {folder.name}: {len(seeds)} seeds", "", *markdown_table(head, rows), ""]
    with atomic_write(folder / "summary.md") as aside:
        aside.write_text("\n".join(lines), encoding="utf-8")
    for name, metric, mean, deviation, *_ in rows:
        print(f"{name} {metric}: {mean:.4f}, deviation {deviation:.4f}")
    print(f"summary: {folder / 'summary.md'}")
    return folder


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
