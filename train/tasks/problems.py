"""Sequence classification by type of problem: targets, probabilities, metrics and answers.

The types are those of `problem_type` in the config of a Hugging Face model: one label of several, any number of labels,
or regression to a number.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert.losses import IGNORE
from train.data.labelled_texts import LabelledTexts
from train.data.labels import (
    NUMBERS_REMEDY,
    LabelledText,
    infer_labels,
    label_ids,
    label_indicators,
    label_numbers,
    labels_remedy,
    rows_with_other_labels,
    rows_without_number,
)
from train.metrics import classification
from train.metrics.classification import ClassScores

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """The type of a problem and its labels, in the order of the model's outputs."""

    kind: ProblemType
    labels: tuple[str, ...]  # for a regression the name of its one output
    separator: str = ","  # between the labels of an example with several


def make_problem(
    kind: ProblemType, rows: Sequence[LabelledText], *, labels: tuple[str, ...], separator: str
) -> Problem:
    """Return the problem with these labels; if `labels` is empty, with those of the training examples `rows`.

    Raises:
        ValueError: a regression has labels, the separator is empty, or labels cannot be inferred.
    """
    if kind == "regression":
        if labels:
            raise ValueError(f"labels is {labels}, but a regression has none; leave one of the two out")
        return Problem(kind, ("LABEL_0",))  # Hugging Face's name for it
    if kind == "multi_label_classification":
        if not separator:
            raise ValueError('separator is empty; give the text between the labels of a row, such as ","')
        return Problem(kind, labels or infer_labels(rows, separator=separator), separator)
    return Problem(kind, labels or infer_labels(rows))


def targets(problem: Problem, rows: Sequence[LabelledText]) -> np.ndarray:
    """Return the labels of examples that all have one: ids [B], zeros and ones [B, N], or numbers [B]."""
    if problem.kind == "single_label_classification":
        return np.array(label_ids(rows, problem.labels), np.int32)
    if problem.kind == "multi_label_classification":
        return label_indicators(rows, problem.labels, separator=problem.separator).astype(np.float32)
    return label_numbers(rows).astype(np.float32)


def without_bad_targets(problem: Problem, rows: LabelledTexts) -> LabelledTexts:
    """Return the examples that have a target; raises as `BadRowList.add`."""
    if problem.kind == "regression":
        return rows.without(rows_without_number(rows), NUMBERS_REMEDY)
    separator = problem.separator if problem.kind == "multi_label_classification" else None
    bad = rows_with_other_labels(rows, problem.labels, separator=separator)
    return rows.without(bad, labels_remedy(problem.labels))


def missing_targets(problem: Problem, count: int) -> np.ndarray:
    """Return targets for `count` examples without labels, of the shape and dtype of `targets`: -100 or NaN."""
    if problem.kind == "single_label_classification":
        return np.full(count, IGNORE, np.int32)
    several = problem.kind == "multi_label_classification"
    return np.full((count, len(problem.labels)) if several else count, np.nan, np.float32)


def probabilities(problem: Problem, logits: jax.Array) -> jax.Array:
    """Return the probability of each label [..., N]; for a regression the number itself, [..., 1]."""
    logits = logits.astype(jnp.float32)
    if problem.kind == "single_label_classification":
        return jax.nn.softmax(logits)
    return jax.nn.sigmoid(logits) if problem.kind == "multi_label_classification" else logits


def metric_names(problem: Problem) -> tuple[str, ...]:
    """Return the names of `problem_metrics`."""
    if problem.kind == "single_label_classification":
        return ("accuracy", "macro_f1", *(["f1"] if len(problem.labels) == 2 else []), "matthews")
    return ("accuracy", "f1", "macro_f1") if problem.kind == "multi_label_classification" else ("pearson", "spearman")


def problem_metrics(problem: Problem, labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Return the metrics of a set.

    With one label of two, "f1" is that of the second. With several labels, "accuracy" is the share of examples whose
    labels are all correct, and "f1" is over all labels together. `labels` are the `targets` of the set, `predictions`
    its `probabilities` [B, N].
    """
    scores = scores_by_label(problem, labels, predictions)
    if scores is None:
        numbers = predictions[:, 0]
        return {
            "pearson": classification.pearson_correlation(labels, numbers),
            "spearman": classification.spearman_correlation(labels, numbers),
        }
    if problem.kind == "multi_label_classification":
        expected, predicted = labels.astype(int), (predictions > 0.5).astype(int)
        accuracy = float(np.mean(np.all(expected == predicted, axis=1)))
        micro, macro = classification.micro_f1(expected, predicted), float(scores.f1.mean())
        return {"accuracy": accuracy, "f1": micro, "macro_f1": macro}
    best = predictions.argmax(axis=-1)
    # As in scikit-learn, a class that occurs neither in the data nor in the predictions does not count.
    macro_f1 = float(scores.f1[np.union1d(labels, best)].mean())
    f1 = {"f1": float(scores.f1[1])} if len(problem.labels) == 2 else {}
    accuracy = float(np.mean(labels == best))
    return {
        "accuracy": accuracy,
        "macro_f1": macro_f1,
        **f1,
        "matthews": classification.matthews_correlation(labels, best),
    }


def scores_by_label(problem: Problem, labels: np.ndarray, predictions: np.ndarray) -> ClassScores | None:
    """Return the scores of each label, None for a regression; arguments as of `problem_metrics`."""
    if problem.kind == "single_label_classification":
        return classification.class_scores(labels, predictions.argmax(axis=-1), len(problem.labels))
    if problem.kind == "multi_label_classification":
        return classification.label_scores(labels.astype(int), (predictions > 0.5).astype(int))
    return None


def answer(problem: Problem, prediction: np.ndarray) -> tuple[str, float | None]:
    """Return the answer for one example, as a data file would spell it, and its probability (none for a regression).

    `prediction` is its row [N] of `probabilities`. Of several labels, those above one half are the answer, and its
    probability is that of just these.
    """
    if problem.kind == "single_label_classification":
        best = int(prediction.argmax())
        return problem.labels[best], float(prediction[best])
    if problem.kind == "multi_label_classification":
        names = [name for name, value in zip(problem.labels, prediction, strict=True) if value > 0.5]
        return problem.separator.join(names), float(np.prod(np.maximum(prediction, 1 - prediction)))
    return f"{prediction[0]:.4f}", None
