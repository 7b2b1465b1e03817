"""Fifty updates of a small BERT against the reference optimizers, which see each layer's tensor on its own.

References compute in float64 on the same recorded float32 gradients, so the whole difference is ours. It is the
largest absolute difference within a tensor over the largest absolute value in it, and may be 1e-5 in any.
"""

import jax
import numpy as np
import optax
import pytest
import torch
import transformers.optimization

from tests.unstacked import STEPS, clipped, decays, relative_differences, start, trained, unstacked
from train.optim import Optim, schedule
from train.optim.algorithms import Adafactor, AdamW, BertAdam, Lamb
from train.optim.schedules import RelativeStep

LIMIT = 1e-5


def assert_close(settings, reference):
    differences = relative_differences(trained(settings), reference)
    worst = max(differences, key=lambda name: differences[name])
    print(f"largest relative difference: {differences[worst]:.2e} in {worst}")
    assert differences[worst] <= LIMIT, worst
    moved = relative_differences(start(), reference)
    assert min(moved.values()) > 1e-3  # every tensor has gone somewhere


def rates(settings):
    return [float(schedule(settings, STEPS)(step)) for step in range(STEPS)]


def torch_groups(weight_decay):
    """The model's tensors in float64, and the two groups that a PyTorch optimizer takes."""
    tensors = {name: torch.nn.Parameter(torch.tensor(np.float64(x))) for name, x in unstacked(start()).items()}
    groups = [
        {"params": [x for name, x in tensors.items() if decays(name) == decayed], "weight_decay": decay}
        for decayed, decay in ((True, weight_decay), (False, 0.0))
    ]
    return tensors, groups


def by_torch(tensors, optimizer, settings, *, own_rate=False):
    """The tensors after the recorded gradients."""
    for rate, gradient in zip(rates(settings), clipped(settings.max_gradient_norm), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = None if own_rate else rate
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradient[name])
        optimizer.step()
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def by_formula(settings, update):
    """The tensors after w -= rate * update(m, v, w, name, t), with moments m and v that start at 0."""
    rule = settings.algorithm
    tensors = {name: np.float64(x) for name, x in unstacked(start()).items()}
    m = {name: np.zeros_like(x) for name, x in tensors.items()}
    v = {name: np.zeros_like(x) for name, x in tensors.items()}
    for t, (rate, gradient) in enumerate(zip(rates(settings), clipped(settings.max_gradient_norm), strict=True), 1):
        for name, g in gradient.items():
            m[name] = rule.beta1 * m[name] + (1 - rule.beta1) * g
            v[name] = rule.beta2 * v[name] + (1 - rule.beta2) * g**2
            tensors[name] = tensors[name] - rate * update(m[name], v[name], tensors[name], name, t)
    return tensors


@pytest.mark.parametrize("rule", [AdamW(), AdamW(beta1=0.8, beta2=0.98, epsilon=1e-6)])
def test_adamw_is_torchs(rule):
    settings = Optim(learning_rate=3e-3, warmup=0.1, weight_decay=0.1, algorithm=rule)
    tensors, groups = torch_groups(0.1)
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(rule.beta1, rule.beta2), eps=rule.epsilon)
    assert_close(settings, by_torch(tensors, optimizer, settings))


@pytest.mark.parametrize("rule", [BertAdam(), BertAdam(beta1=0.8, beta2=0.98, epsilon=1e-4)])
def test_bert_adam_is_googles(rule):
    settings = Optim(learning_rate=1e-3, warmup=0.1, weight_decay=0.1, algorithm=rule)

    def update(m, v, w, name, t):
        return m / (np.sqrt(v) + rule.epsilon) + (0.1 * w if decays(name) else 0.0)

    assert_close(settings, by_formula(settings, update))


@pytest.mark.parametrize(("rule", "weight_decay"), [(Lamb(), 0.1), (Lamb(beta1=0.8, beta2=0.98, epsilon=1e-4), 0.0)])
def test_lamb_is_nvidias(rule, weight_decay):
    settings = Optim(learning_rate=1e-2, warmup=0.1, weight_decay=weight_decay, algorithm=rule)

    def update(m, v, w, name, t):
        step = (m / (1 - rule.beta1**t)) / (np.sqrt(v / (1 - rule.beta2**t)) + rule.epsilon)
        if not decays(name):
            return step
        step = step + weight_decay * w
        norms = np.linalg.norm(w), np.linalg.norm(step)
        return step * (norms[0] / norms[1] if all(norms) else 1.0)

    assert_close(settings, by_formula(settings, update))


@pytest.mark.parametrize(
    ("rule", "plan", "theirs"),
    [
        pytest.param(Adafactor(), None, {}, marks=pytest.mark.slow),
        (Adafactor(beta1=0.9, decay_rate=0.7, clip_threshold=0.5), None, {"beta1": 0.9}),
        (Adafactor(scale_parameter=True, smallest_scale=1e-2), None, {"scale_parameter": True}),
        (Adafactor(scale_parameter=True, beta1=0.9), RelativeStep(), {"scale_parameter": True, "beta1": 0.9}),
        pytest.param(Adafactor(), RelativeStep(), {}, marks=pytest.mark.slow),
    ],
)
def test_adafactor_is_transformers(rule, plan, theirs):
    settings = Optim(learning_rate=1e-2, warmup=0.1, weight_decay=0.1, algorithm=rule)
    if plan is not None:
        settings = Optim(learning_rate=1.0, weight_decay=0.1, algorithm=rule, schedule=plan)
        theirs = theirs | {"relative_step": True}
    tensors, groups = torch_groups(0.1)
    how = {"scale_parameter": False, "relative_step": False} | theirs
    optimizer = transformers.optimization.Adafactor(
        groups,
        lr=None if plan is not None else 1.0,
        eps=(rule.epsilon, rule.smallest_scale),
        decay_rate=-rule.decay_rate,
        clip_threshold=rule.clip_threshold,
        **how,
    )
    assert_close(settings, by_torch(tensors, optimizer, settings, own_rate=plan is not None))


@pytest.mark.parametrize(
    ("scale", "momentum"),
    [pytest.param(True, None, marks=pytest.mark.slow), pytest.param(False, 0.9, marks=pytest.mark.slow), (True, 0.9)],
)
def test_adafactor_is_optaxs(scale, momentum):
    # With 8, some matrices are factored and others not.
    rule = Adafactor(scale_parameter=scale, beta1=momentum, smallest_factored=8, decay_times_rate=False)
    settings = Optim(learning_rate=1e-2, warmup=0.1, weight_decay=0.01, algorithm=rule)
    tensors = {name: np.float64(x) for name, x in unstacked(start()).items()}
    with jax.enable_x64(True):
        optimizer = optax.adafactor(
            schedule(settings, STEPS),
            min_dim_size_to_factor=8,
            multiply_by_parameter_scale=scale,
            momentum=momentum,
            dtype_momentum=np.float64,
            weight_decay_rate=0.01,
            weight_decay_mask={name: decays(name) for name in tensors},
        )
        state = optimizer.init(tensors)
        update = jax.jit(optimizer.update)
        for gradient in clipped(settings.max_gradient_norm):
            updates, state = update(gradient, state, tensors)
            tensors = optax.apply_updates(tensors, updates)
        tensors = jax.device_get(tensors)
    assert_close(settings, tensors)
