"""The estimated time of a compiled program on one device, from the compiler's own cycle estimates."""

import collections
import dataclasses
import functools

from train.aot.collectives import Collective, Slice, base_kind
from train.aot.guess import guessed_seconds, operand_bytes
from train.aot.hlo import Computation, Instruction, Program
from train.aot.loops import trip_count
from train.aot.products import PRODUCTS, product_flops


@dataclasses.dataclass
class Operation:
    """An instruction that takes time, over the whole step."""

    name: str
    op_name: str
    source: tuple[str, ...]
    basis: str
    """Where its time comes from: "compiler", "guess" or "links"."""
    runs: float = 0.0
    seconds: float = 0.0


@dataclasses.dataclass
class Sent:
    """Collectives of one kind over the same axes, over the whole step."""

    runs: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0
    overlapped: float = 0.0
    """Of the runs, those with a start and a done that other work stands between."""


@dataclasses.dataclass
class Cost:
    """Of one step on one device; all of it estimated, seconds unless said otherwise."""

    seconds: float = 0.0
    compiler: float = 0.0
    """Cycles that the compiler estimates, at the chip's clock."""
    guessed: float = 0.0
    """Instructions without an estimate, by `guess.guessed_seconds`."""
    waiting_links: float = 0.0
    """For collectives that nothing hides."""
    waiting_memory: float = 0.0
    """For copies between memories that nothing hides."""
    cycles: float = 0.0
    flops: float = 0.0
    """Of matrix products."""
    unknown_loops: list[str] = dataclasses.field(default_factory=list)
    """Loops of unknown length, counted once."""
    conditionals: list[str] = dataclasses.field(default_factory=list)
    """Of which the slowest branch was taken to run."""
    operations: dict[str, Operation] = dataclasses.field(default_factory=dict)
    sent: dict[tuple[str, tuple[str, ...]], Sent] = dataclasses.field(default_factory=dict)


def estimate(program: Program, where: Slice) -> Cost:
    """The cost of a program's entry computation.

    The device runs the instructions of a computation one after another. A start puts its copy or collective into a
    queue (one for the memory, one for the links), its done waits until the queue has come to it; all other work
    between the two hides it. A loop's body is walked once and counted as often as it runs.
    """
    walk = _Walk(program, where)
    walk.cost.seconds = walk.run(program.computations[program.entry], 1.0)
    return walk.cost


@dataclasses.dataclass
class _Clock:
    """Where a device stands in a computation, and until when its queues are busy."""

    now: float = 0.0
    queues: dict[str, float] = dataclasses.field(default_factory=lambda: collections.defaultdict(float))
    ends: dict[str, tuple[float, str]] = dataclasses.field(default_factory=dict)

    def begin(self, name: str, queue: str, seconds: float) -> None:
        """Puts work into a queue."""
        self.queues[queue] = max(self.now, self.queues[queue]) + seconds
        self.ends[name] = self.queues[queue], queue

    def wait(self, name: str) -> tuple[float, str]:
        """Until a start's work has ended; the seconds waited and for which queue."""
        end, queue = self.ends[name]
        waited = max(0.0, end - self.now)
        self.now += waited
        return waited, queue


@dataclasses.dataclass(frozen=True)
class _Leg:
    """One of the instructions that carry out a collective."""

    key: str
    collective: Instruction
    holder: Computation
    """The computation that the collective stands in: a fusion's own, or the one around."""
    first: bool
    last: bool


