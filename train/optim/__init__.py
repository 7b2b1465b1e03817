"""Optimizers and learning-rate schedules of training, as settings and as optax transformations.

`algorithms.py` has the classes for `Optim.algorithm`, `schedules.py` those for `Optim.schedule`.
"""

from train.optim.optimizer import Optim, clip_by_global_norm, global_norm, make_optimizer, schedule
from train.optim.parameters import decay_mask

__all__ = ["Optim", "clip_by_global_norm", "decay_mask", "global_norm", "make_optimizer", "schedule"]
