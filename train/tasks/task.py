"""What a task hands to the training loop."""

import abc
import dataclasses
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from flaxbert.config import BertConfig
from flaxbert.families import family_of
from flaxbert.losses import Loss
from flaxbert.models import PreTrainedModel
from flaxbert.tokenizer import WordPieceTokenizer
from train.data.batches import TrainSet
from train.data.examples import HostBatch
from train.data.host_shard import WHOLE_BATCH, HostShard
from train.evaluate import EvalStepOutput, Evaluation
from train.multihost.host_group import SINGLE_HOST, HostGroup
from train.step import Batch, Params

if TYPE_CHECKING:
    from train.config import Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(abc.ABC):
    """What is trained, without the data: a model of these sizes, and its loss.

    Attributes:
        config: sizes of the model to train.
        architecture: its class.
    """

    config: BertConfig
    architecture: type[PreTrainedModel]

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the loss's terms, where it has several; they end with "_loss"."""
        return ()

    @abc.abstractmethod
    def loss(self, model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """The loss to train on; dropout where `key` is not None."""

    @abc.abstractmethod
    def token_counts(self, batch: HostBatch) -> "TokenCounts":
        """How much a batch holds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(Objective):
    """An objective, and a data set made ready for its model.

    Attributes:
        tokenizer: saved with the run and with the model.
        train: batches to train on, or the part of their rows that is built here.
        steps_per_epoch: how many of them are an epoch.
        evaluations: sets of batches by name; "dev" is also evaluated during training.
        facts: for the run's summary.
    """

    tokenizer: WordPieceTokenizer
    train: TrainSet
    steps_per_epoch: int
    evaluations: Mapping[str, Iterable[HostBatch]]
    facts: Mapping[str, str | float | int]

    @property
    @abc.abstractmethod
    def metric_names(self) -> tuple[str, ...]:
        """Names of figures that every evaluation of labelled data reports."""

    @abc.abstractmethod
    def eval_step(self, model: PreTrainedModel, params: Params, batch: Batch) -> EvalStepOutput:
        """What an evaluation reports, and the outputs that `write_predictions` wants."""

    def compute_metrics(self, name: str, found: Evaluation) -> Mapping[str, float]:
        """What follows from the means and outputs of an evaluation of the set `name`, to be reported with them."""
        return {}

    @abc.abstractmethod
    def write_predictions(
        self, model: PreTrainedModel, params: Params, folder: Path, results: Mapping[str, Evaluation]
    ) -> Sequence[str]:
        """Writes predictions into the folder, and returns lines to show at the end of the run.

        `results` holds the last evaluation of every set, by its name.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """All of a task that a compiled train step depends on.

    Attributes:
        objective: the model and its loss.
        batch: a batch whose shapes and dtypes are those of training; only its padding is looked at beside them.
        steps_per_epoch: where only the data would tell, a stand-in: the program differs in constants alone.
    """

    objective: Objective
    batch: HostBatch
    steps_per_epoch: int = 1000

    @classmethod
    def of(cls, task: Task) -> "TrainSpec":
        """Of a task whose shapes are those of its data."""
        return cls(objective=task, batch=task.train[0], steps_per_epoch=task.steps_per_epoch)


class TaskSettings(Protocol):
    """A frozen dataclass of a task's settings."""

    def prepare(
        self, config: "Config", *, host_shard: HostShard = WHOLE_BATCH, host_group: HostGroup = SINGLE_HOST
    ) -> Task:
        """Reads and checks the data; of each batch, training's and evaluation's, `host_shard` will be built here.

        What need not come out the same twice is made by one host for all (`host_group.share`).

        Raises:
            FileNotFoundError, ValueError: what is wrong with it, before anything is trained.
        """
        ...

    def train_spec(self, config: "Config") -> TrainSpec:
        """What is compiled, from the settings alone where they say it all, else from the data."""
        ...


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """The size of a batch in the terms of `flops.train_flops`."""

    tokens: int = 0
    squares: int = 0
    predictions: int = 0
    pooled: int = 0

    def __add__(self, other: "TokenCounts") -> "TokenCounts":
        return TokenCounts(*map(operator.add, dataclasses.astuple(self), dataclasses.astuple(other)))

    @classmethod
    def of(cls, attention_mask: np.ndarray, *, predictions: int = 0, pooled: bool = False) -> "TokenCounts":
        """From a mask [B, T]; `pooled` says that the model's head looks at the pooled vector alone."""
        lengths = attention_mask.sum(axis=1, dtype=np.int64)
        return cls(
            tokens=int(lengths.sum()),
            squares=int(np.square(lengths).sum()),
            predictions=predictions,
            pooled=int(np.count_nonzero(lengths)) if pooled else 0,
        )

    @classmethod
    def of_segments(cls, segment_ids: np.ndarray, slots: int, **how) -> "TokenCounts":
        """From rows [B, T] that several texts share: ids from 1 to `slots`, 0 is padding; the rest as of `of`."""
        masks = segment_ids[:, None] == np.arange(1, slots + 1)[:, None]
        return cls.of(masks.reshape(-1, segment_ids.shape[1]), **how)


def padded_outputs(model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> Any:
    """What the model returns for a batch of `data.examples.padded`; dropout where `key` is not None."""
    return outputs(model, params, {name: batch[name] for name in family_of(model).input_names}, key)


def outputs(model: PreTrainedModel, params: Params, inputs: Batch, key: jax.Array | None) -> Any:
    """What the model returns for its call arguments `inputs`; dropout where `key` is not None."""
    arguments: dict[str, Any] = {**inputs, "deterministic": key is None}
    return model.apply({"params": params}, **arguments, rngs=None if key is None else {"dropout": key})
