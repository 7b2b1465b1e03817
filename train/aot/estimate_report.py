"""An estimate as text for people and as JSON for programs."""

import json
from collections.abc import Iterator
from pathlib import Path

from train.aot.cost import Cost, Operation
from train.aot.estimate import Estimate, MemoryEstimate
from train.aot.instruction_cost import EFFICIENCY
from train.aot.sharding_check import ShardingCheck, UnexpectedArray

_COSTLIEST = 12
_ROOT = Path(__file__).resolve().parents[2]


def estimate_table(estimate: Estimate) -> str:
    """Return plain lines; every heading of estimated figures contains the word "estimated"."""
    mesh = ", ".join(f"{name} {size}" for name, size in estimate.mesh.items())
    return "\n".join(
        [
            f"{estimate.topology}: {estimate.devices} devices ({mesh}); compiled in {estimate.compile_seconds:.1f} s",
            f"All below is estimated from the compiled program, for one device and one step; {estimate.chip.source}.",
            *_memory(estimate.memory),
            *_time(estimate),
            *_collectives(estimate.cost),
            *_sharding(estimate.sharding),
            *_operations(estimate.cost),
        ]
    )


def estimate_json(estimate: Estimate) -> str:
    """Return the estimate under the key "estimated"; slice, chip and compilation time, which are known, beside it."""
    cost, memory, sharding = estimate.cost, estimate.memory, estimate.sharding
    estimated = {
        "memory_bytes": {**vars(memory), "total": memory.total, "free": memory.free},
        "fits": memory.free >= 0,
        "step_seconds": cost.seconds,
        "cycles": cost.cycles,
        "seconds": {
            "compiler": cost.compiler,
            "guessed": cost.roofline,
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
            {"kind": kind, "axes": axes, **vars(total)} for (kind, axes), total in cost.collectives.items()
        ],
        "parameters_gathered_beyond_fsdp": sharding.gathered,
        "whole_batches": sharding.whole_batches,
        "costliest": costliest(cost),
        "loops_of_unknown_length": cost.unknown_loops,
        "conditionals": cost.conditionals,
    }
    known = {
        "topology": estimate.topology,
        "mesh": estimate.mesh,
        "devices": estimate.devices,
        "chip": estimate.chip,
        "compile_seconds": estimate.compile_seconds,
    }
    return json.dumps({**known, "estimated": estimated}, indent=2, ensure_ascii=False, default=vars)


def costliest(cost: Cost) -> list[Operation]:
    """Return the operations with the largest total time."""
    return sorted(cost.operations.values(), key=lambda operation: -operation.seconds)[:_COSTLIEST]


def _memory(memory: MemoryEstimate) -> Iterator[str]:
    yield "\nestimated memory"
    yield f"  parameters        {_size(memory.parameters)}"
    yield f"  optimizer state   {_size(memory.optimizer)}"
    yield f"  batch             {_size(memory.batch)}"
    padding = memory.arguments - memory.parameters - memory.optimizer - memory.batch
    yield f"  padding of these  {_size(padding)}"
    yield f"  new outputs       {_size(memory.outputs)}   (the new state reuses the memory of the old one)"
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
    yield f"  roofline          {_duration(cost.roofline)}   (no cycle estimate: {EFFICIENCY:.0%} of the peaks assumed)"
    yield f"  wait for links    {_duration(cost.waiting_links)}   (collectives not hidden by other work)"
    yield f"  wait for memory   {_duration(cost.waiting_memory)}   (copies between memories not hidden by other work)"
    yield f"  step              {_duration(cost.seconds)}"
    yield f"  tokens/s          {estimate.tokens_per_second:>12,.0f}   ({estimate.tokens:,} tokens a step, all devices)"
    yield f"  MFU               {estimate.mfu:>12.1%}   (model FLOPs {estimate.model_flops:.3e} a step, all devices)"
    yield f"  FLOPs on a device {cost.flops:>12.3e}   (matrix products in the program)"
    for name in cost.unknown_loops:
        yield f"  loop {name}: unknown trip count, counted once"
    for name in cost.conditionals:
        yield f"  conditional {name}: only the slowest branch is counted"


def _collectives(cost: Cost) -> Iterator[str]:
    yield "\nestimated collectives (bytes of the whole arrays; time on the links, hidden or not)"
    if not cost.collectives:
        yield "  none"
    for (kind, axes), total in sorted(cost.collectives.items(), key=lambda item: -item[1].seconds):
        over = "+".join(axes) or "no axis"
        overlapped = f", {total.overlapped:,.0f} overlapped" if total.overlapped else ""
        amount = f"{total.runs:>6,.0f} x  {_size(total.bytes)} {_duration(total.seconds)}"
        yield f"  {kind:<18} over {over:<14} {amount}{overlapped}"


def _sharding(check: ShardingCheck) -> Iterator[str]:
    yield "\nsharding of the compiled program"
    yield f"  parameters gathered beyond fsdp: {'' if check.gathered else 'none'}".rstrip()
    yield from map(_unexpected, check.gathered)
    if check.whole_batches is None:
        yield "  arrays of the whole batch on one device: unknown, another axis is as long as the batch has rows"
        return
    yield f"  arrays of the whole batch on one device: {'' if check.whole_batches else 'none'}".rstrip()
    yield from map(_unexpected, check.whole_batches)


def _unexpected(array: UnexpectedArray) -> str:
    shape = f"{array.shape.dtype}[{','.join(map(str, array.shape.dims))}]"
    return f"    {array.name} {shape} over {'+'.join(array.axes)}: {_line(array.source)} {array.op_name}"


def _operations(cost: Cost) -> Iterator[str]:
    yield "\nestimated costliest operations"
    for operation in costliest(cost):
        share = operation.seconds / cost.seconds if cost.seconds else 0.0
        basis = {"compiler": "", "roofline": " (roofline)", "links": " (links)"}[operation.basis]
        yield f"  {_duration(operation.seconds)} {share:>6.1%}  {operation.runs:>4,.0f} x {operation.name}{basis}"
        yield f"      {_line(operation.source)} {operation.op_name}"


def _line(source: tuple[str, ...]) -> str:
    """Return the innermost source line in this repository, or else the innermost of all."""
    own = [line for line in source if line.startswith(f"{_ROOT}/") and "/site-packages/" not in line]
    return (own or source or ("",))[0].removeprefix(f"{_ROOT}/")


def _size(count: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= scale:
            return f"{count / scale:>8.2f} {unit}"
    return f"{count / 2**10:>8.2f} KiB"


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:>10.3f} ms"
