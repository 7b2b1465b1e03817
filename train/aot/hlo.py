"""Parser of the text of an optimized XLA program (HLO) into computations and instructions.

The grammar is that of `compiled.as_text()` of a TPU executable; only the parts that a cost estimate needs are parsed.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping

_TYPES = {
    0: "token opaque",
    2: "s2 u2",
    4: "s4 u4 f4e2m1fn",
    8: "pred s8 u8 f8e4m3fn f8e5m2 f8e4m3b11fnuz f8e8m0fnu",
    16: "s16 u16 f16 bf16",
    32: "s32 u32 f32",
    64: "s64 u64 f64 c64",
    128: "c128",
}
_BITS = {name: bits for bits, names in _TYPES.items() for name in names.split()}
_SHAPE = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,<=]*)\](\{[^}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%(\S+) = ")
_HEADER = re.compile(r"(ENTRY )?%?(\S+) \(.*\{$")
_OPCODE = re.compile(r" ?([a-z][a-z0-9-]*)\(")
_TABLE_ROW = re.compile(r"(\d+) (.*)")


@dataclasses.dataclass(frozen=True)
class ArrayShape:
    """Type and sizes of an array on one device."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0
    """Memory space: 0 is HBM, 1 the vector memory of the core, others hold scalars and semaphores."""

    @property
    def elements(self) -> int:
        """Return the number of entries."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Return the size in bytes, without the padding of tiles."""
        return self.elements * _BITS[self.dtype] // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """Operation of a computation, one line of the text."""

    name: str
    opcode: str
    shapes: tuple[ArrayShape, ...]
    """Shapes of the result; the leaves in order if it is a tuple."""
    operands: tuple[str, ...]
    arguments: str
    """Text between the parentheses: operands, or the value of a constant."""
    attributes: str
    """Text after the operands."""
    root: bool = False

    @property
    def bytes(self) -> int:
        """Return the size of the result in bytes."""
        return sum(shape.bytes for shape in self.shapes)

    def find(self, pattern: str) -> str:
        """Return the first group of the pattern's first match in the attributes, or "" without a match."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else ""

    @property
    def estimated_cycles(self) -> int | None:
        """Return the compiler's own estimate, or None if there is none."""
        found = self.find(r'"estimated_cycles":"(\d+)"')
        return int(found) if found else None

    @property
    def op_name(self) -> str:
        """Return the traced operation with its enclosing modules, or "" if none is recorded."""
        return self.find(r'op_name="([^"]*)"')

    def called(self, role: str) -> str:
        """Return the name of the computation after `role=`, such as body, condition, calls or to_apply.

        Raises:
            ValueError: the instruction has no such attribute.
        """
        name = self.find(rf"\b{role}=%?([^\s,)}}]+)")
        if not name:
            raise ValueError(f"{self.name} ({self.opcode}) names no computation {role}=")
        return name

    @property
    def branches(self) -> tuple[str, ...]:
        """Return the names of the computations of a conditional."""
        if listed := self.find(r"branch_computations=\{([^}]*)\}"):
            return tuple(name.strip().lstrip("%") for name in listed.split(","))
        return self.called("true_computation"), self.called("false_computation")


@dataclasses.dataclass(frozen=True)
class Computation:
    """Sequence of instructions in the order in which the device runs them."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> Mapping[str, Instruction]:
        """Return the instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        """Return the instruction whose value is the result of the computation."""
        return next(instruction for instruction in self.instructions if instruction.root)

    def parameter(self, number: int) -> Instruction:
        """Return the parameter with this number."""
        return next(i for i in self.instructions if i.opcode == "parameter" and i.arguments == str(number))


