"""Detection of two sharding faults in a compiled program.

Parameters that are all-gathered over other axes than `fsdp`, and activations of the whole batch on one device.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import optax

from train.aot.collectives import TpuSlice, collective_kind
from train.aot.hlo import ArrayShape, Instruction, Program

# Instructions that only hold the result of another one, or copy a part of it to the core.
_ALIASES = frozenset(
    ("parameter", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "call", "opt-barrier")
    + ("slice-start", "slice-done")
)


@dataclasses.dataclass(frozen=True)
class UnexpectedArray:
    """Instruction whose result should not have its shape on one device."""

    name: str
    shape: ArrayShape
    axes: tuple[str, ...]
    """Axes of the mesh: those that a gather crosses, or those that should split an activation."""
    source: tuple[str, ...]
    op_name: str


@dataclasses.dataclass(frozen=True)
class ShardingCheck:
    """Result of both checks of a compiled step."""

    gathered: tuple[UnexpectedArray, ...]
    """Parameters gathered over other axes than `fsdp`."""
    whole_batches: tuple[UnexpectedArray, ...] | None
    """Activations of all rows; None if the number of rows is ambiguous: it equals the length of another axis, or the
    number of tokens of one device, which the compiler may put on one axis."""

    @classmethod
    def of(
        cls,
        program: Program,
        tpu_slice: TpuSlice,
        *,
        rows: int,
        parameters: optax.Params,
        batch: Mapping[str, jax.ShapeDtypeStruct],
    ) -> "ShardingCheck":
        """Check a compiled step with parameters and batch of these global shapes; `rows` is of all devices at once."""
        shapes = [leaf.shape for leaf in jax.tree.leaves(parameters)]
        ambiguous = {size for shape in shapes for size in shape}
        ambiguous |= {2 * shape[-1] for shape in shapes}  # the masks of two dropouts are drawn as one array
        lengths = {size for leaf in batch.values() for size in leaf.shape[1:]}
        data_parallel_size = tpu_slice.mesh["data"] * tpu_slice.mesh["fsdp"]
        ambiguous |= lengths | {rows // data_parallel_size * length for length in lengths}
        gathered = gathered_parameters(program, tpu_slice, shapes)
        whole = None if rows in ambiguous else tuple(whole_batches(program, tpu_slice, rows=rows, parameters=shapes))
        return cls(tuple(gathered), whole)


def gathered_parameters(
    program: Program, tpu_slice: TpuSlice, parameters: Iterable[Sequence[int]]
) -> list[UnexpectedArray]:
    """Return the all-gathers over other axes than `fsdp` whose result has the shape of a parameter or of its layer.

    The parameters are global shapes; vectors are ignored. The gathered array may still be split over `tensor`.
    """
    kernels = _kernels(parameters, tpu_slice.mesh["tensor"])
    found = []
    for it in program.instructions:
        shapes = [shape for shape in it.shapes if _sorted_dims(shape.dims) in kernels]
        if shapes and collective_kind(it) == "all-gather":
            axes = tpu_slice.collective(it, 0).axes
            if set(axes) - {"fsdp"}:
                found.append(UnexpectedArray(it.name, shapes[0], axes, program.source(it), it.op_name))
    return found


def whole_batches(
    program: Program, tpu_slice: TpuSlice, *, rows: int, parameters: Iterable[Sequence[int]]
) -> list[UnexpectedArray]:
    """Return arrays in memory with as many rows as the global batch, one for each shape.

    `rows` must not equal another size of the model. Arrays with the (global) shape of a parameter are not activations.
    """
    kernels = _kernels(parameters, tpu_slice.mesh["tensor"])
    axes = tuple(name for name in ("data", "fsdp") if tpu_slice.mesh[name] > 1)
    found: dict[ArrayShape, UnexpectedArray] = {}
    for it in _materialised(program) if axes else ():
        for shape in it.shapes:
            dims = _sorted_dims(shape.dims)
            if rows in shape.dims and len(dims) > 1 and dims not in kernels:
                found.setdefault(shape, UnexpectedArray(it.name, shape, axes, program.source(it), it.op_name))
    return list(found.values())


def _materialised(program: Program) -> Iterator[Instruction]:
    """Yield the instructions whose results are in memory, which excludes the instructions inside of fusions."""
    fused = {it.called("calls") for it in program.instructions if it.opcode == "fusion"}
    for computation in program.computations.values():
        if computation.name not in fused:
            yield from (it for it in computation.instructions if it.opcode not in _ALIASES)


def _sorted_dims(dims: Iterable[int]) -> tuple[int, ...]:
    """Return the sizes above 1 in ascending order, because the compiler may transpose arrays."""
    return tuple(sorted(size for size in dims if size > 1))


def _kernels(parameters: Iterable[Sequence[int]], tensor: int) -> set[tuple[int, ...]]:
    """Return the sizes of matrix parameters and of one of their layers, whole or with one axis split over `tensor`."""
    kernels = set()
    for shape in parameters:
        for sizes in (tuple(shape), tuple(shape[1:])):
            if len(_sorted_dims(sizes)) > 1:
                kernels.add(_sorted_dims(sizes))
                for axis, size in enumerate(sizes):
                    if tensor > 1 and size % tensor == 0:
                        kernels.add(_sorted_dims((*sizes[:axis], size // tensor, *sizes[axis + 1 :])))
    return kernels
