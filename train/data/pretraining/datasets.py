"""Pretraining data from end to end: text, a token store or TFRecords to batches to train on and held-out batches."""

import dataclasses
import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from flaxbert.text.messages import raise_problems
from flaxbert.tokenizer import WordPieceTokenizer
from train.data.bad_rows import BadRow, BadRows
from train.data.pretraining.masking import Masking, MaskingRule
from train.data.pretraining.reader import TextReader
from train.data.pretraining.segments import ExampleBuilder, FullSentenceExamples, NextSentencePairs, StreamExamples
from train.data.pretraining.store import RECORD, TokenStore
from train.data.pretraining.store_batches import (
    HeldOutBatches,
    PretrainingRowShape,
    RowBuilder,
    StagedBatches,
    TrainBatches,
)
from train.data.pretraining.tokens import SentenceTokenizer, note_lost_marks, text_chunks
from train.distributed import HostBatch, HostShard, TrainSet


class Segments(enum.Enum):
    """Content of a pretraining example."""

    NEXT_SENTENCE = "next-sentence"
    """Two segments; the second follows the first or comes from another document: Google's BERT."""
    FULL_SENTENCES = "full-sentences"
    """One segment of as many whole sentences as fit: RoBERTa."""
    STREAM = "stream"
    """One segment of text, cut where it is full."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """The first part of a run with settings of its own; None: the setting of the run."""

    steps: int
    """Updates."""
    batch_size: int | None = None
    """Rows of a batch."""
    max_length: int | None = None
    """Tokens of an example."""
    row_length: int | None = None
    """Tokens of rows that examples share, if they do."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise ValueError(f"{field.name} of a stage is {value}; it must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleOptions:
    """Settings that turn text into examples, and examples into rows; the fields are flags of pretraining."""

    segments: Annotated[Segments, tyro.conf.EnumChoicesFromValues] = Segments.NEXT_SENTENCE
    """Content of an example."""
    max_length: int = 128
    """Maximum tokens of an example."""
    row_length: int | None = None
    """Let examples share rows of so many tokens: next to no padding, the same losses. By default each has its row."""
    short: float = 0.1
    """Share of documents that are cut into shorter pairs (next-sentence)."""
    masking_rate: float = 0.15
    """Share of an example's tokens that are predicted."""
    exact_rate: bool = True
    """Predict exactly this share of each example, rounded, at least one; else each token, or word, is chosen
    independently."""
    whole_words: bool = False
    """Choose the tokens of a word together."""
    max_predictions: int | None = None
    """Maximum predicted tokens of an example."""
    copies: int | None = None
    """Number of epochs with different pairs and masks, which then repeat; None for new ones in every epoch."""
    stages: tuple[Stage, ...] = ()
    """Stages at the beginning, with smaller batches or shorter examples. Optimizer state and position carry over."""
    heldout: float = 0.05
    """Share of the documents that is held out for evaluation."""

    def __post_init__(self):
        if self.row_length is not None and self.row_length < self.max_length:
            raise ValueError(f"row_length is {self.row_length}; examples have up to {self.max_length} tokens")
        if not 0.0 <= self.short < 1.0:
            raise ValueError(f"short is {self.short}; it must be at least 0 and less than 1")
        if self.copies is not None and self.copies < 1:
            raise ValueError(f"copies is {self.copies}; it must be at least 1")

    @property
    def two_segments(self) -> bool:
        """True if an example has two segments and a next-sentence label."""
        return self.segments is Segments.NEXT_SENTENCE

    @property
    def masking_rule(self) -> MaskingRule:
        """The number of tokens to predict."""
        return MaskingRule(self.masking_rate, self.exact_rate, self.whole_words, self.max_predictions)

    @property
    def row_shape(self) -> PretrainingRowShape:
        """The shape of a row."""
        return PretrainingRowShape.of(self.masking_rule, max_length=self.max_length, row_length=self.row_length)

    def example_builder(self, store: TokenStore, documents: np.ndarray) -> ExampleBuilder:
        """Return the function that makes examples of some of these documents."""
        if self.segments is Segments.NEXT_SENTENCE:
            return NextSentencePairs(store, documents, max_length=self.max_length, short=self.short)
        single = FullSentenceExamples if self.segments is Segments.FULL_SENTENCES else StreamExamples
        return single(store, max_length=self.max_length)

    def of_stage(self, stage: Stage) -> "ExampleOptions":
        """Return the settings during a stage."""
        max_length, row_length = stage.max_length or self.max_length, stage.row_length or self.row_length
        return dataclasses.replace(self, max_length=max_length, row_length=row_length)

    def row_builder(self, store: TokenStore) -> RowBuilder:
        """Return the function that makes the arrays of rows."""
        return RowBuilder(store, Masking.of(store.tokenizer, self.masking_rule), self.row_shape, self.two_segments)

    def full_batch(self, rows: int, *, from_records: bool) -> HostBatch:
        """Return a batch with the shapes and dtypes of training, and without padding; its ids mean nothing."""
        shape = self.row_shape
        # TFRecords have `max_predictions` slots, whether needed or not.
        predictions = self.max_predictions if from_records and self.max_predictions else shape.predictions
        ones, zeros = np.ones((rows, shape.length), np.int32), np.zeros((rows, predictions), np.int32)
        slots = np.zeros((rows, shape.slots or 1), np.int32)
        batch = {"input_ids": ones, "masked_lm_positions": zeros, "masked_lm_labels": zeros}
        if self.two_segments:
            batch |= {"token_type_ids": ones, "next_sentence_labels": slots if shape.slots else slots[:, 0]}
        if shape.slots is None:
            return batch | {"attention_mask": ones}
        return batch | {"segment_ids": ones, "position_ids": ones, "first_positions": slots}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The settings of a run's batches that are the same for every source of data."""

    size: int  # rows of a training batch
    evaluation_size: int  # rows of a held-out batch
    seed: int  # of the split, the order and the random choices
    host_shard: HostShard


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingData:
    """The data of a pretraining run."""

    tokenizer: WordPieceTokenizer
    train: TrainSet
    steps_per_epoch: int
    held_out: Iterable[HostBatch]
    held_out_counts: np.ndarray  # [V], occurrences of each token in the held-out data
    digest: str  # SHA-256 of the data
    facts: Mapping[str, str | float | int]  # figures for the run's summary
    bad_rows: Sequence[BadRow] = ()  # skipped

    @property
    def unigram_entropy(self) -> float:
        """Entropy (nat) of the held-out tokens without special tokens: the lowest loss of any unigram model."""
        counts = self.held_out_counts.copy()
        counts[list(self.tokenizer.special_ids)] = 0
        return entropy(counts)


