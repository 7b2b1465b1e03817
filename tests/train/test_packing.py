import itertools

import numpy as np
import pytest

from train.data.packing import PackedShape, choose_shape, first_fit, pack


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
    shape, rows = choose_shape(batches, longest, step=4, multiple=multiple, compiling=compiling)

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
    batch = pack(ids, types, [[0, 2], [1], []], PackedShape(length=5, slots=2), pad_id=99)
    expected = {
        "input_ids": [[7, 8, 9, 4, 99], [5, 6, 99, 99, 99], [99] * 5],
        "token_type_ids": [[0, 1, 1, 1, 0], [0] * 5, [0] * 5],
        "position_ids": [[0, 1, 2, 0, 0], [0, 1, 0, 0, 0], [0] * 5],
        "segment_ids": [[1, 1, 1, 2, 0], [1, 1, 0, 0, 0], [0] * 5],
        "first_positions": [[0, 3], [0, 0], [0, 0]],
    }
    assert {name: array.tolist() for name, array in batch.items()} == expected
    assert all(array.dtype == np.int32 for array in batch.values())
