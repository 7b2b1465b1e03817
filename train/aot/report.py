"""An estimate as a table for people and as JSON for programs."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.aot.cost import Cost, Operation
from train.aot.estimate import Estimate
from train.aot.guess import EFFICIENCY
from train.aot.layout import Layout, Misplaced

_COSTLIEST = 12
_HERE = Path(__file__).resolve().parents[2]


def table(estimate: Estimate) -> str:
    """Plain lines, the word "estimated" in every heading of what is."""
    return "\n".join(
        [
            *_heading(estimate),
            *_memory(estimate),
            *_time(estimate),
            *_sent(estimate.cost),
            *_layout(estimate.layout),
            *_operations(estimate.cost),
        ]
    )


def to_json(estimate: Estimate) -> str:
    """Everything, under one key "estimated" but for what is known: the slice, the chip and the compiler's time."""
    cost = estimate.cost
    known = {
        "topology": estimate.topology,
        "mesh": estimate.mesh,
        "devices": estimate.devices,
        "chip": dataclasses.asdict(estimate.chip),
        "compile_seconds": estimate.compile_seconds,
    }
    memory = estimate.memory
    estimated: dict[str, Any] = {
        "memory_bytes": {**dataclasses.asdict(memory), "total": memory.total, "free": memory.free},
        "fits": memory.free >= 0,
        "step_seconds": cost.seconds,
        "cycles": cost.cycles,
        "seconds": {
            "compiler": cost.compiler,
            "guessed": cost.guessed,
            "waiting_links": cost.waiting_links,
            "waiting_memory": cost.waiting_memory,
        },
        "assumed_efficiency_of_guesses": EFFICIENCY,
        "product_flops_per_device": cost.flops,
        "model_flops": estimate.model_flops,
        "mfu": estimate.mfu,
        "tokens": estimate.tokens,
        "tokens_per_second": estimate.tokens_per_second,
        "collectives": [
            {"kind": kind, "axes": list(axes), **dataclasses.asdict(sent)} for (kind, axes), sent in cost.sent.items()
        ],
        "parameters_gathered_beyond_fsdp": [dataclasses.asdict(found) for found in estimate.layout.gathered],
        "whole_batches": None
        if estimate.layout.whole is None
        else [dataclasses.asdict(found) for found in estimate.layout.whole],
        "costliest": [dataclasses.asdict(operation) for operation in costliest(cost)],
        "loops_of_unknown_length": cost.unknown_loops,
        "conditionals": cost.conditionals,
    }
    return json.dumps({**known, "estimated": estimated}, indent=2, ensure_ascii=False)


def costliest(cost: Cost) -> list[Operation]:
    """The operations that take the most time, over all their runs."""
    return sorted(cost.operations.values(), key=lambda operation: -operation.seconds)[:_COSTLIEST]


def _heading(estimate: Estimate) -> Iterator[str]:
    mesh = ", ".join(f"{name} {size}" for name, size in estimate.mesh.items())
    chip = estimate.chip
    yield f"{estimate.topology}: {estimate.devices} devices ({mesh}); compiled in {estimate.compile_seconds:.1f} s"
    yield f"All below is estimated from the compiled program, for one device and one step; {chip.source}."


def _memory(estimate: Estimate) -> Iterator[str]:
    memory = estimate.memory
    yield "\nestimated memory"
    yield f"  parameters        {_size(memory.parameters)}"
    yield f"  optimizer state   {_size(memory.optimizer)}"
    yield f"  batch             {_size(memory.batch)}"
    padding = memory.arguments - memory.parameters - memory.optimizer - memory.batch
    yield f"  padding of these  {_size(padding)}"
    yield f"  new outputs       {_size(memory.outputs)}   (the new state takes the old one's place)"
    yield f"  temporaries       {_size(memory.temporaries)}   (activations, gradients)"
    yield f"  program           {_size(memory.program)}"
    verdict = "fits, free" if memory.free >= 0 else "DOES NOT FIT, missing"
    capacity, difference = (_size(count).strip() for count in (memory.capacity, abs(memory.free)))
    yield f"  total             {_size(memory.total)} of {capacity}: {verdict} {difference}"


