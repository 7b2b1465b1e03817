import itertools

import numpy as np
import pytest

from train.data.packing import choose_padded_sizes


@pytest.mark.parametrize("compiling", [0.5, 4.0, 20.0, 1000.0])
def test_sizes_to_compile_cost_least(compiling):
    longest = np.random.default_rng(3).choice([5, 6, 9, 10, 17, 30, 31, 38, 44, 51], size=60)

    def cost(lengths):
        padded = [min(length for length in lengths if length >= n) for n in longest]
        return compiling * len(lengths) + sum(padded) - longest.sum()

    multiples = range(8, 52, 4)
    every = [(*some, 52) for count in range(9) for some in itertools.combinations(multiples, count)]
    chosen = choose_padded_sizes(longest, 100, multiple=4, compiling=compiling)
    assert chosen == tuple(sorted(chosen)) and set(chosen) <= {*multiples, 52}
    assert cost(chosen) == min(map(cost, every))


def test_no_length_goes_beyond_the_largest_allowed():
    assert choose_padded_sizes(np.array([3, 9, 49]), 50, multiple=4, compiling=0.1) == (4, 12, 50)
