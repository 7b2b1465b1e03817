"""Multiple choice: which of several continuations of a text is right."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert import BertForMultipleChoice, PreTrainedModel, losses
from flaxbert.losses import IGNORE, Loss
from flaxbert.text.choices import ChoiceColumns
from flaxbert.text.messages import raise_problems
from flaxbert.tokenizer import WordPieceTokenizer
from train.config import Config
from train.data.batches import EvaluationBatches
from train.data.choices import ChoiceQuestion, read_choice_questions
from train.data.examples import ChoiceSequences, encoding_arrays
from train.data.host_shard import WHOLE_BATCH, HostShard
from train.evaluate import EvalStepOutput, Evaluation
from train.multihost.host_group import SINGLE_HOST, HostGroup
from train.step import Batch, Params
from train.tasks.classification_report import write_predictions
from train.tasks.start import model_config
from train.tasks.supervised import Supervised, as_batches
from train.tasks.task import HostBatch, Task, TokenCounts, TrainSpec, padded_outputs


@dataclasses.dataclass(frozen=True)
class MultipleChoice(Supervised):
    """Settings of multiple choice.

    Files are .csv, .tsv or .jsonl; each choice is a pair of texts, of which the longer one is cut to `max_length`.
    """

    columns: ChoiceColumns = ChoiceColumns()
    """Which columns hold context, question, choices and label; found by convention where not given."""
    first_label: int = 0
    """The number of the first choice in the files."""

    def prepare(
        self, config: Config, *, host_shard: HostShard = WHOLE_BATCH, host_group: HostGroup = SINGLE_HOST
    ) -> "PreparedMultipleChoice":
        """Reads and checks all files before anything is trained; raises what `TaskSettings` says."""
        tokenizer = self.load_tokenizer(config)
        how = {"columns": self.columns, "first_label": self.first_label}
        read = {name: read_choice_questions(file, split=split, **how) for name, (file, split) in self.sources.items()}
        questions = self.with_dev(read, lambda question: question.context, seed=config.run.seed)
        untold = [f"{question.source}: no label" for question in questions["train"] if question.label is None]
        raise_problems(untold, len(questions["train"]), "Training wants the right choice of every question.")
        width = max(len(question.choices) for found in questions.values() for question in found)
        sizes = model_config(config.model, tokenizer, max_length=self.max_length)
        examples = {n: _examples(found, tokenizer, self.max_length, width) for n, found in questions.items()}
        return PreparedMultipleChoice(
            tokenizer=tokenizer,
            config=sizes,
            architecture=BertForMultipleChoice,
            questions=questions,
            facts={"choices": width, **{f"{name} questions": len(found) for name, found in questions.items()}},
            **as_batches(examples, config, tokenizer, max_length=self.max_length, host_shard=host_shard),
        )

    def train_spec(self, config: Config) -> TrainSpec:
        """From the data: the length of a batch is that of its longest choice."""
        return TrainSpec.of(self.prepare(config))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedMultipleChoice(Task):
    """The `Task` of multiple choice."""

    evaluations: Mapping[str, EvaluationBatches[ChoiceSequences]]
    questions: Mapping[str, Sequence[ChoiceQuestion]]

    def loss(self, model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """Cross-entropy over the choices that there are."""
        return losses.multiple_choice(_logits(model, params, batch, key), batch["labels"])

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Loss and accuracy."""
        return ("loss", "accuracy")

    def eval_step(self, model: PreTrainedModel, params: Params, batch: Batch) -> EvalStepOutput:
        """Loss and accuracy; the outputs are probabilities [B, C]."""
        logits = _logits(model, params, batch, None)
        right = jnp.argmax(logits, axis=-1) == batch["labels"]  # never so at -100
        metrics = {"loss": losses.multiple_choice(logits, batch["labels"])}
        metrics["accuracy"] = Loss(jnp.sum(right * 1.0), jnp.sum(batch["weight"]))
        return EvalStepOutput(metrics, jax.nn.softmax(logits))

    def token_counts(self, batch: HostBatch) -> TokenCounts:
        """The tokens of all choices."""
        mask = batch["attention_mask"]
        return TokenCounts.of(mask.reshape(-1, mask.shape[-1]), pooled=True)

    def write_predictions(
        self, model: PreTrainedModel, params: Params, folder: Path, results: Mapping[str, Evaluation]
    ) -> Sequence[str]:
        """Writes predictions_NAME.tsv (row, given and predicted choice from 0, probability) for every evaluation."""
        lines = []
        for name, batches in self.evaluations.items() if jax.process_index() == 0 else ():
            rows = []
            found = batches.by_example(results[name].outputs)
            for question, probabilities in zip(self.questions[name], found, strict=True):
                best, given = int(probabilities.argmax()), "" if question.label is None else str(question.label)
                rows.append((question.source, given, str(best), float(probabilities[best])))
            lines.append(write_predictions(folder, name, rows))
        return lines


def _logits(model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
    """The score of every choice [B, C], the lowest of all numbers where there is none."""
    logits = padded_outputs(model, params, batch, key).logits.astype(jnp.float32)
    return jnp.where(batch["attention_mask"].any(axis=-1), logits, jnp.finfo(jnp.float32).min)


def _examples(
    questions: Sequence[ChoiceQuestion], tokenizer: WordPieceTokenizer, max_length: int, width: int
) -> ChoiceSequences:
    pairs = [(question.context, choice) for question in questions for choice in question.choices]
    encodings = tokenizer.encode([a for a, _ in pairs], [b for _, b in pairs], max_length=max_length)
    labels = [IGNORE if question.label is None else question.label for question in questions]
    return ChoiceSequences(
        *encoding_arrays(encodings),
        starts=np.cumsum([0, *(len(question.choices) for question in questions)]),
        width=width,
        labels=np.array(labels, np.int32),
    )
