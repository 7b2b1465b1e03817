"""The optimizers and learning-rate schedules of training, as settings and as optax transformations.

The classes that `Optim` takes for `algorithm` are in adam.py, lamb.py and adafactor.py, those for `schedule` in
schedules.py.
"""

from train.optim.clipping import clip_by_global_norm, global_norm
from train.optim.decay import decay_mask
from train.optim.optimizer import make_optimizer, schedule
from train.optim.settings import Optim

__all__ = ["Optim", "clip_by_global_norm", "decay_mask", "global_norm", "make_optimizer", "schedule"]
