"""Collectives of a compiled program: device groups, mesh axes, bytes, and the least time on the links."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from train.aot.hlo import Instruction
from train.flops import Chip

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
HOP = 1e-6  # seconds from a chip to its neighbour (How to Scale Your Model)
_LINKS_ON_CHIP = 6  # bandwidth between the two cores of a tpu7x chip, in links (Google Cloud's documentation of tpu7x)

Groups = tuple[tuple[int, ...], ...]
"""Devices of each group, as positions in the order of the program's devices."""

_IOTA = r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\)(?= ?\{))? ?\{([^}]*)\}")
_AXIS = re.compile(r"'?([\w.-]+?)'?=(\d+)")
_SUB_AXIS = re.compile(r"'?([\w.-]+?)'?(?::\((\d+)\)(\d+))?$")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Cost of one run of a collective."""

    kind: str
    axes: tuple[str, ...]
    """Axes of the mesh that it crosses."""
    bytes: int
    """Size of the whole array of a group: gathered, scattered, reduced or exchanged; sent by one device if permuted."""
    seconds: float
    """Time on the links, see `TpuSlice.seconds_on_links`."""


@dataclasses.dataclass(frozen=True)
class TpuSlice:
    """Devices of a program, with their positions in the mesh and in the torus."""

    chip: Chip
    mesh: Mapping[str, int]
    """Names and sizes of the axes, in order."""
    coordinates: np.ndarray
    """(devices, 4): chip coordinates (3) and core of each device, in the order of the mesh."""

    @classmethod
    def of(cls, chip: Chip, mesh: Mesh) -> "TpuSlice":
        """Return the slice of a mesh of TPU devices."""
        coordinates = np.asarray([[*device.coords, device.core_on_chip] for device in mesh.devices.flat])
        return cls(chip, dict(zip(mesh.axis_names, mesh.devices.shape, strict=True)), coordinates)

    def collective(self, instruction: Instruction, operand_bytes: int, *, scattered: bool = False) -> Collective:
        """Return the cost of an instruction that is one of `KINDS`.

        `scattered`: every device keeps only its slice of an all-reduce, which the TPU runs as a reduce-scatter.
        """
        groups = parse_groups(instruction.attributes, devices=len(self.coordinates))
        kind = collective_kind(instruction)
        kind = "reduce-scatter" if kind == "all-reduce" and scattered else kind
        size = instruction.bytes
        if instruction.opcode.endswith("-start"):
            size = max(size - operand_bytes, operand_bytes)  # the result of a start contains the operands too
        if kind == "reduce-scatter":
            size = operand_bytes
        return Collective(kind, crossed_axes(groups, self.mesh), size, self.seconds_on_links(kind, groups, size))

    def seconds_on_links(self, kind: str, groups: Groups, size: int) -> float:
        """Return the time of a collective that uses rings along every dimension of the torus that a group spans.

        A group of n devices with B bytes and bandwidth W takes B (n-1)/n / W for an all-gather or reduce-scatter, twice
        that for an all-reduce, a quarter for an all-to-all, B / link for a permutation; and at least `HOP` for every
        step around a ring. W is the sum over the spanned dimensions: both directions of a ring, one direction if the
        dimension is not closed or not spanned completely. Contention with other groups is ignored.
        """
        slowest = 0.0
        for group in groups if kind == "collective-permute" else groups[:1]:
            n = len(group)
            bandwidth, hops = self._links(group)
            if bandwidth == 0.0:
                continue
            if kind == "collective-permute":
                seconds = size / min(bandwidth, self.chip.link_bandwidth)
            else:
                factor = {"all-reduce": 2.0, "all-to-all": 0.25}.get(kind, 1.0)
                seconds = factor * size * (n - 1) / n / bandwidth
            slowest = max(slowest, seconds, hops * HOP)
        return slowest

    def _links(self, group: Sequence[int]) -> tuple[float, int]:
        """Return the bandwidth of a group's links (bytes/s), and its longest path in hops."""
        own = self.coordinates[list(group)]
        bandwidth, hops = 0.0, 0
        for dimension in range(3):
            length = len(np.unique(own[:, dimension]))
            if length > 1:
                size = len(np.unique(self.coordinates[:, dimension]))
                ring = length == size and size % self.chip.ring == 0
                bandwidth += self.chip.link_bandwidth * (2 if ring else 1)
                hops += length // 2 if ring else length - 1
        if bandwidth == 0.0 and len(np.unique(own[:, 3])) > 1:
            return _LINKS_ON_CHIP * self.chip.link_bandwidth, 0
        return bandwidth, hops


