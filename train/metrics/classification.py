"""Figures of classification and regression: those of GLUE's evaluation, with scikit-learn's and scipy's values.

Where a quotient has nothing to divide by (a class that never occurs, predictions that are all the same), it is 0.
"""

import dataclasses

import numpy as np
import scipy.stats
from jaxtyping import Float, Int
from numpy.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class PerClass:
    """Precision, recall and F1 of each class [N], and how many entries are truly of it."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray


def confusion(given: Int[np.ndarray, "B"], predicted: Int[np.ndarray, "B"], count: int) -> Int[np.ndarray, "N N"]:
    """How many entries of class i (rows) were taken for class j (columns), of `count` classes."""
    return np.bincount(given.astype(np.int64) * count + predicted, minlength=count**2).reshape(count, count)


def per_class(counts: Int[np.ndarray, "N N"]) -> PerClass:
    """Of each class, from a confusion matrix."""
    right = np.diag(counts)
    return _per_class(right, predicted=counts.sum(axis=0), given=counts.sum(axis=1))


def per_label(given: Int[np.ndarray, "B N"], predicted: Int[np.ndarray, "B N"]) -> PerClass:
    """Of each label, from zeros and ones: several labels may hold of an entry, or none."""
    right = np.sum(given & predicted, axis=0)
    return _per_class(right, predicted=predicted.sum(axis=0), given=given.sum(axis=0))


def micro_f1(given: Int[np.ndarray, "B N"], predicted: Int[np.ndarray, "B N"]) -> float:
    """F1 over all labels of all entries together."""
    return float(_quotient(2 * np.sum(given & predicted), given.sum() + predicted.sum()))


def matthews(counts: Int[np.ndarray, "N N"]) -> float:
    """Matthews' correlation coefficient, for any number of classes (Gorodkin, 2004), from a confusion matrix."""
    counts = counts.astype(np.float64)
    total, right = counts.sum(), np.trace(counts)
    given, predicted = counts.sum(axis=1), counts.sum(axis=0)
    spread = np.sqrt(total**2 - given @ given) * np.sqrt(total**2 - predicted @ predicted)
    return float(_quotient(right * total - given @ predicted, spread))


def pearson(given: Float[np.ndarray, "B"], predicted: Float[np.ndarray, "B"]) -> float:
    """Pearson's correlation coefficient."""
    given, predicted = (values - values.mean() for values in (given.astype(np.float64), predicted.astype(np.float64)))
    return float(_quotient(given @ predicted, np.linalg.norm(given) * np.linalg.norm(predicted)))


def spearman(given: Float[np.ndarray, "B"], predicted: Float[np.ndarray, "B"]) -> float:
    """Spearman's rank correlation coefficient; equal values share the mean of their ranks."""
    return pearson(scipy.stats.rankdata(given), scipy.stats.rankdata(predicted))


def _per_class(right: np.ndarray, *, predicted: np.ndarray, given: np.ndarray) -> PerClass:
    f1 = _quotient(2 * right, predicted + given)
    return PerClass(_quotient(right, predicted), _quotient(right, given), f1, given)


def _quotient(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(np.shape(a)), where=np.asarray(b) != 0)
