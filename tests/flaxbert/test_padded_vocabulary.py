"""A vocabulary padded to a multiple: the same numbers, nothing learnt beyond its end, nothing of it in files."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import flaxbert
from flaxbert import losses, sharding
from tests.flaxbert.saved_models import CONFIG

WITH_DECODER = ("BertForMaskedLM", "BertForPreTraining", "BertLMHeadModel")
IDS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (3, 7))
ROWS = 64  # CONFIG's 61 words, padded


def pair(name, *, tied=True):
    config = CONFIG.replace(tie_word_embeddings=tied)
    plain, padded = flaxbert.ARCHITECTURES[name](config), flaxbert.ARCHITECTURES[name](config, vocab_multiple=16)
    return plain, padded


def fresh(model):
    return jax.jit(model.init)(jax.random.key(1), model.example_ids)["params"]


def words(params):
    return params.get("bert", params)["embeddings"]["word"]["embedding"]


def scores(out):
    return out.prediction_logits if hasattr(out, "prediction_logits") else out.logits


@pytest.mark.parametrize(
    "name, tied",
    [
        pytest.param("BertForMaskedLM", True, marks=pytest.mark.slow),
        ("BertForMaskedLM", False),
        pytest.param("BertForPreTraining", True, marks=pytest.mark.slow),
    ],
)
def test_scores_of_words_are_the_same_and_no_others_count(name, tied):
    plain, padded = pair(name, tied=tied)
    params = fresh(padded)
    assert words(params).shape[0] == padded.padded_vocab_size == ROWS
    np.testing.assert_array_equal(words(params)[CONFIG.vocab_size :], 0)
    np.testing.assert_array_equal(words(params)[: CONFIG.vocab_size], words(fresh(plain)))
    cut = jax.tree.map(lambda leaf, shape: leaf[tuple(map(slice, shape.shape))], params, plain.parameter_shapes())
    wanted = scores(jax.jit(plain.apply)({"params": cut}, IDS))
    found = scores(jax.jit(padded.apply)({"params": params}, IDS))
    np.testing.assert_allclose(found[..., : CONFIG.vocab_size], wanted, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found[..., CONFIG.vocab_size :], np.finfo(np.float32).min)

    def loss(model, params):
        return losses.masked_lm(scores(model.apply({"params": params}, IDS)), IDS).mean

    one, gradient = jax.jit(jax.value_and_grad(lambda params: loss(padded, params)))(params)
    np.testing.assert_allclose(one, jax.jit(lambda params: loss(plain, params))(cut), rtol=1e-6)
    for leaf, shape in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain.parameter_shapes()), strict=True):
        beyond = leaf.at[tuple(map(slice, shape.shape))].set(0)
        np.testing.assert_array_equal(beyond, 0)
    assert float(jnp.abs(words(gradient)).max()) > 0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", [*WITH_DECODER, "BertModel"])
def test_files_hold_the_vocabulary_and_nothing_beyond_it(tmp_path, name, tied):
    plain, padded = pair(name, tied=tied)
    params = fresh(padded)
    flaxbert.save_pretrained(tmp_path, padded, params)
    tensors = load_file(tmp_path / "model.safetensors")
    assert not any(ROWS in tensor.shape for tensor in tensors.values())
    how = {"config": padded.config}
    again, loaded = type(padded).from_pretrained(tmp_path, vocab_multiple=16, **how)
    assert again == padded
    chex.assert_trees_all_equal(loaded, params)
    _, cut = type(plain).from_pretrained(tmp_path, **how)
    chex.assert_trees_all_equal_shapes(cut, plain.parameter_shapes())
    flaxbert.save_pretrained(tmp_path / "plain", plain, cut)
    chex.assert_trees_all_equal(load_file(tmp_path / "plain" / "model.safetensors"), tensors)


def test_devices_that_share_a_vocabulary_read_their_words(tmp_path):
    _, padded = pair("BertForMaskedLM", tied=False)
    params = fresh(padded)
    flaxbert.save_pretrained(tmp_path, padded, params)
    how = {"mesh": sharding.make_mesh(tensor=8), "rules": sharding.AxisRules(vocab="tensor")}
    _, loaded = flaxbert.BertForMaskedLM.from_pretrained(tmp_path, vocab_multiple=16, **how)
    chex.assert_trees_all_equal(loaded, params)
    assert {shard.data.shape[0] for shard in words(loaded).addressable_shards} == {8}
