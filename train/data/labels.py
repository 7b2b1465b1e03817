"""Labels of rows, and their ids."""

import decimal
import difflib
import re
from collections.abc import Sequence

from train.data.messages import SHOWN, listed, refuse
from train.data.table import Row

_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?", re.ASCII)


def label_ids(rows: Sequence[Row], labels: Sequence[str]) -> list[int]:
    """The position of each row's label in `labels`; ValueError shows the rows whose label is not there."""
    if not labels or len(set(labels)) != len(labels):
        raise ValueError(f"labels must be distinct and at least one, got {listed(labels)}")
    ids = {label: i for i, label in enumerate(labels)}
    problems = []
    for row in rows:
        if row.label is None:
            problems.append(f"{row.source}: no label")
        elif row.label not in ids:
            near = difflib.get_close_matches(row.label[:80], labels) if len(problems) < SHOWN else []
            problems.append(f"{row.source}: label {row.label[:80]!r}, near names: {listed(near)}")
    refuse(problems, len(rows), f"Allowed labels: {listed(labels)}. Correct the rows or the labels given.")
    return [ids[row.label] for row in rows if row.label is not None]


def infer_labels(rows: Sequence[Row]) -> tuple[str, ...]:
    """The distinct labels in order, numbers by value; ValueError for no rows and for an unlabelled row.

    A label that occurs only in another file is missed (TNEWS: 114), so write a known label set out instead.
    """
    if not rows:
        raise ValueError("rows is empty, so there are no labels to infer; give the training rows")
    unlabelled = [f"{row.source}: no label" for row in rows if row.label is None]
    refuse(unlabelled, len(rows), "Labels can be inferred from labelled rows only.")
    labels = {row.label for row in rows if row.label is not None}
    if all(_NUMBER.fullmatch(label) for label in labels):
        return tuple(sorted(labels, key=lambda label: (decimal.Decimal(label), label)))
    return tuple(sorted(labels))
