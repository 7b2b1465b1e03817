"""A pointer network learns to sort, and the hulls of the benchmark are those of SciPy."""

import numpy as np
import pytest
from scipy.spatial import ConvexHull

from train.benchmark.pointing import PointingBenchmark, evaluate, hulls, main, train


def test_hulls_equal_scipys():
    examples = hulls(np.random.default_rng(0), 200, 3, 9)
    assert set(examples.mask.sum(axis=1)) == set(range(4, 11))
    for vectors, mask, targets in zip(examples.inputs, examples.mask, examples.targets, strict=True):
        found = targets[: np.flatnonzero(targets == 0)[0]]
        expected = ConvexHull(vectors[1 : mask.sum(), :2]).vertices + 1  # counter-clockwise
        np.testing.assert_array_equal(found, np.roll(expected, -expected.argmin()))
        assert (targets[len(found) + 1 :] == -100).all()
        assert vectors[0].tolist() == [0, 0, 1] and not vectors[1:, 2].any()


@pytest.mark.usefixtures("optimized")
def test_a_short_training_learns_to_sort_most_of_five_numbers():
    settings = PointingBenchmark(
        "sort", count=(5, 5), steps=150, batch_size=64, width=32, learning_rate=1e-2, examples=500
    )
    params, history = train(settings)
    assert history[0] > 0.9 and np.mean(history[-10:]) < 0.4  # a random order: log(5!) / 5 = 0.96
    assert evaluate(params, settings)["positions"] > 0.8  # a random order: 0.2


@pytest.mark.slow
def test_ten_numbers_are_sorted(capsys):
    assert main(["sort", "--steps", "1000"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    figures = dict(figure.rsplit(" ", 1) for figure in line.split(", "))
    assert float(figures["positions"]) >= 0.95 and float(figures["sequences"]) >= 0.9
