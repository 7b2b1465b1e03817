"""The loss of length-adaptive training: the full model, the smallest sub-model and random ones in one train step.

The sandwich rule, LengthDrop, LayerDrop and in-place distillation are those of the length-adaptive transformer (Kim and
Cho, 2021) and its implementation by clovaai. The full model learns the labels. The sub-models learn its outputs, which
pass no gradient back. Layers and lengths are static, so each sandwich is a program of its own; a run draws a few.
"""

import dataclasses
import functools
import logging
import math
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert import PreTrainedModel
from flaxbert.encoder_decoder import AnyModel
from flaxbert.families import HeadKind, architecture_of
from flaxbert.layers import Params
from flaxbert.losses import Loss
from flaxbert.outputs import AdaptiveOutput
from train.config import Config
from train.data.batches import PackedBatches
from train.length_adaptation import LengthAdaptation
from train.step import Batch
from train.tasks.task import SoftTarget, Task, apply_model
from train.teacher import RecordingModel, soft_cross_entropy

_log = logging.getLogger(__name__)
HEADS = (
    HeadKind.SEQUENCE_CLASSIFICATION,
    HeadKind.NEXT_SENTENCE,
    HeadKind.TOKEN_CLASSIFICATION,
    HeadKind.QUESTION_ANSWERING,
)
_MIN_TOKENS = 2  # after each layer, as in clovaai's implementation


@dataclasses.dataclass(frozen=True)
class SubModel:
    """A choice of layers, and for each layer of the model a number in [0, 1) that decides the tokens it keeps."""

    layers: tuple[int, ...]
    draws: tuple[float, ...]

    def lengths(self, length: int, *, length_drop: float) -> tuple[int, ...]:
        """Return the `length_config` for inputs of `length` tokens.

        A layer that runs keeps a number between the least that `length_drop` allows, for a draw of 0, and all of its
        tokens. Layers that do not run repeat the number before.
        """
        lengths = []
        for layer, draw in enumerate(self.draws):
            if layer in self.layers:
                least = min(length, max(_MIN_TOKENS, math.ceil(length * (1 - length_drop))))
                length = least + int(draw * (length - least + 1))
            lengths.append(length)
        return tuple(lengths)


@dataclasses.dataclass(frozen=True)
class Sandwich:
    """The models of one train step: the layers of the full model, and the sub-models, the smallest one first."""

    layers: tuple[int, ...]
    submodels: tuple[SubModel, ...]


def smallest_submodel(layers: int) -> SubModel:
    """Return the sub-model of all layers that drops as many tokens as possible in each."""
    return SubModel(tuple(range(layers)), (0.0,) * layers)


def draw_sandwiches(settings: LengthAdaptation, layers: int, *, seed: int) -> tuple[Sandwich, ...]:
    """Draw the sandwiches of a run for a model of this many layers; each model leaves out its own layers."""
    generator = np.random.default_rng(seed)

    def some_layers() -> tuple[int, ...]:
        while True:  # at least one layer
            kept = np.flatnonzero(generator.random(layers) >= settings.layer_drop)
            if len(kept):
                return tuple(kept.tolist())

    sandwiches = []
    for _ in range(settings.sandwiches):
        full = some_layers() if settings.layer_drop_in_full else tuple(range(layers))
        smallest = SubModel(some_layers(), (0.0,) * layers)
        others = [
            SubModel(some_layers(), tuple(generator.random(layers).tolist())) for _ in range(settings.random_submodels)
        ]
        sandwiches.append(Sandwich(full, (smallest, *others)))
    return tuple(sandwiches)


