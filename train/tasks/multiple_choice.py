"""Multiple choice: choose the right one of several continuations of a text."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert import PreTrainedModel, losses
from flaxbert.families import HeadKind
from flaxbert.layers import Params
from flaxbert.losses import IGNORE, Loss
from flaxbert.text.choices import ChoiceColumns
from flaxbert.tokenizer import WordPieceTokenizer
from train.config import Config
from train.data.bad_rows import SKIP_REMEDY
from train.data.batches import EvaluationBatches
from train.data.choice_questions import ChoiceQuestion, read_choice_questions, rows_without_label
from train.data.examples import ChoiceSequences, encoding_arrays
from train.data.sources import reading_facts
from train.distributed import WHOLE_BATCH, HostBatch, HostShard
from train.evaluate import EvalStepOutput, Evaluation
from train.multihost.hosts import SINGLE_HOST, HostGroup
from train.step import Batch
from train.tasks.prediction_files import write_prediction_table
from train.tasks.pretrained_heads import choose_head
from train.tasks.supervised import Supervised, common_fields, rows_digests
from train.tasks.task import Task, TokenCounts, apply_model, model_config


@dataclasses.dataclass(frozen=True)
class MultipleChoice(Supervised):
    """Settings of multiple choice.

    Files are .csv, .tsv or .jsonl; each choice is a pair of texts, whose longer one is truncated to fit `max_length`.
    """

    columns: ChoiceColumns = ChoiceColumns()
    """Columns of context, question, choices and label; found by their usual names where not given."""
    first_label: int = 0
    """Number of the first choice in the files."""

    def prepare(
        self, config: Config, *, host_shard: HostShard = WHOLE_BATCH, host_group: HostGroup = SINGLE_HOST
    ) -> "MultipleChoiceTask":
        """Read and check all files."""
        tokenizer = self.require_tokenizer(config)
        sets = {
            name: read_choice_questions(
                source,
                columns=self.columns,
                first_label=self.first_label,
                split=split,
                bad_rows=self.bad_rows,
                training=name == "train",
            )
            for name, (source, split) in self.sources.items()
        }
        remedy = (
            "Training needs the right choice of every question: correct these rows, name the column: "
            f"--task.columns.label, {SKIP_REMEDY}"
        )
        sets["train"] = sets["train"].without(rows_without_label(sets["train"]), remedy)
        questions = self.split_validation(sets, lambda question: question.context, seed=config.run.seed)
        width = max(len(question.choices) for own in questions.values() for question in own)
        sizes = model_config(config.model, tokenizer, max_length=self.max_length)
        examples = {name: _examples(own, tokenizer, self.max_length, width) for name, own in questions.items()}
        facts = {f"{name} questions": len(own) for name, own in questions.items()}
        unlabelled = {f"{name} questions without a label": len(rows_without_label(own)) for name, own in sets.items()}
        facts |= {fact: count for fact, count in unlabelled.items() if count}
        kind = HeadKind.MULTIPLE_CHOICE
        head = choose_head(config, kind, (), given=False)
        return MultipleChoiceTask(
            **common_fields(
                examples, config, sizes, tokenizer, max_length=self.max_length, head=kind, host_shard=host_shard
            ),
            new_head=head.new,
            facts={"choices": width, **head.facts, **facts, **reading_facts(sets)},
            digests=rows_digests(sets),
            bad_rows={name: own.bad.rows for name, own in sets.items()},
            questions=questions,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultipleChoiceTask(Task):
    """The task of multiple choice."""

    evaluations: Mapping[str, EvaluationBatches[ChoiceSequences]]
    questions: Mapping[str, Sequence[ChoiceQuestion]]  # of each set

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Loss and accuracy."""
        return ("loss", "accuracy")

    def loss(self, model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """Return the cross-entropy over the choices of each labelled question."""
        return losses.multiple_choice(_logits(model, params, batch, key), batch["labels"])

    def eval_step(self, model: PreTrainedModel, params: Params, batch: Batch) -> EvalStepOutput:
        """Return loss and accuracy; the outputs are probabilities [B, C]."""
        logits = _logits(model, params, batch, None)
        correct = jnp.argmax(logits, axis=-1) == batch["labels"]  # False where the label is -100
        metrics = {
            "loss": losses.multiple_choice(logits, batch["labels"]),
            "accuracy": Loss(jnp.sum(correct * 1.0), jnp.sum(batch["weight"])),
        }
        return EvalStepOutput(metrics, jax.nn.softmax(logits))

    def has_labels(self, name: str) -> bool:
        """Return whether the right choice of any question is known."""
        return any(question.label is not None for question in self.questions[name])

    def token_counts(self, batch: HostBatch) -> TokenCounts:
        """Return the tokens of all choices; only the pooled vectors are used."""
        return TokenCounts.of_batch(batch, pooled=True)

    def write_predictions(
        self, model: PreTrainedModel, params: Params, folder: Path, results: Mapping[str, Evaluation]
    ) -> Sequence[str]:
        """Write predictions_NAME.tsv for every evaluated set: source, label, predicted choice from 0, probability."""
        lines = []
        for name, batches in self.evaluations.items() if jax.process_index() == 0 else ():
            rows = []
            outputs = batches.by_example(results[name].outputs)
            for question, probabilities in zip(self.questions[name], outputs, strict=True):
                best, label = int(probabilities.argmax()), "" if question.label is None else str(question.label)
                rows.append((question.source, label, str(best), float(probabilities[best])))
            lines.append(write_prediction_table(folder, name, rows))
        return lines


def _logits(model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
    """Return the logit of every choice [B, C]; the lowest float32 for a choice that a question does not have."""
    logits = apply_model(model, params, batch, key).logits.astype(jnp.float32)
    return jnp.where(batch["attention_mask"].any(axis=-1), logits, jnp.finfo(jnp.float32).min)


def _examples(
    questions: Sequence[ChoiceQuestion], tokenizer: WordPieceTokenizer, max_length: int, width: int
) -> ChoiceSequences:
    pairs = [(question.context, choice) for question in questions for choice in question.choices]
    encodings = tokenizer.encode([a for a, _ in pairs], [b for _, b in pairs], max_length=max_length)
    labels = [IGNORE if question.label is None else question.label for question in questions]
    ids, types = encoding_arrays(encodings)
    return ChoiceSequences(
        ids=ids,
        types=types,
        starts=np.cumsum([0, *(len(question.choices) for question in questions)]),
        width=width,
        labels=np.array(labels, np.int32),
    )
