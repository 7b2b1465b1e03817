"""Time of an instruction for which the compiler states none."""

import re

from train.aot.hlo import Computation, Instruction, Program
from train.chips import Chip

EFFICIENCY = 0.5
"""Of the peak and of the memory bandwidth, assumed."""

# Of these nothing runs: names for values, buffers and promises about indices.
_FREE = frozenset(
    (
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
        "opt-barrier",
    )
)
_FREE_CALLS = frozenset(
    (
        "AllocateBuffer",
        "ConcatBitcast",
        "AssumeGatherIndicesInBound",
        "PrepareAsyncCallStart",
        "PrepareAsyncCallDone",
    )
)


def guessed_seconds(program: Program, around: Computation, it: Instruction, *, flops: float, chip: Chip) -> float:
    """From arithmetic and bytes, whichever takes longer at `EFFICIENCY` of the device's peaks.

    Bytes are those of operands and result; of a gather the rows read and written, of a scatter three times the
    updates. A kernel's own statement (Pallas `cost_estimate`) counts where it is higher; its transcendentals are taken
    for operations of the vector units, as our kernels count them. Scalars are free: a core of their own works on them.
    """
    if it.opcode in _FREE or (it.opcode == "custom-call" and it.target in _FREE_CALLS):
        return 0.0
    if it.opcode not in ("fusion", "custom-call") and all(shape.elements <= 1 for shape in it.shapes):
        return 0.0
    moved: float = operand_bytes(around, it) + it.bytes
    if it.opcode == "fusion":
        kinds = {i.opcode for i in program.computations[it.called("calls")].instructions}
        if kinds <= _FREE:
            return 0.0
        if "gather" in kinds:
            moved = 2 * it.bytes
        elif "scatter" in kinds:
            sizes = [around.by_name[name].bytes for name in it.operands]
            moved = 3 * sum(size for size in sizes if size != it.bytes)
    flops = max(flops, _stated(it, "flops"))
    moved = max(moved, _stated(it, "bytes_accessed"))
    vectors = _stated(it, "transcendentals") / chip.vector_operations
    seconds = max(flops / chip.peak_flops, moved / chip.hbm_bandwidth, vectors) * chip.devices
    return seconds / EFFICIENCY


def operand_bytes(around: Computation, it: Instruction) -> int:
    """Of everything that an instruction is given."""
    return sum(around.by_name[name].bytes for name in it.operands)


def _stated(it: Instruction, name: str) -> float:
    found = re.search(rf'"{name}":"?(\d+)', it.attributes)
    return float(found[1]) if found else 0.0
