"""The command `flaxbert`: subcommands, messages and exit codes.

Exit codes: 0 success, 1 a difference (`verify`) or a checkpoint that does not load (`inspect`), 2 an error,
130 interrupted, 143 terminated.
"""

import dataclasses
import importlib
import io
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import tyro

from flaxbert.cli.printed_text import EscapingFormatter, escape_control_characters

__all__ = ["main"]

# The module and class of each subcommand, and its help. They are imported when they run, because they import jax.
_SUBCOMMANDS = {
    "convert": (
        "checkpoints.Convert",
        "Convert a checkpoint of any format to a folder that transformers, sentence-transformers and flaxbert load.",
    ),
    "inspect": (
        "checkpoints.Inspect",
        "List the tensors and the config of a checkpoint, and try to load it. Exit code 1: it does not load as it is.",
    ),
    "verify": (
        "checkpoints.Verify",
        "Compare tensors, config and outputs of two checkpoints of any formats. Exit code 1: they differ.",
    ),
    "average": (
        "checkpoints.Average",
        "Average the weights of several checkpoints of one model into a folder that transformers loads.",
    ),
    "predict": (
        "predict.Predict",
        "Run a model on texts: fill masks, classify, judge the next sentence, choose, tag, answer, embed, generate.",
    ),
    "export": (
        "checkpoints.Export",
        "Export a model as a program that runs without flaxbert: StableHLO for XLA, or an ONNX graph.",
    ),
}

_PATHS = ("src", "dst", "a", "b", "output", "model", "file")  # fields of the subcommands


def main(arguments: list[str] | None = None) -> int:
    """Run the subcommand that `arguments` (by default those of the process) name; return the exit code."""
    handler = logging.StreamHandler()
    handler.setFormatter(EscapingFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for characters that the locale cannot encode
    # SystemExit, as KeyboardInterrupt, unwinds the stack, so that incomplete files are removed.
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        return _run(arguments)
    except BrokenPipeError:  # the reader of standard output, for example `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 0
    except (OSError, ValueError) as error:
        print(escape_control_characters(f"error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, previous)


def _run(arguments: list[str] | None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        subcommand = _parse(arguments)
        paths = {name: _expand_home(value) for name, value in vars(subcommand).items() if name in _PATHS}
        subcommand = dataclasses.replace(subcommand, **paths)
        try:
            return subcommand.run()
        except ValueError as error:
            from flaxbert.cli.flag_names import name_flags

            raise ValueError(name_flags(str(error), subcommand)) from error
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()  # here, because a closed pipe is reported by it


def _parse(arguments: list[str]) -> Any:
    """Return the subcommand that is named, with its arguments; exit with the help or with what is wrong."""
    if not arguments or arguments[0] not in _SUBCOMMANDS:
        shown = {
            name: dataclasses.make_dataclass(name, [], namespace={"__doc__": text})
            for name, (_, text) in _SUBCOMMANDS.items()
        }
        tyro.extras.subcommand_cli_from_dict(shown, prog="flaxbert", args=arguments)
        raise ValueError(f"the first argument is {arguments[:1]}; allowed: {', '.join(_SUBCOMMANDS)}")
    module, _, name = _SUBCOMMANDS[arguments[0]][0].partition(".")
    subcommand = getattr(importlib.import_module(f"flaxbert.cli.{module}"), name)
    return tyro.cli(
        subcommand, prog=f"flaxbert {arguments[0]}", args=arguments[1:], config=(tyro.conf.FlagCreatePairsOff,)
    )


def _expand_home(value: object) -> object:
    """Replace ~ at the start of a path or of several, as a shell does not in `--output=~/file`."""
    if isinstance(value, tuple):
        return tuple(map(_expand_home, value))
    return type(value)(os.path.expanduser(value)) if isinstance(value, str | Path) else value
