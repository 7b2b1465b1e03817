"""The two halves of a task: its settings, which a config file builds, and the task itself, which the loop trains."""

import abc
import dataclasses
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from flaxbert import PreTrainedModel, functional
from flaxbert.config import BertConfig
from flaxbert.layers import Params
from flaxbert.losses import Loss
from flaxbert.tokenizer import WordPieceTokenizer
from train.data.host_batches import WHOLE_BATCH, HostBatch, HostShard, TrainSet
from train.evaluate import EvalStepOutput, Evaluation
from train.multihost.hosts import SINGLE_HOST, HostGroup
from train.step import Batch

if TYPE_CHECKING:
    from train.config import Config

# Inputs of training batches besides those of the model's family.
_POSITION_INPUTS = ("position_ids", "first_positions", "masked_lm_positions")


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """Size of a batch, in the terms of `flops.train_flops`.

    Attributes:
        tokens: tokens without padding.
        squares: sum of the squared lengths of the texts.
        predictions: positions whose token is predicted.
        pooled: texts of which only the pooled vector is used.
    """

    tokens: int = 0
    squares: int = 0
    predictions: int = 0
    pooled: int = 0

    def __add__(self, other: "TokenCounts") -> "TokenCounts":
        return TokenCounts(*map(operator.add, dataclasses.astuple(self), dataclasses.astuple(other)))

    @classmethod
    def of_batch(cls, batch: HostBatch, *, predictions: int = 0, pooled: bool = False) -> "TokenCounts":
        """Count the texts of a batch; `pooled`: the model's head uses only the pooled vector of each text.

        `attention_mask` [..., T] has one text per row; `segment_ids` [B, T] numbers the texts of a row from 1.
        """
        if "segment_ids" in batch:
            segment_ids = batch["segment_ids"]
            masks = segment_ids[:, None] == np.arange(1, segment_ids.max() + 1)[:, None]
        else:
            masks = batch["attention_mask"]
        lengths = masks.sum(axis=-1, dtype=np.int64)
        return cls(
            tokens=int(lengths.sum()),
            squares=int(np.square(lengths).sum()),
            predictions=predictions,
            pooled=int(np.count_nonzero(lengths)) if pooled else 0,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """The part of a task that a compiled train step depends on.

    Attributes:
        config: sizes of the model.
        architecture: class of the model.
        loss: computes the training loss from model, parameters, batch and dropout key; without dropout if that is None.
        token_counts: computes the size of a batch.
        batch: a batch with the shapes and dtypes of training; of its values only the padding is used.
        steps_per_epoch: number of batches in an epoch; a placeholder if it depends on data that is not read, which
            changes only constants of the program.
    """

    config: BertConfig
    architecture: type[PreTrainedModel]
    loss: Callable[[PreTrainedModel, Params, Batch, jax.Array | None], Loss]
    token_counts: Callable[[HostBatch], TokenCounts]
    batch: HostBatch
    steps_per_epoch: int = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """A model class with its loss and metrics, and the data to train and evaluate it on.

    Attributes:
        config: sizes of the model to train.
        architecture: class of the model to train.
        tokenizer: saved with the run and with the model.
        train: batches to train on; this host builds its own shard of their rows.
        steps_per_epoch: number of batches in an epoch.
        evaluations: batches to evaluate on, by the name of the set; "dev" is also evaluated during training.
        facts: figures about the data for the run's summary.
    """

    config: BertConfig
    architecture: type[PreTrainedModel]
    tokenizer: WordPieceTokenizer
    train: TrainSet
    steps_per_epoch: int
    evaluations: Mapping[str, Iterable[HostBatch]]
    facts: Mapping[str, str | float | int]

    @property
    def loss_terms(self) -> tuple[str, ...]:
        """Names of the terms of the loss, which end with "_loss"; empty if the loss has one term only."""
        return ()

    @property
    @abc.abstractmethod
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics that every evaluation on labelled data reports."""

    @abc.abstractmethod
    def loss(self, model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """Return the training loss; `key` is the key for dropout, None for no dropout."""

    @abc.abstractmethod
    def eval_step(self, model: PreTrainedModel, params: Params, batch: Batch) -> EvalStepOutput:
        """Return the metrics of a batch that are means over examples, and the outputs that the other metrics need."""

    def compute_metrics(
        self, name: str, evaluation: Evaluation, *, earlier: Mapping[str, Evaluation]
    ) -> Mapping[str, float]:
        """Return the metrics of the set `name` that are not means over examples.

        Args:
            name: a key of `evaluations`.
            evaluation: means and outputs of this set.
            earlier: complete results, at the same step, of sets that come before it in `evaluations`.
        """
        return {}

    def token_counts(self, batch: HostBatch) -> TokenCounts:
        """Return the size of a batch."""
        return TokenCounts.of_batch(batch)

    @abc.abstractmethod
    def write_predictions(
        self, model: PreTrainedModel, params: Params, folder: Path, results: Mapping[str, Evaluation]
    ) -> Sequence[str]:
        """Write predictions into the folder of the run, and return lines to print at its end.

        `results` holds the last evaluation of every set, with the metrics of `compute_metrics` among its means.
        """

    def train_spec(self) -> TrainSpec:
        """Return the part of this task that a compiled train step depends on."""
        return TrainSpec(
            config=self.config,
            architecture=self.architecture,
            loss=self.loss,
            token_counts=self.token_counts,
            batch=self.train[0],
            steps_per_epoch=self.steps_per_epoch,
        )


@dataclasses.dataclass(frozen=True)
class TaskSettings(abc.ABC):
    """Settings of a task; the fields of a subclass are the flags `--task.*`."""

    @abc.abstractmethod
    def prepare(
        self, config: "Config", *, host_shard: HostShard = WHOLE_BATCH, host_group: HostGroup = SINGLE_HOST
    ) -> Task:
        """Read and check the data.

        Args:
            config: the run, to which these settings belong.
            host_shard: the rows of each batch, of training and evaluation, that this host builds.
            host_group: shares what only one host may make, because it could come out differently on another.

        Raises:
            FileNotFoundError, ValueError: data or settings are wrong; raised before anything is trained.
        """

    def train_spec(self, config: "Config") -> TrainSpec:
        """Return the `TrainSpec` of the task; reads the data unless a subclass can do without it."""
        return self.prepare(config).train_spec()


def apply_model(model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> Any:
    """Run the model on the entries of `batch` that are model inputs; with dropout if `key` is not None.

    Rows that hold several texts have `segment_ids` instead of an attention mask.
    """
    names = (*model.input_names, *_POSITION_INPUTS)
    arguments: dict[str, Any] = {name: batch[name] for name in names if name in batch}
    if "segment_ids" in batch:
        arguments["attention_mask"] = functional.packed_mask(batch["segment_ids"])
    if "position_ids" in arguments:  # counted from 0
        arguments["position_ids"] = arguments["position_ids"] + model.config.position_offset
    rngs = None if key is None else {"dropout": key}
    return model.apply({"params": params}, **arguments, deterministic=key is None, rngs=rngs)
