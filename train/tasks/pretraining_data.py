"""The data of pretraining: from text, a store or records to batches to train on and batches held out."""

import dataclasses
import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flaxbert.losses import IGNORE
from flaxbert.tokenizer import WordPieceTokenizer
from train.config import Config
from train.data.corpus.reader import TextReader
from train.data.corpus.store import RECORD, TokenStore
from train.data.corpus.tokens import SentenceTokenizer, text_chunks
from train.data.host_shard import HostShard
from train.data.pretraining.batches import HeldOutBatches, StagedBatches, TrainBatches
from train.data.pretraining.masking import Masking
from train.data.pretraining.records import RecordBatches, RecordFiles
from train.data.pretraining.rows import RowBuilder
from train.data.pretraining.segments import ExampleBuilder, FullSentenceExamples, NextSentencePairs, StreamExamples
from train.distributed import Placement
from train.multihost.host_group import HostGroup
from train.tasks.start import load_tokenizer
from train.tasks.task import HostBatch, TrainSet

if TYPE_CHECKING:
    from train.tasks.pretraining import Pretraining

RECORDS = "tfrecords:"


class Segments(enum.Enum):
    """What an example is."""

    NEXT_SENTENCE = "next-sentence"
    """Two segments, of which the second follows the first or is of another document: Google's BERT."""
    FULL_SENTENCES = "full-sentences"
    """One segment of whole sentences, as many as fit: RoBERTa."""
    STREAM = "stream"
    """One segment of text, cut where it is full."""


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run of pretraining reads.

    Attributes:
        tokenizer: what made the tokens.
        train: batches to train on.
        steps_per_epoch: how many of them are an epoch.
        heldout: batches to evaluate on.
        counts: [V], how often each token occurs in what is held out.
        facts: for the run's summary.
    """

    tokenizer: WordPieceTokenizer
    train: TrainSet
    steps_per_epoch: int
    heldout: Iterable[HostBatch]
    counts: np.ndarray
    facts: Mapping[str, Any]

    @property
    def entropy(self) -> float:
        """Of the held-out tokens (nat), special ones left out: no unigram model does better on them."""
        counts = self.counts.copy()
        counts[list(self.tokenizer.special_ids)] = 0
        shares = counts[counts > 0] / max(counts.sum(), 1)
        return float(-(shares * np.log(shares)).sum())


def prepare_data(settings: "Pretraining", config: Config, host_shard: HostShard, host_group: HostGroup) -> Data:
    """What the settings name.

    Raises:
        FileNotFoundError, ValueError: what is wrong with it.
    """
    if settings.text.startswith(RECORDS):
        return _of_records(settings, config, host_shard)
    store = _open(settings, config, host_group)
    train, heldout = _split(settings, store.document_count, config.run.seed)
    batches = _batches(settings, store, train, config, host_shard)
    begin = list(_first_batches(settings, store, train, config, host_shard))
    size = config.run.evaluation_batch_size or config.run.batch_size
    tokens = np.diff(store.document_starts)
    return Data(
        tokenizer=store.tokenizer,
        train=StagedBatches([*begin, batches], [stage.steps for stage in settings.stages]) if begin else batches,
        steps_per_epoch=-(-batches.rows_of_epoch // config.run.batch_size),
        heldout=HeldOutBatches(
            store,
            heldout,
            make=_maker(settings, store, heldout),
            build=_builder(settings, store),
            size=size,
            host_shard=host_shard,
        ),
        counts=np.bincount(np.concatenate(store.of_documents(heldout)), minlength=store.tokenizer.vocab_size),
        facts={
            "documents": f"{len(train):,} to train on, {len(heldout):,} held out",
            "tokens": f"{tokens[train].sum():,} to train on, {tokens[heldout].sum():,} held out",
            "SHA-256 of the tokens": store.digest,
        },
    )


def _open(settings: "Pretraining", config: Config, host_group: HostGroup) -> TokenStore:
    """The store, or one made of the text in memory."""
    wanted = load_tokenizer(config, settings.tokenizer)
    folder = Path(settings.text).expanduser()
    if (folder / RECORD).is_file():
        store = TokenStore.open(folder)
        if wanted is not None and wanted.vocabulary_digest != store.tokenizer.vocabulary_digest:
            raise ValueError(
                f"{folder} was made with a vocabulary of {store.tokenizer.vocab_size} tokens, another than that of "
                f"{settings.tokenizer or config.model.pretrained or config.run.folder} ({wanted.vocab_size}); prepare "
                "the text with this one"
            )
    else:
        lines = list(TextReader([settings.text]))
        tokenizer = wanted or _learn(settings, lines, host_group)
        tokenise = SentenceTokenizer(tokenizer.backend.to_str(), split=True)
        store = TokenStore.of(map(tokenise, text_chunks(iter(lines))), tokenizer)
    if not len(store.tokens):
        raise ValueError(f"{settings.text}: holds no text")
    return store


def _learn(settings: "Pretraining", lines: Sequence[str], host_group: HostGroup) -> WordPieceTokenizer:
    # By one host for all: what is learnt twice may differ in a few tokens.
    how: dict[str, Any] = {"lowercase": settings.lowercase}
    tokens = host_group.share(lambda: WordPieceTokenizer.train(lines, vocab_size=settings.vocab_size, **how).vocabulary)
    return WordPieceTokenizer.from_tokens(tokens, **how)


def _split(settings: "Pretraining", documents: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the documents to train on, and of those held out."""
    if not 0.0 < settings.heldout < 1.0:
        raise ValueError(f"heldout is {settings.heldout}; it must lie between 0 and 1")
    least = 2 if settings.pairs else 1  # a stranger is of another document
    if documents < 2 * least:
        raise ValueError(
            f"the text has {documents} documents; {2 * least} are needed at least, to train on some and hold out "
            "others: put blank lines between documents"
        )
    order = np.random.default_rng(seed).permutation(documents)
    count = min(max(least, round(settings.heldout * documents)), documents - least)
    return np.sort(order[count:]), np.sort(order[:count])


