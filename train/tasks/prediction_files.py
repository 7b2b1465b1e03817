"""Files of an evaluation in the folder of a run: predictions, scores by label or entity type, confusion matrices."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from flaxbert.files import atomic_write
from flaxbert.text.tags import TagScheme
from train.data.labels import LabelledText
from train.metrics.classification import ClassScores, confusion_matrix
from train.metrics.entities import EntityScore, EntityScores
from train.summary import font_families, markdown_table
from train.tasks.problems import Problem, answer, scores_by_label

# A larger confusion matrix would have unreadable names and numbers.
_MAX_DRAWN_LABELS = 40


def write_classification(
    folder: Path,
    name: str,
    problem: Problem,
    rows: Sequence[LabelledText],
    labels: np.ndarray | None,
    predictions: np.ndarray,
) -> list[str]:
    """Write predictions_NAME.tsv; if there are labels, also report_NAME.md and confusion_NAME.png.

    Args:
        folder: of the run.
        name: of the set.
        problem: its type and labels.
        rows: the examples of the set.
        labels: their `problems.targets`, None if they have none.
        predictions: their `problems.probabilities`, [B, N].

    Returns:
        lines to print.
    """
    pairs = zip(rows, predictions, strict=True)
    table = ((row.source, row.label or "", *answer(problem, prediction)) for row, prediction in pairs)
    lines = [write_prediction_table(folder, name, table)]
    scores = None if labels is None else scores_by_label(problem, labels, predictions)
    if labels is None or scores is None:
        return lines
    picture = None
    if problem.kind == "single_label_classification" and len(problem.labels) <= _MAX_DRAWN_LABELS:
        counts = confusion_matrix(labels, predictions.argmax(axis=-1), len(problem.labels))
        picture = f"confusion_{name}.png"
        with atomic_write(folder / picture) as path:
            _draw_confusion(path, counts, problem.labels, name)
    report = folder / f"report_{name}.md"
    write_text(report, _label_report(name, problem.labels, scores, picture))
    return [*lines, f"each label: {report}"]


def write_prediction_table(folder: Path, name: str, rows: Iterable[tuple[str, str, str, float | None]]) -> str:
    """Write predictions_NAME.tsv, and return a line to print.

    A row has the source of an example, its label ("" for none), the predicted answer and its probability; the column of
    probabilities is left out where there are none.
    """
    path = folder / f"predictions_{name}.tsv"
    rows = list(rows)
    head = ["row", "given", "predicted", "probability"]
    table = [[*texts, *([] if value is None else [f"{value:.4f}"])] for *texts, value in rows]
    head = head if rows and rows[0][-1] is not None else head[:-1]
    write_text(path, "".join("\t".join(map(escape_cell, row)) + "\n" for row in [head, *table]))
    return f"predictions: {path}"


def escape_cell(text: str) -> str:
    """Return the text with tabs and line ends as \\t, \\n and \\r, so that it fits into a cell of a table."""
    return text.translate({ord("\t"): r"\t", ord("\n"): r"\n", ord("\r"): r"\r"})


def entity_report(
    name: str, scores: EntityScores, *, strict: EntityScores, scheme: TagScheme, baseline: EntityScores
) -> str:
    """Return a Markdown page with the scores of each entity type and of all entities.

    `strict` counts only entities that are valid in `scheme`; `baseline` is that of each word's most frequent tag.
    """
    rows = [*scores.types.items(), ("all", scores.overall)]
    rows += [(f"all, only as {scheme.name} allows", strict.overall), ("all, most frequent tags", baseline.overall)]
    head = ["type", "precision", "recall", "F1", "support", "predicted"]
    lines = [
        f"# Entities of {name}",
        "",
        *markdown_table(head, ((kind, *_entity_cells(score)) for kind, score in rows)),
        "",
        "Tags are read leniently, as in seqeval's default mode and in conlleval; the line before the last is seqeval's",
        "strict mode. The last line gives each word its most frequent tag in the training data, and O to other words.",
        "",
    ]
    return "\n".join(lines)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8 and with "\\n" at line ends."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _entity_cells(score: EntityScore) -> list[str | int]:
    ratios = [f"{value:.4f}" for value in (score.precision, score.recall, score.f1)]
    return [*ratios, score.support, score.predicted]


def _label_report(name: str, labels: Sequence[str], scores: ClassScores, picture: str | None) -> str:
    columns = scores.precision, scores.recall, scores.f1, scores.support
    rows = ((label, *(value.item() for value in values)) for label, *values in zip(labels, *columns, strict=True))
    lines = [f"# {name}", "", *markdown_table(["label", "precision", "recall", "F1", "rows"], rows), ""]
    if picture:
        lines += [f"![Number of rows by label (vertical) and prediction (horizontal)]({picture})", ""]
    return "\n".join(lines)


def _draw_confusion(path: Path, counts: np.ndarray, labels: Sequence[str], name: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side = 2.5 + 0.45 * len(labels)
    figure = Figure(figsize=(side + 0.8, side), dpi=150, layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    for (label, prediction), count in np.ndenumerate(counts):
        if count:
            color = "w" if shares[label, prediction] > 0.5 else "k"
            axes.text(prediction, label, str(count), ha="center", va="center", color=color)
    ticks, names = range(len(labels)), [label if len(label) <= 20 else label[:19] + "\u2026" for label in labels]
    fonts, unit = font_families([*names, name]), ""
    if fonts is None:  # boxes say nothing
        names, unit = [str(tick) for tick in ticks], " (line of the table, from 0)"
    axes.set_xticks(ticks, names, rotation=90, parse_math=False, fontfamily=fonts)
    axes.set_yticks(ticks, names, parse_math=False, fontfamily=fonts)
    axes.set(xlabel=f"predicted{unit}", ylabel=f"given{unit}")
    if fonts is not None:
        axes.set_title(name, loc="left", parse_math=False, fontfamily=fonts)
    FigureCanvasAgg(figure).print_figure(path, format="png")
