import jax
import numpy as np
import optax
import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from flaxbert import BertConfig, BertForPreTraining
from train.optim import Optim, clip_by_global_norm, decay_mask, global_norm, make_optimizer, schedule

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


def by_path(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


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


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
def test_schedule_equals_transformers(warmup):
    total, peak = 40, 3e-4
    ours = schedule(Optim(learning_rate=peak, warmup=warmup), total)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    reference = get_linear_schedule_with_warmup(optimizer, round(warmup * total), total)
    for step in range(total + 1):
        assert float(ours(step)) == pytest.approx(reference.get_last_lr()[0], rel=1e-6, abs=1e-12), step
        optimizer.step()
        reference.step()


def test_ten_updates_equal_torch_adamw():
    generator = np.random.default_rng(0)
    start = {
        "kernel": generator.normal(size=(5, 4)).astype(np.float32),
        "bias": generator.normal(size=4).astype(np.float32),
    }
    gradients = [jax.tree.map(lambda x: generator.normal(size=x.shape).astype(np.float32), start) for _ in range(10)]
    settings = Optim(learning_rate=1e-2, warmup=0.2, weight_decay=0.1, max_gradient_norm=1.0)

    optimizer = make_optimizer(settings, 10)
    params, state = start, optimizer.init(start)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)

    tensors = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = [{"params": [tensors["kernel"]], "weight_decay": 0.1}, {"params": [tensors["bias"]], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-2, eps=settings.epsilon)
    rates = get_linear_schedule_with_warmup(reference, 2, 10)
    for gradient in gradients:
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradient[name])
        torch.nn.utils.clip_grad_norm_(tensors.values(), 1.0)
        reference.step()
        rates.step()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(params[name], tensor.detach().numpy(), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize(
    "wrong", [{"learning_rate": -1.0}, {"warmup": 1.5}, {"beta2": 1.0}, {"max_gradient_norm": 0.0}]
)
def test_impossible_settings(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        Optim(**wrong)


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
