"""Pretraining: masked words, and whether one segment follows the other, on text or a store of its tokens."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from flaxbert import BertForMaskedLM, BertForPreTraining
from flaxbert.config import BertConfig
from flaxbert.tokenizer import MASK
from train.config import Config
from train.data.corpus.store import TOKENIZER
from train.data.host_shard import WHOLE_BATCH, HostShard
from train.data.pretraining.batches import Stage
from train.data.pretraining.masking import Masking
from train.data.pretraining.rows import PretrainingRowShape
from train.multihost.host_group import SINGLE_HOST, HostGroup
from train.tasks.pretraining_data import RECORDS, Segments, prepare_data
from train.tasks.pretraining_objective import PreparedPretraining, PretrainingObjective
from train.tasks.start import model_config, outlined_config
from train.tasks.task import TrainSpec


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
    segments: Annotated[Segments, tyro.conf.EnumChoicesFromValues] = Segments.NEXT_SENTENCE
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
    stages: tuple[Stage, ...] = ()
    """With what the run begins: smaller batches, shorter examples. Optimizer state and place in the text go on."""
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
        if any((stage.max_length or 0) > self.max_length for stage in self.stages):
            raise ValueError(f"a stage has longer examples than the run, whose max_length is {self.max_length}")

    def prepare(
        self, config: Config, *, host_shard: HostShard = WHOLE_BATCH, host_group: HostGroup = SINGLE_HOST
    ) -> PreparedPretraining:
        """Opens the store, or tokenises the text, and splits it by document; raises what `TaskSettings` says."""
        data = prepare_data(self, config, host_shard, host_group)
        tokenizer = data.tokenizer
        sizes = model_config(config.model, tokenizer, max_length=self.max_length)
        for prompt in self.prompts:
            ids = tokenizer.encode([prompt], [None], max_length=self.max_length)[0].ids
            if ids.count(tokenizer.token_id(MASK)) != 1:
                raise ValueError(f"the prompt {prompt!r} must hold {MASK} once within {self.max_length} tokens")
        entropy = data.entropy
        more = {"vocabulary": tokenizer.vocab_size, "unigram entropy of the held-out tokens (nat)": round(entropy, 4)}
        return PreparedPretraining(
            **self._objective(sizes),
            tokenizer=tokenizer,
            max_length=self.max_length,
            prompts=self.prompts,
            unigram_entropy=entropy,
            train=data.train,
            steps_per_epoch=data.steps_per_epoch,
            evaluations={"dev": data.heldout},
            facts={**data.facts, **more},
        )

    def train_spec(self, config: Config) -> TrainSpec:
        """Rows without padding, as long as the settings let them be; the text is not read."""
        tokenizer, store = self.tokenizer, Path(self.text) / TOKENIZER
        # A store that is yet to be made has the vocabulary that the model's sizes speak of, text that is there a learnt
        # one.
        if tokenizer is None and (store.is_dir() or not (":" in self.text or Path(self.text).exists())):
            tokenizer = store
        sizes = outlined_config(config, tokenizer, learnt=self.vocab_size, max_length=self.max_length)
        # Which ids stand there does not matter.
        masking = Masking(sizes.vocab_size, 0, (0, 0), (), np.zeros(sizes.vocab_size, bool), **self.rule)
        shape = self.shape(masking)
        rows, ones = config.run.batch_size, np.ones((config.run.batch_size, shape.length), np.int32)
        slots = np.zeros((rows, shape.slots or 1), np.int32)
        batch = {"input_ids": ones, "masked_lm_positions": np.zeros((rows, shape.predictions), np.int32)}
        batch["masked_lm_labels"] = batch["masked_lm_positions"]
        if self.pairs:
            batch |= {"token_type_ids": ones, "next_sentence_labels": slots if shape.slots else slots[:, 0]}
        if shape.slots is None:
            batch["attention_mask"] = ones
        else:
            batch |= {"segment_ids": ones, "position_ids": ones, "first_positions": slots}
        return TrainSpec(objective=PretrainingObjective(**self._objective(sizes)), batch=batch)

    @property
    def pairs(self) -> bool:
        """Whether an example is two segments."""
        return self.segments is Segments.NEXT_SENTENCE

    @property
    def rule(self) -> dict[str, Any]:
        """By which tokens are masked: arguments of `Masking.of`."""
        how = {"exact": self.exact_rate, "whole_words": self.whole_words}
        return {"rate": self.masking_rate, "most": self.max_predictions, **how}

    def shape(self, masking: Masking) -> PretrainingRowShape:
        """Of a row."""
        shape = PretrainingRowShape.of(masking, max_length=self.max_length, row_length=self.row_length)
        if self.text.startswith(RECORDS) and self.max_predictions is not None:
            # Files have as many slots as they were told to have, needed or not.
            return dataclasses.replace(shape, predictions=self.max_predictions)
        return shape

    def _objective(self, sizes: BertConfig) -> dict[str, Any]:
        return {"config": sizes, "architecture": BertForPreTraining if self.pairs else BertForMaskedLM}
