"""The pure functions: activations, layer norm, attention, checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.activations import ACT2FN

from flaxbert import dropout, functional
from flaxbert.execution import REMAT_POLICIES, Remat

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
    # Compiled as in use: without any optimization the tail of gelu's tanh form has a gradient of 9e-6.
    options = {"xla_backend_optimization_level": 3}
    gradient = jax.jit(jax.grad(lambda x: ours(x).sum()), compiler_options=options)(x)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-6, atol=5e-6)


def test_there_are_all_activations_without_parameters():
    assert set(functional.ACTIVATIONS) == set(ACT2FN) - set(functional.LEARNED_ACTIVATIONS)


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


# -- attention -------------------------------------------------------------------------------------------------


def weights_of(query, key, mask):
    return functional.attention(query, key, jnp.zeros_like(key), mask)[1]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_fully_masked_row_is_uniform_and_finite(dtype):
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(0, 9, (2, 3, 5, 4)), dtype) for _ in range(2))
    mask = functional.attention_mask(np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]))
    y = weights_of(query, key, mask)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y[1], jnp.full((3, 5, 5), 0.2, dtype))
    gradient = jax.grad(lambda q: (weights_of(q, key, mask) ** 2).sum())(query)
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_masked_keys_get_exactly_nothing():
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(0, 1, (2, 3, 5, 4)), jnp.float32) for _ in range(2))
    rows = rng.random((2, 5, 5)) < 0.5
    rows[:, :, 0] = True
    y = np.asarray(weights_of(query, key, functional.attention_mask(rows)))
    assert ((y == 0) == np.broadcast_to(~rows[:, None], y.shape)).all()
    np.testing.assert_allclose(y.sum(-1), 1, rtol=1e-6)


def attention_in_float64(query, key, value, mask, kept, keep):
    scores = np.einsum("BHTK,BHSK->BHTS", query, key) / np.sqrt(query.shape[-1])
    scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights = np.where(kept, weights / weights.sum(-1, keepdims=True) / keep, 0.0)
    return np.einsum("BHTS,BHSK->BHTK", weights, value), weights


# Products up to 64 are rounded to half of 1/4 in bfloat16, which is a factor of e^0.125 at most.
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 0.14)])
def test_contexts_are_means_by_the_weights_that_dropout_keeps(dtype, tolerance):
    rng = np.random.default_rng(0)
    # Scores up to 60: unnormalised they would overflow, and a maximum that is off would leave nothing.
    query, key, value = (jnp.asarray(rng.normal(0, s, (2, 3, 16, 8)), dtype) for s in (4, 4, 1))
    mask = functional.attention_mask(np.arange(16) < np.array([[16], [9]]))
    kept = dropout.keep_mask(KEY, (2, 3, 16, 16), rate=0.25)
    context, weights = functional.attention(query, key, value, mask, keep_mask=kept, rate=0.25)
    assert context.dtype == weights.dtype == dtype
    exact = [np.asarray(x, np.float64) for x in (query, key, value)]
    for given, wanted in zip((context, weights), attention_in_float64(*exact, mask, kept, 0.75), strict=True):
        assert np.abs(np.asarray(given, np.float64) - wanted).max() < tolerance * np.abs(wanted).max()


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


def test_statistics_of_norms_are_computed_once_where_some_activations_are_saved():
    def norm(x):
        return functional.layer_norm(x, jnp.ones(8), jnp.zeros(8), epsilon=1e-12)

    def sums(remat):
        saving = jax.checkpoint(norm, policy=REMAT_POLICIES[remat])
        gradient = jax.grad(lambda x: jnp.sum(jnp.square(saving(x))))
        return str(jax.make_jaxpr(gradient)(jnp.ones((2, 4, 8)))).count(" reduce_sum[")

    assert sums(Remat.FULL) == sums(Remat.DOTS) + 2  # the mean and the variance
