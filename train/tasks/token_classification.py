"""Token classification: sentences of tagged words (named entities) to a tag for each word."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import tyro

from flaxbert import BertForTokenClassification, PreTrainedModel, losses
from flaxbert.files import atomic_write
from flaxbert.losses import IGNORE, Loss
from flaxbert.text.tags import TagScheme
from train.config import Config
from train.data.batches import EvaluationBatches
from train.data.host_shard import WHOLE_BATCH, HostShard
from train.data.tagged_examples import (
    InvalidTags,
    LabelledPieces,
    TaggedExamples,
    TokenLabelling,
    convert_scheme,
    encode_sentences,
    infer_tags,
    scheme_of_sentences,
    tag_ids,
)
from train.data.tagged_sentences import TagColumns, TaggedSentence, read_tagged_sentences
from train.evaluate import EvalStepOutput, Evaluation
from train.metrics.entities import EntityScores, entity_scores
from train.multihost.host_group import SINGLE_HOST, HostGroup
from train.step import Batch, Params
from train.tasks.entity_report import entity_report, most_frequent_tags
from train.tasks.start import model_config
from train.tasks.supervised import Supervised, as_batches
from train.tasks.task import HostBatch, Task, TokenCounts, TrainSpec, padded_outputs


@dataclasses.dataclass(frozen=True)
class TokenClassification(Supervised):
    """Settings of token classification.

    Files have a word and its tag a line, or are .jsonl (lists of tokens and tags, or CLUENER's character spans).
    Sentences longer than `max_length` are cut into windows, so that every word is learnt, and predicted.
    """

    columns: TagColumns = TagColumns()
    """Which columns of a file hold word and tag."""
    scheme: Annotated[TagScheme | None, tyro.conf.EnumChoicesFromValues] = None
    """Of the tags that the model learns; by default that of the training file. Files in another are translated."""
    invalid_tags: Annotated[InvalidTags, tyro.conf.EnumChoicesFromValues] = InvalidTags.REPAIR
    """What to do about tags that can't stand where they do."""
    labels: tuple[str, ...] = ()
    """All tags, in the order of their ids; by default O and those of the types in the training file."""
    labelled_pieces: Annotated[LabelledPieces, tyro.conf.EnumChoicesFromValues] = LabelledPieces.FIRST
    """Which pieces of a word are learnt."""
    overlap: int | None = None
    """Pieces that neighbouring windows of a long sentence share; by default a quarter of a window."""

    def __post_init__(self):
        super().__post_init__()
        if self.overlap is not None and not 0 <= self.overlap < self.max_length - 2:
            raise ValueError(f"overlap is {self.overlap}; allowed: 0 to max_length - 3, {self.max_length - 3}")

    def prepare(
        self, config: Config, *, host_shard: HostShard = WHOLE_BATCH, host_group: HostGroup = SINGLE_HOST
    ) -> "PreparedTokenClassification":
        """Reads and checks all files before anything is trained; raises what `TaskSettings` says."""
        tokenizer = self.load_tokenizer(config)
        read = {
            n: read_tagged_sentences(file, columns=self.columns, split=split)
            for n, (file, split) in self.sources.items()
        }
        facts: dict[str, str | int | float] = {}
        # The scheme of the training file: a short one may not tell.
        scheme = self.scheme or scheme_of_sentences(read["train"])
        sentences = {}
        for name, found in read.items():
            how = {"written": scheme_of_sentences(found), "invalid": self.invalid_tags}
            sentences[name], repaired = convert_scheme(found, scheme, **how)
            facts |= {f"{name} tags repaired": repaired} if repaired else {}
            if left_out := sum(sentence.left_out for sentence in found):
                facts[f"{name} entities left out, overlapping others"] = left_out
        labels = self.labels or infer_tags(sentences["train"], scheme)
        sentences = self.with_dev(sentences, lambda sentence: sentence.words, seed=config.run.seed)
        facts = {f"{name} sentences": len(found) for name, found in sentences.items()} | facts
        ids = tag_ids([sentence for found in sentences.values() for sentence in found], labels)
        sizes = model_config(config.model, tokenizer, max_length=self.max_length, labels=labels)
        overlap = (self.max_length - 2) // 4 if self.overlap is None else self.overlap
        cut = TokenLabelling(ids, scheme, self.max_length, overlap, self.labelled_pieces)
        pieces = {name: encode_sentences(found, tokenizer, cut) for name, found in sentences.items()}
        facts |= _piece_facts(sentences, pieces)
        examples = {name: found.examples for name, found in pieces.items()}
        batches = as_batches(examples, config, tokenizer, max_length=self.max_length, host_shard=host_shard)
        evaluated = {name: found for name, found in sentences.items() if name != "train"}
        baseline = {name: _baseline(sentences["train"], found) for name, found in evaluated.items()}
        facts |= {f"{name} F1 of each word's most frequent tag": round(b.overall.f1, 4) for name, b in baseline.items()}
        return PreparedTokenClassification(
            tokenizer=tokenizer,
            config=sizes,
            architecture=BertForTokenClassification,
            scheme=scheme,
            sentences=evaluated,
            pieces=pieces,
            baseline=baseline,
            **batches,
            facts={"labels": len(labels), "scheme": scheme.name, **facts},
        )

    def train_spec(self, config: Config) -> TrainSpec:
        """From the data: the length of a batch is that of its longest sentence."""
        return TrainSpec.of(self.prepare(config))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedTokenClassification(Task):
    """The `Task` of token classification.

    Attributes:
        scheme: of the tags.
        sentences: of each evaluation.
        pieces: of the training set and of each evaluation.
        baseline: how well each word's most frequent training tag does.
    """

    evaluations: Mapping[str, EvaluationBatches]
    scheme: TagScheme
    sentences: Mapping[str, Sequence[TaggedSentence]]
    pieces: Mapping[str, TaggedExamples]
    baseline: Mapping[str, EntityScores]

    def loss(self, model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """Cross-entropy over the pieces that have a label; padding does not dilute it."""
        return losses.token_classification(_logits(model, params, batch, key), batch["labels"])

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Of pieces, and of entities."""
        return ("loss", "token_accuracy", "precision", "recall", "f1")

    def eval_step(self, model: PreTrainedModel, params: Params, batch: Batch) -> EvalStepOutput:
        """Loss, and accuracy over the pieces that have a label; the outputs are the likeliest label ids [B, T]."""
        scores = _logits(model, params, batch, None)
        labelled = (batch["labels"] != IGNORE).astype(jnp.float32)
        best = jnp.argmax(scores, axis=-1)
        accuracy = Loss(jnp.sum((best == batch["labels"]) * labelled), jnp.sum(labelled))
        loss = losses.token_classification(scores, batch["labels"])
        # Outputs of a whole set are kept until its end: a label's number needs no more.
        return EvalStepOutput({"loss": loss, "token_accuracy": accuracy}, best.astype(jnp.int16))

    def compute_metrics(self, name: str, found: Evaluation) -> Mapping[str, float]:
        """Precision, recall and F1 of entities, over all sentences, as seqeval and conlleval give them."""
        overall = entity_scores(self._given(name), self._predicted(name, found)).overall
        return {"precision": overall.precision, "recall": overall.recall, "f1": overall.f1}

    def token_counts(self, batch: HostBatch) -> TokenCounts:
        """Its tokens."""
        return TokenCounts.of(batch["attention_mask"])

    def write_predictions(
        self, model: PreTrainedModel, params: Params, folder: Path, results: Mapping[str, Evaluation]
    ) -> Sequence[str]:
        """Writes predictions_NAME.conll (word, given tag, predicted tag) and report_NAME.md for every evaluation."""
        lines = []
        for name in self.evaluations:
            given, predicted = self._given(name), self._predicted(name, results[name])
            scores, baseline = entity_scores(given, predicted), self.baseline[name]
            if jax.process_index() == 0:
                strict = entity_scores(given, predicted, scheme=self.scheme)
                report = entity_report(name, scores, strict=strict, scheme=self.scheme, baseline=baseline)
                texts = {"predictions": ("conll", self._predictions(name, predicted)), "report": ("md", report)}
                for what, (ending, text) in texts.items():
                    with atomic_write(folder / f"{what}_{name}.{ending}") as aside:
                        aside.write_text(text, encoding="utf-8", newline="\n")
            beside = f"each word's most frequent training tag: {baseline.overall.f1:.4f}"
            lines.append(f"{name}: F1 {scores.overall.f1:.4f}, {beside}; {folder / f'report_{name}.md'}")
            lines.append(f"predictions: {folder / f'predictions_{name}.conll'}")
        return lines

    def _given(self, name: str) -> list[tuple[str, ...]]:
        return [sentence.tags for sentence in self.sentences[name]]

    def _predicted(self, name: str, found: Evaluation) -> list[list[str]]:
        by_example = self.evaluations[name].by_example(found.outputs)
        return self.pieces[name].tags(by_example, self.sentences[name], self.config.id2label)

    def _predictions(self, name: str, predicted: Sequence[Sequence[str]]) -> str:
        blocks = []
        for sentence, tags in zip(self.sentences[name], predicted, strict=True):
            rows = zip(sentence.words, sentence.tags, tags, strict=True)
            blocks.append("".join("\t".join(row) + "\n" for row in rows))
        return "\n".join(blocks)


def _logits(model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> jax.Array:
    return padded_outputs(model, params, batch, key).logits


def _piece_facts(
    sentences: Mapping[str, Sequence[TaggedSentence]], pieces: Mapping[str, TaggedExamples]
) -> dict[str, str | int | float]:
    """How many sentences were cut, and how many words no piece stands for, where there are any."""
    facts: dict[str, str | int | float] = {}
    for name, found in pieces.items():
        if not len(found.examples):
            raise ValueError(f"{name}: the tokenizer finds nothing in any word; is it the one of this language?")
        more = len(found.examples) - len(sentences[name])
        facts |= {f"{name} windows beyond a sentence's first": more} if more > 0 else {}
        facts |= {f"{name} words without pieces (O)": found.silent} if found.silent else {}
    return facts


def _baseline(train: Sequence[TaggedSentence], evaluated: Sequence[TaggedSentence]) -> EntityScores:
    tags = most_frequent_tags(train, evaluated)
    return entity_scores([sentence.tags for sentence in evaluated], tags)
