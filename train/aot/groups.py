"""Which devices a collective joins, and which axes of the mesh it crosses."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

Groups = tuple[tuple[int, ...], ...]

_IOTA = r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?"
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?)\)(?= ?\{))? ?\{([^}]*)\}")
_AXIS = re.compile(r"'?([\w.-]+?)'?=(\d+)")
_SUB_AXIS = re.compile(r"'?([\w.-]+?)'?(?::\((\d+)\)(\d+))?$")


def parse_groups(attributes: str, *, devices: int) -> Groups:
    """The groups of a collective's attributes, as positions in the order of the program's devices.

    All that XLA writes: lists "{{0,1},{2,3}}" ("{}": all devices), iotas "[4,8]<=[8,4]T(1,0)", mesh axes
    "mesh['a'=4,'b'=2] {'a'}" (parts of an axis and orders of devices too), and the pairs of a permutation.

    Raises:
        ValueError: groups in no known form.
    """
    if found := re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes):
        return _listed(found[1])
    if found := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes):
        return _listed(found[1]) or (tuple(range(devices)),)
    if found := re.search(rf"replica_groups={_IOTA}", attributes):
        return _rows(_iota(*found.groups()))
    if found := _MESH.search(attributes):
        return _of_mesh_axes(*found.groups())
    raise ValueError(f"no replica_groups of a known form in {attributes[:200]!r}")


def crossed(groups: Groups, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The axes of the mesh (names with sizes, in order) along which the devices of any group differ."""
    sizes = tuple(mesh.values())
    found: set[str] = set()
    for group in groups:
        places = np.stack(np.unravel_index(np.asarray(group), sizes))
        found |= {name for name, row in zip(mesh, places, strict=True) if np.any(row != row[0])}
    return tuple(name for name in mesh if name in found)


def _listed(text: str) -> Groups:
    return tuple(tuple(int(n) for n in group.split(",") if n) for group in re.findall(r"\{([\d,]*)\}", text))


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _iota(shape: str, reshape: str, transpose: str | None) -> np.ndarray:
    """Device numbers in order, reshaped, transposed, reshaped again (XLA's TileAssignment)."""
    sizes = _numbers(reshape)
    ids = np.arange(int(np.prod(sizes))).reshape(sizes)
    if transpose is not None:
        ids = ids.transpose(_numbers(transpose))
    return ids.reshape(_numbers(shape))


def _rows(ids: np.ndarray) -> Groups:
    return tuple(tuple(int(n) for n in row) for row in ids)


def _of_mesh_axes(axes: str, order: str | None, grouped: str) -> Groups:
    sizes = {name: int(size) for name, size in _AXIS.findall(axes)}
    ids = np.arange(int(np.prod(list(sizes.values()))))
    if order is not None and "[" in order:
        # "[4,16]T(1,0)": the reshape and the transposition alone.
        found = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order)
        if found is None:
            raise ValueError(f"devices of a mesh in no known order: {order!r}")
        ids = _iota(str(ids.size), found[1], found[2])
    elif order is not None:
        ids = np.asarray(_numbers(order))
    parts = _cut(sizes, grouped)
    shape = [size for pieces in parts for size, _ in pieces]
    chosen = [number for number, (_, taken) in enumerate(p for pieces in parts for p in pieces) if taken]
    others = [number for number in range(len(shape)) if number not in chosen]
    group_size = int(np.prod([shape[number] for number in chosen], dtype=int))
    return _rows(ids.reshape(shape).transpose(others + chosen).reshape(-1, group_size))


def _cut(sizes: Mapping[str, int], grouped: str) -> Sequence[Sequence[tuple[int, bool]]]:
    """Every axis as pieces (size, whether the groups run along it); "'b':(2)4" is a piece of 4 after one of 2."""
    wanted = [_SUB_AXIS.match(text.strip()) for text in re.split(r",(?![^(]*\))", grouped) if text.strip()]
    parts: list[list[tuple[int, bool]]] = []
    for name, size in sizes.items():
        mine = sorted((int(m[2] or 1), int(m[3] or size)) for m in wanted if m is not None and m[1] == name)
        pieces, done = [], 1
        for before, length in mine:
            pieces += [(before // done, False), (length, True)]
            done = before * length
        parts.append([*pieces, (size // done, False)])
    return parts
