"""What a classification leaves behind: predictions, a table of its labels, and a picture of what it confuses."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from flaxbert.files import atomic_write
from train.data.labelled_texts import LabelledText
from train.metrics.classification import PerClass
from train.summary import markdown_table
from train.tasks.problems import Problem

# Of a larger confusion matrix neither names nor numbers could be read.
_READABLE = 40


def write_results(
    folder: Path, name: str, problem: Problem, rows: Sequence[LabelledText], given: np.ndarray | None, found: np.ndarray
) -> list[str]:
    """Writes predictions_NAME.tsv, and where there are labels report_NAME.md and confusion_NAME.png.

    Args:
        folder: of the run.
        name: of the set.
        problem: which says what a label is.
        rows: that were classified.
        given: their labels, None where they have none.
        found: what the model thinks of each label, [B, N].

    Returns:
        lines to show.
    """
    pairs = zip(rows, found, strict=True)
    told = ((row.source, row.label or "", *problem.answer(thought)) for row, thought in pairs)
    shown = [write_predictions(folder, name, told)]
    each = None if given is None else problem.report(given, found)
    if given is None or each is None:
        return shown
    counts = problem.confusion(given, found)
    picture = f"confusion_{name}.png" if counts is not None and len(counts) <= _READABLE else None
    if counts is not None and picture is not None:
        with atomic_write(folder / picture) as aside:
            _draw(aside, counts, problem.labels, name)
    with atomic_write(folder / f"report_{name}.md") as aside:
        aside.write_text(_report(name, problem.labels, each, picture), encoding="utf-8", newline="\n")
    return [*shown, f"each label: {folder / f'report_{name}.md'}"]


def write_predictions(folder: Path, name: str, rows: Iterable[tuple[str, str, str, float]]) -> str:
    """Writes predictions_NAME.tsv, and returns a line to show.

    Of every row where it stands, the answer given ("" for none) and the one predicted, and its probability.
    """
    path = folder / f"predictions_{name}.tsv"
    lines = ["row\tgiven\tpredicted\tprobability"]
    lines += [f"{source}\t{given}\t{answer}\t{probability:.4f}" for source, given, answer, probability in rows]
    with atomic_write(path) as aside:
        aside.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return f"predictions: {path}"


def _report(name: str, labels: Sequence[str], each: PerClass, picture: str | None) -> str:
    columns = each.precision, each.recall, each.f1, each.support
    rows = ((label, *(value.item() for value in values)) for label, *values in zip(labels, *columns, strict=True))
    lines = [f"# {name}", "", *markdown_table(["label", "precision", "recall", "F1", "rows"], rows), ""]
    if picture:
        lines += [f"![How many rows of each label were taken for which]({picture})", ""]
    return "\n".join(lines)


def _draw(path: Path, counts: np.ndarray, labels: Sequence[str], name: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = 2.5 + 0.45 * len(labels)
    figure = Figure(figsize=(side + 0.8, side), dpi=150, layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for (given, found), count in np.ndenumerate(counts):
        if count:
            axes.text(
                found, given, str(count), ha="center", va="center", color="w" if shares[given, found] > 0.5 else "k"
            )
    places, names = range(len(labels)), [label if len(label) <= 20 else label[:19] + "\u2026" for label in labels]
    axes.set_xticks(places, names, rotation=90, parse_math=False)
    axes.set_yticks(places, names, parse_math=False)
    axes.set(xlabel="predicted", ylabel="given")
    axes.set_title(name, loc="left", parse_math=False)
    FigureCanvasAgg(figure).print_figure(path, format="png")
