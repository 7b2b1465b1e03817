"""Learning rates over the steps of a run, as factors on the peak.

Steps count from 0, so that with warmup the first update has a rate of 0, as with `transformers` and optax.
"""

import dataclasses
import enum
import math
from typing import Annotated, Any

import jax.numpy as jnp
import tyro

from train.optim.limits import require_limits


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a schedule is laid over: the peak rate, steps of warmup, and all steps."""

    peak: float
    warmup: int
    total: int

    @property
    def after(self) -> int:
        """Steps after warmup, at least 1 so that it divides."""
        return max(1, self.total - self.warmup)


class Warmed:
    """A linear rise from 0 over the steps of warmup, then what the class says."""

    def check(self, plan: Plan) -> None:
        """Raises ValueError if the schedule cannot be followed with this plan."""

    def factor(self, step: Any, plan: Plan) -> Any:
        """The factor on the peak rate at an update, counted from 0; the step may be traced."""
        return jnp.where(jnp.asarray(step) < plan.warmup, step / max(1, plan.warmup), self.later(step, plan))

    def later(self, step: Any, plan: Plan) -> Any:
        """The factor once warmup is over."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Constant(Warmed):
    """The peak at every step, without warmup; transformers' "constant"."""

    def factor(self, step: Any, plan: Plan) -> Any:
        """1."""
        return jnp.ones(())


@dataclasses.dataclass(frozen=True)
class ConstantWithWarmup(Warmed):
    """The peak after warmup; transformers' "constant_with_warmup"."""

    def later(self, step: Any, plan: Plan) -> Any:
        """1."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class Linear(Warmed):
    """Linear to 0 at the last step; transformers' "linear"."""

    def later(self, step: Any, plan: Plan) -> Any:
        """From 1 to 0."""
        return jnp.maximum(0.0, (plan.total - step) / plan.after)


@dataclasses.dataclass(frozen=True)
class Cosine(Warmed):
    """Along waves of the cosine; transformers' "cosine"."""

    cycles: float = 0.5
    """Waves until the last step; the half goes from the peak to 0 once."""

    def __post_init__(self):
        require_limits(self, {"cycles": (0.0, 1000.0)})

    def later(self, step: Any, plan: Plan) -> Any:
        """Between 1 and 0."""
        # Of one wave, before it is divided: the cosine of a large angle would be coarse in float32.
        place = (self.cycles * (step - plan.warmup)) % plan.after / plan.after
        return 0.5 * (1.0 + jnp.cos(2 * math.pi * place))


@dataclasses.dataclass(frozen=True)
class CosineWithRestarts(Warmed):
    """From the peak to 0 along a half cosine, several times; transformers' "cosine_with_restarts"."""

    cycles: int = 1
    """Times that the rate falls."""

    def __post_init__(self):
        require_limits(self, {"cycles": (1, 1000)})

    def check(self, plan: Plan) -> None:
        """The product of steps and cycles must fit an int32."""
        if self.cycles * plan.total >= 2**31:
            raise ValueError(f"cycles is {self.cycles}; allowed with {plan.total} steps: 1 to {2**31 // plan.total}")

    def later(self, step: Any, plan: Plan) -> Any:
        """Between 1 and 0; the place in a cycle is found in whole numbers, so that no rounding moves a restart."""
        place = (self.cycles * (step - plan.warmup)) % plan.after / plan.after
        return jnp.where(jnp.asarray(step) >= plan.warmup + plan.after, 0.0, 0.5 * (1.0 + jnp.cos(math.pi * place)))


@dataclasses.dataclass(frozen=True)
class Polynomial(Warmed):
    """From the peak to `end` as a power of the steps left; transformers' "polynomial"."""

    power: float = 1.0
    end: float = 1e-7
    """A learning rate, not a factor; the peak must be above it."""

    def __post_init__(self):
        require_limits(self, {"power": (1e-3, 100.0), "end": (0.0, 10.0)})

    def check(self, plan: Plan) -> None:
        """The end must be below the peak, and there must be steps after warmup."""
        if self.end >= plan.peak:
            raise ValueError(f"end is {self.end}; it must be smaller than learning_rate, {plan.peak}")
        if plan.warmup >= plan.total:
            raise ValueError(f"warmup takes all {plan.total} steps; Polynomial needs steps after it")

    def later(self, step: Any, plan: Plan) -> Any:
        """From 1 to end/peak."""
        left = jnp.clip((plan.total - step) / plan.after, 0.0, 1.0)
        return ((plan.peak - self.end) * left**self.power + self.end) / plan.peak


