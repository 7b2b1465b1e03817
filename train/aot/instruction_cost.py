"""Cost of single instructions of a compiled program: FLOPs, trip counts of loops, and a fallback for their time."""

import math
import re
from collections.abc import Mapping

import numpy as np

from train.aot.hlo import Computation, Instruction, Program
from train.flops import Chip

EFFICIENCY = 0.5
"""Assumed share of the peak FLOP/s and of the memory bandwidth, where the compiler estimates no cycles."""
MATMULS = ("dot", "convolution")
"""Operations of matrix products; a TPU runs every one of them as a convolution."""

# Instructions that take no time: they only name values, buffers and assertions about indices.
_FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all")
    + ("partition-id", "replica-id", "opt-barrier")
)
_FREE_CALLS = frozenset(
    ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "PrepareAsyncCallStart", "PrepareAsyncCallDone")
)
_CALL_TARGET = r'custom_call_target="([^"]*)"'
_COPIES = ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start")


def roofline_seconds(program: Program, parent: Computation, it: Instruction, *, flops: float, chip: Chip) -> float:
    """Return the time of an instruction without a cycle estimate: FLOPs or bytes at `EFFICIENCY` of the peaks.

    The larger of the two times counts. Bytes are those of operands and result; for a gather the rows read and written,
    for a scatter three times the updates. The statement of a kernel (Pallas `cost_estimate`) is used where it is
    higher; its transcendentals are taken as operations of the vector units, as this project's kernels count them.
    Scalars are free, because a separate core computes them.
    """
    if it.opcode in _FREE or (it.opcode == "custom-call" and it.find(_CALL_TARGET) in _FREE_CALLS):
        return 0.0
    if it.opcode not in ("fusion", "custom-call") and all(shape.elements <= 1 for shape in it.shapes):
        return 0.0
    moved: float = operand_bytes(parent, it) + it.bytes
    if it.opcode == "fusion":
        opcodes = {i.opcode for i in program.computations[it.called("calls")].instructions}
        if opcodes <= _FREE:
            return 0.0
        if "gather" in opcodes:
            moved = 2 * it.bytes
        elif "scatter" in opcodes:
            sizes = [parent.by_name[name].bytes for name in it.operands]
            moved = 3 * sum(size for size in sizes if size != it.bytes)
    flops = max(flops, _stated(it, "flops"))
    moved = max(moved, _stated(it, "bytes_accessed"))
    vectors = _stated(it, "transcendentals") / chip.vector_operations
    seconds = max(flops / chip.peak_flops, moved / chip.hbm_bandwidth, vectors) * chip.devices
    return seconds / EFFICIENCY


def operand_bytes(parent: Computation, it: Instruction) -> int:
    """Return the size of all operands of an instruction of the computation `parent`."""
    return sum(parent.by_name[name].bytes for name in it.operands)


def _stated(it: Instruction, name: str) -> float:
    """Return a number of a kernel's cost estimate; 0 if it has none."""
    return float(it.find(rf'"{name}":"?(\d+)') or 0)


def matmul_flops(computation: Computation, instruction: Instruction) -> float:
    """Return the FLOPs of a `dot` or `convolution`, counting a multiply-add as two.

    Batched or merged axes of a matrix product become windows of a convolution with padding; empty positions of these
    windows are not counted.
    """
    left, right = (computation.by_name[name].shapes[0].dims for name in instruction.operands[:2])
    if instruction.opcode == "dot":
        contracted = instruction.find(r"lhs_contracting_dims=\{([\d,]*)\}")
        sizes = [left[int(axis)] for axis in contracted.split(",") if axis]
        return 2.0 * instruction.shapes[0].elements * math.prod(sizes)
    return _convolution_flops(left, right, instruction)


def _convolution_flops(left: tuple[int, ...], right: tuple[int, ...], instruction: Instruction) -> float:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        raise ValueError(f"{instruction.name} names no dim_labels")
    source, kernel, result = labels.groups()
    out = instruction.shapes[0].dims
    flops = 2.0 * out[result.index("b")] * out[result.index("f")] * right[kernel.index("i")]
    fields = dict(field.split("=") for field in instruction.find(r"window=\{([^}]*)\}").split())
    for axis, label in enumerate(sorted(c for c in result if c.isdigit())):
        size, window = left[source.index(label)], right[kernel.index(label)]
        flops *= _window_pairs(fields, axis, size=size, window=window, steps=out[result.index(label)])
    return flops


def _window_pairs(fields: Mapping[str, str], axis: int, *, size: int, window: int, steps: int) -> int:
    """Count the pairs (output, window position) along an axis that read an entry, not padding or a dilation gap."""

    def field(name: str, default: str) -> str:
        return fields[name].split("x")[axis] if name in fields else default

    stride, padding = int(field("stride", "1")), int(field("pad", "0_0").split("_")[0])
    left_dilation, right_dilation = int(field("lhs_dilate", "1")), int(field("rhs_dilate", "1"))
    index = stride * np.arange(steps)[:, None] + right_dilation * np.arange(window) - padding
    return int(np.sum((index >= 0) & (index <= (size - 1) * left_dilation) & (index % left_dilation == 0)))


def trip_count(program: Program, parent: Computation, loop: Instruction) -> int | None:
    """Return the number of iterations of a `while` in the computation `parent`; None if the text does not state it.

    The compiler's annotation (known_trip_count) is used if there is one. Otherwise the condition must compare one
    counter with a constant, the counter must start from a constant and the body must add a constant to it, as
    `lax.scan` makes it.
    """
    if noted := loop.find(r'"known_trip_count":\{"n":"(\d+)"'):
        return int(noted)
    condition = program.computations[loop.called("condition")]
    compare = _source_of(condition, condition.root)
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    counter, bound = (_source_of(condition, condition.by_name[name]) for name in compare.operands)
    limit, index = _constant(bound), _tuple_index(counter)
    if limit is None or index is None:
        return None
    start = _counter_start(parent, loop, index)
    step = _counter_step(program.computations[loop.called("body")], index)
    if start is None or step is None or step < 1:
        return None
    return max(0, -(-(limit - start) // step))


def _source_of(computation: Computation, instruction: Instruction) -> Instruction:
    """Follow copies back to the instruction that computes the value."""
    while instruction.opcode in _COPIES and instruction.operands:
        instruction = computation.by_name[instruction.operands[0]]
    return instruction


def _constant(instruction: Instruction) -> int | None:
    if instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.arguments):
        return int(instruction.arguments)
    return None


def _tuple_index(instruction: Instruction) -> int | None:
    index = instruction.find(r"\bindex=(\d+)")
    return int(index) if instruction.opcode == "get-tuple-element" and index else None


def _counter_start(parent: Computation, loop: Instruction, index: int) -> int | None:
    initial = parent.by_name[loop.operands[0]]
    if initial.opcode != "tuple":
        return None
    return _constant(_source_of(parent, parent.by_name[initial.operands[index]]))


def _counter_step(body: Computation, index: int) -> int | None:
    """Return the constant that an iteration of the body adds to the counter."""
    if body.root.opcode != "tuple":
        return None
    value = _source_of(body, body.by_name[body.root.operands[index]])
    if value.opcode != "add":
        return None
    terms = [_source_of(body, body.by_name[name]) for name in value.operands]
    constants = [number for number in map(_constant, terms) if number is not None]
    counters = [term for term in terms if _tuple_index(term) == index]
    return constants[0] if len(constants) == len(counters) == 1 else None
