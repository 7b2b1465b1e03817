"""What tasks on labelled data have in common: their files, tokenizer and length; how examples become batches."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxbert.tokenizer import WordPieceTokenizer
from train.config import Config
from train.data.batches import EvaluationBatches, PackedBatches, PaddedBatches
from train.data.examples import Examples, Labelled
from train.data.part import RowPart
from train.distributed import Placement
from train.tasks.start import load_tokenizer


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
    max_length: int = 128
    """Tokens of an example."""

    @property
    def sources(self) -> dict[str, tuple[str, str | None]]:
        """File, or data set, and split of "train", "dev" and "test", of those that are given."""
        given = {"train": (self.train, self.train_split), "dev": (self.dev, self.dev_split)}
        given["test"] = (self.test, self.test_split)
        return {name: (source, split) for name, (source, split) in given.items() if source is not None}

    def load_tokenizer(self, config: Config) -> WordPieceTokenizer:
        """The run's tokenizer; raises ValueError where neither a model nor a tokenizer is given."""
        tokenizer = load_tokenizer(config, self.tokenizer)
        if tokenizer is None:
            raise ValueError("without a pretrained model there must be a vocabulary: give --task.tokenizer")
        return tokenizer


def as_batches(
    examples: Mapping[str, Examples],
    config: Config,
    tokenizer: WordPieceTokenizer,
    *,
    max_length: int,
    part: RowPart,
    packed: bool = False,
) -> dict[str, Any]:
    """The fields `train`, `steps_per_epoch` and `evaluations` of a `Task`.

    Args:
        examples: of "train", and of each set to evaluate.
        config: of the run.
        tokenizer: whose padding is used.
        max_length: of all of them.
        part: the rows of each batch that are built here.
        packed: whether several examples share a row of training; they are `Labelled`, then.
    """
    run, pad = config.run, tokenizer.special_ids[0]
    train = examples["train"]
    how = run.batch_size, pad, max_length, run.seed, run.total_steps
    if packed:
        if not isinstance(train, Labelled):
            raise TypeError(f"{type(train).__name__} cannot share rows")
        # To divide over devices and micro-batches.
        multiple = Placement.of(config.mesh).row_parts * run.micro_batches
        batches = PackedBatches(train, *how, multiple=multiple, part=part)
    else:
        batches = PaddedBatches(train, *how, part=part)
    size = run.evaluation_batch_size or run.batch_size
    evaluated = {name: found for name, found in examples.items() if name != "train"}
    evaluations = {name: EvaluationBatches(found, size, pad, max_length, part) for name, found in evaluated.items()}
    return {"train": batches, "steps_per_epoch": batches.per_epoch, "evaluations": evaluations}
