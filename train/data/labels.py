"""Labels of rows, and their ids."""

import decimal
import difflib
import math
import re
from collections.abc import Sequence

import numpy as np

from train.data.messages import SHOWN, listed, refuse
from train.data.table import Row

_RATINGS = 20  # half stars are classes; more different decimals than that are measures
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)


def label_ids(rows: Sequence[Row], labels: Sequence[str]) -> list[int]:
    """The position of each row's label in `labels`; ValueError shows the rows whose label is not there."""
    return [found for (found,) in _ids(rows, labels, separator=None)]


def label_indicators(rows: Sequence[Row], labels: Sequence[str], *, separator: str) -> np.ndarray:
    """Which of `labels` each row has, as zeros and ones [rows, labels]; ValueError shows the rows with others."""
    found = np.zeros((len(rows), len(labels)), np.int32)
    for row, ids in enumerate(_ids(rows, labels, separator=separator)):
        found[row, ids] = 1
    return found


def label_numbers(rows: Sequence[Row]) -> np.ndarray:
    """The labels as numbers [rows]; ValueError shows the rows whose label is none, or not finite."""
    found, problems = [], []
    for row in rows:
        try:
            found.append(float(row.label or ""))
            if not math.isfinite(found[-1]):
                raise ValueError
        except ValueError:
            problems.append(f"{row.source}: " + ("no label" if row.label is None else f"label {row.label[:80]!r}"))
    refuse(problems, len(rows), "A regression's labels are finite numbers. Correct or remove these rows.")
    return np.array(found)


def _ids(rows: Sequence[Row], labels: Sequence[str], *, separator: str | None) -> list[list[int]]:
    """The positions in `labels` of each row's labels: one, or where they are separated any number."""
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(f"labels must be distinct and at least one, got {listed(labels)}")
    ids = {label: i for i, label in enumerate(labels)}
    problems, found = [], []
    for row in rows:
        if row.label is None:
            problems.append(f"{row.source}: no label")
            continue
        names = _split(row.label, separator)
        found.append([ids[name] for name in names if name in ids])
        for name in names:
            if name not in ids:
                near = difflib.get_close_matches(name[:80], labels) if len(problems) < SHOWN else []
                problems.append(f"{row.source}: label {name[:80]!r}, near names: {listed(near)}")
    refuse(problems, len(rows), f"Allowed labels: {listed(labels)}. Correct the rows or the labels given.")
    return found


def _split(label: str, separator: str | None) -> list[str]:
    return [label] if separator is None else [name.strip() for name in label.split(separator) if name.strip()]


def infer_labels(rows: Sequence[Row], *, separator: str | None = None) -> tuple[str, ...]:
    """The distinct labels in order, numbers by value; ValueError for no rows and for an unlabelled row.

    A label that occurs only in another file is missed (TNEWS: 114), so write a known label set out instead. With a
    `separator` a row may have several.

    Raises:
        ValueError: also where the labels are many numbers with decimals: what is asked for is regression.
    """
    if not rows:
        raise ValueError("rows is empty, so there are no labels to infer; give the training rows")
    unlabelled = [f"{row.source}: no label" for row in rows if row.label is None]
    refuse(unlabelled, len(rows), "Labels can be inferred from labelled rows only.")
    labels = {name for row in rows if row.label is not None for name in _split(row.label, separator)}
    decimals = [label for label in labels if re.fullmatch(r"[+-]?\d*\.\d*[1-9]\d*", label, re.ASCII)]
    if decimals and len(labels) > _RATINGS:
        raise ValueError(
            f"labels such as {min(decimals)!r} are measures, not classes: give --task.problem-type regression, "
            "or name all classes: --task.labels"
        )
    if not labels:
        raise ValueError("no row has a label; name them all: --task.labels")
    if all(_NUMBER.fullmatch(label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (decimal.Decimal(label), label)))
    return tuple(sorted(labels))
