"""Adafactor, whose second moments take the memory of rows and columns instead of matrices."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from train.optim.adam import BETA
from train.optim.decay import decay_mask
from train.optim.limits import require_limits
from train.optim.matrices import per_matrix


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Adafactor (Shazeer & Stern, 2018), statistics per layer and matrix.

    The defaults are what the documentation of `transformers.optimization.Adafactor` recommends with a schedule of the
    caller's. Its `relative_step` and `warmup_init` are the schedule `RelativeStep`. With `smallest_factored` 128,
    `scale_parameter` and without `decay_times_rate` it is `optax.adafactor` with the defaults of that function.
    """

    decay_rate: float = 0.8
    """After t updates the second moment keeps 1 - t**-decay_rate of itself."""
    epsilon: float = 1e-30
    """Added to the squared gradient."""
    clip_threshold: float = 1.0
    """Each tensor's update is scaled down to this root mean square."""
    beta1: float | None = None
    """Of an average over the updates, which takes as much memory as the parameters; none where None."""
    scale_parameter: bool = False
    """Whether the rate is multiplied by each tensor's own root mean square."""
    smallest_scale: float = 1e-3
    """The least that `scale_parameter` multiplies by."""
    smallest_factored: int = 1
    """Matrices are factored if both sides are at least this long."""
    decay_times_rate: bool = True
    """Whether weight decay is multiplied by the tensor's rate; optax takes off weight_decay itself at every step."""

    def __post_init__(self):
        limits = {"decay_rate": (1e-3, 1.0), "epsilon": (0.0, 1.0), "clip_threshold": (1e-9, 1e9), "beta1": BETA}
        require_limits(self, limits | {"smallest_scale": (1e-9, 1e9), "smallest_factored": (1, 2**31)})

    def transformation(self, rate: Callable[[Any], Any], weight_decay: float) -> optax.GradientTransformation:
        """From clipped gradients to updates."""
        direction = per_matrix(
            optax.chain(
                optax.scale_by_factored_rms(
                    decay_rate=self.decay_rate,
                    min_dim_size_to_factor=self.smallest_factored,
                    epsilon=self.epsilon,
                ),
                optax.clip_by_block_rms(self.clip_threshold),
            )
        )
        to_rate = optax.scale_by_learning_rate(rate, flip_sign=False)
        if self.scale_parameter:
            to_rate = optax.chain(to_rate, per_matrix(optax.scale_by_param_block_rms(self.smallest_scale)))
        average = optax.identity() if self.beta1 is None else optax.ema(self.beta1, debias=False)
        # After the average, which is over updates without decay in both references.
        shrink = _add_scaled_weights(weight_decay, to_rate if self.decay_times_rate else optax.identity())
        return optax.chain(direction, to_rate, average, optax.masked(shrink, decay_mask), optax.scale(-1.0))


def _add_scaled_weights(weight_decay: float, scaling: optax.GradientTransformation) -> optax.GradientTransformation:
    """Adds to the updates `weight_decay` times the parameters, put through `scaling`."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        decay, state = scaling.update(jax.tree.map(lambda x: weight_decay * x, params), state, params)
        return jax.tree.map(lambda x, y: x + y, updates, decay), state

    return optax.GradientTransformation(scaling.init, update)
