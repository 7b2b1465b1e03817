"""Settings and results that the tasks on plain text have in common."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from flaxbert.tokenizer import WordPieceTokenizer
from train.config import Config, expand_home
from train.data.bad_rows import BadRows
from train.data.pretraining.datasets import open_text
from train.data.pretraining.store import TokenStore
from train.multihost.hosts import HostGroup
from train.tasks.task import TaskSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextCorpus(TaskSettings):
    """Settings of every task on plain text."""

    tokenizer: Path | None = None
    """For text: a folder or vocab.txt; by default the pretrained model's, or one learned from the text."""
    vocab_size: int = 8192
    """Vocabulary size of a learned tokenizer."""
    lowercase: bool = True
    """Fold case in a learned tokenizer."""
    bad_rows: Annotated[BadRows, tyro.conf.EnumChoicesFromValues] = BadRows.ERROR
    """For text: treatment of lines that are not text, of records without a text, and of damaged TFRecords: error, or
    skip, which lists them in the run's folder."""

    def __post_init__(self):
        expand_home(self)

    def open_corpus(
        self, texts: Sequence[str], config: Config, tokenizer: WordPieceTokenizer | None, *, host_group: HostGroup
    ) -> TokenStore:
        """Open a token store, or tokenize texts.

        Args:
            texts: one store, or sources of text.
            config: of the run.
            tokenizer: of the run; None to learn one from the texts.
            host_group: the hosts of the run.

        Raises:
            FileNotFoundError: there is no such text.
            ValueError: the text is empty, or the store was made with another vocabulary.
        """

        def learn(lines: Sequence[str]) -> WordPieceTokenizer:
            return learn_tokenizer(lines, self.vocab_size, lowercase=self.lowercase, host_group=host_group)

        store = open_text(texts, tokenizer, learn, bad_rows=self.bad_rows)
        if tokenizer is not None and tokenizer.vocabulary_digest != store.tokenizer.vocabulary_digest:
            raise ValueError(
                f"{', '.join(texts)} was made with a vocabulary of {store.tokenizer.vocab_size} tokens, another than "
                f"that of {self.tokenizer or config.model.pretrained or config.run.folder} ({tokenizer.vocab_size}); "
                "prepare the text with this one"
            )
        return store


def learn_tokenizer(
    lines: Sequence[str], vocab_size: int, *, lowercase: bool, host_group: HostGroup
) -> WordPieceTokenizer:
    """Learn a vocabulary, the same on all hosts."""
    # One host learns for all: two hosts might come to vocabularies that differ in a few tokens.
    vocabulary = host_group.share(
        lambda: WordPieceTokenizer.train(lines, vocab_size=vocab_size, lowercase=lowercase).vocabulary
    )
    return WordPieceTokenizer.from_tokens(vocabulary, lowercase=lowercase)


def compare_with_unigrams(loss: float, unigram_entropy: float) -> str:
    """Return a line that compares the held-out loss with the lowest loss of a model without context."""
    gain = f"{unigram_entropy - loss:.3f} below" if loss < unigram_entropy else "not below"
    return f"held-out loss {loss:.3f} nat, {gain} the unigram entropy of {unigram_entropy:.3f}"
