"""Meshes by name, for slices of any size."""

import enum
import math

from train.distributed import MeshShape

_FSDP = 16
_TENSOR = 2


class Preset(enum.Enum):
    """How the devices of a slice share the work."""

    REPLICATED = "replicated"
    """A whole model on each; rows divided among all."""
    FSDP = "fsdp"
    """Groups of 16 keep parameters and optimizer state in parts."""
    FSDP_TENSOR = "fsdp+tensor"
    """Pairs divide heads, feed-forward units and words; 16 pairs keep parameters and optimizer state in parts."""

    def mesh(self, devices: int) -> MeshShape:
        """For so many devices; a slice too small for a group is one group."""
        tensor = math.gcd(devices, _TENSOR) if self is Preset.FSDP_TENSOR else 1
        fsdp = 1 if self is Preset.REPLICATED else math.gcd(devices // tensor, _FSDP)
        return MeshShape(data=devices // (fsdp * tensor), fsdp=fsdp, tensor=tensor)
