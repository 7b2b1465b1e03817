"""Settings of the optimizer, and the optax transformation and learning-rate schedule that they describe.

`algorithms.py` has the classes for `Optim.algorithm`, `schedules.py` those for `Optim.schedule`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from train.optim.algorithms import Adafactor, AdamW, BertAdam, Lamb
from train.optim.parameters import freeze, scale_by_depth, scale_heads
from train.optim.schedules import Linear, Plan, Schedule, require_limits

_STRIPS = 16  # of `_sum_in_strips`; 8 to 32 are equally fast


@dataclasses.dataclass(frozen=True)
class Optim:
    """Settings of the optimizer; the defaults are those of BERT's fine-tuning."""

    learning_rate: float = 5e-5
    """Peak, reached at the end of warmup."""
    warmup: float = 0.1
    """Fraction of all steps over which the learning rate rises from 0."""
    weight_decay: float = 0.01
    """Decoupled; never applied to biases and LayerNorm parameters."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    layer_decay: float = 1.0
    """Factor on the learning rate for each layer below the heads: layer i of L, counted from 0, gets it to the power
    L - i, the embeddings get it to the power L + 1."""
    head_rate: float = 1.0
    """Factor on the learning rate of the heads, which often start from newly initialised weights: all parameters but
    those of the encoder and its pooler."""
    frozen: tuple[str, ...] = ()
    """Paths such as bert/embeddings; parameters at and below them are not trained."""
    algorithm: AdamW | BertAdam | Lamb | Adafactor = AdamW()
    """Optimizer; the config file chooses the class, flags change its fields."""
    schedule: Schedule = Linear()
    """Learning rate over the steps; the config file chooses the class, flags change its fields."""

    def __post_init__(self):
        limits = {"learning_rate": (0.0, 10.0), "warmup": (0.0, 1.0), "weight_decay": (0.0, 1.0)}
        factors = {"layer_decay": (1e-3, 1.0), "head_rate": (1e-3, 1e3)}
        require_limits(self, limits | factors | {"max_gradient_norm": (1e-9, 1e9)})


def schedule(settings: Optim, total_steps: int) -> optax.Schedule:
    """Return the function from the number of an update, counted from 0, to its learning rate; it may be traced.

    Raises ValueError if the schedule is impossible with this peak, warmup or number of steps.
    """
    plan = Plan(settings.learning_rate, warmup_steps=round(settings.warmup * total_steps), total_steps=total_steps)
    settings.schedule.check(plan)

    def rate(step: Any) -> jax.Array:
        return settings.learning_rate * settings.schedule.factor(step, plan)

    return rate


def make_optimizer(settings: Optim, total_steps: int) -> optax.GradientTransformation:
    """Return the transformation that clips by global norm and applies the algorithm on the schedule."""
    algorithm = settings.algorithm.transformation(schedule(settings, total_steps), settings.weight_decay)
    optimizer = optax.chain(clip_by_global_norm(settings.max_gradient_norm), algorithm)
    if settings.frozen:
        optimizer = freeze(optimizer, settings.frozen)
    if settings.layer_decay < 1.0:
        # Outside of `freeze`, so that frozen layers count in the depth.
        optimizer = optax.chain(optimizer, scale_by_depth(settings.layer_decay))
    if settings.head_rate != 1.0:
        optimizer = optax.chain(optimizer, scale_heads(settings.head_rate))
    return optimizer


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """Scale gradients down to a global norm of `limit`, as `optax.clip_by_global_norm` does.

    All gradients are multiplied by one factor, which XLA fuses into the update of the moments; optax divides each
    gradient in a separate pass.
    """

    def clip(gradients: optax.Updates, _: optax.Params | None) -> optax.Updates:
        # A norm of 0 gives infinity, hence the factor 1; the training loop reports a norm that is not finite.
        factor = jnp.minimum(1.0, limit / global_norm(gradients))
        return jax.tree.map(lambda x: x * factor, gradients)

    return optax.stateless(clip)


def global_norm(tree: optax.Updates) -> jax.Array:
    """Return the 2-norm of all entries of a tree of arrays, in float32."""
    squares = [
        jax.lax.platform_dependent(jnp.square(x.astype(jnp.float32)), cpu=_sum_in_strips, default=jnp.sum)
        for x in jax.tree.leaves(tree)
    ]
    return jnp.sqrt(sum(squares[1:], squares[0]))


def _sum_in_strips(x: jax.Array) -> jax.Array:
    """Return the sum of all entries, adding strips of columns elementwise first.

    XLA on the CPU sums numbers one after another: 30 ms for 12 million of them on two cores, 4 ms with strips.
    """
    rows = x.reshape(x.shape[0] if x.ndim > 1 else 1, -1)
    width = rows.shape[1] // _STRIPS
    strips = [rows[:, i * width : (i + 1) * width] for i in range(_STRIPS)]
    return jnp.sum(sum(strips[1:], strips[0])) + jnp.sum(rows[:, _STRIPS * width :])
