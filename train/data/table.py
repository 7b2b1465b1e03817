"""Labelled text rows for sequence classification, from a file or from the `datasets` library.

`text_tables.ENDINGS` says how a file is read; all are UTF-8, a byte-order mark is skipped. A .tsv or .csv without a
header (GLUE's CoLA) is read by giving the columns as numbers from 0: `Columns(text="3", label="1")`.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from train.data.messages import listed, refuse, text_in
from train.data.sources import read_records

# What columns are called in practice, most telling first; compared without regard to case. A lone "question" is
# not among the texts: in multiple-choice files (COPA, Cosmos QA) it would pass unseen for the whole input.
_PAIRS = [("sentence1", "sentence2"), ("text", "text_pair"), ("question1", "question2")]
_PAIRS += [("premise", "hypothesis"), ("premise", "hypo"), ("question", "sentence"), ("question", "passage")]
_PAIRS += [("#1 string", "#2 string"), ("sentence_a", "sentence_b"), ("text_a", "text_b")]
_TEXTS = ["sentence", "text", "sentence1", "content", "review", "title"]
_LABELS = ["label", "labels", "gold_label", "class", "category", "target"]
_LABELS += ["quality", "is_duplicate", "similarity", "similarity_score", "score"]


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which columns hold what: None is found by convention, "" is not used, numbers mean: no header.

    By convention a complete pair (sentence1 and sentence2, question and sentence, ...) goes before a text
    alone, and `text_pair` is the natural partner of `text`, also where `text` is given by name.
    """

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None


_BY_CONVENTION = Columns()


@dataclasses.dataclass(frozen=True)
class Row:
    """One text, or pair of texts, to classify.

    `label` is as written in the file (JSON numbers and booleans in JSON's spelling), None where the file has
    no label column; several are joined by the separator. `source` is "path:line", from 1 as editors count, or
    "datasets:name:index", from 0.
    """

    text: str
    text_pair: str | None
    label: str | None
    source: str


def read_rows(
    source: str | os.PathLike[str],
    *,
    columns: Columns = _BY_CONVENTION,
    split: str | None = None,
    separator: str | None = None,
) -> list[Row]:
    """All rows of a file, or of a data set: `datasets:NAME[:CONFIG]`, its folder, or a name that is no path.

    `split` is for data sets only; their class numbers become names, and a split with class -1 throughout (the
    hub's test sets) is unlabelled. With a `separator` a row may have several labels, in a list or between
    separators, or none. Raises FileNotFoundError, or a ValueError that counts the malformed rows and shows the
    first five. Nothing read is executed.
    """
    numbered = any(re.fullmatch("[0-9]+", name or "") for name in dataclasses.astuple(columns))
    records, remedy = read_records(source, split=split, numbered=numbered, lists=separator is not None)
    where = os.fspath(source).removeprefix("datasets:")
    readable = [values for _, values in records if not isinstance(values, str)]
    # Of all rows: were a label missing in the first, the whole file would pass for unlabelled.
    names = list(dict.fromkeys(name for values in readable for name in values))
    text, pair, label = _choose(where, names, columns) if readable else ("", None, None)
    rows, problems = [], []
    for source, values in records:
        try:
            if isinstance(values, str):
                raise ValueError(values)
            first = text_in(values, text)
            second = text_in(values, pair) if pair else None
            given = _label(values, label, separator) if label else None
            rows.append(Row(text=first, text_pair=second, label=given, source=source))
        except ValueError as error:
            problems.append(f"{source}: {error}")
    refuse(problems, len(records), f"{remedy} Correct or remove these rows.")
    return rows


def _choose(where: str, names: Sequence[str], columns: Columns) -> tuple[str, str | None, str | None]:
    """The columns of the text, its partner and the label, the last two "" or None where there is none."""
    text, pair, label = columns.text, columns.text_pair, columns.label
    folded = {name.casefold(): name for name in reversed(names)}
    if text is None:
        known = [a for a, b in _PAIRS if b in folded] + _TEXTS
        text = next((folded[a] for a in known if a in folded and folded[a] not in (pair, label)), None)
    if pair is None and text:
        pair = next((folded[b] for a, b in _PAIRS if a == text.casefold() and b in folded), None)
    if label is None:
        label = next((folded[a] for a in _LABELS if a in folded and folded[a] not in (text, pair)), None)
    used = [name for name in (text, pair, label) if name]
    wrong = [name for name in used if name not in names or used.count(name) > 1]
    if not text or wrong:
        what = f"{listed(wrong)} must be there, for one use each" if wrong else "none known as a text"
        raise ValueError(
            f"{where}: columns found: {listed(names)}; {what}. Name them: --task.columns.text, "
            "--task.columns.text-pair, --task.columns.label; in a .tsv or .csv without a header by number from 0, "
            "as --task.columns.text 3 --task.columns.label 1"
        )
    return text, pair, label


def _label(values: Mapping[str, Any], name: str, separator: str | None) -> str:
    if separator is None:
        return text_in(values, name, numbers=True)
    several = values.get(name)
    if isinstance(several, list):
        labels = [text_in({name: value}, name, numbers=True) for value in several]
        holding = [label for label in labels if separator in label]
        if holding:
            raise ValueError(f"{name!r} has the label {holding[0]!r:.40}, with the separator {separator!r} in it")
        return separator.join(labels)
    return "" if several == "" else text_in(values, name, numbers=True)
