"""The teacher of a distilled run, and the loss of its student.

The terms of the loss are those of DistilBERT (Sanh et al., 2019): the task's own, the Kullback-Leibler divergence of
the student's predictions from the teacher's at a temperature, and the cosine distance of their last hidden states. The
teacher's parameters are an argument of the train step: they are sharded like the student's, and neither trained nor in
a checkpoint.
"""

import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from flaxbert import PreTrainedModel
from flaxbert.encoder_decoder import AnyModel
from flaxbert.families import HeadKind, architecture_of, model_class, read_config
from flaxbert.layers import Params
from flaxbert.losses import Loss
from flaxbert.tokenizer import WordPieceTokenizer
from flaxbert.weights.checkpoint import open_checkpoint
from flaxbert.weights.load import place_on_devices
from flaxbert.weights.match import match
from flaxbert.weights.tensors import FiniteCheck
from train.config import Config
from train.distillation import Distillation
from train.distributed import Placement
from train.step import Batch
from train.tasks.task import SoftTarget, Task, apply_model


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained model with the head of the task, and the student that learns from it."""

    settings: Distillation
    task: Task
    student: PreTrainedModel
    model: PreTrainedModel
    params: Params

    @property
    def loss_terms(self) -> tuple[str, ...]:
        """The names of the terms of the loss."""
        hard = self.task.loss_terms or ("hard_loss",)
        return (*hard, "soft_loss", *(("cosine_loss",) if self.settings.cosine_weight else ()))

    def loss(self, teacher_params: Params, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """Return the weighted terms of the student's loss; dropout, with a key, is the student's alone."""
        settings = self.settings
        arguments = {"output_hidden_states": True} if settings.cosine_weight else {}
        student = RecordingModel(self.student, arguments)
        hard = self.task.loss(student, params, batch, key)  # type: ignore[arg-type]
        target = apply_model(RecordingModel(self.model, arguments), teacher_params, batch, None)  # type: ignore[arg-type]
        target = jax.lax.stop_gradient(target)
        pairs = zip(self.task.soft_targets(student.output, batch), self.task.soft_targets(target, batch), strict=True)
        divergences = [soft_cross_entropy(*pair, temperature=settings.temperature) for pair in pairs]
        # Several predictions of a row, as the start and the end of an answer, count as one: their mean.
        soft = functools.reduce(operator.add, divergences)
        weighted = [
            Loss(jnp.atleast_1d(hard.sum) * settings.hard_weight, jnp.atleast_1d(hard.weight)),
            Loss(soft.sum[None] * settings.soft_weight, soft.weight[None]),
        ]
        if settings.cosine_weight:
            mask = batch["segment_ids"] if "segment_ids" in batch else batch["attention_mask"]
            distance = cosine_distance(student.output.hidden_states[-1], target.hidden_states[-1], mask)
            weighted.append(Loss(distance.sum[None] * settings.cosine_weight, distance.weight[None]))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *weighted)


def load_teacher(config: Config, task: Task, student: AnyModel, placement: Placement) -> Teacher | None:
    """Load the teacher onto the mesh, and check that the student can learn from it; None without distillation.

    Raises:
        FileNotFoundError, ValueError: it cannot be loaded, lacks the head, or has other labels, tokens or widths.
    """
    settings = config.distillation
    if settings.teacher is None:
        return None
    if not isinstance(student, PreTrainedModel) or type(task).soft_targets is Task.soft_targets:
        raise ValueError(f"{type(config.task).__name__} has no soft targets; leave --distillation.teacher out")
    checkpoint = open_checkpoint(settings.teacher)
    sizes = read_config(checkpoint.config_folder)
    teacher_class = model_class(sizes, architecture_of(student).head)
    model = teacher_class(sizes, rules=placement.rules, **config.model.attributes)
    if WordPieceTokenizer.load(checkpoint.config_folder).vocabulary_digest != task.tokenizer.vocabulary_digest:
        raise ValueError(f"{settings.teacher}: the teacher has another vocabulary than the student; both need the same")
    matched = match(checkpoint, model, strict=False)
    if matched.missing:
        raise ValueError(
            f"{settings.teacher}: the teacher has no trained head of {teacher_class.__name__}: it lacks "
            f"{', '.join(sorted(matched.missing))}. Train it for this task first, and give its run's model folder"
        )
    _check_teacher(settings, model, task)
    checkpoint.verify_checksums()
    placement.check_model(model)
    shardings = placement.parameters(model)
    params = place_on_devices(matched, shardings=shardings, check=FiniteCheck(checkpoint.file))
    return Teacher(settings, task, student, model, params)


def _check_teacher(settings: Distillation, model: PreTrainedModel, task: Task) -> None:
    if task.config.problem_type in ("regression", "multi_label_classification"):
        raise ValueError(f"the task is a {task.config.problem_type}; distillation needs one label for each text")
    has_labels = architecture_of(model).head in (HeadKind.SEQUENCE_CLASSIFICATION, HeadKind.TOKEN_CLASSIFICATION)
    if has_labels and model.config.id2label != task.config.id2label:
        raise ValueError(
            f"{settings.teacher}: the teacher has the labels {model.config.id2label}, the student "
            f"{task.config.id2label}; give --task.labels in the teacher's order"
        )
    if settings.cosine_weight and model.config.hidden_size != task.config.hidden_size:
        raise ValueError(
            f"cosine_weight is {settings.cosine_weight}, but the teacher's width is {model.config.hidden_size} and the "
            f"student's {task.config.hidden_size}; give --distillation.cosine-weight 0"
        )


def soft_cross_entropy(student: SoftTarget, teacher: SoftTarget, *, temperature: float) -> Loss:
    """Return the divergence of the student's softmax from the teacher's, both at a temperature, times its square."""
    log_q, log_p = (jax.nn.log_softmax(side.logits.astype(jnp.float32) / temperature) for side in (student, teacher))
    divergence = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1) * temperature**2
    weight = (student.weight != 0).astype(jnp.float32)
    return Loss(jnp.sum(divergence * weight), jnp.sum(weight))


def cosine_distance(student: Float[Array, "B T D"], teacher: Float[Array, "B T D"], mask: Num[Array, "B T"]) -> Loss:
    """Return 1 - cosine of the vectors of each position that is not padding."""
    x, y = (states.astype(jnp.float32) for states in (student, teacher))
    squares = jnp.sum(x * x, axis=-1) * jnp.sum(y * y, axis=-1)
    cosine = jnp.sum(x * y, axis=-1) * jax.lax.rsqrt(jnp.maximum(squares, 1e-16))
    weight = (mask != 0).astype(jnp.float32)
    return Loss(jnp.sum((1.0 - cosine) * weight), jnp.sum(weight))


@dataclasses.dataclass
class RecordingModel:
    """A model in whose place a task calls it, that keeps the output of the call."""

    model: PreTrainedModel
    arguments: Mapping[str, Any]
    output: Any = None

    def apply(self, *arguments: Any, **named: Any) -> Any:
        """Call the model, with the arguments of the recording."""
        self.output = self.model.apply(*arguments, **named, **self.arguments)
        return self.output

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)