@dataclasses.dataclass(frozen=True)
class Program:
    """Computations of a compiled module."""

    entry: str
    computations: Mapping[str, Computation]
    lines: Mapping[int, tuple[str, ...]]
    """For each stack_frame_id, the source lines "file:number" from the innermost call outwards."""

    @property
    def instructions(self) -> Iterator[Instruction]:
        """Return the instructions of all computations."""
        return itertools.chain.from_iterable(computation.instructions for computation in self.computations.values())

    def source(self, instruction: Instruction) -> tuple[str, ...]:
        """Return the source lines of an instruction, the innermost call first."""
        return self.lines.get(int(instruction.find(r"stack_frame_id=(\d+)") or 0), ())


def parse_program(text: str) -> Program:
    """Parse the text of an HLO module.

    Raises:
        ValueError: a line is not HLO, or there is no entry computation.
    """
    computations: dict[str, Computation] = {}
    tables: dict[str, dict[int, str]] = {}
    entry, name, table = "", "", ""
    instructions: list[Instruction] = []
    for line in text.splitlines():
        if line.startswith("}"):
            computations[name] = Computation(name, tuple(instructions))
            name, instructions = "", []
        elif name:
            if line.strip():
                instructions.append(parse_instruction(line))
        elif header := _HEADER.match(line):
            name = header[2]
            entry = name if header[1] else entry
        elif line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = line
        elif table and (row := _TABLE_ROW.match(line)):
            tables.setdefault(table, {})[int(row[1])] = row[2]
    if not entry:
        raise ValueError("the text has no ENTRY computation; it is not an HLO module")
    return Program(entry, computations, _source_lines(tables))


def parse_instruction(line: str) -> Instruction:
    """Parse a line such as "%add.1 = f32[8]{0} add(%a, %b), metadata={...}"."""
    begin = _INSTRUCTION.match(line)
    if begin is None:
        raise ValueError(f"not an HLO instruction: {line[:120]!r}")
    end = begin.end()
    end = _closing(line, end) if line[end] == "(" else line.index(" ", end)
    opcode = _OPCODE.match(line, end)
    if opcode is None:
        raise ValueError(f"no operation in the HLO instruction {line[:120]!r}")
    close = _closing(line, opcode.end() - 1)
    arguments = line[opcode.end() : close - 1]
    return Instruction(
        name=begin[2],
        opcode=opcode[1],
        shapes=parse_shapes(line[begin.end() : end]),
        operands=tuple(re.findall(r"%([^\s,()]+)", arguments)),
        arguments=arguments,
        attributes=line[close:],
        root=begin[1] is not None,
    )


def parse_shapes(text: str) -> tuple[ArrayShape, ...]:
    """Return the leaves of a type such as "(f32[2,256]{1,0:T(2,128)S(1)}, u32[])"."""
    shapes = []
    for dtype, dims, layout in _SHAPE.findall(text):
        space = _SPACE.search(layout)
        sizes = tuple(int(size.lstrip("<=")) for size in dims.split(",") if size)
        shapes.append(ArrayShape(dtype, sizes, int(space[1]) if space else 0))
    return tuple(shapes)


def _closing(text: str, start: int) -> int:
    """Return the index after the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index + 1
    raise ValueError(f"a parenthesis is not closed in {text[:120]!r}")


def _source_lines(tables: Mapping[str, Mapping[int, str]]) -> dict[int, tuple[str, ...]]:
    """Return the source lines of each stack frame from the four tables at the head of the text."""
    if "StackFrames" not in tables:
        return {}
    locations = {number: _fields(row) for number, row in tables["FileLocations"].items()}
    frames = {number: _fields(row) for number, row in tables["StackFrames"].items()}
    lines = {}
    for number in frames:
        chain: list[str] = []
        frame = number
        while frame in frames and len(chain) <= len(frames):
            location = locations[frames[frame]["file_location_id"]]
            chain.append(f"{tables['FileNames'][location['file_name_id']].strip(chr(34))}:{location['line']}")
            # A parent's number is one higher than the number of its frame; 1 means that there is no parent.
            frame = frames[frame]["parent_frame_id"] - 1
        lines[number] = tuple(chain)
    return lines


def _fields(row: str) -> dict[str, int]:
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", row)}
