"""Command `python -m train.search`: search for the best length configurations of an adapted model."""

import io
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from train.command import load_config, parse_flags
from train.search.settings import SearchConfig

_USAGE = "usage: python -m train.search configs/NAME.py [--search.metric accuracy --search.iterations 10 ...] [--help]"


def main(arguments: Sequence[str]) -> int:
    """Run a search; return 0, 2 for a mistake in the settings or the data, or 130 if interrupted."""
    if not arguments or arguments[0].startswith("-"):
        asked_for_help = bool(arguments) and arguments[0] in ("-h", "--help")
        print(_USAGE, file=sys.stdout if asked_for_help else sys.stderr)
        return 0 if asked_for_help else 2
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # letters that the terminal's encoding lacks do not end a search
            stream.reconfigure(errors="backslashreplace")
    try:
        config = load_config(Path(arguments[0]).expanduser())
        search_config = parse_flags(SearchConfig(**vars(config)), arguments[1:])
        assert isinstance(search_config, SearchConfig)
        # Imported after the flags are read, so that --help and errors in flags are fast.
        from train.search.run import run_search

        run_search(search_config)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; start the search again, and it goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
