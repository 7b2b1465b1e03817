"""Summary of a run: a Markdown page with facts and the last evaluations, and a picture of the loss."""

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from flaxbert.files import JsonObject, atomic_write

METRICS_FILE = "metrics.jsonl"
Line: TypeAlias = JsonObject  # a line of the metrics file


def write_summary(folder: Path, *, title: str, facts: Mapping[str, str | float | int]) -> Path:
    """Write loss.png and summary.md of the run recorded in `folder`, and return the path of summary.md.

    Raises:
        FileNotFoundError: the folder has no metrics.jsonl.
        ValueError: metrics.jsonl is damaged before its last line.
    """
    lines = read_record(folder / METRICS_FILE)
    with atomic_write(folder / "loss.png") as aside:
        _draw(aside, lines, title)
    last = {line["name"]: line for line in lines if line["kind"] == "eval"}
    names = list(dict.fromkeys(key for metrics in last_evaluations(lines).values() for key in metrics))
    text = [f"# {title}", "", *markdown_table(["", "value"], facts.items()), ""]
    if last:
        rows = ([name, line["step"], *(line.get(key, "") for key in names)] for name, line in last.items())
        text += ["## Last evaluation", "", *markdown_table(["data", "step", *names], rows), ""]
    text += ["![Training loss, evaluation loss and learning rate by step](loss.png)", ""]
    with atomic_write(folder / "summary.md") as aside:
        aside.write_text("\n".join(text), encoding="utf-8")
    return folder / "summary.md"


def _draw(path: Path, lines: list[Line], title: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def series(key: str, **fields: str) -> tuple[list[int], list[float]]:
        chosen = [line for line in lines if key in line and fields.items() <= line.items()]
        # null stands for a value that was not finite; as NaN it leaves a gap in the curve.
        values = [math.nan if line[key] is None else line[key] for line in chosen]
        return [line["step"] for line in chosen], values

    keys = dict.fromkeys(key for line in lines if line["kind"] == "train" for key in line if key.endswith("_loss"))
    losses = list(keys) or ["loss"]  # the terms of the loss if it has several
    figure = Figure(figsize=(8, 2 + 3 * len(losses)), dpi=150, layout="constrained")
    *uppers, lower = figure.subplots(len(losses) + 1, 1, sharex=True, height_ratios=[3] * len(losses) + [1])
    # Markers, because a line does not show a run with a single report.
    curve = {"linewidth": 1.2, "marker": "o" if len(lines) < 50 else "", "markersize": 3}
    fonts = font_families([title, *(line["name"] for line in lines if line["kind"] == "eval")])
    for upper, key in zip(uppers, losses, strict=True):
        steps, values = series(key, kind="train")
        width = 2 * (len(steps) // 100) + 1  # single steps are noisy: smooth if there are many
        style: dict[str, float | str] = {"alpha": 0.3} if width > 1 else {"label": "training"}
        upper.plot(steps, values, **curve, **style, color="C0")
        if width > 1:
            means = np.convolve(values, np.full(width, 1 / width), mode="valid")
            label = f"training, means of {width} reports"
            upper.plot(steps[width // 2 : -(width // 2)], means, **curve, label=label, color="C0")
        names = dict.fromkeys(line["name"] for line in lines if line["kind"] == "eval" and key in line)
        for name, marker, number in zip(names, itertools.cycle("Ds^v"), itertools.count(1), strict=False):
            points = {"marker": marker, "markersize": 5, "linestyle": "", "color": f"C{number}"}
            shown = name if fonts is not None else f"set {number}"  # instead of boxes
            upper.plot(*series(key, kind="eval", name=name), **points, label=f"evaluation: {shown}")
        upper.set_ylabel(f"{key.replace('_', ' ')} (nats)", parse_math=False)
        upper.legend(frameon=False, prop={"family": fonts})
    lower.plot(*series("learning_rate", kind="train"), **curve, color="0.35")
    if fonts is not None:
        uppers[0].set_title(title, loc="left", parse_math=False, fontfamily=fonts)
    lower.set(xlabel="optimizer step", ylabel="learning rate")
    lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in (*uppers, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9", linewidth=0.6)
    figure.align_ylabels()
    FigureCanvasAgg(figure).print_figure(path, format="png")


def font_families(texts: Iterable[str]) -> list[str] | None:
    """Return font families that together draw all letters of the texts, matplotlib's own first; None if there are none.

    Fonts are looked for on this machine; matplotlib's own has no Chinese, Japanese or Korean letters.
    """
    from matplotlib import font_manager, ft2font

    families, missing = ["DejaVu Sans"], {ord(letter) for text in texts for letter in text if not letter.isspace()}
    missing -= ft2font.FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap().keys()
    for font in font_manager.fontManager.ttflist if missing else ():
        try:
            covered = missing & ft2font.FT2Font(font.fname).get_charmap().keys()
        except (OSError, RuntimeError):  # a font file that is gone or damaged
            continue
        if covered:
            families.append(font.name)
            missing -= covered
    return None if missing else families


def last_evaluations(lines: Iterable[Line]) -> dict[str, Line]:
    """Return the metrics of the last evaluation of every set, by its name, from the lines of a record."""
    last = {line["name"]: line for line in lines if line["kind"] == "eval"}
    fields = ("kind", "step", "name", "time")
    return {name: {key: value for key, value in line.items() if key not in fields} for name, line in last.items()}


def read_record(path: Path) -> list[Line]:
    """Return the lines of a metrics file; an incomplete last line is left out.

    Raises:
        ValueError: a line before the last is damaged.
    """
    lines, texts = [], path.read_bytes().splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            # A killed process leaves its last line incomplete; damage before that has another cause.
            if number < len(texts):
                raise ValueError(f"{path}, line {number}: {error}; repair or remove the line") from None
    return lines


def markdown_table(head: Sequence[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """Return the lines of a Markdown table."""

    def cell(value: object) -> str:
        text = "not finite" if value is None else f"{value:,.6g}" if isinstance(value, float) else str(value)
        return " ".join(text.split()).replace("|", "\\|")

    lines = ["| " + " | ".join(map(cell, row)) + " |" for row in (head, *rows)]
    return [lines[0], "|" + " --- |" * len(head), *lines[1:]]
