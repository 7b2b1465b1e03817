"""Command line of the trainer: read a config file, apply the flags, run the config once or with several seeds."""

import dataclasses
import io
import itertools
import logging
import os
import statistics
import sys
import traceback
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NoReturn

import jax
import tyro

from flaxbert.files import atomic_write
from train.compilation import compilation_cache
from train.config import FORMER_SWITCHES, RENAMED_SETTINGS, Config
from train.config_file import load_config
from train.preemption import Preemption
from train.state_check import CORRUPT_STATE, CorruptState
from train.summary import METRICS_FILE, last_evaluations, markdown_table, read_record
from train.tasks.task import TaskSettings

_USAGE = "usage: python -m train configs/NAME.py [--run.seed 1 --optim.learning-rate 3e-5 ...] [--help]"


def run_and_exit(arguments: list[str], preemption: Preemption) -> NoReturn:
    """Call `main` and end the process with its exit code."""
    try:
        code = main(arguments, preemption)
    except BaseException:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        code = 1
    preemption.wait_if_ending()
    if code and jax.distributed.is_initialized():
        # A normal exit would make jax wait for the other hosts, which are ending too.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def usage_code(arguments: Sequence[str], usage: str) -> int | None:
    """Print the usage where no config is given; return the exit code then: 0 if help was asked for, else 2."""
    if arguments and not arguments[0].startswith("-"):
        return None
    asked_for_help = bool(arguments) and arguments[0] in ("-h", "--help")
    print(usage, file=sys.stdout if asked_for_help else sys.stderr)
    return 0 if asked_for_help else 2


def prepare_output() -> None:
    """Show warnings as plain lines; letters that the terminal's encoding lacks do not end a command."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main(arguments: list[str], preemption: Preemption | None = None) -> int:
    """Run a config and return the exit code.

    Returns:
        0: the run finished. 1: losses or gradients were not finite. 2: a mistake in the settings or the data. 3:
        another host was lost (killed, disconnected, or without a sign of life); start the run again, and it resumes
        from its last checkpoint. 4: the state was corrupted (`--run.verify-every`). 130: interrupted.
        If one of several hosts fails, all end with its code.
        A `preemption` that listens to signals ends the process itself, with 75.
    """
    if (code := usage_code(arguments, _USAGE)) is not None:
        return code
    prepare_output()
    try:
        config = parse_flags(load_config(Path(arguments[0]).expanduser()), arguments[1:])
        # Imported after the flags are read, so that --help and errors in flags are fast.
        from train.loop import run

        if config.run.seeds:
            run_seeds(config, preemption)
        else:
            run(config, preemption)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except CorruptState as error:
        print(f"stopped: {error}", file=sys.stderr)
        return CORRUPT_STATE
    except KeyboardInterrupt:
        print("interrupted; start the run again, and it resumes from its last checkpoint", file=sys.stderr)
        return 130
    return 0


def run_seeds(config: Config, preemption: Preemption | None = None) -> Path:
    """Run `config` once with each of its seeds, each in a subfolder; return the folder of all.

    summary.md there holds the mean of every metric of the last evaluations and its sample standard deviation (n - 1).
    A restarted command resumes where it was interrupted.

    Raises:
        FileNotFoundError, ValueError: as of `train.loop.run`; or the config names several hosts.
    """
    from train.loop import run

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
            seed_folder = run(dataclasses.replace(config, run=settings), preemption)
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


def parse_flags(default: Config, flags: Sequence[str], *, module: str = "train") -> Config:
    """Return the config with flags applied; a wrong flag ends the process with a message and exit code 2.

    `module` is the one that the user runs, which the message names.

    Raises:
        ValueError: a flag has a former name; the message gives the new one.
    """
    for flag in flags:
        option = flag.partition("=")[0]
        section, _, name = option.removeprefix("--").replace("-", "_").rpartition(".")
        positive = name.removeprefix("no_")
        renamed = RENAMED_SETTINGS.get(f"{section}.{positive}")
        if option.startswith("--") and renamed is not None:
            former, (section, _, new) = f"{section}.{positive}", renamed.rpartition(".")
            negation = "" if positive == name else "no-"
            if former in FORMER_SWITCHES:
                negation, new = "", f"{new} {FORMER_SWITCHES[former][positive == name]}"
            raise ValueError(f"{option} is now called --{section}.{negation}{new.replace('_', '-')}")
    given = {flag.partition("=")[0].removeprefix("--").replace("-", "_") for flag in flags if flag.startswith("--")}
    for name, values in FORMER_SWITCHES.items():
        if (value := _value_of(name, flags)) in values:
            raise ValueError(f"--{name.replace('_', '-')}: {value} is now called {values[value]}")
    _check_sets(default.task, given, flags)
    return tyro.cli(
        type(default)[type(default.task)],  # type: ignore[reportInvalidTypeArguments]
        default=_with_other_length(default, given),
        args=flags,
        prog=f"python -m {module} CONFIG",
        description="Train what the config file describes, with these flags applied.",
        # For a field whose type is a union, such as the optimizer: the flags of the class that the file chose.
        config=(tyro.conf.AvoidSubcommands,),
    )


def _with_other_length(default: Config, given: Collection[str]) -> Config:
    """Return the config without its `epochs` where the flags give `steps` instead, and the other way round."""
    run = default.run
    if "run.steps" in given and "run.epochs" not in given and run.epochs is not None:
        run = dataclasses.replace(run, epochs=None, steps=1)  # replaced by the flag's
    elif "run.epochs" in given and "run.steps" not in given and run.steps is not None:
        run = dataclasses.replace(run, epochs=1.0, steps=None)
    return dataclasses.replace(default, run=run)


def _check_sets(task: TaskSettings, given: Collection[str], flags: Sequence[str]) -> None:
    """Refuse other training data beside the evaluation sets of the config, which belong to its own training data.

    Raises:
        ValueError: names the flags to give.
    """
    own = {name: getattr(task, name, None) for name in ("dev", "test", "extra_eval")}
    kept = [name for name, value in own.items() if value and f"task.{name}" not in given]
    left = [f"--task.{name.replace('_', '-')}" for name in kept]
    train = _value_of("task.train", flags)
    is_missing = train is not None and Path(train).suffix != "" and not Path(train).expanduser().exists()
    # A file that does not exist is named by its reader.
    if not left or "task.train" not in given or train == getattr(task, "train", None) or is_missing:
        return
    # A flag of several values without any of them gives none.
    without = [flag if isinstance(own[name], tuple) else f"{flag} None" for name, flag in zip(kept, left, strict=True)]
    raise ValueError(
        f"--task.train names other data, but the config's own {' and '.join(left)} would be evaluated: give "
        f"{' and '.join(left)} too, or leave them out: {' '.join(without)}"
    )


def _value_of(name: str, flags: Sequence[str]) -> str | None:
    """Return the value of the flag of a setting, such as "task.train"."""
    for flag, following in itertools.pairwise([*flags, None]):
        option, equals, value = (flag or "").partition("=")
        if option.removeprefix("--").replace("-", "_") == name:
            return value if equals else following
    return None