@dataclasses.dataclass(frozen=True)
class Sandwiches:
    """The sandwiches of a run, and their losses."""

    settings: LengthAdaptation
    task: Task
    model: PreTrainedModel
    seed: int

    @functools.cached_property
    def all(self) -> tuple[Sandwich, ...]:
        """All sandwiches of the run."""
        return draw_sandwiches(self.settings, self.task.config.num_hidden_layers, seed=self.seed)

    @property
    def losses(self) -> list[Callable[[Params, Batch, jax.Array | None], Loss]]:
        """The loss of each sandwich, of the parameters, a batch and the key of dropout."""
        return [functools.partial(self.loss, sandwich) for sandwich in self.all]

    @property
    def loss_terms(self) -> tuple[str, ...]:
        """The names of the terms of the loss; each model has the same weight, 1 / models."""
        names = (*(self.task.loss_terms or ("full_loss",)), "smallest_loss")
        return (*names, "random_loss") if self.settings.random_submodels else names

    def index(self, step: int) -> int:
        """Return the number of the sandwich of a step, which is drawn by the seed and the step alone."""
        return int(np.random.default_rng([self.seed, 1, step]).integers(self.settings.sandwiches))

    def loss(self, sandwich: Sandwich, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """Return the terms of a sandwich's loss; each model has its own dropout."""
        keys = [None if key is None else jax.random.fold_in(key, model) for model in range(self.settings.models)]
        full = RecordingModel(self.model, {"layer_config": sandwich.layers})
        hard = self.task.loss(full, params, batch, keys[0])  # type: ignore[arg-type]
        target = jax.lax.stop_gradient(full.output)
        soft = []
        for submodel, own_key in zip(sandwich.submodels, keys[1:], strict=True):
            lengths = submodel.lengths(batch["input_ids"].shape[-1], length_drop=self.settings.length_drop)
            output = apply_model(
                self.model, params, batch, own_key, layer_config=submodel.layers, length_config=lengths
            )
            soft.append(self._divergence(output, target, batch))
        random = [functools.reduce(lambda a, b: Loss(a.sum + b.sum, a.weight), soft[1:])] if soft[1:] else []
        terms = [Loss(jnp.atleast_1d(hard.sum), jnp.atleast_1d(hard.weight))]
        terms += [Loss(term.sum[None], term.weight[None]) for term in (soft[0], *random)]
        joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *terms)
        return Loss(joined.sum / self.settings.models, joined.weight)

    def _divergence(self, output: AdaptiveOutput, target: AdaptiveOutput, batch: Batch) -> Loss:
        pairs = zip(self.task.soft_targets(output, batch), self.task.soft_targets(target, batch), strict=True)
        reverse, problem = self.settings.divergence == "reverse", self.task.config.problem_type
        # Several predictions of a row, as the start and the end of an answer, count as one: their mean.
        return functools.reduce(
            operator.add, [divergence(*pair, reverse=reverse, problem_type=problem) for pair in pairs]
        )


def divergence(submodel: SoftTarget, full: SoftTarget, *, reverse: bool, problem_type: str | None) -> Loss:
    """Return KL(sub-model || full model) if `reverse`, else KL(full model || sub-model).

    Several labels at once have the mean of the divergences of each. A regression has the squared error.
    """
    if problem_type == "regression":
        difference = submodel.logits.astype(jnp.float32) - full.logits.astype(jnp.float32)
        squares = jnp.mean(jnp.square(difference), axis=-1)
        return Loss(jnp.sum(squares * submodel.weight), jnp.sum(submodel.weight))
    if problem_type == "multi_label_classification":
        submodel, full = _two_outcomes(submodel), _two_outcomes(full)
    p, q = (submodel, full) if reverse else (full, submodel)
    return soft_cross_entropy(student=q, teacher=p, temperature=1.0)


def _two_outcomes(target: SoftTarget) -> SoftTarget:
    """Turn the logits of independent labels [..., N] into those of two outcomes each, [..., N, 2]."""
    logits = jnp.stack([target.logits, jnp.zeros_like(target.logits)], axis=-1)
    return SoftTarget(logits, jnp.broadcast_to(target.weight[..., None], target.logits.shape))


def make_sandwiches(config: Config, task: Task, model: AnyModel) -> Sandwiches | None:
    """Return the sandwiches of a run, None if the settings ask for none.

    Raises:
        ValueError: the task, its batches, the model or other settings do not allow length-adaptive training.
    """
    settings = config.length_adaptation
    if not settings.enabled:
        return None
    without = "leave --length-adaptation.enabled out"
    if not isinstance(model, PreTrainedModel) or architecture_of(model).head not in HEADS:
        heads = ", ".join(head.value for head in HEADS)
        raise ValueError(f"{type(config.task).__name__} cannot be length-adaptive; {without}. Allowed heads: {heads}")
    if config.distillation.teacher is not None:
        raise ValueError(
            f"distillation.teacher is {config.distillation.teacher}, and length_adaptation is enabled: one model "
            "cannot have both; give --distillation.teacher None, or --no-length-adaptation.enabled"
        )
    if isinstance(task.train, PackedBatches):
        raise ValueError("packed is True, but tokens are dropped from rows of one text only: give --task.no-packed")
    own = {name: getattr(task.config, name) for name in ("layer_config", "length_config")}
    if any(value is not None for value in own.values()):
        raise ValueError(f"the model's config.json has {own}; set them to null there to adapt the full model")
    if config.model.pretrained is None or task.new_head:
        _log.warning("the model is not fine-tuned for this task: train it without --length-adaptation.enabled first")
    return Sandwiches(settings, task, model, config.run.seed)
