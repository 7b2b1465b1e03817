"""Settings of length-adaptive training (Kim and Cho, 2021): one model, good with any layers and tokens left out."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class LengthAdaptation:
    """Train the full model and sub-models of it in every step; the sub-models learn from the full model's outputs."""

    enabled: bool = False
    """Adapt the pretrained model, which should be fine-tuned for this task already."""
    length_drop: float = 0.2
    """Largest share of its tokens that a layer drops; the smallest sub-model drops it in every layer that runs."""
    layer_drop: float = 0.2
    """Probability of each layer to be left out of a model."""
    layer_drop_in_full: bool = True
    """Leave layers out of the full model too, as published."""
    random_submodels: int = 2
    """Sub-models of random lengths in each step, beside the smallest one."""
    sandwiches: int = 4
    """Number of sandwiches (a full model and its sub-models), drawn once by the run's seed; each step takes one of them
    at random. Each is compiled for every length of batches."""
    divergence: Literal["reverse", "forward"] = "reverse"
    """Loss of a sub-model: reverse, KL(sub-model || full model), as published; or forward, KL(full model || sub-model).
    A regression model has the squared error instead."""

    def __post_init__(self):
        for name in ("length_drop", "layer_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: at least 0 and less than 1")
        if not 0 <= self.random_submodels <= 64:
            raise ValueError(f"random_submodels is {self.random_submodels}; allowed: 0 to 64")
        if not 1 <= self.sandwiches <= 1024:
            raise ValueError(f"sandwiches is {self.sandwiches}; allowed: 1 to 1024")

    @property
    def models(self) -> int:
        """Models of a step: the full one, the smallest one and the random ones."""
        return self.random_submodels + 2

    @property
    def programs(self) -> int:
        """Compile cost of a batch length, in plain train steps."""
        return self.sandwiches * self.models if self.enabled else 1
