import functools

import jax
import numpy as np
import pytest

import flaxbert
from flaxbert import BertConfig
from train.flops import device_peak, train_flops
from train.tasks.task import TokenCounts

CONFIG = BertConfig(
    vocab_size=600,
    hidden_size=128,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=512,
    max_position_embeddings=64,
)


def work(name, mask):
    if name == "BertForMaskedLM":
        return TokenCounts.of_batch({"attention_mask": mask}, predictions=mask.size)
    return TokenCounts.of_batch({"attention_mask": mask}, pooled=name != "BertForTokenClassification")


@pytest.mark.parametrize(
    "name",
    ["BertForMaskedLM", "BertForTokenClassification", "BertForSequenceClassification", "BertForNextSentencePrediction"],
)
def test_the_formula_is_what_xla_counts(name):
    mask = np.ones((8, 48), np.int32)
    model = getattr(flaxbert, name)(CONFIG, scan=False)
    lowered = jax.jit(functools.partial(model.apply, attention_mask=mask)).lower(
        {"params": model.parameter_shapes()}, np.ones_like(mask)
    )
    forward = train_flops(CONFIG, **vars(work(name, mask))) / 3
    # XLA's count holds the embeddings, norms, activations and softmax too.
    assert 1.0 < lowered.cost_analysis()["flops"] / forward < 1.1


def test_padding_is_no_work():
    mask = (np.arange(6) < np.array([[6], [2], [0]])).astype(np.int32)
    batch = {"attention_mask": mask}
    predicted, pooled = TokenCounts.of_batch(batch, predictions=3), TokenCounts.of_batch(batch, pooled=True)
    assert predicted == TokenCounts(tokens=8, squares=40, predictions=3, pooled=0)
    assert pooled + TokenCounts.of_batch(batch) == TokenCounts(tokens=16, squares=80, predictions=0, pooled=2)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 2307e12 / 2),  # a device is one of the chip's two cores
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("cpu", None),
    ],
)
def test_the_peak_is_that_of_a_device(kind, peak):
    assert device_peak(kind) == peak
