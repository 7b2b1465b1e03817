"""The devices of a TPU slice that is not there, by name: libtpu describes them, and compiles for them."""

import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any

from train.chips import CHIPS, Chip

_DIMENSIONS = {chip.name: chip.links // 2 for chip in CHIPS}
_NO_MACHINE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class LibtpuMissing(RuntimeError):
    """libtpu, which holds the compiler, is not installed."""


def slice_devices(name: str) -> tuple[Chip, Sequence[Any]]:
    """The chip and the JAX devices of a slice such as "v5e:16x16": its generation, and its chips along each dimension.

    Raises:
        LibtpuMissing: libtpu is not installed.
        ValueError: no such generation, or a shape that its chips are not built into; lists what is known.
    """
    chip, shape = parse_topology(name)
    if importlib.util.find_spec("libtpu") is None:
        raise LibtpuMissing("the TPU compiler is not installed; pip install -e '.[tpu]' (x86 Linux)")
    # Before libtpu starts, which else asks a metadata server that only Google's machines have, complains that it
    # knows no machine, and wants to be the only one to hold the chips, of which there are none. The type is not
    # looked at by the compiler: any will do for any generation.
    for variable, value in _NO_MACHINE.items():
        os.environ.setdefault(variable, value)
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    settings: dict[str, Any] = {}
    if chip.name in ("v4", "v5p"):
        settings["chip_config_name"] = "megacore"  # both cores as one device, as jax has them on a TPU machine
    sizes = (*shape, *(1,) * (3 - len(shape)))
    if any(size % 2 for size in sizes[:2]):
        settings["chips_per_host_bounds"] = _host(sizes)
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **settings).devices
    except JaxRuntimeError as error:
        raise ValueError(f"{_expected(name)}; libtpu says: {str(error).splitlines()[0]}") from None
    return chip, devices


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """The chip and the chips along each dimension of a name such as "v5e:16x16".

    Raises:
        ValueError: no such generation, or a shape that its chips are not built into; lists what is known.
    """
    generation, _, text = name.partition(":")
    chips = [chip for chip in CHIPS if chip.name == generation]
    sizes = text.split("x")
    if not chips or not all(size.isdecimal() and int(size) for size in sizes):
        raise ValueError(_expected(name))
    shape = tuple(map(int, sizes))
    chip = chips[0]
    even = all(size == 1 or size % 2 == 0 for size in shape)
    if len(shape) != _DIMENSIONS[generation] or not even or math.prod(shape) > chip.pod:
        raise ValueError(_expected(name))
    return chip, shape


def _host(sizes: Sequence[int]) -> tuple[int, ...]:
    """The chips of one machine where they are not 2x2: a single one, or two of a line."""
    return (2 if sizes[0] % 2 == 0 else 1, 2 if sizes[1] % 2 == 0 else 1, 1)


def _expected(name: str) -> str:
    flat = ", ".join(chip.name for chip in CHIPS if _DIMENSIONS[chip.name] == 2)
    solid = ", ".join(chip.name for chip in CHIPS if _DIMENSIONS[chip.name] == 3)
    most = ", ".join(f"{chip.name} {chip.pod}" for chip in CHIPS)
    return (
        f"the topology is {name!r}; give GENERATION:SHAPE, the shape being the chips along each dimension, 1 or even: "
        f"{flat} have two (v5e:2x2, v5e:4x4, ... v5e:16x16), {solid} three (v5p:2x2x1, v5p:4x4x4, ...); "
        f"chips of a slice at most: {most}"
    )
