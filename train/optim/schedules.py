"""Learning-rate schedules: settings that give the factor on the peak rate at each step.

Steps count from 0, so that with warmup the first update has a rate of 0, as in `transformers` and optax.
"""

import dataclasses
import enum
import math
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
import tyro

StepNumber = int | jax.Array
"""Number of an update, counted from 0; may be traced."""


def require_limits(settings: object, limits: dict[str, tuple[float, float]]) -> None:
    """Raise ValueError for the first of these fields that is outside its limits (inclusive); None is allowed."""
    for name, (low, high) in limits.items():
        value = vars(settings)[name]
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} is {value}; allowed: {low} to {high}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Facts of a run that a schedule needs: peak learning rate, and numbers of steps."""

    peak: float
    warmup_steps: int
    total_steps: int

    @property
    def steps_after_warmup(self) -> int:
        """Return the number of steps after warmup, at least 1 so that it can be a divisor."""
        return max(1, self.total_steps - self.warmup_steps)


class WarmupSchedule:
    """Linear rise from 0 over the warmup steps, followed by a curve that the subclass defines."""

    limits: ClassVar[dict[str, tuple[float, float]]] = {}

    def __post_init__(self):
        require_limits(self, self.limits)

    def check(self, plan: Plan) -> None:
        """Raise ValueError if the schedule is impossible with this plan."""

    def factor(self, step: StepNumber, plan: Plan) -> jax.Array:
        """Return the factor on the peak rate at a step."""
        after = self._after_warmup(step, plan)
        return jnp.where(jnp.asarray(step) < plan.warmup_steps, step / max(1, plan.warmup_steps), after)

    def _after_warmup(self, step: StepNumber, plan: Plan) -> jax.Array | float:
        """Return the factor after warmup; also computed, and discarded, during warmup."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Constant(WarmupSchedule):
    """The peak at every step, without warmup; transformers' "constant"."""

    def factor(self, step: StepNumber, plan: Plan) -> jax.Array:
        """Return 1."""
        return jnp.ones(())


@dataclasses.dataclass(frozen=True)
class ConstantWithWarmup(WarmupSchedule):
    """The peak after warmup; transformers' "constant_with_warmup"."""

    def _after_warmup(self, step: StepNumber, plan: Plan) -> jax.Array | float:
        return 1.0


@dataclasses.dataclass(frozen=True)
class Linear(WarmupSchedule):
    """Linear decay to 0 at the last step; transformers' "linear"."""

    def _after_warmup(self, step: StepNumber, plan: Plan) -> jax.Array | float:
        return jnp.maximum(0.0, (plan.total_steps - step) / plan.steps_after_warmup)


@dataclasses.dataclass(frozen=True)
class Cosine(WarmupSchedule):
    """Cosine waves between the peak and 0; transformers' "cosine"."""

    cycles: float = 0.5
    """Number of waves; half a wave goes from the peak to 0 once."""

    limits = {"cycles": (0.0, 1000.0)}

    def _after_warmup(self, step: StepNumber, plan: Plan) -> jax.Array | float:
        # The remainder is taken before the division: the cosine of a large angle would be inexact in float32.
        fraction = (self.cycles * (step - plan.warmup_steps)) % plan.steps_after_warmup / plan.steps_after_warmup
        return 0.5 * (1.0 + jnp.cos(2 * math.pi * fraction))


@dataclasses.dataclass(frozen=True)
class CosineWithRestarts(WarmupSchedule):
    """Half cosine from the peak to 0, repeated; transformers' "cosine_with_restarts"."""

    cycles: int = 1
    """Number of times that the rate decays."""

    limits = {"cycles": (1, 1000)}

    def check(self, plan: Plan) -> None:
        """Raise if the product of steps and cycles does not fit an int32."""
        if self.cycles * plan.total_steps >= 2**31:
            allowed = f"allowed with {plan.total_steps} steps: 1 to {2**31 // plan.total_steps}"
            raise ValueError(f"cycles is {self.cycles}; {allowed}")

    def _after_warmup(self, step: StepNumber, plan: Plan) -> jax.Array | float:
        # Integers as far as the remainder, so that rounding never moves a restart.
        length = plan.steps_after_warmup
        fraction = (self.cycles * (step - plan.warmup_steps)) % length / length
        ended = jnp.asarray(step) >= plan.warmup_steps + length
        return jnp.where(ended, 0.0, 0.5 * (1.0 + jnp.cos(math.pi * fraction)))


@dataclasses.dataclass(frozen=True)
class Polynomial(WarmupSchedule):
    """Decay from the peak to `end` as a power of the remaining steps; transformers' "polynomial"."""

    power: float = 1.0
    end: float = 1e-7
    """Final learning rate (not a factor); must be below the peak."""

    limits = {"power": (1e-3, 100.0), "end": (0.0, 10.0)}

    def check(self, plan: Plan) -> None:
        """Raise unless the end is below the peak and steps remain after warmup."""
        if self.end >= plan.peak:
            raise ValueError(f"end is {self.end}; it must be smaller than learning_rate, {plan.peak}")
        if plan.warmup_steps >= plan.total_steps:
            raise ValueError(f"warmup takes all {plan.total_steps} steps; Polynomial needs steps after it")

    def _after_warmup(self, step: StepNumber, plan: Plan) -> jax.Array | float:
        remaining = jnp.clip((plan.total_steps - step) / plan.steps_after_warmup, 0.0, 1.0)
        return ((plan.peak - self.end) * remaining**self.power + self.end) / plan.peak


