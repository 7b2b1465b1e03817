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
from train.data.batches import EvaluationBatches
from train.data.examples import Labelled
from train.data.labels import infer_labels, label_ids
from train.data.part import WHOLE, RowPart
from train.data.table import Columns, Row, read_rows
from train.evaluate import Evaluation, Measured
from train.peers import ALONE, Peers
from train.step import Batch, Params
from train.tasks.start import model_config
from train.tasks.supervised import Supervised, as_batches
from train.tasks.task import HostBatch, Outline, Task, Work, outputs


@dataclasses.dataclass(frozen=True)
class SequenceClassification(Supervised):
    """Settings of sequence classification.

    Files are .tsv, .csv or .jsonl, or TNEWS .txt; inputs longer than `max_length` are cut.
    """

    columns: Columns = Columns()
    """Which columns hold texts and label; found by convention where not given."""
    labels: tuple[str, ...] = ()
    """All labels, in the order of their ids; by default those of the training rows."""
    packed: bool = False
    """Let several short inputs share a row of a training batch: next to no padding, and a shape or two to
    compile instead of one for every length. Without it rows of a batch are alike in length; the loss is the same."""

    def prepare(self, config: Config, *, part: RowPart = WHOLE, peers: Peers = ALONE) -> "PreparedClassification":
        """Reads and checks all three files before anything is trained; raises what `TaskSettings` says."""
        tokenizer = self.load_tokenizer(config)
        rows = {
            name: read_rows(source, columns=self.columns, split=split) for name, (source, split) in self.sources.items()
        }
        labels = self.labels or infer_labels(rows["train"])
        sizes = model_config(config.model, tokenizer, max_length=self.max_length, labels=labels)
        examples = {name: _examples(found, tokenizer, labels, self.max_length) for name, found in rows.items()}
        batches = as_batches(examples, config, tokenizer, max_length=self.max_length, part=part, packed=self.packed)
        return PreparedClassification(
            tokenizer=tokenizer,
            config=sizes,
            architecture=BertForSequenceClassification,
            rows=rows,
            **batches,
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
            probabilities = batches.by_example(results[name].outputs)
            with written_whole(folder / f"predictions_{name}.tsv") as aside:
                aside.write_text(self._predictions(name, probabilities), encoding="utf-8", newline="\n")
        return [f"predictions: {folder / f'predictions_{name}.tsv'}" for name in self.evaluations]

    def _predictions(self, name: str, probabilities: Sequence[np.ndarray]) -> str:
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


def _logits(model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
    """The scores of every example [B, N], of every slot [R * P, N] where rows hold several."""
    if "segment_ids" not in batch:
        names = ("input_ids", "attention_mask", "token_type_ids")
        return outputs(model, params, {name: batch[name] for name in names}, key).logits
    names = ("input_ids", "token_type_ids", "position_ids", "first_positions")
    inputs = {name: batch[name] for name in names} | {"attention_mask": functional.packed_mask(batch["segment_ids"])}
    return outputs(model, params, inputs, key).logits.reshape(-1, model.config.num_labels)


def _examples(rows: list[Row], tokenizer: WordPieceTokenizer, labels: Sequence[str], max_length: int) -> Labelled:
    encodings = tokenizer.encode([row.text for row in rows], [row.text_pair for row in rows], max_length=max_length)
    return Labelled(
        ids=[np.asarray(encoding.ids, np.int32) for encoding in encodings],
        types=[np.asarray(encoding.type_ids, np.int32) for encoding in encodings],
        labels=np.asarray(label_ids(rows, labels), np.int32),
    )
