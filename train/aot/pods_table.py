"""Estimates of one config on many slices, side by side."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

_HEAD = ("config", "slice", "chips", "preset", "rows a chip", "memory", "step", "collectives", "MFU", "weak scaling")


@dataclasses.dataclass(frozen=True)
class Line:
    """One estimate, and how it was asked for."""

    key: str
    config: str
    topology: str
    preset: str
    rows: int
    """Of each chip."""
    versions: str
    date: str
    estimate: Any
    """What `train.aot.report.to_json` says, without operations; None where there is no program."""
    error: str | None
    """Why there is none."""

    @property
    def seconds(self) -> float | None:
        """Of a step; None where there is no program."""
        return None if self.estimate is None else self.estimate["estimated"]["step_seconds"]

    @property
    def kind(self) -> tuple[str, str, int]:
        """What lines have in common whose steps can be held against each other."""
        return self.config, self.topology.partition(":")[0], self.rows

    @property
    def alone(self) -> bool:
        """Whether it is of a single chip."""
        return set(self.topology.partition(":")[2].split("x")) == {"1"}


def table(lines: Sequence[Line]) -> str:
    """In Markdown, with what stands in the columns below it."""
    one = {line.kind: line.seconds for line in lines if line.alone}
    rows = [_HEAD, ("---",) * len(_HEAD), *(_row(line, one.get(line.kind)) for line in lines)]
    text = [f"| {' | '.join(row)} |" for row in rows]
    made = sorted({f"{line.versions}, {line.date}" for line in lines})
    return "\n".join([*text, "", f"Estimated with {'; '.join(made)}.", *_misplaced(lines)])


def _row(line: Line, one: float | None) -> tuple[str, ...]:
    """A line's cells; `one` is the step of a single chip of its kind."""
    begin = (line.config, line.topology)
    if line.estimate is None or line.seconds is None:
        return (*begin, "", line.preset, str(line.rows), line.error or "", "", "", "", "")
    found = line.estimate["estimated"]
    memory = found["memory_bytes"]
    sent = sum(collective["seconds"] for collective in found["collectives"])
    waited = found["seconds"]["waiting_links"]
    return (
        *begin,
        str(line.estimate["devices"]),
        "" if line.alone else line.preset,
        str(line.rows),
        f"{memory['total'] / 2**30:.1f} of {memory['capacity'] / 2**30:.0f} GiB",
        f"{line.seconds * 1e3:.1f} ms",
        "" if line.alone else f"{sent * 1e3:.2f} ms, {waited * 1e3:.2f} not hidden",
        f"{found['mfu']:.1%}",
        "" if line.alone or one is None else f"{one / line.seconds:.1%}",
    )


def _misplaced(lines: Sequence[Line]) -> Iterator[str]:
    """Every parameter gathered beyond `fsdp`, every whole batch on one device; or that there is none."""
    estimates = [line for line in lines if line.estimate is not None]
    for name in ("parameters_gathered_beyond_fsdp", "whole_batches"):
        words = name.replace("_", " ")
        unclear = sum(line.estimate["estimated"][name] is None for line in estimates)
        where = [line for line in estimates if line.estimate["estimated"][name]]
        told = f"{len(where) or 'none'} of {len(estimates) - unclear} programs"
        yield f"\n{words[0].upper()}{words[1:]}: {told}" + (f" ({unclear} not told)." if unclear else ".")
        for line in where:
            arrays = ", ".join(
                f"{found['shape']['dtype']}{found['shape']['dims']} over {'+'.join(found['axes'])}"
                for found in line.estimate["estimated"][name]
            )
            yield f"- {line.config} on {line.topology}, {line.preset}: {arrays}"
