"""What a task hands to the training loop."""

import abc
import dataclasses
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

from flaxbert.base import PreTrainedModel
from flaxbert.config import BertConfig
from flaxbert.losses import Loss
from flaxbert.tokenizer import WordPieceTokenizer
from train.evaluate import Evaluation, Measured
from train.step import Batch, Params

if TYPE_CHECKING:
    from train.config import Config

HostBatch = Mapping[str, np.ndarray]


class TrainSet(Protocol):
    """Endless batches by number; batch `i` is always the same, so the position in the data is a step number."""

    def __getitem__(self, index: int, /) -> HostBatch:
        """Batch `index`, of epoch `index // steps_per_epoch`."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """A data set made ready for a model.

    Attributes:
        tokenizer: saved with the run and with the model.
        config: sizes of the model to train.
        architecture: its class.
        train: batches to train on.
        steps_per_epoch: how many of them are an epoch.
        evaluations: sets of batches by name; "dev" is also evaluated during training.
        facts: for the run's summary.
    """

    tokenizer: WordPieceTokenizer
    config: BertConfig
    architecture: type[PreTrainedModel]
    train: TrainSet
    steps_per_epoch: int
    evaluations: Mapping[str, Iterable[HostBatch]]
    facts: Mapping[str, str | float | int]

    @abc.abstractmethod
    def loss(self, model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """The loss to train on; dropout where `key` is not None."""

    @abc.abstractmethod
    def measure(self, model: PreTrainedModel, params: Params, batch: Batch) -> Measured:
        """What an evaluation reports, and the outputs that `finish` wants."""

    @abc.abstractmethod
    def work(self, batch: HostBatch) -> "Work":
        """How much a batch holds."""

    @abc.abstractmethod
    def finish(
        self, model: PreTrainedModel, params: Params, folder: Path, results: Mapping[str, Evaluation]
    ) -> Sequence[str]:
        """Writes predictions into the folder, and returns lines to show at the end of the run.

        `results` holds the last evaluation of every set, by its name.
        """


class TaskSettings(Protocol):
    """A frozen dataclass of a task's settings."""

    def prepare(self, config: "Config") -> Task:
        """Reads and checks the data.

        Raises:
            FileNotFoundError, ValueError: what is wrong with it, before anything is trained.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Work:
    """The size of a batch in the terms of `flops.train_flops`."""

    tokens: int = 0
    squares: int = 0
    predictions: int = 0
    pooled: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*map(operator.add, dataclasses.astuple(self), dataclasses.astuple(other)))

    @classmethod
    def of(cls, attention_mask: np.ndarray, *, predictions: int = 0, pooled: bool = False) -> "Work":
        """From a mask [B, T]; `pooled` says that the model's head looks at the pooled vector alone."""
        lengths = attention_mask.sum(axis=1, dtype=np.int64)
        return cls(
            tokens=int(lengths.sum()),
            squares=int(np.square(lengths).sum()),
            predictions=predictions,
            pooled=int(np.count_nonzero(lengths)) if pooled else 0,
        )


def logits(model: PreTrainedModel, params: Params, inputs: Batch, key: jax.Array | None) -> jax.Array:
    """The model's logits for its call arguments `inputs`; dropout where `key` is not None."""
    arguments: dict[str, Any] = {**inputs, "deterministic": key is None}
    out: Any = model.apply({"params": params}, **arguments, rngs=None if key is None else {"dropout": key})
    return out.logits
