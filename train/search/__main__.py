"""Command `python -m train.search`: search for the best length configurations of an adapted model."""

import sys
from collections.abc import Sequence
from pathlib import Path

from train.command import load_config, parse_flags, prepare_output, usage_code
from train.search.settings import SearchConfig

_USAGE = "usage: python -m train.search configs/NAME.py [--search.metric accuracy --search.iterations 10 ...] [--help]"


def main(arguments: Sequence[str]) -> int:
    """Run a search; return 0, 2 for a mistake in the settings or the data, or 130 if interrupted."""
    if (code := usage_code(arguments, _USAGE)) is not None:
        return code
    prepare_output()
    try:
        config = load_config(Path(arguments[0]).expanduser())
        search_config = parse_flags(SearchConfig(**vars(config)), arguments[1:], module="train.search")
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
