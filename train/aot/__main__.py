"""Command `python -m train.aot`: estimate a train step or forward passes of a config on a TPU slice, without a TPU."""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from train.aot.estimate import DoesNotFit, compile_config, estimate_step
from train.aot.estimate_report import estimate_json, estimate_table
from train.aot.forward import estimate_forward, forward_json, forward_table
from train.aot.topology import LibtpuMissing, Preset, slice_devices
from train.command import load_config, parse_flags
from train.config import Config
from train.distributed import Placement

_USAGE = """python -m train.aot configs/NAME.py --topology v5e:16x16 [--preset fsdp] [--rows-per-device 32] [--json]
    [--forward [--price-per-chip-hour 1.2] [--length-config 96 72 54 ...]]
    [--mesh.fsdp 16 --run.batch-size 4096 --model.remat dots ...]"""


def main(arguments: list[str]) -> int:
    """Print an estimate; return 0, 1 if the step does not fit, or 2 for an error of the user or a missing libtpu."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    own, flags = _parser().parse_known_args(arguments)
    try:
        config = parse_flags(load_config(own.config), flags, module="train.aot")
        _check_conflicts(own, flags)
        chip, devices = slice_devices(own.topology)
        preset = None if own.preset is None else Preset(own.preset)
        config = for_slice(config, len(devices), preset=preset, rows_per_device=own.rows_per_device)
        placement = Placement.of(config.mesh, devices)
        if own.forward:
            estimates = estimate_forward(config, placement, chip, length_config=own.length_config)
            report = forward_json if own.json else forward_table
            print(report(estimates, own.topology, price=own.price_per_chip_hour))
            return 0
        estimate = estimate_step(compile_config(config, placement), own.topology, chip)
    except DoesNotFit as error:
        print(error, file=sys.stderr)
        return 1
    except (FileNotFoundError, ValueError, LibtpuMissing) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(estimate_json(estimate) if own.json else estimate_table(estimate))
    return 0 if estimate.memory.free >= 0 else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train.aot",
        usage=_USAGE,
        description="Estimate memory, time and collectives of a train step on a TPU slice from its compiled program.",
        epilog="All other flags are those of the config; list them with `python -m train configs/NAME.py --help`.",
        allow_abbrev=False,
    )
    parser.add_argument("config", type=Path, help="a config file")
    parser.add_argument("--topology", required=True, help="generation and chips along each dimension: v5e:16x16")
    presets = [preset.value for preset in Preset]
    parser.add_argument("--preset", choices=presets, help="the mesh for this slice; instead of --mesh.*")
    rows_help = "batch rows for each device; instead of --run.batch-size"
    parser.add_argument("--rows-per-device", type=int, metavar="N", help=rows_help)
    parser.add_argument("--json", action="store_true", help="print the estimate as JSON")
    forward_help = "estimate embeddings and classification of texts as long as the config's rows, not a train step"
    parser.add_argument("--forward", action="store_true", help=forward_help)
    parser.add_argument("--price-per-chip-hour", type=float, metavar="PRICE", help="with --forward: add costs of texts")
    lengths_help = "with --forward: tokens that each layer keeps, estimated beside the full model"
    parser.add_argument("--length-config", type=int, nargs="+", default=(), metavar="N", help=lengths_help)
    return parser


def _check_conflicts(own: argparse.Namespace, flags: Sequence[str]) -> None:
    """Raise ValueError with the names of two flags that set the same thing, or of which one needs the other."""
    names = [flag.split("=")[0].replace("_", "-") for flag in flags]
    meshes = [name for name in names if name.startswith("--mesh.")]
    if own.preset is not None and meshes:
        raise ValueError(f"--preset {own.preset} and {meshes[0]} both set the mesh; give one of them")
    for name in ("price_per_chip_hour", "length_config"):
        if getattr(own, name) and not own.forward:
            raise ValueError(f"--{name.replace('_', '-')} is for forward passes; give --forward too")
    if own.rows_per_device is not None and "--run.batch-size" in names:
        raise ValueError("--rows-per-device and --run.batch-size both set the number of rows; give one of them")


def for_slice(config: Config, devices: int, *, preset: Preset | None, rows_per_device: int | None) -> Config:
    """Return the config with the mesh and the batch size for a number of devices; None leaves the config's own.

    Rows are counted for each device, also where pairs of devices compute the same rows: a pair then has twice as many.
    """
    if preset is not None:
        config = dataclasses.replace(config, mesh=preset.mesh(devices))
    if rows_per_device is not None:
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, batch_size=rows_per_device * devices))
    return config


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # before a device is used, so that none is claimed
    sys.exit(main(sys.argv[1:]))
