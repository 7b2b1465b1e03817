"""Every class of BERT against PyTorch's `transformers` in float32: outputs, loss, and all gradients."""

import jax
import numpy as np
import pytest
import torch
import transformers

import flaxbert
from tests.flaxbert.parity import assert_parity, random_config, randomise
from tests.flaxbert.saved_models import BERT_CLASSES

EXTRA = {
    "BertForSequenceClassification": {
        "padded": {"num_labels": 3},
        "rows": {"num_labels": 5, "problem_type": "multi_label_classification"},
        "embeds": {"num_labels": 1},
    },
    "BertForTokenClassification": {v: {"num_labels": 7} for v in ("padded", "rows", "embeds")},
    "BertLMHeadModel": {v: {"is_decoder": True} for v in ("padded", "rows", "embeds")},
}


def marks(name: str, variant: str):
    """Other inputs than padded token ids enter below the heads: three classes have them in every run."""
    often = variant == "padded" or name in ("BertModel", "BertForMaskedLM", "BertForSequenceClassification")
    return () if often else pytest.mark.slow


CASES = [
    *(
        (name, variant, EXTRA.get(name, {}).get(variant, {}))
        for name in BERT_CLASSES
        for variant in ("padded", "rows", "embeds")
    ),
    ("BertLMHeadModel", "padded", {"is_decoder": False}),
    ("BertModel", "padded", {"is_decoder": True}),
    ("BertForMaskedLM", "padded", {"tie_word_embeddings": False}),
    ("BertForSequenceClassification", "padded", {"num_labels": 3, "problem_type": "regression"}),
    ("BertForSequenceClassification", "padded", {"num_labels": 4, "problem_type": "single_label_classification"}),
    ("BertForSequenceClassification", "padded", {"num_labels": 1, "problem_type": "multi_label_classification"}),
]


@pytest.mark.parametrize(
    ("seed", "name", "variant", "fixed"),
    [
        pytest.param(
            seed,
            name,
            variant,
            fixed,
            marks=marks(name, variant),
            id="-".join([name, variant, *(f"{k}={v}" for k, v in fixed.items())]),
        )
        for seed, (name, variant, fixed) in enumerate(CASES)
    ],
)
def test_outputs_loss_and_gradients_equal_pytorch(seed, name, variant, fixed, tmp_path):
    assert_parity(name, seed, variant, fixed, tmp_path)


def test_cases_cover_every_activation_and_setting():
    configs = [random_config(case[0], seed, **case[2]) for seed, case in enumerate(CASES)]
    assert {c.hidden_act for c in configs} == set(flaxbert.functional.ACTIVATIONS)
    assert {c.num_attention_heads for c in configs} == {1, 3, 5}
    assert {c.num_hidden_layers for c in configs} == {1, 2, 3}
    assert {(c.layer_norm_eps, c.type_vocab_size) for c in configs} == {(e, n) for e in (1e-12, 1e-5) for n in (2, 3)}
    assert {c.pad_token_id for c in configs} == {0, None, 17}


@pytest.mark.slow
def test_base_size_outputs_equal_pytorch(tmp_path):
    config = transformers.BertConfig(attn_implementation="eager")
    reference = transformers.BertForPreTraining(config).eval()
    randomise(reference, 0)
    reference.save_pretrained(tmp_path)
    model, params = flaxbert.BertForPreTraining.from_pretrained(tmp_path)
    rng = np.random.default_rng(0)
    ids, types = rng.integers(0, config.vocab_size, (2, 64)), rng.integers(0, 2, (2, 64))
    mask = np.stack([np.ones(64, np.int64), np.arange(64) < 41])
    out = jax.jit(model.apply)({"params": params}, ids, attention_mask=mask, token_type_ids=types)
    with torch.no_grad():
        wanted = reference(*map(torch.from_numpy, (ids, mask, types)))
    for field in ("prediction_logits", "seq_relationship_logits"):
        np.testing.assert_allclose(getattr(out, field), getattr(wanted, field).numpy(), rtol=0, atol=5e-5)
