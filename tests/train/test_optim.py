import jax
import numpy as np
import optax
import pytest

from flaxbert import BertConfig, BertForPreTraining
from tests.trees import by_path
from train.optim import Optim, clip_by_global_norm, global_norm, make_optimizer
from train.optim.algorithms import Adafactor, AdamW, BertAdam, Lamb
from train.optim.parameters import decay_mask

# Every parameter of a pretraining model: True where weight decay applies.
DECAYS = {
    "bert/embeddings/norm/bias": False,
    "bert/embeddings/norm/scale": False,
    "bert/embeddings/position/embedding": True,
    "bert/embeddings/token_type/embedding": True,
    "bert/embeddings/word/embedding": True,
    "bert/layers/attention/key/bias": False,
    "bert/layers/attention/key/kernel": True,
    "bert/layers/attention/output/bias": False,
    "bert/layers/attention/output/kernel": True,
    "bert/layers/attention/query/bias": False,
    "bert/layers/attention/query/kernel": True,
    "bert/layers/attention/value/bias": False,
    "bert/layers/attention/value/kernel": True,
    "bert/layers/attention_norm/bias": False,
    "bert/layers/attention_norm/scale": False,
    "bert/layers/down/bias": False,
    "bert/layers/down/kernel": True,
    "bert/layers/output_norm/bias": False,
    "bert/layers/output_norm/scale": False,
    "bert/layers/up/bias": False,
    "bert/layers/up/kernel": True,
    "bert/pooler/bias": False,
    "bert/pooler/kernel": True,
    "predictions/bias": False,
    "predictions/norm/bias": False,
    "predictions/norm/scale": False,
    "predictions/transform/bias": False,
    "predictions/transform/kernel": True,
    "seq_relationship/bias": False,
    "seq_relationship/kernel": True,
}


def test_decay_mask_of_every_parameter():
    shapes = BertForPreTraining(BertConfig.tiny()).parameter_shapes()
    assert by_path(decay_mask(shapes)) == DECAYS


def test_only_decayed_parameters_shrink_without_gradient():
    shapes = BertForPreTraining(BertConfig.tiny()).parameter_shapes()
    params = jax.tree.map(lambda leaf: np.ones(2, leaf.dtype), shapes)  # the names matter here, not the sizes
    optimizer = make_optimizer(Optim(learning_rate=0.1, warmup=0.0, weight_decay=0.5), 10)
    gradients = jax.tree.map(np.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    moved = {path: bool(np.all(np.asarray(update) < 0)) for path, update in by_path(updates).items()}
    assert moved == DECAYS


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        (Optim, {"learning_rate": -1.0}),
        (Optim, {"warmup": 1.5}),
        (Optim, {"weight_decay": -0.1}),
        (Optim, {"max_gradient_norm": 0.0}),
        (Optim, {"layer_decay": 0.0}),
        (Optim, {"layer_decay": 1.1}),
        (Optim, {"head_rate": 0.0}),
        *[(kind, {name: 1.0}) for kind in (AdamW, BertAdam, Lamb) for name in ("beta1", "beta2")],
        *[(kind, {"epsilon": 0.0}) for kind in (AdamW, BertAdam, Lamb)],
        (Adafactor, {"beta1": 1.0}),
        (Adafactor, {"decay_rate": 0.0}),
        (Adafactor, {"epsilon": -1.0}),
        (Adafactor, {"clip_threshold": 0.0}),
        (Adafactor, {"smallest_scale": 0.0}),
        (Adafactor, {"smallest_factored": 0}),
    ],
)
def test_impossible_settings(settings, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*; allowed: "):
        settings(**wrong)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 10.0])
def test_clipping_equals_optax(scale):
    generator = np.random.default_rng(1)
    shapes = {"scalar": (), "bias": (7,), "kernel": (5, 7), "stacked": (3, 5, 2, 4), "wide": (2, 3, 33)}
    gradients = {name: (scale * generator.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
    np.testing.assert_allclose(global_norm(gradients), optax.tree.norm(gradients), rtol=1e-6)
    ours, reference = clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0)
    updates, _ = jax.jit(ours.update)(gradients, ours.init(gradients))
    expected, _ = reference.update(gradients, reference.init(gradients))
    for name in shapes:
        np.testing.assert_allclose(updates[name], expected[name], rtol=1e-5, err_msg=name)
