"""Data that devices send to each other in a compiled program, and the least time that the links need for it."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from train.aot.groups import Groups, crossed, parse_groups
from train.aot.hlo import Instruction
from train.chips import Chip

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
HOP = 1e-6  # seconds from a chip to its neighbour (How to Scale Your Model)
_ON_CHIP = 6  # links' worth between the two cores of a tpu7x chip (Google Cloud's documentation of tpu7x)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective, each time that it runs."""

    kind: str
    axes: tuple[str, ...]
    """Of the mesh, that it crosses."""
    bytes: int
    """The whole array of a group: gathered, scattered, reduced or exchanged. Of a permutation, what a device sends."""
    seconds: float
    """On the links, by `seconds_on_links`."""


@dataclasses.dataclass(frozen=True)
class Slice:
    """The devices of a program: their place in the mesh and in the torus."""

    chip: Chip
    mesh: Mapping[str, int]
    """Names and sizes of the axes, in order."""
    places: np.ndarray
    """(devices, 4): chip coordinates and core of each device, in the order of the mesh."""

    @classmethod
    def of(cls, chip: Chip, mesh: Any) -> "Slice":
        """Of a mesh of TPU devices."""
        places = np.asarray([[*device.coords, device.core_on_chip] for device in mesh.devices.flat])
        return cls(chip, dict(zip(mesh.axis_names, mesh.devices.shape, strict=True)), places)

    def collective(self, instruction: Instruction, operand_bytes: int, *, scattered: bool = False) -> Collective:
        """What an instruction of one of `KINDS` sends.

        Args:
            instruction: the collective.
            operand_bytes: of what it is given.
            scattered: an all-reduce of which every device keeps its slice; the TPU runs it as a reduce-scatter.
        """
        groups = parse_groups(instruction.attributes, devices=len(self.places))
        kind = base_kind(instruction)
        kind = "reduce-scatter" if kind == "all-reduce" and scattered else kind
        whole = sum(shape.bytes for shape in instruction.shapes)
        if instruction.opcode.endswith("-start"):
            whole = max(whole - operand_bytes, operand_bytes)  # the result of a start holds the operands too
        if kind == "reduce-scatter":
            whole = operand_bytes
        return Collective(kind, crossed(groups, self.mesh), whole, self.seconds_on_links(kind, groups, whole))

    def seconds_on_links(self, kind: str, groups: Groups, whole: int) -> float:
        """Rings along every dimension of the torus that a group spans, all at once.

        A group of n with B bytes and bandwidth W (links along the dimensions it spans; both directions of a ring,
        one where the dimension is not closed or not spanned whole) takes B (n-1)/n / W for an all-gather or
        reduce-scatter, twice that for an all-reduce, a quarter for an all-to-all, B / link for a permutation; and
        no less than a hop for every step around. Other groups on the same links are not thought of.
        """
        slowest = 0.0
        for group in groups if kind == "collective-permute" else groups[:1]:
            n = len(group)
            bandwidth, hops = self._links(group)
            if bandwidth == 0.0:
                continue
            if kind == "collective-permute":
                seconds = whole / min(bandwidth, self.chip.link_bandwidth)
            else:
                share = {"all-reduce": 2.0, "all-to-all": 0.25}.get(kind, 1.0)
                seconds = share * whole * (n - 1) / n / bandwidth
            slowest = max(slowest, seconds, hops * HOP)
        return slowest

    def _links(self, group: Sequence[int]) -> tuple[float, int]:
        """Bandwidth of a group's links (bytes/s), and the longest way around in hops."""
        mine = self.places[list(group)]
        bandwidth, hops = 0.0, 0
        for dimension in range(3):
            along = len(np.unique(mine[:, dimension]))
            if along > 1:
                size = len(np.unique(self.places[:, dimension]))
                ring = along == size and size % self.chip.ring == 0
                bandwidth += self.chip.link_bandwidth * (2 if ring else 1)
                hops += along // 2 if ring else along - 1
        if bandwidth == 0.0 and len(np.unique(mine[:, 3])) > 1:
            return _ON_CHIP * self.chip.link_bandwidth, 0
        return bandwidth, hops


def base_kind(instruction: Instruction) -> str:
    """Which of `KINDS` an instruction is; "" for none, and for the done of a start."""
    kind = re.sub(r"^ragged-", "", instruction.opcode).removesuffix("-start")
    return kind if kind in KINDS else ""
