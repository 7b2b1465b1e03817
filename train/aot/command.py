"""What `python -m train.aot` does: compiles a config's train step for a slice, and prints what it would cost."""

import argparse
import logging
import sys
from pathlib import Path

from train.aot.topology import LibtpuMissing, slice_devices
from train.command import load_config, parse_flags

USAGE = "python -m train.aot configs/NAME.py --topology v5e:16x16 [--json] [--mesh.fsdp 16 --run.batch-size 4096 ...]"


def main(arguments: list[str]) -> int:
    """Prints an estimate; 0, or 1 for a step that does not fit, 2 for a mistake of the caller's or no libtpu."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    parser = argparse.ArgumentParser(
        prog="python -m train.aot",
        usage=USAGE,
        description="Estimates memory, time and collectives of a train step on a TPU slice, from its compiled program.",
        epilog="All other flags are the config's own, as `python -m train configs/NAME.py --help` lists them.",
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, help="a config file")
    parser.add_argument("--topology", required=True, help="generation and chips along each dimension: v5e:16x16")
    parser.add_argument("--json", action="store_true", help="the estimate as JSON")
    own, flags = parser.parse_known_args(arguments)
    try:
        config = parse_flags(load_config(own.config), flags)
        chip, devices = slice_devices(own.topology)
        # After the flags: --help and a mistake answer at once.
        from train.aot.compile import DoesNotFit, compile_config
        from train.aot.estimate import estimate
        from train.aot.report import table, to_json
        from train.distributed import Placement

        try:
            found = estimate(compile_config(config, Placement.of(config.mesh, devices)), own.topology, chip)
        except DoesNotFit as error:
            print(error, file=sys.stderr)
            return 1
    except (FileNotFoundError, ValueError, LibtpuMissing) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(to_json(found) if own.json else table(found))
    return 0 if found.memory.free >= 0 else 1
