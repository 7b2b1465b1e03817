"""What `python -m train configs/NAME.py [--flags]` does: reads the config file, applies the flags, runs it."""

import importlib.util
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import jax
import tyro

from train.config import RENAMED_SETTINGS, Config

USAGE = "usage: python -m train configs/NAME.py [--run.seed 1 --optim.learning-rate 3e-5 ...] [--help]"


def load_config(file: Path) -> Config:
    """The `config` that a Python file builds.

    Raises:
        FileNotFoundError: no such file; names its neighbours.
        ValueError: the file defines no `config` of the right type.
    """
    if not file.is_file():
        near = sorted(str(path) for path in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise FileNotFoundError(f"{file}: no such config" + (f"; there are {', '.join(near)}" if near else ""))
    spec = importlib.util.spec_from_file_location("config_file", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = vars(module).get("config")
    if not isinstance(config, Config):
        raise ValueError(f"{file}: must define `config`, a train.config.Config; found {type(config).__name__}")
    return config


def parse_flags(default: Config, flags: Sequence[str]) -> Config:
    """Return the config with flags applied; a wrong flag ends the process with a message and exit code 2.

    Raises:
        ValueError: a flag has a former name; the message gives the new one.
    """
    for flag in flags:
        option = flag.partition("=")[0]
        section, _, name = option.removeprefix("--").replace("-", "_").rpartition(".")
        renamed = RENAMED_SETTINGS.get(f"{section}.{name.removeprefix('no_')}")
        if option.startswith("--") and renamed is not None:
            raise ValueError(f"{option} is now called --{renamed.replace('_', '-')}")
    return tyro.cli(
        Config[type(default.task)],
        default=default,
        args=flags,
        description="Trains what the config file says, with these flags applied.",
        # Of a union of classes, such as the optimizers, the flags of the one in the config file.
        config=(tyro.conf.AvoidSubcommands,),
    )


def end(arguments: list[str]) -> NoReturn:
    """Runs `main`, and ends the process with its exit code."""
    try:
        code = main(arguments)
    except BaseException:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        code = 1
    if code and jax.distributed.is_initialized():
        # jax would wait for the other hosts at exit, which end too.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(arguments: list[str]) -> int:
    """Runs a config.

    Returns:
        the exit code: 0 when it finished, 1 for a loss that was not finite, 2 for a mistake of the caller's. Of several
        hosts all end with the code of the one that failed; 3 says that a host was lost (killed, gone, or silent): start
        the run again, and it goes on from its last checkpoint.
    """
    if not arguments or arguments[0].startswith("-"):
        print(USAGE, file=sys.stdout if arguments and arguments[0] in ("-h", "--help") else sys.stderr)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        default = load_config(Path(arguments[0]))
        config = parse_flags(default, arguments[1:])
        # After the flags: --help and a wrong flag answer at once.
        from train.loop import run
        from train.seeds import run_seeds

        (run_seeds if config.run.seeds else run)(config)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    return 0
