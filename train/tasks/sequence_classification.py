"""Sequence classification: rows of text, or pairs of texts, to one of a set of labels, to several, or to a number."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from flaxbert import BertForSequenceClassification, PreTrainedModel, functional, losses
from flaxbert.losses import Loss
from train.config import Config
from train.data.batches import EvaluationBatches
from train.data.examples import LabelledSequences
from train.data.host_shard import WHOLE_BATCH, HostShard
from train.data.labelled_texts import Columns, LabelledText, read_labelled_texts
from train.evaluate import EvalStepOutput, Evaluation
from train.multihost.host_group import SINGLE_HOST, HostGroup
from train.step import Batch, Params
from train.tasks.classification_report import write_results
from train.tasks.problems import Number, OneLabel, Problem, SeveralLabels, targets_of
from train.tasks.start import model_config
from train.tasks.supervised import Supervised, as_batches
from train.tasks.task import HostBatch, Task, TokenCounts, TrainSpec, outputs, padded_outputs


@dataclasses.dataclass(frozen=True)
class SequenceClassification(Supervised):
    """Settings of sequence classification.

    Files are .tsv, .csv or .jsonl, or TNEWS .txt; inputs longer than `max_length` are cut.
    """

    architecture: ClassVar[type[PreTrainedModel]] = BertForSequenceClassification
    columns: Columns = Columns()
    """Which columns hold texts and label; found by convention where not given."""
    problem_type: Literal["single_label_classification", "multi_label_classification", "regression"] = (
        "single_label_classification"
    )
    """Whether a row has one label, any number of them, or a number."""
    labels: tuple[str, ...] = ()
    """All labels, in the order of their ids; by default those of the training rows."""
    separator: str = ","
    """Between the labels of a row that may have several; .jsonl may have lists instead."""
    packed: bool = False
    """Let several short inputs share a row of a training batch: next to no padding, and a shape or two to
    compile instead of one for every length. Without it rows of a batch are alike in length; the loss is the same."""

    def prepare(
        self, config: Config, *, host_shard: HostShard = WHOLE_BATCH, host_group: HostGroup = SINGLE_HOST
    ) -> "PreparedClassification":
        """Reads and checks all files before anything is trained; raises what `TaskSettings` says."""
        tokenizer = self.load_tokenizer(config)
        several = self.separator if self.problem_type == SeveralLabels.kind else None
        read = {
            name: read_labelled_texts(source, columns=self.columns, split=split, separator=several)
            for name, (source, split) in self.sources.items()
        }
        problem = self._problem(read["train"])
        rows = self.with_dev(read, lambda row: (row.text, row.text_pair), seed=config.run.seed)
        targets = targets_of(problem, rows)
        sizes = model_config(config.model, tokenizer, max_length=self.max_length, labels=problem.labels)
        examples = {}
        for name, found in rows.items():
            texts = [row.text for row in found], [row.text_pair for row in found]
            examples[name] = LabelledSequences.of(tokenizer.encode(*texts, max_length=self.max_length), targets[name])
        batches = as_batches(
            examples, config, tokenizer, max_length=self.max_length, host_shard=host_shard, packed=self.packed
        )
        return PreparedClassification(
            tokenizer=tokenizer,
            config=sizes.replace(problem_type=problem.kind),
            architecture=self.architecture,
            problem=problem,
            rows=rows,
            facts={"labels": len(problem.labels), **{f"{name} rows": len(found) for name, found in rows.items()}},
            **batches,
        )

    def train_spec(self, config: Config) -> TrainSpec:
        """From the data: the length of a batch is that of its longest text."""
        return TrainSpec.of(self.prepare(config))

    def _problem(self, rows: Sequence[LabelledText]) -> Problem:
        if self.problem_type == Number.kind:
            if self.labels:
                raise ValueError(f"labels is {self.labels}, but a regression has none; leave one of the two out")
            return Number(("LABEL_0",))  # as Hugging Face calls it
        if self.problem_type == SeveralLabels.kind:
            if not self.separator:
                raise ValueError('separator is empty; give what stands between the labels of a row, such as ","')
            return SeveralLabels.of(rows, self.labels, self.separator)
        return OneLabel.of(rows, self.labels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedClassification(Task):
    """The `Task` of sequence classification."""

    evaluations: Mapping[str, EvaluationBatches[LabelledSequences]]
    problem: Problem
    rows: Mapping[str, Sequence[LabelledText]]

    def loss(self, model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """Cross-entropy, binary cross-entropy or squared error over the rows that are not filling."""
        return self._loss(_logits(model, params, batch, key), batch)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The loss, and those of the problem."""
        return ("loss", *self.problem.names)

    def eval_step(self, model: PreTrainedModel, params: Params, batch: Batch) -> EvalStepOutput:
        """The loss; the outputs are probabilities [B, N], of a regression the numbers."""
        logits = _logits(model, params, batch, None)
        return EvalStepOutput({"loss": self._loss(logits, batch)}, self.problem.probabilities(logits))

    def compute_metrics(self, name: str, found: Evaluation) -> dict[str, float]:
        """Those of the problem, where the rows have labels."""
        batches = self.evaluations[name]
        if not batches.examples.labelled.all():
            return {}
        return self.problem.figures(batches.examples.labels, np.array(batches.by_example(found.outputs)))

    def token_counts(self, batch: HostBatch) -> TokenCounts:
        """Its tokens."""
        if "segment_ids" not in batch:
            return TokenCounts.of(batch["attention_mask"], pooled=True)
        return TokenCounts.of_segments(batch["segment_ids"], batch["first_positions"].shape[1], pooled=True)

    def write_predictions(
        self, model: PreTrainedModel, params: Params, folder: Path, results: Mapping[str, Evaluation]
    ) -> Sequence[str]:
        """Writes predictions_NAME.tsv, report_NAME.md and confusion_NAME.png for every evaluation."""
        if jax.process_index() != 0:
            return []
        lines = []
        for name, batches in self.evaluations.items():
            found = np.array(batches.by_example(results[name].outputs))
            given = batches.examples.labels if batches.examples.labelled.all() else None
            lines += write_results(folder, name, self.problem, self.rows[name], given, found)
        return lines

    def _loss(self, logits: jax.Array, batch: Batch) -> Loss:
        labels, weights = batch["labels"], batch["weight"]  # [B], or [R, P] where rows hold several
        labels = labels.reshape(-1, *labels.shape[weights.ndim :])
        how: dict[str, Any] = {"problem_type": self.problem.kind, "weights": weights.reshape(-1)}
        return losses.sequence_classification(logits, labels, **how)


def _logits(model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
    """The scores of every example [B, N], of every slot [R * P, N] where rows hold several."""
    if "segment_ids" not in batch:
        return padded_outputs(model, params, batch, key).logits
    names = ("input_ids", "token_type_ids", "position_ids", "first_positions")
    inputs = {name: batch[name] for name in names} | {"attention_mask": functional.packed_mask(batch["segment_ids"])}
    return outputs(model, params, inputs, key).logits.reshape(-1, model.config.num_labels)
