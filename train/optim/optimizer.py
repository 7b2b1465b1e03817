"""The optimizer and the learning rate that settings describe."""

from collections.abc import Callable
from typing import Any

import optax

from train.optim.clipping import clip_by_global_norm
from train.optim.decay import scale_by_depth
from train.optim.frozen import freeze
from train.optim.schedules import Plan
from train.optim.settings import Optim


def schedule(settings: Optim, total_steps: int) -> Callable[[Any], Any]:
    """The learning rate of each update, counted from 0; of a number, or of one that is traced.

    Raises:
        ValueError: the schedule cannot be followed with this peak, warmup and number of steps.
    """
    plan = Plan(peak=settings.learning_rate, warmup=round(settings.warmup * total_steps), total=total_steps)
    settings.schedule.check(plan)

    def rate(step: Any) -> Any:
        return settings.learning_rate * settings.schedule.factor(step, plan)

    return rate


def make_optimizer(settings: Optim, total_steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then the algorithm on the schedule.

    Raises:
        ValueError: what `schedule` raises; from the optimizer's `init`, frozen paths that the parameters lack.
    """
    algorithm = settings.algorithm.transformation(schedule(settings, total_steps), settings.weight_decay)
    optimizer = optax.chain(clip_by_global_norm(settings.max_gradient_norm), algorithm)
    if settings.frozen:
        optimizer = freeze(optimizer, settings.frozen)
    if settings.layer_decay < 1.0:
        # Outside of what is frozen: the depth is counted on all layers.
        optimizer = optax.chain(optimizer, scale_by_depth(settings.layer_decay))
    return optimizer
