"""Training that begins with smaller batches or shorter examples: one optimizer state, one way through the text."""

import bisect
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from train.data.pretraining.batches import TrainBatches


@dataclasses.dataclass(frozen=True)
class Stage:
    """The beginning of a run, before its own settings hold; what is None is as in those."""

    steps: int
    """Updates."""
    batch_size: int | None = None
    """Rows of a batch."""
    max_length: int | None = None
    """Tokens of an example."""
    row_length: int | None = None
    """Of rows that examples share, where they do."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise ValueError(f"{field.name} of a stage is {value}; it must be at least 1")


class StagedBatches:
    """The batches of one stage after another.

    A stage goes on where the one before it has come to, as a share of the epoch: with rows of the same kind at the very
    next row; where rows differ in length, at the same place among the epoch's documents, to within a block of them.
    """

    def __init__(self, stages: Sequence[TrainBatches], steps: Sequence[int]):
        """Takes all stages, and the steps of all but the last, which has no end."""
        self._firsts = [0, *itertools.accumulate(steps)]
        self._stages = []
        place = 0.0  # in epochs
        for batches, count in zip(stages, [*steps, 0], strict=True):
            first = round(place * batches.rows_of_epoch)
            self._stages.append(dataclasses.replace(batches, first_row=first))
            place = (first + count * batches.size) / batches.rows_of_epoch

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The batch of step `index`, from 0."""
        stage = bisect.bisect_right(self._firsts, index) - 1
        return self._stages[stage][index - self._firsts[stage]]
