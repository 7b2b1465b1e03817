"""Classification metrics against their definitions, written out."""

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from train.metrics.classification import (
    class_scores,
    confusion_matrix,
    label_scores,
    matthews_correlation,
    micro_f1,
    pearson_correlation,
    spearman_correlation,
)
from train.tasks.problems import Problem, problem_metrics


def ratio(a, b):
    return a / b if b else 0.0


def scores_by_definition(labels, predictions):
    """[precision, recall, F1, support] of boolean arrays."""
    correct, predicted, support = (labels & predictions).sum(), predictions.sum(), labels.sum()
    precision, recall = ratio(correct, predicted), ratio(correct, support)
    return [precision, recall, ratio(2 * precision * recall, precision + recall), support]


def in_order(scores):
    return [scores.precision, scores.recall, scores.f1, scores.support]


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_one_class_of_several(classes, count, seed):
    generator = np.random.default_rng(seed)
    labels, predictions = generator.integers(classes, size=(2, count))
    if seed % 3 == 0:
        predictions[:] = predictions[0]  # a model that predicts one class only
    counts = [[((labels == i) & (predictions == j)).sum() for j in range(classes)] for i in range(classes)]
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, classes), counts)
    expected = [scores_by_definition(labels == i, predictions == i) for i in range(classes)]
    found = class_scores(labels, predictions, classes)
    np.testing.assert_allclose(in_order(found), np.transpose(expected), atol=1e-12)
    # Gorodkin's coefficient: the correlation of the indicator matrices.
    one, other = (np.eye(classes)[ids] - np.eye(classes)[ids].mean(axis=0) for ids in (labels, predictions))
    matthews = ratio(np.sum(one * other), np.sqrt(np.sum(one**2) * np.sum(other**2)))
    assert matthews_correlation(labels, predictions) == pytest.approx(matthews, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_any_number_of_labels(num_labels, count, seed):
    labels, predictions = np.random.default_rng(seed).integers(2, size=(2, count, num_labels))
    pairs = zip(labels.T == 1, predictions.T == 1, strict=True)
    expected = np.transpose([scores_by_definition(*pair) for pair in pairs])
    np.testing.assert_allclose(in_order(label_scores(labels, predictions)), expected, atol=1e-12)
    together = scores_by_definition(labels.reshape(-1) == 1, predictions.reshape(-1) == 1)
    assert micro_f1(labels, predictions) == pytest.approx(together[2])


@settings(max_examples=100, deadline=None)
@given(st.integers(3, 50), st.integers(0, 2**32 - 1))
def test_correlations(count, seed):
    generator = np.random.default_rng(seed)
    labels = np.append(generator.integers(6, size=count), [0, 5]).astype(np.float32)  # with ties
    predictions = (np.append(generator.normal(size=count), [1.0, -1.0]) + labels).astype(np.float32)
    correlation = lambda a, b: np.corrcoef(a.astype(float), b.astype(float))[0, 1]  # noqa: E731
    assert pearson_correlation(labels, predictions) == pytest.approx(correlation(labels, predictions), abs=1e-12)
    ranks = correlation(scipy.stats.rankdata(labels), scipy.stats.rankdata(predictions))
    assert spearman_correlation(labels, predictions) == pytest.approx(ranks, abs=1e-12)


def test_constant_values_have_no_correlation():
    constant, other = np.ones(4), np.arange(4.0)
    for first, second in ((constant, other), (other, constant), (np.ones(1), np.ones(1))):
        assert pearson_correlation(first, second) == spearman_correlation(first, second) == 0.0
        assert matthews_correlation(first.astype(int), second.astype(int)) == 0.0


def test_macro_f1_leaves_out_classes_that_occur_nowhere():
    """As scikit-learn's f1_score does without a list of labels."""
    labels, predicted = np.array([0, 0, 2, 2]), np.array([0, 2, 2, 2])
    problem = Problem("single_label_classification", ("a", "b", "c"))
    found = problem_metrics(problem, labels, np.eye(3)[predicted])
    assert found["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="macro"))
    assert found["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
