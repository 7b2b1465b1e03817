"""The settings of the optimizer."""

import dataclasses

from train.optim.adafactor import Adafactor
from train.optim.adam import AdamW, BertAdam
from train.optim.lamb import Lamb
from train.optim.limits import require_limits
from train.optim.schedules import (
    Constant,
    ConstantWithWarmup,
    Cosine,
    CosineWithRestarts,
    Google,
    InverseSquareRoot,
    Linear,
    Nvidia,
    Polynomial,
    RelativeStep,
    WarmupStableDecay,
)

Algorithm = AdamW | BertAdam | Lamb | Adafactor
Schedule = (
    Linear
    | Constant
    | ConstantWithWarmup
    | Cosine
    | CosineWithRestarts
    | Polynomial
    | Google
    | Nvidia
    | InverseSquareRoot
    | WarmupStableDecay
    | RelativeStep
)


@dataclasses.dataclass(frozen=True)
class Optim:
    """Settings of the optimizer; defaults are those that BERT is fine-tuned with."""

    learning_rate: float = 5e-5
    """Peak, reached after warmup."""
    warmup: float = 0.1
    """Fraction of all steps over which the learning rate rises from 0."""
    weight_decay: float = 0.01
    """Decoupled; never applied to biases and LayerNorm parameters."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    layer_decay: float = 1.0
    """Layer i of L, counted from 0, learns at this to the power L - i of the rate; embeddings at L + 1, heads at 0."""
    frozen: tuple[str, ...] = ()
    """Paths such as bert/embeddings; parameters at and below them stay as they are."""
    algorithm: Algorithm = AdamW()
    """From gradients to updates; the config file chooses the class, flags change its fields."""
    schedule: Schedule = Linear()
    """The learning rate over the steps; the config file chooses the class, flags change its fields."""

    def __post_init__(self):
        limits = {"learning_rate": (0.0, 10.0), "warmup": (0.0, 1.0), "weight_decay": (0.0, 1.0)}
        require_limits(self, limits | {"max_gradient_norm": (1e-9, 1e9), "layer_decay": (1e-3, 1.0)})
