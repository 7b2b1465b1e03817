"""What `python -m train.aot` does: compiles a config's train step for a slice, and prints what it would cost."""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from train.aot.presets import Preset
from train.aot.topology import LibtpuMissing, slice_devices
from train.command import load_config, parse_flags
from train.config import Config

USAGE = """python -m train.aot configs/NAME.py --topology v5e:16x16 [--preset fsdp] [--rows-per-device 32] [--json]
    [--mesh.fsdp 16 --run.batch-size 4096 --model.remat dots ...]"""


def main(arguments: list[str]) -> int:
    """Prints an estimate; 0, or 1 for a step that does not fit, 2 for a mistake of the caller's or no libtpu."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    own, flags = _parser().parse_known_args(arguments)
    try:
        config = parse_flags(load_config(own.config), flags)
        _check_once(own, flags)
        chip, devices = slice_devices(own.topology)
        preset = None if own.preset is None else Preset(own.preset)
        config = for_slice(config, len(devices), preset=preset, rows_per_device=own.rows_per_device)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train.aot",
        usage=USAGE,
        description="Estimates memory, time and collectives of a train step on a TPU slice, from its compiled program.",
        epilog="All other flags are the config's own, as `python -m train configs/NAME.py --help` lists them.",
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, help="a config file")
    parser.add_argument("--topology", required=True, help="generation and chips along each dimension: v5e:16x16")
    parser.add_argument(
        "--preset",
        choices=[preset.value for preset in Preset],
        help="the mesh for this slice; instead of --mesh.*",
    )
    parser.add_argument(
        "--rows-per-device", type=int, metavar="N", help="N rows a step for each device; instead of --run.batch-size"
    )
    parser.add_argument("--json", action="store_true", help="the estimate as JSON")
    return parser


def _check_once(own: argparse.Namespace, flags: Sequence[str]) -> None:
    """Nothing may be asked for in two ways.

    Raises:
        ValueError: names both flags.
    """
    names = [flag.split("=")[0].replace("_", "-") for flag in flags]
    meshes = [name for name in names if name.startswith("--mesh.")]
    if own.preset is not None and meshes:
        raise ValueError(f"--preset {own.preset} and {meshes[0]} both say what the mesh is; give one of them")
    if own.rows_per_device is not None and "--run.batch-size" in names:
        raise ValueError("--rows-per-device and --run.batch-size both say how many rows there are; give one of them")


def for_slice(config: Config, devices: int, *, preset: Preset | None, rows_per_device: int | None) -> Config:
    """The config with the mesh and the rows that so many devices are to have, as it is where None.

    Rows are counted for each device, also where pairs of them take the same rows: those then take twice as many.
    """
    if preset is not None:
        config = dataclasses.replace(config, mesh=preset.mesh(devices))
    if rows_per_device is not None:
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, batch_size=rows_per_device * devices))
    return config
