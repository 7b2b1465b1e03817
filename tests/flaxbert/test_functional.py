"""The pure functions: activations, layer norm, dropout, attention, checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from flaxbert import functional

KEY = jax.random.key(3)


@pytest.mark.parametrize("name", sorted(functional.ACTIVATIONS))
def test_activation_and_its_gradient_equal_the_references(name):
    # Off the kinks at 0, 6 and 10; where the tails end in float32 both sides must end them alike.
    x = jnp.linspace(-12.0, 12.0, 4000) + 1.3e-3
    theirs = torch.from_numpy(np.array(x)).requires_grad_()
    wanted = ACT2FN[name](theirs)
    wanted.sum().backward()
    ours = functional.ACTIVATIONS[name]
    np.testing.assert_allclose(ours(x), wanted.detach().numpy(), rtol=1e-6, atol=2e-6)
    gradient = jax.grad(lambda x: ours(x).sum())(x)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-6, atol=5e-6)


def test_there_are_nineteen_activations():
    assert len(functional.ACTIVATIONS) == 19


# -- layer norm ------------------------------------------------------------------------------------------------


def norm_in_float64(x, epsilon):
    x = np.asarray(x, np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)


def test_layer_norm_stays_right_far_from_zero():
    x = np.random.default_rng(0).normal(1000, 0.01, (7, 768)).astype(np.float32)
    y = np.asarray(functional.layer_norm(jnp.asarray(x), jnp.ones(768), jnp.zeros(768), epsilon=1e-12))
    # The mean is itself a float32 near 1000 and off by a few of its last units (6e-5), the same for a whole row, in
    # PyTorch too. Everything else must be right; E[x^2] - E[x]^2 would give a deviation of 0.03 instead of 1.
    offset = y.mean(axis=-1, keepdims=True)
    assert np.abs(offset).max() < 4 * 6e-5 / 0.01
    np.testing.assert_allclose(y - offset, norm_in_float64(x, 1e-12), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 0.3])
def test_layer_norm_uses_its_epsilon_scale_and_bias(epsilon):
    x = np.random.default_rng(0).normal(0, 0.01, (2, 3, 31)).astype(np.float32)
    scale, bias = np.linspace(-1, 2, 31, dtype=np.float32), np.linspace(3, 4, 31, dtype=np.float32)
    y = functional.layer_norm(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias), epsilon=epsilon)
    np.testing.assert_allclose(y, norm_in_float64(x, epsilon) * scale + bias, rtol=1e-5, atol=1e-5)


def test_layer_norm_of_bfloat16_has_float32_statistics():
    x = jnp.asarray(np.random.default_rng(0).normal(3, 1, (5, 768)), jnp.bfloat16)
    y = functional.layer_norm(x, jnp.ones(768), jnp.zeros(768), epsilon=1e-12)
    assert y.dtype == jnp.bfloat16
    # One rounding, of the result: half a unit in the last of bfloat16's 8 bits.
    np.testing.assert_allclose(y.astype(np.float32), norm_in_float64(x, 1e-12), rtol=2**-8, atol=1e-5)


# -- dropout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(64, 5, 33), (40, 6, 17, 1), (64, 5, 32)])
def test_dropout_drops_its_rate_and_scales_the_rest(rate, shape):
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, shape), jnp.float32)
    y = np.asarray(functional.dropout(x, KEY, rate=rate))
    kept = y != 0
    deviation = np.sqrt(rate * (1 - rate) / x.size)
    assert abs(kept.mean() - (1 - rate)) < 4 * deviation
    # The probability is kept to 1/65536, and the scale is the exact inverse of that.
    np.testing.assert_allclose(y[kept], (np.asarray(x) / (1 - rate))[kept], rtol=1e-4)


def test_dropout_is_drawn_for_every_element_by_itself():
    mask = np.asarray(functional.dropout(jnp.ones((8, 5, 33, 33)), KEY, rate=0.5)) != 0
    flat = mask.reshape(40, -1).astype(np.float64)
    correlations = np.corrcoef(flat)[np.triu_indices(40, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(33 * 33)
    # Neighbours share a random word, 16 bits each.
    for axis in (2, 3):
        neighbours = np.take(mask, range(32), axis), np.take(mask, range(1, 33), axis)
        assert abs((neighbours[0] == neighbours[1]).mean() - 0.5) < 5 * 0.5 / np.sqrt(neighbours[0].size)


def test_dropout_differs_between_keys_and_repeats_for_one():
    x = jnp.ones((4, 64))
    one, again = (functional.dropout(x, KEY, rate=0.5) for _ in range(2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, functional.dropout(x, jax.random.key(4), rate=0.5))


@pytest.mark.parametrize(("key", "rate"), [(None, 0.5), (KEY, 0.0), (KEY, 1e-7)])
def test_dropout_without_key_or_rate_changes_nothing(key, rate):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7)), jnp.float32)
    assert np.array_equal(functional.dropout(x, key, rate=rate), x)


def test_dropout_of_almost_everything_is_finite():
    y = functional.dropout(jnp.ones((64, 64)), KEY, rate=1 - 1e-9)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3, 1)])
def test_dropout_keeps_shape_and_dtype(shape):
    y = functional.dropout(jnp.ones(shape, jnp.bfloat16), KEY, rate=0.5)
    assert y.shape == shape and y.dtype == jnp.bfloat16


def test_random_bits_of_one_draw_are_independent():
    shapes = [(64, 3, 7, 7), (64, 7, 33), (64, 7, 33)]
    drawn = functional.random_bits(KEY, *shapes)
    assert [bits.shape for bits in drawn] == shapes and {bits.dtype for bits in drawn} == {jnp.dtype(jnp.uint16)}
    flat = np.concatenate([np.asarray(bits).reshape(64, -1) for bits in drawn], axis=1)
    assert abs(flat.mean() / 2**16 - 0.5) < 4 / np.sqrt(12 * flat.size)
    one, other = (np.asarray(bits, np.float64).ravel() for bits in drawn[1:])
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(one.size)
    # Were words used twice, as many values would come twice again.
    pairs = flat.astype(np.uint32)[:, :-1] << 16 | flat[:, 1:]
    assert len(np.unique(pairs)) > 0.999 * pairs.size


def test_dropouts_gradient_is_its_mask():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7)), jnp.float32)
    gradient = jax.grad(lambda x: functional.dropout(x, KEY, rate=0.5).sum())(x)
    np.testing.assert_array_equal(gradient, functional.dropout(jnp.ones((3, 7)), KEY, rate=0.5))


# -- attention -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_fully_masked_row_is_uniform_and_finite(dtype):
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(0, 9, (2, 5, 3, 4)), dtype) for _ in range(2))
    mask = functional.attention_mask(np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]))
    y = functional.attention_probabilities(query, key, mask)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y[1], jnp.full((3, 5, 5), 0.2, dtype))
    gradient = jax.grad(lambda q: (functional.attention_probabilities(q, key, mask) ** 2).sum())(query)
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_masked_keys_get_exactly_nothing():
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(0, 1, (2, 5, 3, 4)), jnp.float32) for _ in range(2))
    rows = rng.random((2, 5, 5)) < 0.5
    rows[:, :, 0] = True
    y = np.asarray(functional.attention_probabilities(query, key, functional.attention_mask(rows)))
    assert ((y == 0) == np.broadcast_to(~rows[:, None], y.shape)).all()
    np.testing.assert_allclose(y.sum(-1), 1, rtol=1e-6)


@pytest.mark.parametrize("kind", [bool, np.int64, np.float32])
def test_attention_mask_means_nonzero(kind):
    given = np.array([[1, 1, 0]]).astype(kind)
    np.testing.assert_array_equal(functional.attention_mask(given), [[[[True, True, False]]]])
    np.testing.assert_array_equal(functional.attention_mask(given[:, None]), [[[[True, True, False]]]])


def test_causal_mask_ends_at_the_query():
    np.testing.assert_array_equal(functional.causal_mask(3, 3)[0, 0], np.tril(np.ones((3, 3), bool)))
    # Two queries after a prefix of three keys.
    np.testing.assert_array_equal(functional.causal_mask(2, 5)[0, 0], [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])


# -- checks ----------------------------------------------------------------------------------------------------


def test_require_range_names_value_place_and_reason():
    with pytest.raises(ValueError, match=r"ids holds 9 at \[1, 0\]; allowed: 0 to 8 \(the table\)"):
        functional.require_range("ids", np.array([[0, 8], [9, 1]]), 0, 8, why="the table")
    functional.require_range("ids", None, 0, 8, why="the table")
    jax.jit(lambda x: functional.require_range("ids", x, 0, 8, why="traced: cannot be looked at"))(np.array([9]))
