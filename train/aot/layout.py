"""What a compiled program should not do: gather parameters beyond `fsdp`, keep every row on every device."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax

from train.aot.collectives import Slice, base_kind
from train.aot.hlo import Instruction, Program, Shape

# They hold what another instruction made, or copy a part of it to the core.
_NAMES = frozenset(
    (
        "parameter",
        "get-tuple-element",
        "tuple",
        "bitcast",
        "while",
        "conditional",
        "call",
        "opt-barrier",
        "slice-start",
        "slice-done",
    )
)


@dataclasses.dataclass(frozen=True)
class Misplaced:
    """An array where none of its shape should be."""

    name: str
    shape: Shape
    axes: tuple[str, ...]
    """Of the mesh: that a gather crosses, or along which an activation is not split."""
    source: tuple[str, ...]
    op_name: str


@dataclasses.dataclass(frozen=True)
class Layout:
    """What was found of both kinds."""

    gathered: tuple[Misplaced, ...]
    """Parameters, beyond `fsdp`."""
    whole: tuple[Misplaced, ...] | None
    """Batches; None where it cannot be told: the batch has as many rows as another axis is long, or as one device's
    tokens that the compiler may put on one axis."""

    @classmethod
    def of(cls, program: Program, where: Slice, *, rows: int, parameters: Any, batch: Any) -> "Layout":
        """Of a compiled step.

        Args:
            program: with the shapes of one device.
            where: its devices.
            rows: that all devices compute at once.
            parameters, batch: trees of shapes of the whole arrays.
        """
        shapes = [leaf.shape for leaf in jax.tree.leaves(parameters)]
        others = {size for shape in shapes for size in shape}
        others |= {2 * shape[-1] for shape in shapes}  # of a width: the masks of two dropouts are drawn side by side
        lengths = {size for leaf in jax.tree.leaves(batch) for size in leaf.shape[1:]}
        parts = where.mesh["data"] * where.mesh["fsdp"]
        others |= lengths | {rows // parts * length for length in lengths}
        gathered = gathered_parameters(program, where, shapes)
        whole = None if rows in others else tuple(whole_batches(program, where, rows=rows, parameters=shapes))
        return cls(tuple(gathered), whole)


def gathered_parameters(program: Program, where: Slice, parameters: Iterable[Sequence[int]]) -> list[Misplaced]:
    """All-gathers over other axes than `fsdp` alone, of arrays shaped like a parameter or like one layer of it.

    Args:
        program: with the shapes of one device.
        where: its devices.
        parameters: shapes of the whole arrays; vectors are left out. What is gathered may still be split over `tensor`.
    """
    kernels = _kernels(parameters, where.mesh["tensor"])
    found = []
    for computation in program.computations.values():
        for it in computation.instructions:
            if base_kind(it) != "all-gather" or not any(_dims(shape) in kernels for shape in it.shapes):
                continue
            axes = where.collective(it, 0).axes
            if set(axes) - {"fsdp"}:
                shape = next(shape for shape in it.shapes if _dims(shape) in kernels)
                found.append(Misplaced(it.name, shape, axes, program.source(it), it.op_name))
    return found


def whole_batches(program: Program, where: Slice, *, rows: int, parameters: Iterable[Sequence[int]]) -> list[Misplaced]:
    """Arrays in memory, one for each shape, with as many rows as all devices together should have.

    Args:
        program: with the shapes of one device.
        where: its devices.
        rows: of the whole batch; must not be another size of the model.
        parameters: shapes of the whole arrays; arrays shaped like them are no activations.
    """
    kernels = _kernels(parameters, where.mesh["tensor"])
    axes = tuple(name for name in ("data", "fsdp") if where.mesh[name] > 1)
    found: dict[Shape, Misplaced] = {}
    for it in _made(program) if axes else ():
        for shape in it.shapes:
            if rows in shape.dims and len(_dims(shape)) > 1 and _dims(shape) not in kernels:
                found.setdefault(shape, Misplaced(it.name, shape, axes, program.source(it), it.op_name))
    return list(found.values())


def _made(program: Program) -> Iterator[Instruction]:
    """Instructions whose results lie in memory: those of no fusion's inside."""
    every = [it for computation in program.computations.values() for it in computation.instructions]
    inside = {it.called("calls") for it in every if it.opcode == "fusion"}
    for computation in program.computations.values():
        if computation.name not in inside:
            yield from (it for it in computation.instructions if it.opcode not in _NAMES)


def _dims(shape: Shape) -> tuple[int, ...]:
    """Without axes of 1, in order of size: the compiler transposes as it likes."""
    return _sorted(shape.dims)


def _sorted(sizes: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(size for size in sizes if size > 1))


def _kernels(parameters: Iterable[Sequence[int]], tensor: int) -> set[tuple[int, ...]]:
    return {kernel for shape in parameters for kernel in _layouts(shape, tensor)}


def _layouts(shape: Sequence[int], tensor: int) -> Iterator[tuple[int, ...]]:
    """A parameter's sizes, those of one of its layers, and both with an axis split over `tensor`."""
    for sizes in (tuple(shape), tuple(shape[1:])):
        if len(_sorted(sizes)) > 1:
            yield _sorted(sizes)
            for place, size in enumerate(sizes):
                if tensor > 1 and size % tensor == 0:
                    yield _sorted((*sizes[:place], size // tensor, *sizes[place + 1 :]))