def collective_kind(instruction: Instruction) -> str:
    """Return the one of `KINDS` that an instruction starts, or "" (also for the `-done` of an asynchronous one)."""
    kind = re.sub(r"^ragged-", "", instruction.opcode).removesuffix("-start")
    return kind if kind in KINDS else ""


def crossed_axes(groups: Groups, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Return the axes of the mesh (names with sizes, in order) along which the devices of any group differ."""
    sizes = tuple(mesh.values())
    crossed: set[str] = set()
    for group in groups:
        indices = np.stack(np.unravel_index(np.asarray(group), sizes))
        crossed |= {name for name, row in zip(mesh, indices, strict=True) if np.any(row != row[0])}
    return tuple(name for name in mesh if name in crossed)


def parse_groups(attributes: str, *, devices: int) -> Groups:
    """Parse the device groups in a collective's attributes.

    XLA writes them as lists "{{0,1},{2,3}}" ("{}": all devices), as iotas "[4,8]<=[8,4]T(1,0)", as mesh axes
    "mesh['a'=4,'b'=2] {'a'}" (also with parts of an axis and orders of devices), or as the pairs of a permutation.

    Raises:
        ValueError: the groups have none of these forms.
    """
    if found := re.search(r"(?:source_target_pairs|replica_groups)=\{((?:\{[\d,]*\},?)*)\}", attributes):
        groups = re.findall(r"\{([\d,]*)\}", found[1])
        return tuple(tuple(_integers(group)) for group in groups) or (tuple(range(devices)),)
    if found := re.search(rf"replica_groups={_IOTA}", attributes):
        return _as_groups(_iota(*found.groups()))
    if found := _MESH.search(attributes):
        return _mesh_axes_groups(*found.groups())
    raise ValueError(f"no replica_groups of a known form in {attributes[:200]!r}")


def _integers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _iota(shape: str, reshape: str, transpose: str | None) -> np.ndarray:
    """Return the device numbers in order, reshaped, transposed and reshaped again (XLA's TileAssignment)."""
    sizes = _integers(reshape)
    ids = np.arange(int(np.prod(sizes))).reshape(sizes)
    if transpose is not None:
        ids = ids.transpose(_integers(transpose))
    return ids.reshape(_integers(shape))


def _as_groups(ids: np.ndarray) -> Groups:
    return tuple(tuple(int(n) for n in row) for row in ids)


def _mesh_axes_groups(axes: str, order: str | None, grouped: str) -> Groups:
    """Return the groups that run along some axes of a mesh, with the devices in an order that may be given."""
    sizes = {name: int(size) for name, size in _AXIS.findall(axes)}
    ids = np.arange(int(np.prod(list(sizes.values()))))
    if order is not None and "[" in order:
        # "[4,16]T(1,0)": only the reshape and the transposition of an iota.
        found = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order)
        if found is None:
            raise ValueError(f"unknown form of the order of devices in a mesh: {order!r}")
        ids = _iota(str(ids.size), found[1], found[2])
    elif order is not None:
        ids = np.asarray(_integers(order))
    pieces = _axis_pieces(sizes, grouped)
    shape = [size for size, _ in pieces]
    inside = [axis for axis, (_, is_grouped) in enumerate(pieces) if is_grouped]
    outside = [axis for axis, (_, is_grouped) in enumerate(pieces) if not is_grouped]
    group_size = int(np.prod([shape[axis] for axis in inside], dtype=int))
    return _as_groups(ids.reshape(shape).transpose(outside + inside).reshape(-1, group_size))


def _axis_pieces(sizes: Mapping[str, int], grouped: str) -> list[tuple[int, bool]]:
    """Split every axis into pieces (size, whether groups run along it); "'b':(2)4" is a piece of 4 after one of 2."""
    matches = [_SUB_AXIS.match(text.strip()) for text in re.split(r",(?![^(]*\))", grouped) if text.strip()]
    pieces: list[tuple[int, bool]] = []
    for name, size in sizes.items():
        parts = sorted((int(m[2] or 1), int(m[3] or size)) for m in matches if m is not None and m[1] == name)
        done = 1
        for before, length in parts:
            pieces += [(before // done, False), (length, True)]
            done = before * length
        pieces.append((size // done, False))
    return pieces
