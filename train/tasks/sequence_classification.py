"""Sequence classification: give a text, or a pair of texts, one label of several, any number of labels, or a number.

Next-sentence prediction is a special case: decide whether the second of two texts follows the first.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import jax
import numpy as np

from flaxbert import PreTrainedModel, losses
from flaxbert.families import HeadKind
from flaxbert.layers import Params
from flaxbert.losses import Loss
from flaxbert.outputs import AdaptiveOutput, SequenceClassifierOutput
from flaxbert.text.messages import raise_problems
from train.config import Config
from train.data.batches import EvaluationBatches, PackedBatches, PaddedBatches
from train.data.examples import LabelledSequences
from train.data.labelled_texts import Columns, LabelledTexts, read_labelled_texts
from train.data.labels import LabelledText
from train.data.sources import reading_facts
from train.distributed import WHOLE_BATCH, HostBatch, HostShard, Placement
from train.evaluate import EvalStepOutput, Evaluation
from train.multihost.hosts import SINGLE_HOST, HostGroup
from train.step import Batch
from train.tasks import problems
from train.tasks.prediction_files import write_classification
from train.tasks.pretrained_heads import HeadChoice, choose_head
from train.tasks.problems import Problem, ProblemType
from train.tasks.supervised import Supervised, common_fields, rows_digests
from train.tasks.task import SoftTarget, Task, TokenCounts, apply_model, model_config


@dataclasses.dataclass(frozen=True)
class SequenceClassification(Supervised):
    """Settings of sequence classification.

    Files are .tsv, .csv or .jsonl, or TNEWS .txt; texts longer than `max_length` are truncated.
    """

    head: ClassVar[HeadKind] = HeadKind.SEQUENCE_CLASSIFICATION
    columns: Columns = Columns()
    """Columns of the texts and the label; found by their usual names where not given."""
    problem_type: ProblemType = "single_label_classification"
    """Type of the answer: one label, any number of labels, or a number."""
    labels: tuple[str, ...] = ()
    """All labels, in the order of their ids; by default those of the training data."""
    separator: str = ","
    """Between the labels of an example that may have several; there may be lists, or vectors of 0 and 1, instead."""
    unlabelled: tuple[str, ...] | None = None
    """Labels that mean that an example has none; by default "-", -1 where it cannot be a label, and in a .csv or .tsv
    the words that pandas reads as empty (NA, None, null, ...)."""
    packed: bool = False
    """Let several short texts share a row of a training batch: next to no padding, and one or two shapes to compile
    instead of one for every length. By default the rows of a batch are of similar length; the loss is the same."""

    def prepare(
        self, config: Config, *, host_shard: HostShard = WHOLE_BATCH, host_group: HostGroup = SINGLE_HOST
    ) -> "SequenceClassificationTask":
        """Read and check all files."""
        tokenizer = self.require_tokenizer(config)
        sets = self._read_sets(self.labels)
        problem = problems.make_problem(self.problem_type, sets["train"], labels=self.labels, separator=self.separator)
        head = HeadChoice(problem.labels)
        if self.head is HeadKind.SEQUENCE_CLASSIFICATION:
            regression = problem.kind == "regression"
            head = choose_head(config, self.head, problem.labels, given=bool(self.labels), regression=regression)
            if sets["train"].vectors and head.labels != problem.labels:  # the model has names for them
                sets = self._read_sets(head.labels)
            problem = dataclasses.replace(problem, labels=head.labels)
        # Only the training set must have labels.
        unlabelled = {name for name, own in sets.items() if name != "train" and all(row.label is None for row in own)}
        sets = {
            name: own if name in unlabelled else problems.without_bad_targets(problem, own)
            for name, own in sets.items()
        }
        rows = self.split_validation(sets, lambda row: (row.text, row.text_pair), seed=config.run.seed)
        sizes = model_config(config.model, tokenizer, max_length=self.max_length, labels=problem.labels)
        sizes = sizes.replace(problem_type=problem.kind)
        examples = {}
        for name, own in rows.items():
            missing = name in unlabelled
            targets = problems.missing_targets(problem, len(own)) if missing else problems.targets(problem, own)
            texts, pairs = [row.text for row in own], [row.text_pair for row in own]
            examples[name] = LabelledSequences.of(tokenizer.encode(texts, pairs, max_length=self.max_length), targets)
        names = " | ".join(problem.labels[:5]) + (" | ..." if len(problem.labels) > 5 else "")
        facts = {**{f"{name} rows": len(own) for name, own in rows.items()}, **reading_facts(sets)}
        train_batches = PaddedBatches
        if self.packed:
            # The rows must divide over devices and over accumulation steps.
            multiple = Placement.of(config.mesh).data_parallel_size * config.run.gradient_accumulation_steps
            train_batches = functools.partial(PackedBatches, row_multiple=multiple)
        common = common_fields(
            examples,
            config,
            sizes,
            tokenizer,
            max_length=self.max_length,
            head=self.head,
            host_shard=host_shard,
            train_batches=train_batches,
        )
        return SequenceClassificationTask(
            **common,
            new_head=head.new,
            facts={"labels": len(problem.labels), "names of labels": names, **head.facts, **facts},
            digests=rows_digests(sets),
            bad_rows={name: own.bad.rows for name, own in sets.items()},
            problem=problem,
            rows=rows,
        )

    def _read_sets(self, labels: Sequence[str]) -> dict[str, LabelledTexts]:
        """Return the rows of each set; `labels` are all of them, or empty."""
        sets: dict[str, LabelledTexts] = {}
        for name, (source, split) in self.sources.items():
            sets[name] = read_labelled_texts(
                source,
                columns=self.columns,
                split=split,
                separator=self.separator if self.problem_type == "multi_label_classification" else None,
                labels=labels,
                unlabelled=self.unlabelled,
                bad_rows=self.bad_rows,
                train=sets.get("train"),
            )
        return sets


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceClassificationTask(Task):
    """The task of sequence classification."""

    evaluations: Mapping[str, EvaluationBatches[LabelledSequences]]
    problem: Problem  # its type and labels
    rows: Mapping[str, Sequence[LabelledText]]  # the examples of each set

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The loss, and the metrics of the type of problem."""
        return ("loss", *problems.metric_names(self.problem))

    def loss(self, model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """Return the cross-entropy, binary cross-entropy or squared error over the labelled examples."""
        return self._loss(_logits(model, params, batch, key), batch)

    def soft_targets(self, output: AdaptiveOutput, batch: Batch) -> Sequence[SoftTarget]:
        """Return the logits of every labelled text."""
        assert isinstance(output, SequenceClassifierOutput)
        return [SoftTarget(output.logits, batch["weight"])]

    def eval_step(self, model: PreTrainedModel, params: Params, batch: Batch) -> EvalStepOutput:
        """Return the loss; the outputs are `problems.probabilities` [B, N]."""
        logits = _logits(model, params, batch, None)
        return EvalStepOutput({"loss": self._loss(logits, batch)}, problems.probabilities(self.problem, logits))

    def compute_metrics(
        self, name: str, evaluation: Evaluation, *, earlier: Mapping[str, Evaluation]
    ) -> dict[str, float]:
        """Return the metrics of the type of problem, none if the set has no labels."""
        labels = self._labels(name)
        return {} if labels is None else problems.problem_metrics(self.problem, labels, self._outputs(name, evaluation))

    def has_labels(self, name: str) -> bool:
        """Return whether all rows have a label; a set of which only some have one is refused."""
        return self._labels(name) is not None

    def token_counts(self, batch: HostBatch) -> TokenCounts:
        """Return the tokens of a batch; only the pooled vectors are used."""
        return TokenCounts.of_batch(batch, pooled=True)

    def write_predictions(
        self, model: PreTrainedModel, params: Params, folder: Path, results: Mapping[str, Evaluation]
    ) -> Sequence[str]:
        """Write predictions_NAME.tsv, report_NAME.md and confusion_NAME.png for every evaluated set."""
        lines = []
        for name in self.evaluations if jax.process_index() == 0 else ():
            outputs = self._outputs(name, results[name])
            lines += write_classification(folder, name, self.problem, self.rows[name], self._labels(name), outputs)
        return lines

    def _labels(self, name: str) -> np.ndarray | None:
        examples = self.evaluations[name].examples
        return examples.labels if examples.labelled.all() else None

    def _outputs(self, name: str, evaluation: Evaluation) -> np.ndarray:
        return np.array(self.evaluations[name].by_example(evaluation.outputs))

    def _loss(self, logits: jax.Array, batch: Batch) -> Loss:
        labels, weights = batch["labels"], batch["weight"]  # [B, ...]; [R, P, ...] where P texts share a row
        return losses.sequence_classification(
            logits,
            labels.reshape(-1, *labels.shape[weights.ndim :]),
            problem_type=self.problem.kind,
            weights=weights.reshape(-1),
        )


def _logits(model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
    """Return the logits of every text: [B, N], or [R * P, N] where P texts share a row."""
    return apply_model(model, params, batch, key).logits.reshape(-1, model.config.num_labels)


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
