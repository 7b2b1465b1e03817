"""Optimizers: AdamW, BERT's own Adam, LAMB and Adafactor, each as settings that build an optax transformation."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from train.optim.parameters import Update, decay_mask, per_matrix
from train.optim.schedules import require_limits

_BETA = (0.0, 0.9999999)


@dataclasses.dataclass(frozen=True)
class Moments:
    """Settings that Adam and LAMB share: decay rates of the first and second moment, and epsilon."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self):
        require_limits(self, {"beta1": _BETA, "beta2": _BETA, "epsilon": (1e-16, 1.0)})


@dataclasses.dataclass(frozen=True)
class AdamW(Moments):
    """Adam with bias correction and decoupled weight decay (Loshchilov & Hutter, 2019), as in PyTorch and optax."""

    epsilon: float = 1e-8
    """Added to the root of the corrected second moment."""

    def transformation(self, rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
        """Return the transformation from clipped gradients to updates."""
        return optax.adamw(rate, self.beta1, self.beta2, self.epsilon, weight_decay=weight_decay, mask=decay_mask)


@dataclasses.dataclass(frozen=True)
class BertAdam(Moments):
    """Adam without bias correction, weight decay added to the update, as in optimization.py of google-research/bert."""

    epsilon: float = 1e-6
    """Added to the root of the second moment."""

    def transformation(self, rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
        """Return the transformation from clipped gradients to updates."""
        return optax.chain(
            scale_by_uncorrected_adam(self.beta1, self.beta2, self.epsilon),
            optax.add_decayed_weights(weight_decay, mask=decay_mask),
            optax.scale_by_learning_rate(rate),
        )


class UncorrectedAdamState(NamedTuple):
    """First and second moment of every parameter; without bias correction no step count is needed."""

    mu: optax.Updates
    nu: optax.Updates


def scale_by_uncorrected_adam(beta1: float, beta2: float, epsilon: float) -> optax.GradientTransformation:
    """Return the transformation to m / (sqrt(v) + epsilon) without bias correction, which optax always applies."""

    def init(params: optax.Params) -> UncorrectedAdamState:
        return UncorrectedAdamState(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None) -> Update:
        assert isinstance(state, UncorrectedAdamState)
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * jnp.square(g), state.nu, updates)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), mu, nu), UncorrectedAdamState(mu, nu)

    return optax.GradientTransformation(init, update)


@dataclasses.dataclass(frozen=True)
class Lamb(Moments):
    """LAMB for large batches (You et al., 2020): Adam scaled to the norm of each layer's tensor, as NVIDIA's FusedLAMB.

    Moments are bias-corrected, weight decay is added before the norm of the update is taken, and the trust ratio is 1
    where either norm is 0. As in FusedLAMB, biases and LayerNorm parameters have no trust ratio; here they are
    recognised by name, so that the other parameters keep their ratio when weight decay is 0.
    """

    epsilon: float = 1e-6
    """Added to the root of the corrected second moment."""

    def transformation(self, rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
        """Return the transformation from clipped gradients to updates."""
        return optax.chain(
            optax.scale_by_adam(self.beta1, self.beta2, self.epsilon),
            optax.add_decayed_weights(weight_decay, mask=decay_mask),
            optax.masked(per_matrix(optax.scale_by_trust_ratio()), decay_mask),
            optax.scale_by_learning_rate(rate),
        )


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Adafactor (Shazeer & Stern, 2018), with second moments factored into rows and columns per layer and matrix.

    The defaults are those that the documentation of `transformers.optimization.Adafactor` recommends with an external
    schedule. Its `relative_step` and `warmup_init` are the schedule `RelativeStep`. With `smallest_factored` 128,
    `scale_parameter`, and `decay_times_rate` off it equals `optax.adafactor` with that function's defaults.
    """

    decay_rate: float = 0.8
    """The second moment keeps the share 1 - t**-decay_rate of itself at update t."""
    epsilon: float = 1e-30
    """Added to the squared gradient."""
    clip_threshold: float = 1.0
    """The update of each tensor is scaled down to this root mean square."""
    beta1: float | None = None
    """Decay rate of an average over the updates, which takes as much memory as the parameters; None for no average."""
    scale_parameter: bool = False
    """Multiply the learning rate by the root mean square of each tensor."""
    smallest_scale: float = 1e-3
    """Lower limit of the factor of `scale_parameter`."""
    smallest_factored: int = 1
    """Matrices are factored if both sides are at least this long."""
    decay_times_rate: bool = True
    """Multiply weight decay by the learning rate of the tensor; optax subtracts weight_decay itself at every step."""

    def __post_init__(self):
        limits = {"decay_rate": (1e-3, 1.0), "epsilon": (0.0, 1.0), "clip_threshold": (1e-9, 1e9), "beta1": _BETA}
        require_limits(self, limits | {"smallest_scale": (1e-9, 1e9), "smallest_factored": (1, 2**31)})

    def transformation(self, rate: optax.Schedule, weight_decay: float) -> optax.GradientTransformation:
        """Return the transformation from clipped gradients to updates."""
        direction = per_matrix(
            optax.chain(
                optax.scale_by_factored_rms(
                    decay_rate=self.decay_rate, min_dim_size_to_factor=self.smallest_factored, epsilon=self.epsilon
                ),
                optax.clip_by_block_rms(self.clip_threshold),
            )
        )
        to_rate = optax.scale_by_learning_rate(rate, flip_sign=False)
        if self.scale_parameter:
            to_rate = optax.chain(to_rate, per_matrix(optax.scale_by_param_block_rms(self.smallest_scale)))
        average = optax.identity() if self.beta1 is None else optax.ema(self.beta1, debias=False)
        # After the average, because both references average the updates without weight decay.
        decay = _add_scaled_weights(weight_decay, to_rate if self.decay_times_rate else optax.identity())
        return optax.chain(direction, to_rate, average, optax.masked(decay, decay_mask), optax.scale(-1.0))


def _add_scaled_weights(weight_decay: float, scaling: optax.GradientTransformation) -> optax.GradientTransformation:
    """Add `weight_decay` times the parameters, transformed by `scaling`, to the updates."""

    def update(updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None) -> Update:
        decay, state = scaling.update(jax.tree.map(lambda x: weight_decay * x, params), state, params)
        return jax.tree.map(lambda x, y: x + y, updates, decay), state

    return optax.GradientTransformation(scaling.init, update)
