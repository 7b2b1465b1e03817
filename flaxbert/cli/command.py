"""The command `flaxbert`: its words, their flags, what they print, and the exit codes 0 (done, or same), 1 (differs or
would not load), 2 (cannot), 130 (interrupted) and 143 (terminated)."""

import io
import logging
import os
import signal
import sys
from typing import Annotated, Any

import tyro

from flaxbert.cli.checkpoints import Average, Convert, Inspect, Verify
from flaxbert.cli.export import Export
from flaxbert.cli.predict import Predict
from flaxbert.files import EscapingFormatter, escape_control_characters

Command = (
    Annotated[Convert, tyro.conf.subcommand("convert", prefix_name=False)]
    | Annotated[Inspect, tyro.conf.subcommand("inspect", prefix_name=False)]
    | Annotated[Verify, tyro.conf.subcommand("verify", prefix_name=False)]
    | Annotated[Average, tyro.conf.subcommand("average", prefix_name=False)]
    | Annotated[Predict, tyro.conf.subcommand("predict", prefix_name=False)]
    | Annotated[Export, tyro.conf.subcommand("export", prefix_name=False)]
)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; the exit code."""
    told = logging.StreamHandler()
    told.setFormatter(EscapingFormatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[told])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # whatever the locale: a name that it lacks is no failure
            stream.reconfigure(errors="backslashreplace")
    command: Any = tyro.cli(Command, prog="flaxbert", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))  # type: ignore[arg-type]
    # As Ctrl-C, so that what is half written is removed.
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        code = command.run()
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever read it, `head` say, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        return 0
    except (OSError, ValueError) as error:
        print(escape_control_characters(f"error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
