"""Next-sentence prediction: decide whether the second of two texts follows the first."""

import dataclasses
from typing import ClassVar, Literal

from flaxbert.families import HeadKind
from flaxbert.text.messages import raise_problems
from train.config import Config
from train.data.host_batches import WHOLE_BATCH, HostShard
from train.multihost.hosts import SINGLE_HOST, HostGroup
from train.tasks.sequence_classification import SequenceClassification, SequenceClassificationTask


@dataclasses.dataclass(frozen=True)
class NextSentence(SequenceClassification):
    """Settings of next-sentence prediction: sequence classification of pairs of texts.

    The label ids are those of Google's BERT: 0 where the second text follows, 1 where it is random. `labels` may name
    the two, in this order, as the files call them.
    """

    head: ClassVar[HeadKind] = HeadKind.NEXT_SENTENCE
    labels: tuple[str, ...] = ("0", "1")
    """Labels of the files for a pair that follows, and for a random pair."""
    problem_type: Literal["single_label_classification"] = "single_label_classification"
    """A pair has one label."""

    def __post_init__(self):
        super().__post_init__()
        if len(self.labels) != 2:
            raise ValueError(f"labels is {self.labels}; give two: for a pair that follows, and for a random pair")

    def prepare(
        self, config: Config, *, host_shard: HostShard = WHOLE_BATCH, host_group: HostGroup = SINGLE_HOST
    ) -> SequenceClassificationTask:
        """Read and check all files as sequence classification does; a row without a second text is an error too."""
        task = super().prepare(config, host_shard=host_shard, host_group=host_group)
        for rows in task.rows.values():
            single = [f"{row.source}: one text" for row in rows if row.text_pair is None]
            raise_problems(single, len(rows), "Next sentences are pairs: name both columns, --task.columns.text-pair.")
        return task
