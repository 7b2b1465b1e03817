"""What tasks on labelled data have in common: their files, tokenizer and length; how examples become batches."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flaxbert.tokenizer import WordPieceTokenizer
from train.config import Config
from train.data.batches import EvaluationBatches, PackedBatches, PaddedBatches
from train.data.examples import LabelledSequences, SequenceExamples
from train.data.host_shard import HostShard
from train.data.sources import split_by_group
from train.distributed import Placement
from train.tasks.start import load_tokenizer

R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Supervised:
    """Settings that all tasks on labelled data have."""

    train: str
    """A file (each task says of which kinds), or "datasets:NAME"."""
    dev: str | None = None
    """Evaluated during and after training."""
    test: str | None = None
    """Evaluated once, at the end."""
    train_split: str | None = None
    """The split to read where `train` names a data set; likewise for the other two."""
    dev_split: str | None = None
    test_split: str | None = None
    tokenizer: Path | None = None
    """A folder or vocab.txt; by default the pretrained model's."""
    extra_eval: tuple[str, ...] = ()
    """Further files or data sets, evaluated once, at the end (MNLI's mismatched ones), and called by their names."""
    extra_eval_splits: tuple[str, ...] = ()
    """The split of each of them, "" for a file."""
    validation_split: float | None = None
    """Where there is no dev file: hold out at least this share of the training rows, drawn by the run's seed; those
    with the same text (the same article or context, if they are about one) stay together."""
    max_length: int = 128
    """Tokens of an example."""

    def __post_init__(self):
        if self.extra_eval_splits and len(self.extra_eval_splits) != len(self.extra_eval):
            raise ValueError(
                f"extra_eval_splits is {self.extra_eval_splits}; there must be one for each of extra_eval, "
                f"{self.extra_eval}"
            )
        split = self.validation_split
        if split is not None and (self.dev is not None or not 0 < split < 1):
            raise ValueError(
                f"validation_split is {split}, dev {self.dev}; allowed: between 0 and 1, and only where dev is not "
                "given; else None"
            )

    @property
    def sources(self) -> dict[str, tuple[str, str | None]]:
        """File, or data set, and split of "train", "dev", "test" and those beyond, of those that are given."""
        given = {"train": (self.train, self.train_split), "dev": (self.dev, self.dev_split)}
        given["test"] = (self.test, self.test_split)
        for source, split in zip(self.extra_eval, self.extra_eval_splits or [""] * len(self.extra_eval), strict=True):
            given[_name(source, split, taken=given)] = (source, split or None)
        return {name: (source, split) for name, (source, split) in given.items() if source is not None}

    def with_dev(
        self, rows: Mapping[str, Sequence[R]], group: Callable[[R], Hashable], *, seed: int
    ) -> dict[str, Sequence[R]]:
        """The rows of each set, "train" first, and "dev" next where there is one; a share of train's if so asked.

        Args:
            rows: of each of `sources`.
            group: rows of the same one are not divided.
            seed: of what is drawn.
        """
        rest = {name: found for name, found in rows.items() if name != "train"}
        if self.validation_split is None:
            return {"train": rows["train"], **rest}
        train, dev = split_by_group(
            rows["train"], [group(row) for row in rows["train"]], self.validation_split, seed=seed
        )
        return {"train": train, "dev": dev, **rest}

    def load_tokenizer(self, config: Config) -> WordPieceTokenizer:
        """The run's tokenizer; raises ValueError where neither a model nor a tokenizer is given."""
        tokenizer = load_tokenizer(config, self.tokenizer)
        if tokenizer is None:
            raise ValueError("without a pretrained model there must be a vocabulary: give --task.tokenizer")
        return tokenizer


def as_batches(
    examples: Mapping[str, SequenceExamples],
    config: Config,
    tokenizer: WordPieceTokenizer,
    *,
    max_length: int,
    host_shard: HostShard,
    packed: bool = False,
) -> dict[str, Any]:
    """The fields `train`, `steps_per_epoch` and `evaluations` of a `Task`.

    Args:
        examples: of "train", and of each set to evaluate.
        config: of the run.
        tokenizer: whose padding is used.
        max_length: of all of them.
        host_shard: the rows of each batch that are built here.
        packed: whether several examples share a row of training; they are `LabelledSequences`, then.
    """
    run, pad = config.run, tokenizer.special_ids[0]
    train = examples["train"]
    if packed:
        if not isinstance(train, LabelledSequences):
            raise TypeError(f"{type(train).__name__} cannot share rows")
        # To divide over devices and micro-batches.
        multiple = Placement.of(config.mesh).data_parallel_size * run.gradient_accumulation_steps
        batches = PackedBatches(
            train,
            size=run.batch_size,
            pad_id=pad,
            max_length=max_length,
            seed=run.seed,
            total_steps=run.total_steps,
            row_multiple=multiple,
            host_shard=host_shard,
        )
    else:
        batches = PaddedBatches(
            train,
            size=run.batch_size,
            pad_id=pad,
            max_length=max_length,
            seed=run.seed,
            total_steps=run.total_steps,
            host_shard=host_shard,
        )
    size = run.evaluation_batch_size or run.batch_size
    evaluated = {name: found for name, found in examples.items() if name != "train"}
    evaluations = {
        name: EvaluationBatches(found, size=size, pad_id=pad, max_length=max_length, host_shard=host_shard)
        for name, found in evaluated.items()
    }
    return {"train": batches, "steps_per_epoch": batches.per_epoch, "evaluations": evaluations}


def _name(source: str, split: str, *, taken: Container[str]) -> str:
    """What a further set is called in figures and names of files: after its split or file, and unlike the others."""
    name = re.sub(r"[^\w.-]+", "_", split or Path(source.removeprefix("datasets:")).stem)
    number = next(i for i in itertools.count(1) if (name if i == 1 else f"{name}-{i}") not in taken)
    return name if number == 1 else f"{name}-{number}"
