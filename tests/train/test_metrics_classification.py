import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from train.metrics.classification import confusion, matthews, micro_f1, pearson, per_class, per_label, spearman


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_classes_equal_scikit_learn(classes, count, seed):
    chance = np.random.default_rng(seed)
    true, guess = chance.integers(classes, size=(2, count))
    if seed % 3 == 0:
        guess[:] = guess[0]  # a model that says the same of everything
    counts = confusion(true, guess, classes)
    names = list(range(classes))
    assert (counts == sklearn.metrics.confusion_matrix(true, guess, labels=names)).all()
    how = {"labels": names, "zero_division": 0.0}
    expected = sklearn.metrics.precision_recall_fscore_support(true, guess, **how)
    found = per_class(counts)
    np.testing.assert_allclose([found.precision, found.recall, found.f1, found.support], expected, atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a single label it says something
        assert matthews(counts) == pytest.approx(sklearn.metrics.matthews_corrcoef(true, guess), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_several_labels_equal_scikit_learn(labels, count, seed):
    true, guess = np.random.default_rng(seed).integers(2, size=(2, count, labels))
    how = {"zero_division": 0.0, "average": None}
    one = lambda a: a if labels > 1 else a[:, 0]  # noqa: E731  # of one column it would report two classes
    expected = sklearn.metrics.precision_recall_fscore_support(
        one(true), one(guess), labels=[1] if labels == 1 else None, **how
    )
    found = per_label(true, guess)
    np.testing.assert_allclose([found.precision, found.recall, found.f1, found.support], expected, atol=1e-12)
    if labels > 1:
        expected = sklearn.metrics.f1_score(true, guess, average="micro", zero_division=0.0)
        assert micro_f1(true, guess) == pytest.approx(expected)


@settings(max_examples=100, deadline=None)
@given(st.integers(3, 50), st.integers(0, 2**32 - 1))
def test_correlations_equal_scipy(count, seed):
    chance = np.random.default_rng(seed)
    true = np.append(chance.integers(6, size=count), [0, 5]).astype(float)  # with ties
    guess = np.append(chance.normal(size=count), [1.0, -1.0]) + true
    assert pearson(true, guess) == pytest.approx(scipy.stats.pearsonr(true, guess).statistic, abs=1e-12)
    assert spearman(true, guess) == pytest.approx(scipy.stats.spearmanr(true, guess).statistic, abs=1e-12)


def test_nothing_to_correlate():
    same, other = np.ones(4), np.arange(4.0)
    assert pearson(same, other) == spearman(other, same) == matthews(confusion(np.arange(2), np.zeros(2, int), 2)) == 0