class _Walk:
    def __init__(self, program: Program, where: Slice):
        self.program, self.where, self.chip = program, where, where.chip
        self.cost = Cost()

    def run(self, computation: Computation, runs: float) -> float:
        """Seconds of one run; adds all `runs` of them to the cost."""
        clock, legs = _Clock(), self._legs(computation)
        for it in computation.instructions:
            if it.name in legs:
                self._send(computation, it, legs[it.name], clock, runs)
            elif it.opcode == "while":
                clock.now += self._loop(computation, it, runs)
            elif it.opcode == "conditional":
                clock.now += self._branches(it, runs)
            elif it.opcode == "call":
                clock.now += self.run(self.program.computations[it.called("to_apply")], runs)
            elif it.opcode.endswith("-start"):
                clock.begin(it.name, "memory", self._moved(computation, it) / self._bandwidth)
            elif it.opcode.endswith(("-done", "-update")) and it.operands[0] in clock.ends:
                clock.ends[it.name] = clock.ends[it.operands[0]]
                self._wait(it, clock, runs)
            else:
                clock.now += self._work(computation, it, runs)
        return clock.now

    def _loop(self, around: Computation, loop: Instruction, runs: float) -> float:
        turns = trip_count(self.program, around, loop)
        if turns is None:
            self.cost.unknown_loops.append(loop.name)
            turns = 1
        body, condition = (self.program.computations[loop.called(role)] for role in ("body", "condition"))
        return turns * (self.run(body, runs * turns) + self.run(condition, runs * turns)) if turns else 0.0

    def _branches(self, it: Instruction, runs: float) -> float:
        """The slowest branch's seconds; only that one is added to the cost."""
        self.cost.conditionals.append(it.name)
        branches = [self.program.computations[name] for name in it.branches]
        slowest = max(branches, key=lambda branch: _Walk(self.program, self.where).run(branch, 1.0))
        return self.run(slowest, runs)

    def _send(self, around: Computation, it: Instruction, leg: _Leg, clock: _Clock, runs: float) -> None:
        """A collective, on its own or carried by several instructions; work fused with it runs meanwhile."""
        if leg.first:
            operands = operand_bytes(leg.holder, leg.collective)
            scattered = any(i.opcode == "dynamic-slice" for i in leg.holder.instructions) and leg.holder is not around
            sent = self.where.collective(leg.collective, operands, scattered=scattered)
            clock.begin(leg.key, "links", sent.seconds)
            self._note(it, leg, sent, runs)
        if it.opcode == "fusion" and it.estimated_cycles is not None:
            clock.now += self._work(around, it, runs)
        clock.ends[it.name] = clock.ends[leg.key]
        if leg.last and not it.opcode.endswith("-start"):
            self._wait(it, clock, runs)

    def _wait(self, it: Instruction, clock: _Clock, runs: float) -> None:
        waited, queue = clock.wait(it.name)
        if queue == "links":
            self.cost.waiting_links += runs * waited
        else:
            self.cost.waiting_memory += runs * waited

    def _work(self, around: Computation, it: Instruction, runs: float) -> float:
        """Seconds on the core: the compiler's estimate, or a guess from arithmetic and bytes."""
        flops = self._flops(around, it)
        self.cost.flops += runs * flops
        cycles = it.estimated_cycles
        if cycles is not None:
            seconds, basis = cycles / self.chip.clock, "compiler"
            self.cost.cycles += runs * cycles
            self.cost.compiler += runs * seconds
        else:
            seconds, basis = guessed_seconds(self.program, around, it, flops=flops, chip=self.chip), "guess"
            self.cost.guessed += runs * seconds
        self._add(it, basis, runs, seconds)
        return seconds

    def _flops(self, around: Computation, it: Instruction) -> float:
        if it.opcode in PRODUCTS:
            return product_flops(around, it)
        return self._flops_inside(it.called("calls")) if it.opcode == "fusion" else 0.0

    @functools.cache  # noqa: B019 - a walk lives as long as its estimate
    def _flops_inside(self, name: str) -> float:
        inside = self.program.computations[name]
        return sum(self._flops(inside, instruction) for instruction in inside.instructions)

    @property
    def _bandwidth(self) -> float:
        return self.chip.hbm_bandwidth / self.chip.devices

    def _moved(self, around: Computation, it: Instruction) -> float:
        """Bytes that a start of a copy or of a slice carries: what it makes, its operands left out."""
        if it.opcode == "copy-start":
            return it.shapes[0].bytes
        return max(0, it.bytes - operand_bytes(around, it))

    def _legs(self, computation: Computation) -> dict[str, _Leg]:
        """The instructions of a computation that carry collectives, by name."""
        carried: dict[str, list[tuple[Instruction, Instruction, Computation]]] = {}
        for it in computation.instructions:
            if base_kind(it):
                carried[it.name] = [(it, it, computation)]
            elif it.opcode in ("fusion", "async-start", "call-start"):
                # A call-start hands a computation to the sparse cores, which carry out collectives on a tpu7x.
                role = "to_apply" if it.opcode == "call-start" else "calls"
                holder = self.program.computations[it.called(role)]
                found = next((i for i in holder.instructions if base_kind(i)), None)
                if found is not None:
                    key = it.name if found.channel is None else f"channel {found.channel}"
                    carried.setdefault(key, []).append((it, found, holder))
        return {
            it.name: _Leg(key, found, holder, first=place == 0, last=place == len(chain) - 1)
            for key, chain in carried.items()
            for place, (it, found, holder) in enumerate(chain)
        }

    def _note(self, it: Instruction, leg: _Leg, sent: Collective, runs: float) -> None:
        total = self.cost.sent.setdefault((sent.kind, sent.axes), Sent())
        total.runs += runs
        total.bytes += runs * sent.bytes
        total.seconds += runs * sent.seconds
        total.overlapped += runs * (it.opcode.endswith("-start") or not leg.last)
        self._add(leg.collective, "links", runs, sent.seconds)

    def _add(self, it: Instruction, basis: str, runs: float, seconds: float) -> None:
        if seconds > 0.0:
            new = Operation(it.name, it.op_name, self.program.source(it), basis)
            operation = self.cost.operations.setdefault(it.name, new)
            operation.runs += runs
            operation.seconds += runs * seconds
