"""The command `flaxbert`: subcommands, messages and exit codes.

Exit codes: 0 success, 1 a difference (`verify`) or a checkpoint that does not load (`inspect`), 2 an error,
130 interrupted, 143 terminated.
"""

import dataclasses
import io
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import tyro

from flaxbert.cli.checkpoints import Average, Convert, Export, Inspect, Verify
from flaxbert.cli.flag_names import name_flags
from flaxbert.cli.predict import Predict
from flaxbert.cli.printed_text import EscapingFormatter, escape_control_characters

__all__ = ["main"]

_SUBCOMMANDS = {
    "convert": Convert,
    "inspect": Inspect,
    "verify": Verify,
    "average": Average,
    "predict": Predict,
    "export": Export,
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
    try:
        subcommand = tyro.extras.subcommand_cli_from_dict(
            _SUBCOMMANDS, prog="flaxbert", args=arguments, config=(tyro.conf.FlagCreatePairsOff,)
        )
        paths = {name: _expand_home(value) for name, value in vars(subcommand).items() if name in _PATHS}
        subcommand = dataclasses.replace(subcommand, **paths)
        try:
            return subcommand.run()
        except ValueError as error:
            raise ValueError(name_flags(str(error), subcommand)) from error
    finally:
        if sys.stdout is not None:
            sys.stdout.flush()  # here, because a closed pipe is reported by it


def _expand_home(value: object) -> Any:
    """Replace ~ at the start of a path or of several, as a shell does not in `--output=~/file`."""
    if isinstance(value, tuple):
        return tuple(map(_expand_home, value))
    return type(value)(os.path.expanduser(value)) if isinstance(value, str | Path) else value
