"""Dropout: statistics, independence of elements, packed masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from flaxbert.dropout import dropout, dropout_scale, keep_mask, packed_keep_mask

KEY = jax.random.key(3)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(64, 5, 33), (40, 6, 17, 1), (64, 5, 32)])
def test_dropout_drops_its_rate_and_scales_the_rest(rate, shape):
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, shape), jnp.float32)
    y = np.asarray(dropout(x, KEY, rate=rate))
    kept = y != 0
    deviation = np.sqrt(rate * (1 - rate) / x.size)
    assert abs(kept.mean() - (1 - rate)) < 4 * deviation
    # The probability is kept to 1/65536, and the scale is the exact inverse of that.
    np.testing.assert_allclose(y[kept], (np.asarray(x) / (1 - rate))[kept], rtol=1e-4)


def test_dropout_is_drawn_for_every_element_by_itself():
    mask = np.asarray(dropout(jnp.ones((8, 5, 33, 33)), KEY, rate=0.5)) != 0
    flat = mask.reshape(40, -1).astype(np.float64)
    correlations = np.corrcoef(flat)[np.triu_indices(40, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(33 * 33)
    for axis in (2, 3):
        neighbours = np.take(mask, range(32), axis), np.take(mask, range(1, 33), axis)
        assert abs((neighbours[0] == neighbours[1]).mean() - 0.5) < 5 * 0.5 / np.sqrt(neighbours[0].size)


def test_dropout_differs_between_keys_and_repeats_for_one():
    x = jnp.ones((4, 64))
    one, again = (dropout(x, KEY, rate=0.5) for _ in range(2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, dropout(x, jax.random.key(4), rate=0.5))


@pytest.mark.parametrize(("key", "rate"), [(None, 0.5), (KEY, 0.0), (KEY, 1e-7)])
def test_dropout_without_key_or_rate_changes_nothing(key, rate):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7)), jnp.float32)
    assert np.array_equal(dropout(x, key, rate=rate), x)


def test_dropout_of_almost_everything_is_finite():
    y = dropout(jnp.ones((64, 64)), KEY, rate=1 - 1e-9)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3, 1)])
def test_dropout_keeps_shape_and_dtype(shape):
    y = dropout(jnp.ones(shape, jnp.bfloat16), KEY, rate=0.5)
    assert y.shape == shape and y.dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(64, 3, 8, 7), (64, 9, 33), (64, 1, 330), (600, 33), (9999,)])
def test_no_random_bits_decide_two_elements(shape):
    kept = keep_mask(KEY, shape, rate=0.5)
    assert kept.shape == shape and kept.dtype == jnp.bool_
    values = np.asarray(kept)
    for axis, size in enumerate(shape):
        # Elements that share a block stand a quarter of an axis apart; the others' neighbours have others' counters.
        for apart in {1, size // 4, size // 2} - {0, size}:
            one, other = np.take(values, range(apart, size), axis), np.take(values, range(size - apart), axis)
            assert abs((one == other).mean() - 0.5) < 4 * 0.5 / np.sqrt(one.size)


def test_keep_mask_is_threefry_of_row_and_index():
    kept = np.asarray(keep_mask(KEY, (3, 2, 8, 5), rate=0.3))
    rows, places = np.divmod(np.arange(3 * 2 * 2 * 5, dtype=np.uint32), 20)
    # The same block function through another entry point, which takes all first counters and then all second ones.
    words = threefry_2x32(jax.random.key_data(KEY), jnp.asarray(np.concatenate([rows, places]), jnp.uint32))
    first, second = np.asarray(words).reshape(2, 3, 2, 2, 5)
    bits = np.concatenate([first & 0xFFFF, first >> 16, second & 0xFFFF, second >> 16], axis=2)
    np.testing.assert_array_equal(kept, bits < round(0.7 * 2**16))


def test_packed_mask_holds_the_same_bits():
    shape = (2, 3, 64, 5)
    words = np.asarray(packed_keep_mask(KEY, shape, rate=0.3))
    assert words.shape == (2, 3, 2, 5) and words.dtype == np.uint32
    bits = [(words >> bit) & 1 for bit in range(32)]  # bit b of row w: row 2 b + w
    np.testing.assert_array_equal(np.concatenate(bits, axis=2) != 0, keep_mask(KEY, shape, rate=0.3))


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_keys_of_other_generators_are_taken(kind):
    keys = jax.random.split(jax.random.key(3, impl=kind), 2)
    one, other = (np.asarray(keep_mask(key, (64, 8, 33), rate=0.5)) for key in keys)
    assert abs((one == other).mean() - 0.5) < 4 * 0.5 / np.sqrt(one.size)


def test_gradient_of_dropout_is_its_mask():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7)), jnp.float32)
    gradient = jax.grad(lambda x: dropout(x, KEY, rate=0.5).sum())(x)
    np.testing.assert_array_equal(gradient, dropout(jnp.ones((3, 7)), KEY, rate=0.5))


def test_a_rate_of_one_leaves_zeros_as_in_torch():
    x = jnp.ones((3, 5))
    assert not dropout(x, jax.random.key(0), rate=1.0).any()
    assert dropout_scale(1.0) == 0
