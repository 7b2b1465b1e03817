"""Metrics of classification and regression, as GLUE reports them.

A ratio without a denominator (a class that never occurs, constant predictions) is 0. The functions import scikit-learn
and `scipy.stats` when they are called: together these take a second, which `python -m train --help` should not.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """Precision, recall and F1 of each class [N], and its number of examples."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray


def confusion_matrix(
    labels: Int[np.ndarray, "B"], predictions: Int[np.ndarray, "B"], num_classes: int
) -> Int[np.ndarray, "N N"]:
    """Count the examples of class i (row) that were predicted as class j (column)."""
    import sklearn.metrics

    return sklearn.metrics.confusion_matrix(labels, predictions, labels=np.arange(num_classes))


def class_scores(labels: Int[np.ndarray, "B"], predictions: Int[np.ndarray, "B"], num_classes: int) -> ClassScores:
    """Score each class where an example has exactly one; arguments are class ids."""
    return ClassScores(*_scores(labels, predictions, range(num_classes)))


def label_scores(labels: Int[np.ndarray, "B N"], predictions: Int[np.ndarray, "B N"]) -> ClassScores:
    """Score each label where an example may have any number of them; arguments are zeros and ones."""
    # One column at a time: scikit-learn takes an array of a single column for two classes.
    columns = [_scores(*column, [1]) for column in zip(labels.T, predictions.T, strict=True)]
    return ClassScores(*np.concatenate(columns, axis=1))


def micro_f1(labels: Int[np.ndarray, "B N"], predictions: Int[np.ndarray, "B N"]) -> float:
    """Return the F1 over all labels of all examples together; arguments are zeros and ones."""
    return float(_scores(labels.reshape(-1), predictions.reshape(-1), [1])[2][0])


def matthews_correlation(labels: Int[np.ndarray, "B"], predictions: Int[np.ndarray, "B"]) -> float:
    """Return Matthews' correlation coefficient for any number of classes (Gorodkin, 2004); arguments are class ids."""
    import sklearn.metrics

    if _is_constant(labels) or _is_constant(predictions):
        return 0.0
    return float(sklearn.metrics.matthews_corrcoef(labels, predictions))


def pearson_correlation(labels: Float[np.ndarray, "B"], predictions: Float[np.ndarray, "B"]) -> float:
    """Return Pearson's correlation coefficient."""
    import scipy.stats

    if _is_constant(labels) or _is_constant(predictions):
        return 0.0
    result: Any = scipy.stats.pearsonr(labels.astype(np.float64), predictions.astype(np.float64))
    return float(result.statistic)


def spearman_correlation(labels: Float[np.ndarray, "B"], predictions: Float[np.ndarray, "B"]) -> float:
    """Return Spearman's rank correlation coefficient; equal values share the mean of their ranks."""
    import scipy.stats

    if _is_constant(labels) or _is_constant(predictions):
        return 0.0
    result: Any = scipy.stats.spearmanr(labels, predictions)
    return float(result.statistic)


def _scores(labels: np.ndarray, predictions: np.ndarray, classes: Sequence[int]) -> list[np.ndarray]:
    """Return precision, recall, F1 and support of these classes."""
    import sklearn.metrics

    scores: Any = sklearn.metrics.precision_recall_fscore_support  # its stubs know neither numbers nor arrays
    return scores(labels, predictions, labels=list(classes), zero_division=0.0)


def _is_constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())
