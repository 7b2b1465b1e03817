"""Estimated time of a compiled program on one device, mostly from the compiler's own cycle estimates."""

import collections
import dataclasses
import functools

from train.aot.collectives import Collective, TpuSlice, collective_kind
from train.aot.hlo import Computation, Instruction, Program
from train.aot.instruction_cost import MATMULS, matmul_flops, operand_bytes, roofline_seconds, trip_count


@dataclasses.dataclass
class Operation:
    """Time of one instruction over the whole step."""

    name: str
    op_name: str
    source: tuple[str, ...]
    basis: str
    """Origin of the time: "compiler" (cycles), "roofline" (fallback) or "links"."""
    runs: float = 0.0
    seconds: float = 0.0


@dataclasses.dataclass
class CollectiveTotal:
    """Sum over the collectives of one kind and the same axes in a step."""

    runs: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0
    overlapped: float = 0.0
    """Number of the runs that are asynchronous, with other work between start and done."""


@dataclasses.dataclass
class Cost:
    """Estimated cost of one step on one device, in seconds unless stated otherwise."""

    seconds: float = 0.0
    compiler: float = 0.0
    """Cycles estimated by the compiler, at the chip's clock."""
    roofline: float = 0.0
    """Instructions without a cycle estimate, see `roofline_seconds`."""
    waiting_links: float = 0.0
    """Waits for collectives that no other work hides."""
    waiting_memory: float = 0.0
    """Waits for copies between memories that no other work hides."""
    cycles: float = 0.0
    flops: float = 0.0
    """FLOPs of matrix products."""
    unknown_loops: list[str] = dataclasses.field(default_factory=list)
    """Loops with an unknown trip count; they are counted once."""
    conditionals: list[str] = dataclasses.field(default_factory=list)
    """Conditionals; only their slowest branch is counted."""
    operations: dict[str, Operation] = dataclasses.field(default_factory=dict)
    collectives: dict[tuple[str, tuple[str, ...]], CollectiveTotal] = dataclasses.field(default_factory=dict)
    """Totals by kind and crossed axes."""


def estimate_cost(program: Program, tpu_slice: TpuSlice) -> Cost:
    """Return the cost of a program's entry computation.

    The device runs the instructions of a computation in order. The `-start` of a copy or collective puts it into a
    queue (one for the memory, one for the links), and its `-done` waits until the queue has finished it; other work
    between the two hides it. The body of a loop is visited once and multiplied by the trip count.
    """
    model = _CostModel(program, tpu_slice)
    model.cost.seconds = model.run(program.computations[program.entry], 1.0)
    return model.cost


@dataclasses.dataclass
class _Clock:
    """Time of a device within a computation, and when its queues become free."""

    now: float = 0.0
    queues: dict[str, float] = dataclasses.field(default_factory=lambda: collections.defaultdict(float))
    ends: dict[str, tuple[float, str]] = dataclasses.field(default_factory=dict)
    """For each started instruction, the time of its end and its queue."""

    def begin(self, name: str, queue: str, seconds: float) -> None:
        """Put work into a queue."""
        self.queues[queue] = max(self.now, self.queues[queue]) + seconds
        self.ends[name] = self.queues[queue], queue

    def wait(self, name: str) -> tuple[float, str]:
        """Advance to the end of started work; return the seconds waited and the queue."""
        end, queue = self.ends[name]
        waited = max(0.0, end - self.now)
        self.now += waited
        return waited, queue


@dataclasses.dataclass(frozen=True)
class _CollectivePart:
    """One of the instructions that carry out a collective."""

    key: str
    collective: Instruction
    holder: Computation
    """Computation that contains the collective: that of a fusion, or the surrounding one."""
    first: bool
    last: bool


