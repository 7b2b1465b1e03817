"""TPU slices by name, as devices that libtpu describes and compiles for without a TPU, and meshes for them."""

import enum
import importlib.util
import math
import os
from collections.abc import Sequence

from train.distributed import MeshShape
from train.flops import CHIPS, Chip

_DIMENSIONS = {chip.name: chip.links // 2 for chip in CHIPS}
_FSDP = 16
_TENSOR = 2
# For libtpu without a TPU: do not query the metadata server of Google's machines, do not report an unknown machine,
# and do not claim the chips exclusively. The compiler ignores the accelerator type; any value serves all generations.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class LibtpuMissing(RuntimeError):
    """libtpu, which contains the TPU compiler, is not installed."""


class Preset(enum.Enum):
    """Mesh for a slice of any size, by the way the devices share the work."""

    REPLICATED = "replicated"
    """Every device holds the whole model; batch rows are divided among all."""
    FSDP = "fsdp"
    """Groups of 16 devices split parameters and optimizer state."""
    FSDP_TENSOR = "fsdp+tensor"
    """Pairs divide heads, feed-forward units and vocabulary entries; 16 pairs split parameters and optimizer state."""

    def mesh(self, devices: int) -> MeshShape:
        """Return the mesh for a number of devices; a slice smaller than a group is one group."""
        tensor = math.gcd(devices, _TENSOR) if self is Preset.FSDP_TENSOR else 1
        fsdp = 1 if self is Preset.REPLICATED else math.gcd(devices // tensor, _FSDP)
        return MeshShape(data=devices // (fsdp * tensor), fsdp=fsdp, tensor=tensor)


def slice_devices(name: str) -> tuple[Chip, Sequence[object]]:
    """Return the chip and the JAX devices of a slice such as "v5e:16x16" (generation, chips along each dimension).

    Raises:
        LibtpuMissing: libtpu is not installed.
        ValueError: the generation is unknown, or its chips are not built into this shape; the message lists both.
    """
    chip, shape = parse_topology(name)
    if importlib.util.find_spec("libtpu") is None:
        raise LibtpuMissing("the TPU compiler is not installed; pip install -e '.[tpu]' (x86 Linux)")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    settings: dict[str, str | tuple[int, ...]] = {}
    if chip.name in ("v4", "v5p"):
        settings["chip_config_name"] = "megacore"  # both cores as one device, as JAX shows them on a TPU machine
    sizes = (*shape, *(1,) * (3 - len(shape)))
    if any(size % 2 for size in sizes[:2]):
        # A machine has 2x2 chips by default; here it has a single one, or two in a line.
        settings["chips_per_host_bounds"] = (2 if sizes[0] % 2 == 0 else 1, 2 if sizes[1] % 2 == 0 else 1, 1)
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **settings).devices
    except JaxRuntimeError as error:
        raise ValueError(f"{_expected(name)}; libtpu reports: {str(error).splitlines()[0]}") from None
    return chip, devices


def parse_topology(name: str) -> tuple[Chip, tuple[int, ...]]:
    """Return the chip and the number of chips along each dimension of a name such as "v5e:16x16".

    Raises:
        ValueError: the generation is unknown, or its chips are not built into this shape; the message lists both.
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


def _expected(name: str) -> str:
    two = ", ".join(chip.name for chip in CHIPS if _DIMENSIONS[chip.name] == 2)
    three = ", ".join(chip.name for chip in CHIPS if _DIMENSIONS[chip.name] == 3)
    largest = ", ".join(f"{chip.name} {chip.pod}" for chip in CHIPS)
    return (
        f"the topology is {name!r}; give GENERATION:SHAPE, the shape being the chips along each dimension, 1 or even: "
        f"{two} have two (v5e:2x2, v5e:4x4, ... v5e:16x16), {three} three (v5p:2x2x1, v5p:4x4x4, ...); "
        f"chips of a slice at most: {largest}"
    )
