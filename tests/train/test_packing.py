import itertools

import numpy as np
import pytest

from train.data.packing import (
    PackedShape,
    best_fit,
    choose_packed_shape,
    choose_padded_sizes,
    first_fit,
    pack_sequences,
)


def random_lengths(seed, size=32):
    return (3 + np.random.default_rng(seed).geometric(0.08, size=size) % 58).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_first_fit_places_every_sequence_once_where_there_is_room(seed):
    lengths, shape = random_lengths(seed), PackedShape(length=64, slots=6)
    rows = first_fit(lengths, shape)
    assert sorted(i for row in rows for i in row) == list(range(32))
    assert all(sum(lengths[i] for i in row) <= 64 and 1 <= len(row) <= 6 for row in rows)
    # No two rows could have been one: that is what "first fit" promises.
    totals = sorted((sum(lengths[i] for i in row), len(row)) for row in rows)
    assert all(a + b > 64 or m + n > 6 for (a, m), (b, n) in zip(totals, totals[1:], strict=False))
    wide = first_fit(lengths, PackedShape(length=64, slots=32))
    assert len(wide) <= 11 / 9 * -(-sum(lengths) // 64) + 1


def test_first_fit_is_the_same_every_time_and_needs_one_row_for_what_fits():
    lengths = [5, 9, 5, 5]
    assert first_fit(lengths, PackedShape(24, 4)) == [[1, 0, 2, 3]]
    assert first_fit(lengths, PackedShape(14, 4)) == [[1, 0], [2, 3]]
    assert first_fit(lengths, PackedShape(24, 2)) == [[1, 0], [2, 3]]


@pytest.mark.parametrize(("compiling", "multiple"), [(0.0, 1), (500.0, 1), (500.0, 4), (1e6, 1)])
def test_the_shape_chosen_takes_the_fewest_positions(compiling, multiple):
    batches = [random_lengths(seed) for seed in range(20)]
    longest = max(map(max, batches)) + 1  # one that is in none of these
    chosen = choose_packed_shape(batches, longest, multiple=multiple, compile_cost=compiling)
    shape, rows = chosen.row, chosen.row_counts

    def cost(length, slots):
        """With the best choice of row counts there is."""
        needed = [-(-len(first_fit(batch, PackedShape(length, slots))) // multiple) * multiple for batch in batches]
        tallest, smaller = max(needed), sorted(set(needed) - {max(needed)})
        choices = [(*some, tallest) for n in range(len(smaller) + 1) for some in itertools.combinations(smaller, n)]
        filled = {some: sum(min(rows for rows in some if rows >= n) for n in needed) for some in choices}
        return min((compiling * len(some) + length * total, some) for some, total in filled.items())

    lengths = range(-(-longest // 4) * 4, int(longest * 1.5) + 1, 4)
    assert shape.length in lengths
    found, best_rows = cost(shape.length, shape.slots)
    assert rows == best_rows
    # Whatever the number of slots: that chosen costs next to nothing beside as many as one likes.
    assert found <= 1.05 * min(cost(length, 32)[0] for length in lengths)
    assert len(rows) == 1 or compiling < 1e6


def test_packed_arrays():
    ids = [np.array([7, 8, 9]), np.array([5, 6]), np.array([4])]
    types = [np.array([0, 1, 1]), np.array([0, 0]), np.array([1])]
    batch = pack_sequences(ids, types, [[0, 2], [1], []], PackedShape(length=5, slots=2), pad_id=99)
    expected = {
        "input_ids": [[7, 8, 9, 4, 99], [5, 6, 99, 99, 99], [99] * 5],
        "token_type_ids": [[0, 1, 1, 1, 0], [0] * 5, [0] * 5],
        "position_ids": [[0, 1, 2, 0, 0], [0, 1, 0, 0, 0], [0] * 5],
        "segment_ids": [[1, 1, 1, 2, 0], [1, 1, 0, 0, 0], [0] * 5],
        "first_positions": [[0, 3], [0, 0], [0, 0]],
    }
    assert {name: array.tolist() for name, array in batch.items()} == expected
    assert all(array.dtype == np.int32 for array in batch.values())


@pytest.mark.parametrize("compiling", [0.5, 4.0, 20.0, 1000.0])
def test_sizes_to_compile_cost_least(compiling):
    longest = np.random.default_rng(3).choice([5, 6, 9, 10, 17, 30, 31, 38, 44, 51], size=60)

    def cost(lengths):
        padded = [min(length for length in lengths if length >= n) for n in longest]
        return compiling * len(lengths) + sum(padded) - longest.sum()

    multiples = range(8, 52, 4)
    every = [(*some, 52) for count in range(9) for some in itertools.combinations(multiples, count)]
    chosen = choose_padded_sizes(longest, 100, multiple=4, compile_cost=compiling)
    assert chosen == tuple(sorted(chosen)) and set(chosen) <= {*multiples, 52}
    assert cost(chosen) == min(map(cost, every))


def test_no_length_goes_beyond_the_largest_allowed():
    assert choose_padded_sizes(np.array([3, 9, 49]), 50, multiple=4, compile_cost=0.1) == (4, 12, 50)


def many_short_lengths(seed, count=2000):
    return np.minimum(5 + np.random.default_rng(seed).geometric(0.03, count), 128).tolist()


def test_best_fit():
    for seed in range(3):
        given = many_short_lengths(seed)
        rows = best_fit(given, PackedShape(128, 8))
        assert sorted(i for row in rows for i in row) == list(range(2000))
        assert all(sum(given[i] for i in row) <= 128 and 1 <= len(row) <= 8 for row in rows)
        free = best_fit(given, PackedShape(128, 128))
        assert len(free) <= 11 / 9 * -(-sum(given) // 128) + 1
    assert best_fit([5, 9, 5, 5], PackedShape(24, 4)) == [[1, 0, 2, 3]]
    assert best_fit([5, 9, 5, 5], PackedShape(14, 4)) == [[1, 0], [2, 3]]
    assert best_fit([10, 7, 3, 4], PackedShape(10, 4)) == [[0], [1, 2], [3]]  # the fullest that has room
    assert best_fit([], PackedShape(10, 4)) == []
