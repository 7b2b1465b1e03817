"""Learning rates at every step, against transformers, and against formulas for schedules that it lacks."""

import jax
import numpy as np
import pytest
import torch
import transformers

from train.optim import Optim, make_optimizer, schedule
from train.optim.schedules import (
    Constant,
    ConstantWithWarmup,
    Cosine,
    CosineWithRestarts,
    DecayShape,
    Google,
    InverseSquareRoot,
    Linear,
    Nvidia,
    Polynomial,
    RelativeStep,
    WarmupStableDecay,
)

PEAK, TOTAL = 3e-4, 40


def reference_rates(name, warmup, **options):
    """The rate of every step and of three more, by the schedule that transformers has under this name."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    if name == "warmup_stable_decay":
        rates = transformers.get_wsd_schedule(optimizer, warmup, num_training_steps=TOTAL, **options)
    else:
        rates = transformers.get_scheduler(name, optimizer, warmup, TOTAL, scheduler_specific_kwargs=options)
    found = []
    for _ in range(TOTAL + 4):
        found.append(rates.get_last_lr()[0])
        optimizer.step()
        rates.step()
    return found


def assert_rates(settings, expected):
    """At every step, given as a number and traced within jit; to a millionth of the value or 1e-7 of the peak."""
    rate = schedule(settings, TOTAL)
    traced = jax.jit(rate)
    for step, value in enumerate(expected):
        for found in (rate(step), traced(step)):
            np.testing.assert_allclose(float(found), value, rtol=1e-6, atol=1e-7 * PEAK, err_msg=f"step {step}")


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    ("kind", "name", "options"),
    [
        (Constant(), "constant", {}),
        (ConstantWithWarmup(), "constant_with_warmup", {}),
        (Linear(), "linear", {}),
        (Cosine(), "cosine", {}),
        (Cosine(cycles=1.75), "cosine", {"num_cycles": 1.75}),
        (CosineWithRestarts(), "cosine_with_restarts", {}),
        (CosineWithRestarts(cycles=3), "cosine_with_restarts", {"num_cycles": 3}),
        (CosineWithRestarts(cycles=4), "cosine_with_restarts", {"num_cycles": 4}),
        (InverseSquareRoot(), "inverse_sqrt", {}),
        (InverseSquareRoot(timescale=7), "inverse_sqrt", {"timescale": 7}),
    ],
)
def test_equals_transformers(kind, name, options, warmup):
    settings = Optim(learning_rate=PEAK, warmup=warmup, schedule=kind)
    assert_rates(settings, reference_rates(name, round(warmup * TOTAL), **options))


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
@pytest.mark.parametrize(("power", "end"), [(1.0, 1e-7), (2.0, 1e-7), (0.5, 0.0), (1.0, 2e-4)])
def test_polynomial_equals_transformers(warmup, power, end):
    settings = Optim(learning_rate=PEAK, warmup=warmup, schedule=Polynomial(power=power, end=end))
    assert_rates(settings, reference_rates("polynomial", round(warmup * TOTAL), power=power, lr_end=end))


@pytest.mark.parametrize("fall", DecayShape)
@pytest.mark.parametrize(("warmup", "decay"), [(0.0, 0.1), (0.1, 0.5), (0.5, 0.5), (0.0, 1.0), (0.2, 0.0), (1.0, 0.0)])
def test_warmup_stable_decay_equals_transformers(fall, warmup, decay):
    steps = {"num_decay_steps": round(decay * TOTAL), "decay_type": fall.value}
    settings = Optim(learning_rate=PEAK, warmup=warmup, schedule=WarmupStableDecay(decay=decay, fall=fall))
    assert_rates(settings, reference_rates("warmup_stable_decay", round(warmup * TOTAL), **steps))


@pytest.mark.parametrize("warmup", [0, 4, 20, 40])
def test_google_decays_from_step_0(warmup):
    rates = [PEAK * (s / warmup if s < warmup else max(0, 1 - s / TOTAL)) for s in range(TOTAL + 3)]
    assert_rates(Optim(learning_rate=PEAK, warmup=warmup / TOTAL, schedule=Google()), rates)
    if warmup == 20:
        assert rates[19] == pytest.approx(0.95 * PEAK) and rates[20] == 0.5 * PEAK  # the jump


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("warmup", [0, 4, 20, 40])
def test_nvidia_counts_from_1(warmup, power):
    def rate(progress):  # of a scheduler that is stepped before every update
        return PEAK * (progress * TOTAL / warmup if progress < warmup / TOTAL else (1 - progress) ** power)

    rates = [rate((update + 1) / TOTAL) for update in range(TOTAL)]
    assert_rates(Optim(learning_rate=PEAK, warmup=warmup / TOTAL, schedule=Nvidia(power=power)), [*rates, 0.0, 0.0])


@pytest.mark.parametrize("rising", [False, True])
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_relative_step_is_that_of_transformers_adafactor(rising, factor):
    group = {"lr": None, "relative_step": True, "warmup_init": rising, "scale_parameter": False}
    rate = schedule(Optim(learning_rate=factor, schedule=RelativeStep(rising=rising)), TOTAL)
    for step in (0, 1, 2, 98, 99, 100, 9998, 9999, 10000, 10001, 10**6):
        expected = factor * transformers.optimization.Adafactor._get_lr(group, {"step": step + 1})
        np.testing.assert_allclose(rate(step), expected, rtol=1e-6, err_msg=str(step))


def test_the_optimizer_follows_the_schedule():
    # Without moments, AdamW's update of a constant gradient is the rate.
    settings = Optim(learning_rate=0.1, warmup=0.25, weight_decay=0.0, schedule=Cosine())
    optimizer, rate = make_optimizer(settings, 8), schedule(settings, 8)
    params = {"bias": np.ones(3, np.float32)}
    state = optimizer.init(params)
    for step in range(8):
        updates, state = optimizer.update(params, state, params)
        np.testing.assert_allclose(updates["bias"], -float(rate(step)), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            Optim(learning_rate=1e-7, schedule=Polynomial()),
            "end is 1e-07; it must be smaller than learning_rate",
        ),
        (Optim(learning_rate=0.0, schedule=Polynomial(end=0.0)), "end is 0.0; it must be smaller than learning_rate"),
        (Optim(schedule=RelativeStep()), "learning_rate is 5e-05; allowed with this schedule: 0.01 to 10.0"),
        (Optim(warmup=1.0, schedule=Polynomial()), "warmup takes all 40 steps; Polynomial needs steps after it"),
        (
            Optim(warmup=0.5, schedule=WarmupStableDecay(decay=0.6)),
            "decay is 0.6: 20 of warmup and 24 of decay are more than 40 steps",
        ),
    ],
)
def test_impossible_plans(settings, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(settings, TOTAL)


def test_restarts_that_would_overflow_are_refused():
    with pytest.raises(ValueError, match="cycles is 1000; allowed with 3000000 steps: 1 to 715"):
        schedule(Optim(schedule=CosineWithRestarts(cycles=1000)), 3_000_000)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (Cosine, {"cycles": -0.5}),
        (CosineWithRestarts, {"cycles": 0}),
        (Polynomial, {"power": 0.0}),
        (Polynomial, {"end": -1.0}),
        (Nvidia, {"power": 0.0}),
        (InverseSquareRoot, {"timescale": 0}),
        (WarmupStableDecay, {"decay": 1.5}),
    ],
)
def test_impossible_settings(kind, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*; allowed: "):
        kind(**wrong)