class _CostModel:
    def __init__(self, program: Program, tpu_slice: TpuSlice):
        self.program, self.tpu_slice, self.chip = program, tpu_slice, tpu_slice.chip
        self.cost = Cost()

    def run(self, computation: Computation, runs: float) -> float:
        """Return the seconds of one run, and add `runs` of them to the cost."""
        clock, parts = _Clock(), self._collective_parts(computation)
        for it in computation.instructions:
            if it.name in parts:
                self._send(computation, it, parts[it.name], clock, runs)
            elif it.opcode == "while":
                clock.now += self._loop(computation, it, runs)
            elif it.opcode == "conditional":
                clock.now += self._slowest_branch(it, runs)
            elif it.opcode == "call":
                clock.now += self.run(self.program.computations[it.called("to_apply")], runs)
            elif it.opcode.endswith("-start"):
                bandwidth = self.chip.hbm_bandwidth / self.chip.devices
                clock.begin(it.name, "memory", self._copied_bytes(computation, it) / bandwidth)
            elif it.opcode.endswith(("-done", "-update")) and it.operands[0] in clock.ends:
                clock.ends[it.name] = clock.ends[it.operands[0]]
                self._wait(it, clock, runs)
            else:
                clock.now += self._compute(computation, it, runs)
        return clock.now

    def _loop(self, parent: Computation, loop: Instruction, runs: float) -> float:
        trips = trip_count(self.program, parent, loop)
        if trips is None:
            self.cost.unknown_loops.append(loop.name)
            trips = 1
        body, condition = (self.program.computations[loop.called(role)] for role in ("body", "condition"))
        return trips * (self.run(body, runs * trips) + self.run(condition, runs * trips)) if trips else 0.0

    def _slowest_branch(self, it: Instruction, runs: float) -> float:
        """Return the seconds of the slowest branch, and add only that one to the cost."""
        self.cost.conditionals.append(it.name)
        branches = [self.program.computations[name] for name in it.branches]
        slowest = max(branches, key=lambda branch: _CostModel(self.program, self.tpu_slice).run(branch, 1.0))
        return self.run(slowest, runs)

    def _send(self, parent: Computation, it: Instruction, part: _CollectivePart, clock: _Clock, runs: float) -> None:
        """Advance over a collective, or one of the instructions that carry it out, which may be fused with work."""
        if part.first:
            size = operand_bytes(part.holder, part.collective)
            slices = any(i.opcode == "dynamic-slice" for i in part.holder.instructions)
            scattered = slices and part.holder is not parent
            sent = self.tpu_slice.collective(part.collective, size, scattered=scattered)
            clock.begin(part.key, "links", sent.seconds)
            self._add_collective(it, part, sent, runs)
        if it.opcode == "fusion" and it.estimated_cycles is not None:
            clock.now += self._compute(parent, it, runs)
        clock.ends[it.name] = clock.ends[part.key]
        if part.last and not it.opcode.endswith("-start"):
            self._wait(it, clock, runs)

    def _wait(self, it: Instruction, clock: _Clock, runs: float) -> None:
        waited, queue = clock.wait(it.name)
        if queue == "links":
            self.cost.waiting_links += runs * waited
        else:
            self.cost.waiting_memory += runs * waited

    def _compute(self, parent: Computation, it: Instruction, runs: float) -> float:
        """Return the seconds on the core, from the compiler's cycles or else by `roofline_seconds`."""
        flops = self._flops(parent, it)
        self.cost.flops += runs * flops
        cycles = it.estimated_cycles
        if cycles is not None:
            seconds, basis = cycles / self.chip.clock, "compiler"
            self.cost.cycles += runs * cycles
            self.cost.compiler += runs * seconds
        else:
            seconds, basis = roofline_seconds(self.program, parent, it, flops=flops, chip=self.chip), "roofline"
            self.cost.roofline += runs * seconds
        self._add_operation(it, basis, runs, seconds)
        return seconds

    def _flops(self, parent: Computation, it: Instruction) -> float:
        if it.opcode in MATMULS:
            return matmul_flops(parent, it)
        return self._fusion_flops(it.called("calls")) if it.opcode == "fusion" else 0.0

    @functools.cache  # noqa: B019 - the object lives as long as one estimate
    def _fusion_flops(self, name: str) -> float:
        fused = self.program.computations[name]
        return sum(self._flops(fused, instruction) for instruction in fused.instructions)

    def _copied_bytes(self, parent: Computation, it: Instruction) -> float:
        """Return the bytes that the start of a copy or slice moves: its result without the operands."""
        if it.opcode == "copy-start":
            return it.shapes[0].bytes
        return max(0, it.bytes - operand_bytes(parent, it))

    def _collective_parts(self, computation: Computation) -> dict[str, _CollectivePart]:
        """Return the instructions of a computation that carry out collectives, by name."""
        chains: dict[str, list[tuple[Instruction, Instruction, Computation]]] = {}
        for it in computation.instructions:
            if collective_kind(it):
                chains[it.name] = [(it, it, computation)]
            elif it.opcode in ("fusion", "async-start", "call-start"):
                # A call-start passes a computation to the sparse cores, which carry out collectives on a tpu7x.
                role = "to_apply" if it.opcode == "call-start" else "calls"
                holder = self.program.computations[it.called(role)]
                collective = next((i for i in holder.instructions if collective_kind(i)), None)
                if collective is not None:
                    # All instructions that carry out one collective have its channel.
                    key = collective.find(r"(channel_id=\d+)") or it.name
                    chains.setdefault(key, []).append((it, collective, holder))
        return {
            it.name: _CollectivePart(key, collective, holder, first=index == 0, last=index == len(chain) - 1)
            for key, chain in chains.items()
            for index, (it, collective, holder) in enumerate(chain)
        }

    def _add_collective(self, it: Instruction, part: _CollectivePart, sent: Collective, runs: float) -> None:
        total = self.cost.collectives.setdefault((sent.kind, sent.axes), CollectiveTotal())
        total.runs += runs
        total.bytes += runs * sent.bytes
        total.seconds += runs * sent.seconds
        total.overlapped += runs * (it.opcode.endswith("-start") or not part.last)
        self._add_operation(part.collective, "links", runs, sent.seconds)

    def _add_operation(self, it: Instruction, basis: str, runs: float, seconds: float) -> None:
        if seconds > 0.0:
            new = Operation(it.name, it.op_name, self.program.source(it), basis)
            operation = self.cost.operations.setdefault(it.name, new)
            operation.runs += runs
            operation.seconds += runs * seconds
