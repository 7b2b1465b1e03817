"""Settings of distillation (Hinton et al., 2015): train on the outputs of a larger model beside the labels."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Distillation:
    """A teacher, and the weights of the terms of the loss; reported terms are multiplied by their weights."""

    teacher: Path | None = None
    """Model folder or run with the head of the task and the student's vocabulary; None: no distillation."""
    temperature: float = 2.0
    """The logits of teacher and student are divided by it."""
    hard_weight: float = 0.5
    """Weight of the loss of the labels."""
    soft_weight: float = 0.5
    """Weight of the divergence from the teacher's predictions, which is multiplied by the squared temperature."""
    cosine_weight: float = 0.0
    """Weight of 1 - cosine of the last hidden states, for a teacher of the student's width."""

    def __post_init__(self):
        if self.teacher is not None:
            object.__setattr__(self, "teacher", self.teacher.expanduser())
        if not 1 <= self.temperature < 1e6:
            raise ValueError(f"temperature is {self.temperature}; it must be at least 1")
        for name in ("hard_weight", "soft_weight", "cosine_weight"):
            if not 0 <= getattr(self, name) < 1e6:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.soft_weight == self.cosine_weight == 0:
            raise ValueError("soft_weight and cosine_weight are 0: the teacher would not be used; give one of them")