@dataclasses.dataclass(frozen=True)
class Google(Warmed):
    """Warmup, then 1 - step/total, so that the rate jumps down after warmup.

    What optimization.py of google-research/bert does.
    """

    def later(self, step: Any, plan: Plan) -> Any:
        """Counted from step 0, not from the end of warmup."""
        return jnp.maximum(0.0, 1.0 - step / plan.total)


@dataclasses.dataclass(frozen=True)
class Nvidia(Warmed):
    """Warmup, then (1 - step/total)**power with steps counted from 1: the schedule of NVIDIA's pretraining with LAMB.

    Its PolyWarmUpScheduler is stepped before each update: the first rate is not 0, and that of the last update is.
    """

    power: float = 0.5

    def __post_init__(self):
        require_limits(self, {"power": (1e-3, 100.0)})

    def factor(self, step: Any, plan: Plan) -> Any:
        """The factor of the next step."""
        return super().factor(step + 1, plan)

    def later(self, step: Any, plan: Plan) -> Any:
        """Counted from the beginning, not from the end of warmup."""
        return jnp.maximum(0.0, 1.0 - step / plan.total) ** self.power


@dataclasses.dataclass(frozen=True)
class InverseSquareRoot(Warmed):
    """Falls as 1/sqrt(step), without an end; transformers' "inverse_sqrt"."""

    timescale: int | None = None
    """Steps after warmup until the factor is 1/sqrt(2); where None those of warmup, or 10000 without warmup."""

    def __post_init__(self):
        require_limits(self, {"timescale": (1, 2**31)})

    def later(self, step: Any, plan: Plan) -> Any:
        """1 at the end of warmup."""
        timescale = self.timescale or plan.warmup or 10_000
        # Never below 1: this is also computed, and not taken, during warmup.
        return jnp.maximum(1.0, 1.0 + (step - plan.warmup) / timescale) ** -0.5


class Fall(enum.Enum):
    """How `WarmupStableDecay` goes down."""

    LINEAR = "linear"
    COSINE = "cosine"
    ONE_MINUS_ROOT = "1-sqrt"


@dataclasses.dataclass(frozen=True)
class WarmupStableDecay(Warmed):
    """The peak after warmup, and down to 0 over the last steps; transformers' "warmup_stable_decay"."""

    decay: float = 0.1
    """Fraction of all steps over which the rate goes down."""
    fall: Annotated[Fall, tyro.conf.EnumChoicesFromValues] = Fall.COSINE
    """Along a line, a half cosine, or 1 minus a square root."""

    def __post_init__(self):
        require_limits(self, {"decay": (0.0, 1.0)})

    def check(self, plan: Plan) -> None:
        """Warmup and decay must not overlap."""
        if plan.warmup + round(self.decay * plan.total) > plan.total:
            taken = f"{plan.warmup} of warmup and {round(self.decay * plan.total)} of decay"
            raise ValueError(f"decay is {self.decay}: {taken} are more than {plan.total} steps")

    def later(self, step: Any, plan: Plan) -> Any:
        """1, then down to 0."""
        steps = round(self.decay * plan.total)
        place = jnp.clip((step - (plan.total - steps)) / max(1, steps), 0.0, 1.0)
        fall = {
            Fall.LINEAR: 1.0 - place,
            Fall.COSINE: 0.5 * (1.0 + jnp.cos(math.pi * place)),
            Fall.ONE_MINUS_ROOT: 1.0 - jnp.sqrt(place),
        }[self.fall]
        # Without steps of decay the rate drops at the end.
        return jnp.where(jnp.asarray(step) >= plan.total, 0.0, fall)


@dataclasses.dataclass(frozen=True)
class RelativeStep(Warmed):
    """Adafactor's own rate, min(1/100, 1/sqrt(t)) with updates t counted from 1, times a learning_rate of 1.

    With Hugging Face's `relative_step` and `warmup_init`. Any other learning_rate is a factor on it.
    """

    rising: bool = False
    """Whether a rise of t/1000000 takes the place of the 1/100."""

    def check(self, plan: Plan) -> None:
        """The peak must be meant as a factor on a rate."""
        if plan.peak < 0.01:
            why = "RelativeStep multiplies it by a rate of its own; use 1.0"
            raise ValueError(f"learning_rate is {plan.peak}; allowed with this schedule: 0.01 to 10.0: {why}")

    def factor(self, step: Any, plan: Plan) -> Any:
        """No warmup but its own."""
        updates = jnp.asarray(step, jnp.float32) + 1.0
        return jnp.minimum(1e-6 * updates if self.rising else 1e-2, updates**-0.5)