def _time(estimate: Estimate) -> Iterator[str]:
    cost, chip = estimate.cost, estimate.chip
    clock = f"{cost.cycles:,.0f} cycles at {chip.clock / 1e9:.2f} GHz; {chip.clock_source}"
    yield "\nestimated time of a step"
    yield f"  compiler's cycles {_duration(cost.compiler)}   ({clock})"
    yield f"  without estimate  {_duration(cost.guessed)}   (guessed: {EFFICIENCY:.0%} of the peaks)"
    yield f"  wait for links    {_duration(cost.waiting_links)}   (collectives, where no work hides them)"
    yield f"  wait for memory   {_duration(cost.waiting_memory)}   (copies between memories, where no work hides them)"
    yield f"  step              {_duration(cost.seconds)}"
    yield f"  tokens/s          {estimate.tokens_per_second:>12,.0f}   ({estimate.tokens:,} tokens a step, all devices)"
    yield f"  MFU               {estimate.mfu:>12.1%}   (model FLOPs {estimate.model_flops:.3e} a step, all devices)"
    yield f"  FLOPs on a device {cost.flops:>12.3e}   (matrix products in the program)"
    for name in cost.unknown_loops:
        yield f"  the loop {name} has no known length and is counted once"
    for name in cost.conditionals:
        yield f"  of the conditional {name} the slowest branch is counted"


def _sent(cost: Cost) -> Iterator[str]:
    yield "\nestimated collectives (bytes that a device takes part in; time of the links, hidden or not)"
    if not cost.sent:
        yield "  none"
    for (kind, axes), sent in sorted(cost.sent.items(), key=lambda item: -item[1].seconds):
        over = "+".join(axes) or "no axis"
        hidden = f", {sent.overlapped:,.0f} beside other work" if sent.overlapped else ""
        much = f"{sent.runs:>6,.0f} x  {_size(sent.bytes)} {_duration(sent.seconds)}"
        yield f"  {kind:<18} over {over:<14} {much}{hidden}"


def _layout(layout: Layout) -> Iterator[str]:
    yield "\nlayout of the compiled program"
    yield f"  parameters gathered beyond fsdp: {'' if layout.gathered else 'none'}".rstrip()
    yield from map(_misplaced, layout.gathered)
    if layout.whole is None:
        yield "  arrays of the whole batch on one device: not told, other axes are as long as the batch has rows"
        return
    yield f"  arrays of the whole batch on one device: {'' if layout.whole else 'none'}".rstrip()
    yield from map(_misplaced, layout.whole)


def _misplaced(found: Misplaced) -> str:
    shape = f"{found.shape.dtype}[{','.join(map(str, found.shape.dims))}]"
    return f"    {found.name} {shape} over {'+'.join(found.axes)}: {_line(found.source)} {found.op_name}"


def _operations(cost: Cost) -> Iterator[str]:
    yield "\nestimated costliest operations"
    for operation in costliest(cost):
        share = operation.seconds / cost.seconds if cost.seconds else 0.0
        basis = {"compiler": "", "guess": " (guess)", "links": " (links)"}[operation.basis]
        yield f"  {_duration(operation.seconds)} {share:>6.1%}  {operation.runs:>4,.0f} x {operation.name}{basis}"
        yield f"      {_line(operation.source)} {operation.op_name}"


def _line(source: tuple[str, ...]) -> str:
    """The innermost line of this repository, else the innermost of all."""
    own = [line for line in source if line.startswith(f"{_HERE}/") and "/site-packages/" not in line]
    return (own or source or ("",))[0].removeprefix(f"{_HERE}/")


def _size(count: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= scale:
            return f"{count / scale:>8.2f} {unit}"
    return f"{count / 2**10:>8.2f} KiB"


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:>10.3f} ms"
