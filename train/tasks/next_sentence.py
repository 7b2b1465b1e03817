"""Next sentences: whether the second of two texts follows the first."""

import dataclasses
from typing import ClassVar, Literal

from flaxbert import BertForNextSentencePrediction, PreTrainedModel
from flaxbert.text.messages import raise_problems
from train.config import Config
from train.data.host_shard import WHOLE_BATCH, HostShard
from train.multihost.host_group import SINGLE_HOST, HostGroup
from train.tasks.sequence_classification import PreparedClassification, SequenceClassification


@dataclasses.dataclass(frozen=True)
class NextSentence(SequenceClassification):
    """Settings of next-sentence prediction: those of classification, with pairs of texts.

    Labels are those of Google's BERT: 0 where the second follows, 1 where it is random. `labels` may name the two, in
    this order, as the files call them.
    """

    architecture: ClassVar[type[PreTrainedModel]] = BertForNextSentencePrediction
    labels: tuple[str, ...] = ("0", "1")
    """What files call a pair that follows, and one that is random."""
    problem_type: Literal["single_label_classification"] = "single_label_classification"
    """A pair has one label."""

    def __post_init__(self):
        super().__post_init__()
        if len(self.labels) != 2:
            raise ValueError(f"labels is {self.labels}; give two: of a pair that follows, and of one that is random")

    def prepare(
        self, config: Config, *, host_shard: HostShard = WHOLE_BATCH, host_group: HostGroup = SINGLE_HOST
    ) -> PreparedClassification:
        """As of classification; raises ValueError for rows without a second text, too."""
        task = super().prepare(config, host_shard=host_shard, host_group=host_group)
        for rows in task.rows.values():
            alone = [f"{row.source}: one text" for row in rows if row.text_pair is None]
            raise_problems(alone, len(rows), "Next sentences are pairs: name both columns, --task.columns.text-pair.")
        return task
