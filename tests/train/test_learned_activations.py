"""Activations with parameters, and RoBERTa without a padding token: gradients on eight devices as on one."""

import jax
import numpy as np
import pytest

from flaxbert import BertConfig, BertForMaskedLM, RobertaConfig, RobertaForMaskedLM
from flaxbert.sharding import AxisRules, make_mesh, tree_shardings

SIZES = {
    "vocab_size": 24,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 12,
}
IDS = np.arange(64, dtype=np.int32).reshape(8, 8) % 24


@pytest.mark.parametrize(
    "model",
    [
        BertForMaskedLM(BertConfig(**SIZES, hidden_act="prelu")),
        pytest.param(BertForMaskedLM(BertConfig(**SIZES, hidden_act="xielu")), marks=pytest.mark.slow),
        RobertaForMaskedLM(RobertaConfig(**SIZES, pad_token_id=-1), vocab_multiple=16),
    ],
    ids=["prelu", "xielu", "roberta"],
)
def test_gradients_on_eight_devices_are_those_on_one(model):
    def loss(params):
        logits = model.apply({"params": params}, IDS).logits
        return jax.nn.logsumexp(logits, axis=-1).mean() - logits[..., 3].mean()

    params = jax.jit(model.init)(jax.random.key(0), model.example_ids)["params"]
    rules = AxisRules(vocab="data", mlp="data")
    placed = jax.device_put(params, tree_shardings(make_mesh(), rules, model.logical_axes()))
    single, sharded = (jax.device_get(jax.jit(jax.grad(loss))(tree)) for tree in (params, placed))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), single, sharded)
    if model.base_model_prefix == "bert":
        assert all(np.all(leaf != 0) for leaf in sharded["bert"]["layers"]["activation"].values())
    else:  # the padding row counts from the end of the vocabulary, not of its padded table
        words = params["roberta"]["embeddings"]["word"]["embedding"]
        assert words.shape[0] == 32 and not words[23:].any() and words[:23].any(axis=-1).all()
