"""Sequence classification: labelled rows of text, or pairs of texts, to one of a fixed set of labels."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert import BertForSequenceClassification, PreTrainedModel, functional, losses
from flaxbert.files import written_whole
from flaxbert.losses import Loss
from flaxbert.tokenizer import WordPieceTokenizer
from train.config import Config
from train.data.classified import EvaluationBatches, Examples, PackedBatches, PaddedBatches
from train.data.labels import infer_labels, label_ids
from train.data.part import WHOLE, RowPart
from train.data.table import Columns, Row, read_rows
from train.distributed import Placement
from train.evaluate import Evaluation, Measured
from train.peers import ALONE, Peers
from train.step import Batch, Params
from train.tasks.start import load_tokenizer, model_config
from train.tasks.task import HostBatch, Outline, Task, Work, outputs


@dataclasses.dataclass(frozen=True)
class SequenceClassification:
    """Settings of sequence classification."""

    train: str
    """A .tsv, .csv or .jsonl file, a TNEWS .txt file, or "datasets:NAME"."""
    dev: str | None = None
    """Evaluated during and after training."""
    test: str | None = None
    """Evaluated once, at the end."""
    train_split: str | None = None
    """The split to read where `train` names a data set; likewise for the other two."""
    dev_split: str | None = None
    test_split: str | None = None
    columns: Columns = Columns()
    """Which columns hold texts and label; found by convention where not given."""
    labels: tuple[str, ...] = ()
    """All labels, in the order of their ids; by default those of the training rows."""
    tokenizer: Path | None = None
    """A folder or vocab.txt; by default the pretrained model's."""
    max_length: int = 128
    """Longer inputs are cut."""
    packed: bool = False
    """Let several short inputs share a row of a training batch: next to no padding, and a shape or two to
    compile instead of one for every length. Without it rows of a batch are alike in length; the loss is the same."""

    def prepare(self, config: Config, *, part: RowPart = WHOLE, peers: Peers = ALONE) -> "PreparedClassification":
        """Reads and checks all three files before anything is trained; raises what `TaskSettings` says."""
        tokenizer = load_tokenizer(config, self.tokenizer)
        if tokenizer is None:
            raise ValueError("without a pretrained model there must be a vocabulary: give --task.tokenizer")
        sources = {"train": (self.train, self.train_split), "dev": (self.dev, self.dev_split)}
        sources["test"] = (self.test, self.test_split)
        rows = {
            name: read_rows(source, columns=self.columns, split=split)
            for name, (source, split) in sources.items()
            if source is not None
        }
        labels = self.labels or infer_labels(rows["train"])
        sizes = model_config(config.model, tokenizer, max_length=self.max_length, labels=labels)
        examples = {name: _examples(found, tokenizer, labels, self.max_length) for name, found in rows.items()}
        run = config.run
        pad = tokenizer.special_ids[0]
        how = examples["train"], run.batch_size, pad, self.max_length, run.seed, run.total_steps
        if self.packed:
            train = PackedBatches(*how, multiple=_row_multiple(config), part=part)
        else:
            train = PaddedBatches(*how, part=part)
        size = run.evaluation_batch_size or run.batch_size
        return PreparedClassification(
            tokenizer=tokenizer,
            config=sizes,
            architecture=BertForSequenceClassification,
            train=train,
            steps_per_epoch=train.per_epoch,
            evaluations={
                name: EvaluationBatches(found, size, pad, self.max_length, part)
                for name, found in examples.items()
                if name != "train"
            },
            rows=rows,
            facts={"labels": len(labels), **{f"{name} rows": len(found) for name, found in rows.items()}},
        )

    def outline(self, config: Config) -> Outline:
        """From the data: the length of a batch is that of its longest text."""
        return Outline.of(self.prepare(config))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedClassification(Task):
    """The `Task` of sequence classification."""

    evaluations: Mapping[str, EvaluationBatches]
    rows: Mapping[str, list[Row]]

    def loss(self, model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """Cross-entropy over the rows that are not filling."""
        return self._loss(_logits(model, params, batch, key), batch)

    def measure(self, model: PreTrainedModel, params: Params, batch: Batch) -> Measured:
        """Loss and accuracy; the outputs are probabilities [B, N]."""
        scores = _logits(model, params, batch, None)
        right = jnp.argmax(scores, axis=-1) == batch["labels"]
        accuracy = Loss(jnp.sum(right * batch["weight"]), jnp.sum(batch["weight"]))
        return Measured({"loss": self._loss(scores, batch), "accuracy": accuracy}, jax.nn.softmax(scores))

    def work(self, batch: HostBatch) -> Work:
        """Its tokens."""
        if "segment_ids" not in batch:
            return Work.of(batch["attention_mask"], pooled=True)
        return Work.of_segments(batch["segment_ids"], batch["first_positions"].shape[1], pooled=True)

    def finish(
        self, model: PreTrainedModel, params: Params, folder: Path, results: Mapping[str, Evaluation]
    ) -> Sequence[str]:
        """Writes predictions_NAME.tsv (row, given label, predicted label, probability) for every evaluation."""
        for name, batches in self.evaluations.items() if jax.process_index() == 0 else ():
            probabilities = np.zeros((len(self.rows[name]), self.config.num_labels), np.float32)
            for numbers, found in zip(batches.rows, results[name].outputs, strict=True):
                probabilities[numbers] = found[: len(numbers)]
            with written_whole(folder / f"predictions_{name}.tsv") as aside:
                aside.write_text(self._predictions(name, probabilities), encoding="utf-8", newline="\n")
        return [f"predictions: {folder / f'predictions_{name}.tsv'}" for name in self.evaluations]

    def _predictions(self, name: str, probabilities: np.ndarray) -> str:
        names = self.config.id2label
        lines = ["row\tgiven\tpredicted\tprobability"]
        for row, scores in zip(self.rows[name], probabilities, strict=True):
            best = int(scores.argmax())
            lines.append(f"{row.source}\t{row.label or ''}\t{names[best]}\t{scores[best]:.4f}")
        return "\n".join(lines) + "\n"

    def _loss(self, scores: jax.Array, batch: Batch) -> Loss:
        kind = "single_label_classification"
        labels, weights = (batch[name].reshape(-1) for name in ("labels", "weight"))
        return losses.sequence_classification(scores, labels, problem_type=kind, weights=weights)


def _row_multiple(config: Config) -> int:
    """What the rows of a batch must be a multiple of, to divide over devices and micro-batches."""
    return Placement.of(config.mesh).row_parts * config.run.micro_batches


def _logits(model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
    """The scores of every example [B, N], of every slot [R * P, N] where rows hold several."""
    if "segment_ids" not in batch:
        names = ("input_ids", "attention_mask", "token_type_ids")
        return outputs(model, params, {name: batch[name] for name in names}, key).logits
    names = ("input_ids", "token_type_ids", "position_ids", "first_positions")
    inputs = {name: batch[name] for name in names} | {"attention_mask": functional.packed_mask(batch["segment_ids"])}
    return outputs(model, params, inputs, key).logits.reshape(-1, model.config.num_labels)


def _examples(rows: list[Row], tokenizer: WordPieceTokenizer, labels: Sequence[str], max_length: int) -> Examples:
    encodings = tokenizer.encode([row.text for row in rows], [row.text_pair for row in rows], max_length=max_length)
    return Examples(
        ids=[np.asarray(encoding.ids, np.int32) for encoding in encodings],
        types=[np.asarray(encoding.type_ids, np.int32) for encoding in encodings],
        labels=np.asarray(label_ids(rows, labels), np.int32),
    )