def _builder(settings: "Pretraining", store: TokenStore) -> RowBuilder:
    masking = Masking.of(store.tokenizer, **settings.rule)
    return RowBuilder(store, masking, settings.shape(masking), settings.pairs)


def _maker(settings: "Pretraining", store: TokenStore, documents: np.ndarray) -> ExampleBuilder:
    if settings.segments is Segments.NEXT_SENTENCE:
        return NextSentencePairs(store, documents, max_length=settings.max_length, short=settings.short)
    single = FullSentenceExamples if settings.segments is Segments.FULL_SENTENCES else StreamExamples
    return single(store, max_length=settings.max_length)


def _batches(
    settings: "Pretraining", store: TokenStore, train: np.ndarray, config: Config, host_shard: HostShard
) -> TrainBatches:
    return TrainBatches(
        store,
        train,
        make=_maker(settings, store, train),
        build=_builder(settings, store),
        size=config.run.batch_size,
        seed=config.run.seed,
        copies=settings.copies,
        host_shard=host_shard,
    )


def _first_batches(
    settings: "Pretraining", store: TokenStore, train: np.ndarray, config: Config, host_shard: HostShard
) -> Iterator[TrainBatches]:
    """Those of each stage."""
    steps, run = [stage.steps for stage in settings.stages], config.run
    if steps and (run.steps is None or sum(steps) >= run.steps):
        raise ValueError(f"the stages take {sum(steps)} steps, the run {run.steps}; give run.steps, and more")
    for number, stage in enumerate(settings.stages):
        lengths = {"max_length": stage.max_length, "row_length": stage.row_length}
        given = {name: value for name, value in lengths.items() if value is not None}
        size = stage.batch_size or run.batch_size
        placement = Placement.of(config.mesh)
        placement.check_rows(
            f"batch_size of stage {number}", size, gradient_accumulation_steps=run.gradient_accumulation_steps
        )
        own = dataclasses.replace(config, run=dataclasses.replace(run, batch_size=size))
        yield _batches(dataclasses.replace(settings, stages=(), **given), store, train, own, host_shard)


def _of_records(settings: "Pretraining", config: Config, host_shard: HostShard) -> Data:
    records = RecordFiles.find(Path(settings.text.removeprefix(RECORDS)).expanduser())
    tokenizer = load_tokenizer(config, settings.tokenizer)
    if tokenizer is None:
        raise ValueError(f"{settings.text} holds no vocabulary: give that with which it was made as --task.tokenizer")
    if not settings.pairs or settings.row_length is not None or settings.stages:
        raise ValueError(
            f"{settings.text} holds pairs of one length, one a row; segments, row_length and stages are for text"
        )
    train, heldout = _split(settings, len(records), config.run.seed)
    run, masking = config.run, Masking.of(tokenizer, **settings.rule)
    how: dict[str, Any] = {"length": settings.max_length, "predictions": settings.shape(masking).predictions}
    how |= {"vocab_size": tokenizer.vocab_size, "host_shard": host_shard}
    batches = RecordBatches(records, train, size=run.batch_size, seed=run.seed, **how)
    dev = RecordBatches(records, heldout, size=run.evaluation_batch_size or run.batch_size, seed=None, **how)
    labels = np.concatenate([batch["masked_lm_labels"].reshape(-1) for batch in dev])
    return Data(
        tokenizer=tokenizer,
        train=batches,
        steps_per_epoch=len(batches),
        heldout=dev,
        counts=np.bincount(labels[labels != IGNORE], minlength=tokenizer.vocab_size),
        facts={"examples": f"{len(train):,} to train on, {len(heldout):,} held out"},
    )
