"""How often a loop of a compiled program runs."""

import re

from train.aot.hlo import Computation, Instruction, Program

_PLAIN = ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start")


def trip_count(program: Program, around: Computation, loop: Instruction) -> int | None:
    """How often the body of a `while` in the computation `around` runs; None where the text does not say.

    The compiler's own note (known_trip_count) where there is one; else the condition must compare one counter
    with a constant, the counter start from a constant and the body add a constant to it, as `lax.scan` makes it.
    """
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(noted[1])
    condition = program.computations[loop.called("condition")]
    compare = _behind(condition, condition.root)
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    counter, bound = (_behind(condition, condition.by_name[name]) for name in compare.operands)
    limit, index = _constant(bound), _tuple_index(counter)
    if limit is None or index is None:
        return None
    start = _start(around, loop, index)
    step = _step(program.computations[loop.called("body")], index)
    if start is None or step is None or step < 1:
        return None
    return max(0, -(-(limit - start) // step))


def _behind(computation: Computation, instruction: Instruction) -> Instruction:
    """The instruction whose value this one only copies."""
    while instruction.opcode in _PLAIN and instruction.operands:
        instruction = computation.by_name[instruction.operands[0]]
    return instruction


def _constant(instruction: Instruction) -> int | None:
    if instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.inside):
        return int(instruction.inside)
    return None


def _tuple_index(instruction: Instruction) -> int | None:
    found = re.search(r"\bindex=(\d+)", instruction.attributes)
    return int(found[1]) if instruction.opcode == "get-tuple-element" and found else None


def _start(around: Computation, loop: Instruction, index: int) -> int | None:
    """The counter's first value."""
    initial = around.by_name[loop.operands[0]]
    if initial.opcode != "tuple":
        return None
    return _constant(_behind(around, around.by_name[initial.operands[index]]))


def _step(body: Computation, index: int) -> int | None:
    """What one turn of the body adds to the counter."""
    if body.root.opcode != "tuple":
        return None
    value = _behind(body, body.by_name[body.root.operands[index]])
    if value.opcode != "add":
        return None
    terms = [_behind(body, body.by_name[name]) for name in value.operands]
    constants = [number for number in map(_constant, terms) if number is not None]
    counters = [term for term in terms if _tuple_index(term) == index]
    return constants[0] if len(constants) == len(counters) == 1 else None