def entropy(counts: np.ndarray) -> float:
    """Return the entropy (nat) of a distribution, given how often each value occurs; 0 if none does."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum())


def open_text(
    texts: Sequence[str],
    tokenizer: WordPieceTokenizer | None,
    learn: Callable[[Sequence[str]], WordPieceTokenizer],
    *,
    bad_rows: BadRows = BadRows.ERROR,
) -> TokenStore:
    """Open the folder of one token store, or tokenize texts that `TextReader` reads into one in memory.

    Without a tokenizer for the texts, `learn` makes one from their lines.
    """
    stores = [folder for folder in (Path(text).expanduser() for text in texts) if (folder / RECORD).is_file()]
    if stores and len(texts) > 1:
        raise ValueError(f"{stores[0]} is a token store beside other texts; give one store, or the texts themselves")
    if stores:
        store = TokenStore.open(stores[0])
    else:
        reader = TextReader(texts, bad_rows=bad_rows)
        lines = list(reader)
        tokenizer = tokenizer or learn(lines)
        tokenize = SentenceTokenizer(tokenizer.backend.to_str(), split=True)
        chunks = note_lost_marks(text_chunks(iter(lines)), tokenizer.backend, flags="--task.")
        store = dataclasses.replace(TokenStore.of(map(tokenize, chunks), tokenizer), bad_rows=tuple(reader.skipped))
    if not len(store.tokens):
        raise_problems(list(map(str, store.bad_rows)), len(store.bad_rows), "No text is left. Give another one.")
        raise ValueError(f"{', '.join(texts)}: holds no text; give a file or folder with lines that are not blank")
    return store


def store_data(store: TokenStore, options: ExampleOptions, plan: BatchPlan) -> PretrainingData:
    """Return the data of a token store."""
    train, held_out = split_documents(store.document_count, options, plan.seed)

    def train_batches(own: ExampleOptions, size: int) -> TrainBatches:
        return TrainBatches(
            store,
            train,
            build_examples=own.example_builder(store, train),
            build_rows=own.row_builder(store),
            size=size,
            seed=plan.seed,
            copies=own.copies,
            host_shard=plan.host_shard,
        )

    last = train_batches(options, plan.size)
    staged = [train_batches(options.of_stage(stage), stage.batch_size or plan.size) for stage in options.stages]
    tokens = np.diff(store.document_starts)
    return PretrainingData(
        tokenizer=store.tokenizer,
        train=StagedBatches([*staged, last], [stage.steps for stage in options.stages]) if staged else last,
        steps_per_epoch=-(-last.rows_of_epoch // plan.size),
        held_out=HeldOutBatches(
            store,
            held_out,
            build_examples=options.example_builder(store, held_out),
            build_rows=options.row_builder(store),
            size=plan.evaluation_size,
            host_shard=plan.host_shard,
        ),
        held_out_counts=np.bincount(np.concatenate(store.of_documents(held_out)), minlength=store.tokenizer.vocab_size),
        digest=store.digest,
        facts={
            "documents": f"{len(train):,} to train on, {len(held_out):,} held out",
            "tokens": f"{tokens[train].sum():,} to train on, {tokens[held_out].sum():,} held out",
            "SHA-256 of the tokens": store.digest,
        },
        bad_rows=store.bad_rows,
    )


def split_documents(count: int, options: ExampleOptions, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers, ascending, of the documents (or records) to train on, and of those to hold out."""
    if not 0.0 < options.heldout < 1.0:
        raise ValueError(f"heldout is {options.heldout}; it must lie between 0 and 1")
    least = 2 if options.two_segments else 1  # a random second segment comes from another document
    if count < 2 * least:
        raise ValueError(
            f"the text has {count} documents; {2 * least} are needed at least, to train on some and hold out "
            "others: put blank lines between documents"
        )
    order = np.random.default_rng(seed).permutation(count)
    held_out = min(max(least, round(options.heldout * count)), count - least)
    return np.sort(order[held_out:]), np.sort(order[:held_out])
