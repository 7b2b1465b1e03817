"""Token classification: give each word of a sentence a tag, such as those of named entities."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import tyro

from flaxbert import PreTrainedModel, losses
from flaxbert.families import HeadKind
from flaxbert.layers import Params
from flaxbert.losses import IGNORE, Loss
from flaxbert.outputs import AdaptiveOutput, TokenClassifierOutput
from flaxbert.text.tags import OUTSIDE, TagScheme
from train.config import Config
from train.data import tagged_examples
from train.data.bad_rows import ReadRows
from train.data.batches import EvaluationBatches
from train.data.examples import TaggedSequences
from train.data.sources import reading_facts
from train.data.tagged_examples import InvalidTags, LabelledPieces, TaggedExamples
from train.data.tagged_sentences import TagColumns, TaggedSentence, read_tagged_sentences
from train.distributed import WHOLE_BATCH, HostShard
from train.evaluate import EvalStepOutput, Evaluation
from train.metrics.entities import EntityScores, entity_scores
from train.multihost.hosts import SINGLE_HOST, HostGroup
from train.step import Batch
from train.tasks.prediction_files import entity_report, escape_cell, write_text
from train.tasks.pretrained_heads import choose_head
from train.tasks.supervised import Supervised, common_fields, rows_digests
from train.tasks.task import Facts, SoftTarget, Task, apply_model, model_config


@dataclasses.dataclass(frozen=True)
class TokenClassification(Supervised):
    """Settings of token classification.

    Files have a word and its tag on each line, or are .jsonl (lists of tokens and tags, or CLUENER's character spans).
    Sentences longer than `max_length` are split into windows, so that every word is trained on and predicted.
    """

    columns: TagColumns = TagColumns()
    """Columns of word and tag in a file."""
    scheme: Annotated[TagScheme | None, tyro.conf.EnumChoicesFromValues] = None
    """Scheme of the model's tags; by default that of the training file. Files in another scheme are converted."""
    invalid_tags: Annotated[InvalidTags, tyro.conf.EnumChoicesFromValues] = InvalidTags.REPAIR
    """Treatment of tags that are not valid where they are."""
    labels: tuple[str, ...] = ()
    """All tags, in the order of their ids; by default O and the tags of all types in the training file."""
    labelled_pieces: Annotated[LabelledPieces, tyro.conf.EnumChoicesFromValues] = LabelledPieces.FIRST
    """Pieces of a word that have a label in training."""
    overlap: int | None = None
    """Pieces that neighbouring windows of a long sentence share; by default a quarter of a window."""

    def __post_init__(self):
        super().__post_init__()
        if self.overlap is not None and not 0 <= self.overlap < self.max_length - 2:
            raise ValueError(f"overlap is {self.overlap}; allowed: 0 to max_length - 3, {self.max_length - 3}")

    def prepare(
        self, config: Config, *, host_shard: HostShard = WHOLE_BATCH, host_group: HostGroup = SINGLE_HOST
    ) -> "TokenClassificationTask":
        """Read and check all files."""
        tokenizer = self.require_tokenizer(config)
        sets, scheme, facts = self._read_sets()
        labels = self.labels or tagged_examples.infer_tags(sets["train"], scheme)
        head = choose_head(config, HeadKind.TOKEN_CLASSIFICATION, tuple(labels), given=bool(self.labels))
        labels = head.labels
        ids = tagged_examples.tag_ids([], labels)
        sets = {name: tagged_examples.without_other_tags(own, labels) for name, own in sets.items()}
        sentences = self.split_validation(sets, lambda sentence: sentence.words, seed=config.run.seed)
        sizes = model_config(config.model, tokenizer, max_length=self.max_length, labels=labels)
        labelling = tagged_examples.TokenLabelling(
            ids=ids,
            scheme=scheme,
            max_length=self.max_length,
            overlap=(self.max_length - 2) // 4 if self.overlap is None else self.overlap,
            labelled=self.labelled_pieces,
        )
        pieces = {name: tagged_examples.encode_sentences(own, tokenizer, labelling) for name, own in sentences.items()}
        examples = {name: own.examples for name, own in pieces.items()}
        evaluated = {name: own for name, own in sentences.items() if name != "train"}
        baseline = {name: _baseline_scores(sentences["train"], own) for name, own in evaluated.items()}
        facts = {f"{name} sentences": len(own) for name, own in sentences.items()} | facts | reading_facts(sets)
        facts |= _piece_facts(sentences, pieces)
        facts |= {f"{name} F1 of each word's most frequent tag": round(b.overall.f1, 4) for name, b in baseline.items()}
        kind = HeadKind.TOKEN_CLASSIFICATION
        return TokenClassificationTask(
            **common_fields(
                examples, config, sizes, tokenizer, max_length=self.max_length, head=kind, host_shard=host_shard
            ),
            new_head=head.new,
            facts={"labels": len(labels), "scheme": scheme.name, **head.facts, **facts},
            digests=rows_digests(sets),
            bad_rows={name: own.bad.rows for name, own in sets.items()},
            scheme=scheme,
            sentences=evaluated,
            pieces=pieces,
            baseline=baseline,
        )

    def _read_sets(self) -> tuple[dict[str, ReadRows[TaggedSentence]], TagScheme, Facts]:
        """Return the sentences of each set in one scheme, that scheme, and facts about what was changed."""
        read = {
            name: read_tagged_sentences(
                source,
                columns=self.columns,
                split=split,
                labels=self.labels,
                bad_rows=self.bad_rows,
            )
            for name, (source, split) in self.sources.items()
        }
        # By default the scheme of the training file: a short file may not show which one it has.
        scheme = self.scheme or tagged_examples.scheme_of_sentences(read["train"])
        sets, facts = {}, Facts()
        for name, own in read.items():
            sets[name], repaired = tagged_examples.convert_scheme(
                own, scheme, written=tagged_examples.scheme_of_sentences(own), invalid=self.invalid_tags
            )
            if repaired:
                facts[f"{name} tags repaired"] = repaired
            if left_out := sum(sentence.left_out for sentence in own):
                facts[f"{name} entities left out, overlapping others"] = left_out
        return sets, scheme, facts


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenClassificationTask(Task):
    """The task of token classification."""

    evaluations: Mapping[str, EvaluationBatches[TaggedSequences]]
    scheme: TagScheme
    sentences: Mapping[str, Sequence[TaggedSentence]]  # of each evaluated set
    pieces: Mapping[str, TaggedExamples]  # the examples of every set, and where each word is in them
    baseline: Mapping[str, EntityScores]  # of giving each word its most frequent tag in training, on each evaluated set

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Loss and accuracy over pieces, and precision, recall and F1 of entities."""
        return ("loss", "token_accuracy", "precision", "recall", "f1")

    def loss(self, model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """Return the cross-entropy over the pieces that have a label."""
        return losses.token_classification(apply_model(model, params, batch, key).logits, batch["labels"])

    def soft_targets(self, output: AdaptiveOutput, batch: Batch) -> Sequence[SoftTarget]:
        """Return the logits of every piece that has a label."""
        assert isinstance(output, TokenClassifierOutput)
        return [SoftTarget(output.logits, batch["labels"] != IGNORE)]

    def eval_step(self, model: PreTrainedModel, params: Params, batch: Batch) -> EvalStepOutput:
        """Return loss and accuracy over the pieces that have a label; the outputs are label ids [B, T]."""
        logits = apply_model(model, params, batch, None).logits
        labelled = (batch["labels"] != IGNORE).astype(jnp.float32)
        best = jnp.argmax(logits, axis=-1)
        metrics = {
            "loss": losses.token_classification(logits, batch["labels"]),
            "token_accuracy": Loss(jnp.sum((best == batch["labels"]) * labelled), jnp.sum(labelled)),
        }
        # int16 is enough for a label id, and the outputs of a whole set stay in memory until its end.
        return EvalStepOutput(metrics, best.astype(jnp.int16))

    def compute_metrics(
        self, name: str, evaluation: Evaluation, *, earlier: Mapping[str, Evaluation]
    ) -> dict[str, float]:
        """Return precision, recall and F1 of the entities of all sentences, as seqeval and conlleval do."""
        overall = entity_scores(self._tags(name), self._predicted_tags(name, evaluation)).overall
        return {"precision": overall.precision, "recall": overall.recall, "f1": overall.f1}

    def write_predictions(
        self, model: PreTrainedModel, params: Params, folder: Path, results: Mapping[str, Evaluation]
    ) -> Sequence[str]:
        """Write predictions_NAME.conll (word, tag, predicted tag) and report_NAME.md for every evaluated set."""
        lines = []
        for name in self.evaluations:
            tags, predicted = self._tags(name), self._predicted_tags(name, results[name])
            scores, baseline = entity_scores(tags, predicted), self.baseline[name]
            report, predictions = folder / f"report_{name}.md", folder / f"predictions_{name}.conll"
            if jax.process_index() == 0:
                strict = entity_scores(tags, predicted, scheme=self.scheme)
                write_text(report, entity_report(name, scores, strict=strict, scheme=self.scheme, baseline=baseline))
                write_text(predictions, _conll(self.sentences[name], predicted))
            compared = f"each word's most frequent training tag: {baseline.overall.f1:.4f}"
            lines.append(f"{name}: F1 {scores.overall.f1:.4f}, {compared}; {report}")
            lines.append(f"predictions: {predictions}")
        return lines

    def _tags(self, name: str) -> list[tuple[str, ...]]:
        return [sentence.tags for sentence in self.sentences[name]]

    def _predicted_tags(self, name: str, evaluation: Evaluation) -> list[list[str]]:
        label_ids = self.evaluations[name].by_example(evaluation.outputs)
        return self.pieces[name].tags(label_ids, self.sentences[name], self.config.id2label)


def most_frequent_tags(train: Sequence[TaggedSentence], sentences: Sequence[TaggedSentence]) -> list[list[str]]:
    """Return for every word of `sentences` the tag that it most often has in `train`; O for a word that is not there.

    Of equally frequent tags the first in alphabetical order, so that the baseline is the same in every run.
    """
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for sentence in train:
        for word, tag in zip(sentence.words, sentence.tags, strict=True):
            counts[word][tag] += 1
    best = {word: min(tags, key=lambda tag: (-tags[tag], tag)) for word, tags in counts.items()}
    return [[best.get(word, OUTSIDE) for word in sentence.words] for sentence in sentences]


def _baseline_scores(train: Sequence[TaggedSentence], evaluated: Sequence[TaggedSentence]) -> EntityScores:
    return entity_scores([sentence.tags for sentence in evaluated], most_frequent_tags(train, evaluated))


def _conll(sentences: Sequence[TaggedSentence], predicted: Sequence[Sequence[str]]) -> str:
    blocks = []
    for sentence, tags in zip(sentences, predicted, strict=True):
        rows = zip(sentence.words, sentence.tags, tags, strict=True)
        blocks.append("".join("\t".join(map(escape_cell, row)) + "\n" for row in rows))
    return "\n".join(blocks)


def _piece_facts(sentences: Mapping[str, Sequence[TaggedSentence]], pieces: Mapping[str, TaggedExamples]) -> Facts:
    """Return the number of extra windows and of words without pieces in each set, where there are any."""
    facts = Facts()
    for name, own in pieces.items():
        if not len(own.examples):
            raise ValueError(f"{name}: the tokenizer finds nothing in any word; is it the one of this language?")
        extra = len(own.examples) - len(sentences[name])
        if extra > 0:
            facts[f"{name} windows beyond a sentence's first"] = extra
        if own.words_without_pieces:
            facts[f"{name} words without pieces (O)"] = own.words_without_pieces
    return facts
