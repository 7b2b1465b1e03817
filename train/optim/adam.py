"""AdamW, and the Adam that BERT itself was trained with."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from train.optim.decay import decay_mask
from train.optim.limits import require_limits

BETA = (0.0, 0.9999999)


@dataclasses.dataclass(frozen=True)
class Moments:
    """Settings that Adam and its kin share: means of the gradients and of their squares that forget."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self):
        require_limits(self, {"beta1": BETA, "beta2": BETA, "epsilon": (1e-16, 1.0)})


@dataclasses.dataclass(frozen=True)
class AdamW(Moments):
    """Adam with bias correction and decoupled decay (Loshchilov & Hutter, 2019), as PyTorch's and optax's."""

    epsilon: float = 1e-8
    """Added to the root of the corrected second moment."""

    def transformation(self, rate: Callable[[Any], Any], weight_decay: float) -> optax.GradientTransformation:
        """From clipped gradients to updates."""
        return optax.adamw(rate, self.beta1, self.beta2, self.epsilon, weight_decay=weight_decay, mask=decay_mask)


@dataclasses.dataclass(frozen=True)
class BertAdam(Moments):
    """Adam without bias correction, decay added to its update: what optimization.py of google-research/bert does."""

    epsilon: float = 1e-6
    """Added to the root of the second moment."""

    def transformation(self, rate: Callable[[Any], Any], weight_decay: float) -> optax.GradientTransformation:
        """From clipped gradients to updates."""
        return optax.chain(
            scale_by_uncorrected_adam(self.beta1, self.beta2, self.epsilon),
            optax.add_decayed_weights(weight_decay, mask=decay_mask),
            optax.scale_by_learning_rate(rate),
        )


class UncorrectedAdamState(NamedTuple):
    """The two moments of every parameter; without bias correction no step is counted."""

    mu: Any
    nu: Any


def scale_by_uncorrected_adam(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformation:
    """m / (sqrt(v) + epsilon) of moments that start at 0 and stay as they are; optax always corrects them."""

    def init(params: Any) -> UncorrectedAdamState:
        return UncorrectedAdamState(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, UncorrectedAdamState]:
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * jnp.square(g), state.nu, updates)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mu, nu), UncorrectedAdamState(mu, nu)

    return optax.GradientTransformation(init, update)
