"""LAMB, for large batches."""

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

from train.optim.adam import Moments
from train.optim.decay import decay_mask
from train.optim.matrices import per_matrix


@dataclasses.dataclass(frozen=True)
class Lamb(Moments):
    """Adam whose update is scaled to the norm of each layer's tensor (You et al., 2020), with NVIDIA's semantics.

    Moments are bias-corrected, decay joins the update before its norm is taken, and the ratio of norms is 1 where
    either is 0. As in NVIDIA's FusedLAMB, biases and LayerNorm parameters have no ratio; they are told by name here,
    so that a weight decay of 0 leaves the others theirs.
    """

    epsilon: float = 1e-6
    """Added to the root of the corrected second moment."""

    def transformation(self, rate: Callable[[Any], Any], weight_decay: float) -> optax.GradientTransformation:
        """From clipped gradients to updates."""
        return optax.chain(
            optax.scale_by_adam(self.beta1, self.beta2, self.epsilon),
            optax.add_decayed_weights(weight_decay, mask=decay_mask),
            optax.masked(per_matrix(optax.scale_by_trust_ratio()), decay_mask),
            optax.scale_by_learning_rate(rate),
        )
