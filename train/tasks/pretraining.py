"""Pretraining: masked words, and whether one segment follows the other, on text or a store of its tokens."""

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxbert import BertForMaskedLM, BertForPreTraining
from flaxbert.config import BertConfig
from flaxbert.losses import IGNORE
from flaxbert.tokenizer import MASK, WordPieceTokenizer
from train.config import Config
from train.data.corpus.lines import TextReader
from train.data.corpus.store import RECORD, TOKENIZER, TokenStore, vocabulary_digest
from train.data.corpus.tokens import SentenceTokenizer, pieces
from train.data.part import WHOLE, RowPart
from train.data.pretraining.batches import HeldOutBatches, Maker, TrainBatches
from train.data.pretraining.masking import Masking
from train.data.pretraining.next_sentence import NextSentence
from train.data.pretraining.records import RecordBatches, RecordFiles
from train.data.pretraining.rows import RowBuilder, RowShape
from train.data.pretraining.single import FullSentences, Stream
from train.peers import ALONE, Peers
from train.tasks.pretraining_objective import PreparedPretraining, PretrainingObjective
from train.tasks.start import load_tokenizer, model_config, outlined_config
from train.tasks.task import Outline

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
class Pretraining:
    """Settings of pretraining."""

    text: str
    """A store made by `python -m train.data.prepare`. Or text, tokenised when the run starts: a file (a blank line
    ends a document), a folder of them, "datasets:NAME", or "pydoc:" for Python's own documentation. Or
    "tfrecords:PATH", the pairs and masks that Google's create_pretraining_data.py has written."""
    tokenizer: Path | None = None
    """Of text: a folder or vocab.txt; by default the pretrained model's, or one learnt from the text."""
    vocab_size: int = 8192
    """Of a tokenizer learnt from the text."""
    lowercase: bool = True
    """Whether a learnt tokenizer folds case."""
    segments: Segments = Segments.NEXT_SENTENCE
    """What an example is."""
    max_length: int = 128
    """Tokens of an example."""
    row_length: int | None = None
    """Let examples share rows of so many tokens: next to no padding, the same losses. Without it each has a row."""
    short: float = 0.1
    """Share of documents that are cut into shorter pairs (next-sentence)."""
    masking_rate: float = 0.15
    """Share of an example's tokens that are predicted."""
    exact_rate: bool = True
    """Exactly this share of each example, rounded, at least one; otherwise each token, or word, is drawn on its own."""
    whole_words: bool = False
    """Choose the tokens of a word together."""
    max_predictions: int | None = None
    """Tokens of an example that are predicted, at most."""
    copies: int | None = None
    """How many epochs there are that differ in pairs and masks, and then come again; None for ever new ones."""
    heldout: float = 0.05
    """Fraction of the documents kept for evaluation."""
    prompts: tuple[str, ...] = ()
    """Texts with one [MASK], filled at the end of the run."""

    def __post_init__(self):
        if self.row_length is not None and self.row_length < self.max_length:
            raise ValueError(f"row_length is {self.row_length}; examples have up to {self.max_length} tokens")
        if not 0.0 <= self.short < 1.0:
            raise ValueError(f"short is {self.short}; it must be at least 0 and less than 1")
        if self.copies is not None and self.copies < 1:
            raise ValueError(f"copies is {self.copies}; it must be at least 1")

    def prepare(self, config: Config, *, part: RowPart = WHOLE, peers: Peers = ALONE) -> PreparedPretraining:
        """Opens the store, or tokenises the text, and splits it by document; raises what `TaskSettings` says."""
        if self.text.startswith(RECORDS):
            return self._of_records(config, part)
        store = self._store(config, peers)
        sizes = self._sizes(config, store.tokenizer)
        train, heldout = self._split(store.document_count, config.run.seed)
        how: dict[str, Any] = {"build": self._builder(store), "part": part}
        run = config.run
        batches = TrainBatches(
            store, train, self._maker(store, train), size=run.batch_size, seed=run.seed, copies=self.copies, **how
        )
        size = run.evaluation_batch_size or run.batch_size
        counts = np.bincount(np.concatenate(store.of_documents(heldout)), minlength=store.tokenizer.vocab_size)
        tokens = np.diff(store.document_starts)
        return self._prepared(
            sizes,
            store.tokenizer,
            counts,
            train=batches,
            steps_per_epoch=-(-batches.rows_of_epoch // run.batch_size),
            evaluations={"dev": HeldOutBatches(store, heldout, self._maker(store, heldout), size=size, **how)},
            facts={
                "documents": f"{len(train):,} to train on, {len(heldout):,} held out",
                "tokens": f"{tokens[train].sum():,} to train on, {tokens[heldout].sum():,} held out",
                "SHA-256 of the tokens": store.digest,
            },
        )

    def _of_records(self, config: Config, part: RowPart) -> PreparedPretraining:
        records = RecordFiles.find(Path(self.text.removeprefix(RECORDS)).expanduser())
        tokenizer = load_tokenizer(config, self.tokenizer)
        if tokenizer is None:
            raise ValueError(f"{self.text} holds no vocabulary: give that with which it was made as --task.tokenizer")
        if not self._pairs or self.row_length is not None:
            raise ValueError(f"{self.text} holds pairs, one a row; segments and row_length cannot say otherwise")
        sizes = self._sizes(config, tokenizer)
        train, heldout = self._split(len(records), config.run.seed)
        run, predictions = config.run, self._shape(Masking.of(tokenizer, **self._rule)).predictions
        how: dict[str, Any] = {"length": self.max_length, "predictions": predictions, "part": part}
        how |= {"vocab_size": tokenizer.vocab_size}
        batches = RecordBatches(records, train, size=run.batch_size, seed=run.seed, **how)
        dev = RecordBatches(records, heldout, size=run.evaluation_batch_size or run.batch_size, seed=None, **how)
        labels = np.concatenate([batch["masked_lm_labels"].reshape(-1) for batch in dev])
        return self._prepared(
            sizes,
            tokenizer,
            np.bincount(labels[labels != IGNORE], minlength=tokenizer.vocab_size),
            train=batches,
            steps_per_epoch=len(batches),
            evaluations={"dev": dev},
            facts={"examples": f"{len(train):,} to train on, {len(heldout):,} held out"},
        )

    def _prepared(
        self,
        sizes: BertConfig,
        tokenizer: WordPieceTokenizer,
        counts: np.ndarray,
        *,
        facts: Mapping[str, Any],
        **data: Any,
    ) -> PreparedPretraining:
        """`counts` [V]: of held-out tokens."""
        entropy = _entropy(counts, tokenizer)
        more = {"vocabulary": tokenizer.vocab_size, "unigram entropy of the held-out tokens (nat)": round(entropy, 4)}
        return PreparedPretraining(
            **self._objective(sizes),
            tokenizer=tokenizer,
            max_length=self.max_length,
            prompts=self.prompts,
            unigram_entropy=entropy,
            facts={**facts, **more},
            **data,
        )

    def _sizes(self, config: Config, tokenizer: WordPieceTokenizer) -> BertConfig:
        sizes = model_config(config.model, tokenizer, max_length=self.max_length)
        for prompt in self.prompts:
            ids = tokenizer.encode([prompt], [None], max_length=self.max_length)[0].ids
            if ids.count(tokenizer.id(MASK)) != 1:
                raise ValueError(f"the prompt {prompt!r} must hold {MASK} once within {self.max_length} tokens")
        return sizes

    def outline(self, config: Config) -> Outline:
        """Rows without padding, as long as the settings let them be; the text is not read."""
        store = Path(self.text) / TOKENIZER
        tokenizer = store if store.is_dir() and self.tokenizer is None else self.tokenizer
        sizes = outlined_config(config, tokenizer, learnt=self.vocab_size, max_length=self.max_length)
        # Which ids stand there does not matter.
        masking = Masking(sizes.vocab_size, 0, (0, 0), (), np.zeros(sizes.vocab_size, bool), **self._rule)
        shape = self._shape(masking)
        rows, ones = config.run.batch_size, np.ones((config.run.batch_size, shape.length), np.int32)
        slots = np.zeros((rows, shape.slots or 1), np.int32)
        batch = {"input_ids": ones, "masked_lm_positions": np.zeros((rows, shape.predictions), np.int32)}
        batch["masked_lm_labels"] = batch["masked_lm_positions"]
        if self._pairs:
            batch |= {"token_type_ids": ones, "next_sentence_labels": slots if shape.slots else slots[:, 0]}
        if shape.slots is None:
            batch["attention_mask"] = ones
        else:
            batch |= {"segment_ids": ones, "position_ids": ones, "first_positions": slots}
        return Outline(objective=PretrainingObjective(**self._objective(sizes)), batch=batch)

    @property
    def _pairs(self) -> bool:
        return self.segments is Segments.NEXT_SENTENCE

    @property
    def _rule(self) -> dict[str, Any]:
        return {
            "rate": self.masking_rate,
            "exact": self.exact_rate,
            "whole_words": self.whole_words,
            "most": self.max_predictions,
        }

    def _objective(self, sizes: BertConfig) -> dict[str, Any]:
        return {"config": sizes, "architecture": BertForPreTraining if self._pairs else BertForMaskedLM}

    def _shape(self, masking: Masking) -> RowShape:
        if self.row_length is None:
            # Files have as many slots as they were told to have, needed or not.
            fixed = self.max_predictions if self.text.startswith(RECORDS) else None
            return RowShape(self.max_length, None, fixed or masking.predictions(self.max_length))
        # Twice as many as of full length, and some: short examples gather in the last rows to be filled.
        slots = 2 * -(-self.row_length // self.max_length) + 4
        return RowShape(self.row_length, slots, masking.predictions(self.row_length, slots))

    def _builder(self, store: TokenStore) -> RowBuilder:
        masking = Masking.of(store.tokenizer, **self._rule)
        return RowBuilder(store, masking, self._shape(masking), self._pairs)

    def _maker(self, store: TokenStore, documents: np.ndarray) -> Maker:
        if self.segments is Segments.NEXT_SENTENCE:
            return NextSentence(store, documents, max_length=self.max_length, short=self.short)
        single = FullSentences if self.segments is Segments.FULL_SENTENCES else Stream
        return single(store, max_length=self.max_length)

    def _split(self, documents: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the documents to train on, and of those held out."""
        if not 0.0 < self.heldout < 1.0:
            raise ValueError(f"heldout is {self.heldout}; it must lie between 0 and 1")
        least = 2 if self._pairs else 1  # a stranger is of another document
        if documents < 2 * least:
            raise ValueError(
                f"the text has {documents} documents; {2 * least} are needed at least, to train on some and hold out "
                "others: put blank lines between documents"
            )
        order = np.random.default_rng(seed).permutation(documents)
        count = min(max(least, round(self.heldout * documents)), documents - least)
        return np.sort(order[count:]), np.sort(order[:count])

    def _store(self, config: Config, peers: Peers) -> TokenStore:
        wanted = load_tokenizer(config, self.tokenizer)
        folder = Path(self.text).expanduser()
        if (folder / RECORD).is_file():
            store = TokenStore.open(folder)
            if wanted is not None and vocabulary_digest(wanted) != vocabulary_digest(store.tokenizer):
                raise ValueError(
                    f"{folder} was made with a vocabulary of {store.tokenizer.vocab_size} tokens, another than that of "
                    f"{self.tokenizer or config.model.pretrained or config.run.folder} ({wanted.vocab_size}); prepare "
                    "the text with this one"
                )
        else:
            lines = list(TextReader([self.text]))
            tokenizer = wanted or self._learn(lines, peers)
            tokenise = SentenceTokenizer(tokenizer.backend.to_str(), split=True)
            store = TokenStore.of(map(tokenise, pieces(iter(lines))), tokenizer)
        if not len(store.tokens):
            raise ValueError(f"{self.text}: holds no text")
        return store

    def _learn(self, lines: Sequence[str], peers: Peers) -> WordPieceTokenizer:
        # By one host for all: what is learnt twice may differ in a few tokens.
        def tokens() -> list[str]:
            return WordPieceTokenizer.train(lines, vocab_size=self.vocab_size, lowercase=self.lowercase).vocabulary

        return WordPieceTokenizer.of(peers.share(tokens), lowercase=self.lowercase)


def _entropy(counts: np.ndarray, tokenizer: WordPieceTokenizer) -> float:
    """Entropy (nat) of tokens that occur so often, special ones left out: no unigram model does better on them."""
    counts = counts.copy()
    counts[list(tokenizer.special_ids)] = 0
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum())
