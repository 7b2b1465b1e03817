"""Settings and batches that all tasks on labelled data have in common."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Generic, TypedDict, TypeVar

import tyro

from flaxbert import BertConfig, PreTrainedModel
from flaxbert.families import HeadKind, model_class
from flaxbert.tokenizer import WordPieceTokenizer
from train.config import Config, expand_home
from train.data.bad_rows import BadRows
from train.data.batches import EvaluationBatches, PackedBatches, PaddedBatches
from train.data.examples import SequenceExamples
from train.data.sources import split_by_group
from train.distributed import HostShard, TrainSet
from train.tasks.task import TaskSettings, load_tokenizer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_MAX_NAME_BYTES = 100  # of a set, of the 255 that a file name may have
_Row = TypeVar("_Row")
E = TypeVar("E", bound=SequenceExamples)


@dataclasses.dataclass(frozen=True)
class Supervised(TaskSettings):
    """Settings of every task on labelled data."""

    train: str
    """A file (each task says of which formats), or "datasets:NAME"."""
    dev: str | None = None
    """Evaluated during and after training."""
    test: str | None = None
    """Evaluated once, at the end."""
    train_split: str | None = None
    """The split to read if `train` names a data set; `dev_split` and `test_split` likewise."""
    dev_split: str | None = None
    test_split: str | None = None
    tokenizer: Path | None = None
    """A folder or vocab.txt; by default the pretrained model's."""
    extra_eval: tuple[str, ...] = ()
    """More files or data sets to evaluate once, at the end (MNLI's mismatched one); results have their names."""
    extra_eval_splits: tuple[str, ...] = ()
    """The split of each of them, "" for a file."""
    validation_split: float | None = None
    """Without `dev`: the share of training examples to hold out for it, at least, chosen by the run's seed. Examples
    with the same text (article or context, if the task has them) stay together."""
    dev_rows: int | None = None
    """Evaluate dev on this many of its examples, evenly spaced, to save time; None: all of them."""
    max_length: int = 128
    """Maximum tokens of an example."""
    bad_rows: Annotated[BadRows, tyro.conf.EnumChoicesFromValues] = BadRows.ERROR
    """Treatment of rows that cannot be used (not readable, without a text or label, contradictory): error, or skip,
    which lists them in the run's folder."""

    def __post_init__(self):
        expand_home(self)
        if self.extra_eval_splits and len(self.extra_eval_splits) != len(self.extra_eval):
            raise ValueError(
                f"extra_eval_splits is {self.extra_eval_splits}; give one for each of extra_eval, {self.extra_eval}"
            )
        if self.dev_rows is not None and self.dev_rows < 1:
            raise ValueError(f"dev_rows is {self.dev_rows}; it must be at least 1")
        split = self.validation_split
        if split is not None and (self.dev is not None or not 0 < split < 1):
            raise ValueError(
                f"validation_split is {split}, dev {self.dev}; allowed: between 0 and 1, and only where dev is not "
                "given; else None"
            )

    @property
    def sources(self) -> dict[str, tuple[str, str | None]]:
        """File or data set, and its split, of "train", "dev", "test" and the extra sets, as far as they are given."""
        sources: dict[str, tuple[str | None, str | None]] = {
            "train": (self.train, self.train_split),
            "dev": (self.dev, self.dev_split),
            "test": (self.test, self.test_split),
        }
        for source, split in zip(self.extra_eval, self.extra_eval_splits or itertools.repeat(""), strict=False):
            sources[_extra_name(source, split, taken=sources)] = (source, split or None)
        return {name: (source, split) for name, (source, split) in sources.items() if source is not None}

    def split_validation(
        self, sets: Mapping[str, Sequence[_Row]], group: Callable[[_Row], Hashable], *, seed: int
    ) -> dict[str, Sequence[_Row]]:
        """Return the examples of each set, "train" first, with "dev" held out of it if `validation_split` is given.

        Of "dev" only `dev_rows` are returned.
        Examples with the same `group` are not separated; `seed` is that of the draw.
        """
        sets = dict(sets)
        if self.validation_split is not None:
            groups = [group(example) for example in sets["train"]]
            train, dev = split_by_group(sets["train"], groups, self.validation_split, seed=seed)
            sets = {"train": train, "dev": dev, **{name: rows for name, rows in sets.items() if name != "train"}}
        if self.dev_rows is not None and self.dev_rows < len(dev := sets.get("dev", ())):
            sets["dev"] = [dev[index * len(dev) // self.dev_rows] for index in range(self.dev_rows)]
        return sets

    def require_tokenizer(self, config: Config) -> WordPieceTokenizer:
        """Load the run's tokenizer.

        Raises:
            ValueError: neither a pretrained model nor a tokenizer is given.
        """
        tokenizer = load_tokenizer(config, self.tokenizer)
        if tokenizer is None:
            raise ValueError("without a pretrained model there must be a vocabulary: give --task.tokenizer")
        return tokenizer


class CommonFields(TypedDict, Generic[E]):
    """Fields of a `Task`, as keyword arguments."""

    config: BertConfig
    architecture: type[PreTrainedModel]
    tokenizer: WordPieceTokenizer
    train: TrainSet
    steps_per_epoch: int
    evaluations: Mapping[str, EvaluationBatches[E]]


def common_fields(
    examples: Mapping[str, E],
    config: Config,
    sizes: BertConfig,
    tokenizer: WordPieceTokenizer,
    *,
    max_length: int,
    head: HeadKind,
    host_shard: HostShard,
    train_batches: Callable[..., PaddedBatches | PackedBatches] = PaddedBatches,
) -> CommonFields[E]:
    """Return the fields of a `Task` that all tasks on examples make in the same way.

    Args:
        examples: of "train", and of each set to evaluate.
        config: of the run.
        sizes: of the model.
        tokenizer: its padding token is used.
        max_length: the longest allowed length of a row.
        head: of the model.
        host_shard: the rows of each batch that this host builds.
        train_batches: makes the batches of training.
    """
    run, pad_id = config.run, tokenizer.special_ids[0]
    train = train_batches(
        examples["train"],
        size=run.batch_size,
        pad_id=pad_id,
        max_length=max_length,
        seed=run.seed,
        total_steps=run.total_steps,
        host_shard=host_shard,
        programs=config.length_adaptation.programs,
    )
    evaluations = {
        name: EvaluationBatches(
            examples=evaluated,
            size=run.evaluation_batch_size or run.batch_size,
            pad_id=pad_id,
            max_length=max_length,
            host_shard=host_shard,
        )
        for name, evaluated in examples.items()
        if name != "train"
    }
    return CommonFields(
        config=sizes,
        architecture=model_class(sizes, head),
        tokenizer=tokenizer,
        train=train,
        steps_per_epoch=train.per_epoch,
        evaluations=evaluations,
    )


def rows_digests(sets: Mapping[str, Iterable["DataclassInstance"]]) -> dict[str, str]:
    """Return the SHA-256 of the rows of each set, without `source`, the place that a row was read from."""
    digests = {}
    for name, rows in sets.items():
        digest = hashlib.sha256()
        for row in rows:
            values = [getattr(row, field.name) for field in dataclasses.fields(row) if field.name != "source"]
            digest.update(repr(values).encode("utf-8", "surrogatepass"))
        digests[name] = digest.hexdigest()
    return digests


def _extra_name(source: str, split: str, *, taken: Container[str]) -> str:
    """Name an extra set, in metrics and file names, after its split or file; a number makes it unique."""
    name = re.sub(r"[^\w.-]+", "_", split or Path(source.removeprefix("datasets:")).stem)
    name = name.encode()[:_MAX_NAME_BYTES].decode(errors="ignore")
    number = next(i for i in itertools.count(1) if (name if i == 1 else f"{name}-{i}") not in taken)
    return name if number == 1 else f"{name}-{number}"
