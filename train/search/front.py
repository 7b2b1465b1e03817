"""Results of a search: front.json, and a picture of the metric over the cost."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NotRequired, TypedDict

from flaxbert.files import atomic_write
from train.search.evolution import Configuration, Measurements, pareto_front
from train.summary import markdown_table

FRONT_FILE = "front.json"


class SearchFacts(TypedDict):
    """The subject of a search, as front.json has it."""

    metric: str
    cost: str
    length: int
    model: str


class PointEntry(TypedDict):
    """A configuration in front.json: the arguments of a model, metrics and cost."""

    layer_config: list[int]
    length_config: list[int]
    always_keep_cls_token: bool
    metrics: dict[str, float]
    flops: float
    flops_share: float
    seconds: float | None
    time_share: float | None
    compiled_flops: NotRequired[float]
    baseline: NotRequired[float]


def write_front(
    folder: Path,
    facts: SearchFacts,
    measured: Measurements,
    named: Mapping[str, Configuration],
    entries: Mapping[Configuration, PointEntry],
) -> list[str]:
    """Write front.json and front.png, and return lines to print: a table of the named points, and the files.

    Args:
        folder: of both files.
        facts: metric, cost, length and model of the search.
        measured: all configurations; the first is the full model.
        named: named points.
        entries: what front.json has about each configuration.
    """
    front = pareto_front(measured)
    content = {
        **facts,
        "points": {name: entries[one] for name, one in named.items()},
        "front": [entries[one] for one in front],
    }
    with atomic_write(folder / FRONT_FILE) as aside:
        aside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with atomic_write(folder / "front.png") as aside:
        _draw(aside, facts, measured, named, entries)
    metric, full = facts["metric"], entries[next(iter(measured))]
    baseline = any("baseline" in entries[one] for one in named.values())
    head = [
        "point",
        metric,
        *(["without adaptation"] if baseline else []),
        "FLOPs",
        "compiled FLOPs",
        "time",
        "lengths",
    ]
    rows = []
    for name, one in named.items():
        entry = entries[one]
        compiled = f"{entry.get('compiled_flops', 0) / entries[named['full']].get('compiled_flops', 1):.1%}"
        seconds = "" if entry["seconds"] is None else f"{1e3 * entry['seconds']:.1f} ms, {entry['time_share']:.1%}"
        own = [entry.get("baseline")] if baseline else []
        lengths = " ".join(map(str, one.lengths))
        left_out = "" if one.layers == next(iter(measured)).layers else f", layers {' '.join(map(str, one.layers))}"
        share = f"{entry['flops'] / full['flops']:.1%}"
        rows.append([name, entry["metrics"][metric], *own, share, compiled, seconds, lengths + left_out])
    files = f"front of {len(front)} of {len(measured)} configurations: {folder / FRONT_FILE}, {folder / 'front.png'}"
    return [*markdown_table(head, rows), files]


def _draw(
    path: Path,
    facts: SearchFacts,
    measured: Measurements,
    named: Mapping[str, Configuration],
    entries: Mapping[Configuration, PointEntry],
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metric, full = facts["metric"], next(iter(measured.values())).cost
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()

    def series(configurations: Iterable[Configuration]) -> tuple[list[float], list[float]]:
        own = list(configurations)
        return [measured[one].cost / full for one in own], [entries[one]["metrics"][metric] for one in own]

    axes.plot(*series(measured), linestyle="", marker=".", markersize=3, color="0.7", label="all configurations")
    axes.plot(*series(pareto_front(measured)), marker="o", markersize=3, linewidth=1.2, color="C0", label="front")
    axes.plot(*series(named.values()), linestyle="", marker="D", markersize=6, color="C1", label="named points")
    for name, one in named.items():
        place = (measured[one].cost / full, entries[one]["metrics"][metric])
        axes.annotate(name, place, xytext=(4, -12), textcoords="offset points", fontsize=8)
    compared = {one: entry["baseline"] for one in named.values() if "baseline" in (entry := entries[one])}
    if compared:
        axes.plot(
            series(compared)[0],
            list(compared.values()),
            linestyle="",
            marker="x",
            color="C3",
            label="without adaptation",
        )
    axes.set_xlabel(f"{facts['cost']}, share of the full model")
    axes.set_ylabel(f"{metric} on dev", parse_math=False)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.6)
    FigureCanvasAgg(figure).print_figure(path, format="png")