@dataclasses.dataclass(frozen=True)
class Google(WarmupSchedule):
    """Warmup, then 1 - step/total, as in optimization.py of google-research/bert.

    The decay counts from step 0, not from the end of warmup, so that the rate jumps down after warmup.
    """

    def _after_warmup(self, step: StepNumber, plan: Plan) -> jax.Array | float:
        return jnp.maximum(0.0, 1.0 - step / plan.total_steps)


@dataclasses.dataclass(frozen=True)
class Nvidia(WarmupSchedule):
    """Warmup, then (1 - step/total)**power with steps counted from 1: the schedule of NVIDIA's pretraining with LAMB.

    NVIDIA's PolyWarmUpScheduler is stepped before each update: the first rate is not 0, and the last one is.
    """

    power: float = 0.5

    limits = {"power": (1e-3, 100.0)}

    def factor(self, step: StepNumber, plan: Plan) -> jax.Array:
        """Return the factor of the following step."""
        return super().factor(step + 1, plan)

    def _after_warmup(self, step: StepNumber, plan: Plan) -> jax.Array | float:
        return jnp.maximum(0.0, 1.0 - step / plan.total_steps) ** self.power


@dataclasses.dataclass(frozen=True)
class InverseSquareRoot(WarmupSchedule):
    """Decay as 1/sqrt(step), without an end; transformers' "inverse_sqrt"."""

    timescale: int | None = None
    """Steps after warmup until the factor is 1/sqrt(2); None for the warmup steps, or for 10000 without warmup."""

    limits = {"timescale": (1, 2**31)}

    def _after_warmup(self, step: StepNumber, plan: Plan) -> jax.Array | float:
        timescale = self.timescale or plan.warmup_steps or 10_000
        # At least 1, because steps of warmup would give the root of a negative number.
        return jnp.maximum(1.0, 1.0 + (step - plan.warmup_steps) / timescale) ** -0.5


class DecayShape(enum.Enum):
    """Curve of the last phase of `WarmupStableDecay`."""

    LINEAR = "linear"
    COSINE = "cosine"
    ONE_MINUS_ROOT = "1-sqrt"


@dataclasses.dataclass(frozen=True)
class WarmupStableDecay(WarmupSchedule):
    """The peak after warmup, and decay to 0 over the last steps; transformers' "warmup_stable_decay"."""

    decay: float = 0.1
    """Fraction of all steps over which the rate decays."""
    fall: Annotated[DecayShape, tyro.conf.EnumChoicesFromValues] = DecayShape.COSINE
    """Shape of the decay: linear, half a cosine, or 1 minus a square root."""

    limits = {"decay": (0.0, 1.0)}

    def check(self, plan: Plan) -> None:
        """Raise if warmup and decay overlap."""
        decay_steps = round(self.decay * plan.total_steps)
        if plan.warmup_steps + decay_steps > plan.total_steps:
            steps = f"{plan.warmup_steps} of warmup and {decay_steps} of decay"
            raise ValueError(f"decay is {self.decay}: {steps} are more than {plan.total_steps} steps")

    def _after_warmup(self, step: StepNumber, plan: Plan) -> jax.Array | float:
        decay_steps = round(self.decay * plan.total_steps)
        fraction = jnp.clip((step - (plan.total_steps - decay_steps)) / max(1, decay_steps), 0.0, 1.0)
        factor = {
            DecayShape.LINEAR: 1.0 - fraction,
            DecayShape.COSINE: 0.5 * (1.0 + jnp.cos(math.pi * fraction)),
            DecayShape.ONE_MINUS_ROOT: 1.0 - jnp.sqrt(fraction),
        }[self.fall]
        # Without decay steps the rate drops to 0 at the end.
        return jnp.where(jnp.asarray(step) >= plan.total_steps, 0.0, factor)


@dataclasses.dataclass(frozen=True)
class RelativeStep(WarmupSchedule):
    """Adafactor's own rate, min(1/100, 1/sqrt(t)) at update t counted from 1; `relative_step` of Hugging Face's class.

    The learning rate of the settings is a factor on it: use 1.0.
    """

    rising: bool = False
    """Replace the constant 1/100 by a rise of t/1000000; `warmup_init` of Hugging Face's class."""

    def check(self, plan: Plan) -> None:
        """Raise if the peak is so small that it must be meant as a rate instead of a factor."""
        if plan.peak < 0.01:
            why = "RelativeStep multiplies it by a rate of its own; use 1.0"
            raise ValueError(f"learning_rate is {plan.peak}; allowed with this schedule: 0.01 to 10.0: {why}")

    def factor(self, step: StepNumber, plan: Plan) -> jax.Array:
        """Return Adafactor's rate; the warmup of the plan is not used."""
        updates = jnp.asarray(step, jnp.float32) + 1.0
        return jnp.minimum(1e-6 * updates if self.rising else 1e-2, updates**-0.5)


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
