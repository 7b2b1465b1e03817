"""Causal language modelling: predict each token of a text from the tokens before it."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from flaxbert import BertConfig, PreTrainedModel, losses
from flaxbert.families import HeadKind, model_class
from flaxbert.layers import Params
from flaxbert.losses import IGNORE, Loss
from flaxbert.tokenizer import WordPieceTokenizer
from train.config import Config
from train.data.bad_rows import bad_row_facts
from train.data.examples import TaggedSequences
from train.data.pretraining.datasets import entropy
from train.data.pretraining.store import TokenStore
from train.distributed import WHOLE_BATCH, HostBatch, HostShard
from train.evaluate import DEV, EvalStepOutput, Evaluation
from train.multihost.hosts import SINGLE_HOST, HostGroup
from train.step import Batch
from train.tasks.supervised import common_fields
from train.tasks.task import Facts, Task, TokenCounts, apply_model, load_tokenizer, model_config
from train.tasks.text_corpus import TextCorpus, compare_with_unigrams


@dataclasses.dataclass(frozen=True)
class LanguageModelling(TextCorpus):
    """Settings of causal language modelling.

    The documents of the text are joined, [SEP] after each, and cut into rows of `max_length` tokens that begin with
    [CLS]. Every token and every [SEP] is predicted once in an epoch.
    """

    text: tuple[str, ...]
    """Text: files (a blank line ends a document), folders of files, "datasets:NAME", or "pydoc:" for Python's own
    documentation. Or one store made by `python -m train.data.prepare`."""
    dev: tuple[str, ...] = ()
    """Text to evaluate on, during and after training."""
    heldout: float = 0.05
    """Without `dev`: the share of the tokens that is held out for it, at the end of the text."""
    max_length: int = 128
    """Tokens of a row, with [CLS]."""

    def __post_init__(self):
        super().__post_init__()
        if not self.text:
            raise ValueError("no text was given; give --task.text a file, a folder, datasets:NAME or pydoc:")
        if not 0.0 < self.heldout < 1.0:
            raise ValueError(f"heldout is {self.heldout}; it must lie between 0 and 1")

    def prepare(
        self, config: Config, *, host_shard: HostShard = WHOLE_BATCH, host_group: HostGroup = SINGLE_HOST
    ) -> "LanguageModellingTask":
        """Open the store or tokenize the text, and cut it into rows; see `TaskSettings.prepare`."""
        tokenizer = load_tokenizer(config, self.tokenizer)
        self._model_config(config, tokenizer)  # an error now, and not after the text is tokenized
        store = self.open_corpus(self.text, config, tokenizer, host_group=host_group)
        dev = self.open_corpus(self.dev, config, store.tokenizer, host_group=host_group) if self.dev else None
        tokenizer = store.tokenizer
        sizes, facts = self._model_config(config, tokenizer)
        streams = self._streams(store, dev)
        rows = {name: token_rows(own, tokenizer, length=self.max_length) for name, own in streams.items()}
        unigram_entropy = entropy(np.unique(streams[DEV], return_counts=True)[1])
        facts |= {f"{name} tokens": len(own) for name, own in streams.items()}
        facts |= {"vocabulary": tokenizer.vocab_size}
        fields = common_fields(
            rows, config, sizes, tokenizer, max_length=self.max_length, head=HeadKind.CAUSAL_LM, host_shard=host_shard
        )
        bad_rows = {"text": store.bad_rows, DEV: () if dev is None else dev.bad_rows}
        return LanguageModellingTask(
            **fields,
            bad_rows=bad_rows,
            facts={
                **facts,
                **bad_row_facts(bad_rows),
                "unigram entropy of the dev tokens (nat)": round(unigram_entropy, 4),
            },
            digests={"text": store.digest, **({} if dev is None else {DEV: dev.digest})},
            unigram_entropy=unigram_entropy,
        )

    def _model_config(self, config: Config, tokenizer: WordPieceTokenizer | None) -> tuple[BertConfig, Facts]:
        """Return the decoder's sizes, and a fact if the pretrained model is an encoder."""
        sizes = model_config(config.model, tokenizer, max_length=self.max_length)
        model_class(sizes, HeadKind.CAUSAL_LM)  # raises for a family without such a class
        if sizes.add_cross_attention:
            raise ValueError(
                "add_cross_attention is true, but a language model has no encoder to attend to; give "
                "--model.sizes.no-add-cross-attention, or a pretrained model without cross-attention"
            )
        was_encoder = config.model.pretrained is not None and not sizes.is_decoder
        facts = Facts(attention="causal; is_decoder is set, the pretrained model is an encoder") if was_encoder else {}
        return sizes.replace(is_decoder=True), facts

    def _streams(self, store: TokenStore, dev: TokenStore | None) -> dict[str, np.ndarray]:
        """Return the tokens to train on, and those of dev."""
        stream = token_stream(store)
        if dev is not None:
            return {"train": stream, DEV: token_stream(dev)}
        held_out = min(max(1, round(self.heldout * len(stream))), len(stream) - 1)
        return {"train": stream[:-held_out], DEV: stream[-held_out:]}


def token_stream(store: TokenStore) -> np.ndarray:
    """Return the tokens of all documents, with [SEP] after each."""
    separator = store.tokenizer.token_id(store.tokenizer.special_tokens.sep)
    return np.insert(store.tokens, store.document_starts[1:], separator)


def token_rows(stream: np.ndarray, tokenizer: WordPieceTokenizer, *, length: int) -> TaggedSequences:
    """Cut a stream of tokens into rows of `length`, each with [CLS] and the next `length - 1` tokens.

    The labels are the tokens themselves; the loss shifts them by one.
    """
    first = tokenizer.token_id(tokenizer.special_tokens.cls)
    starts = range(0, len(stream), length - 1)
    ids = [np.concatenate([[first], stream[start : start + length - 1]]).astype(np.int32) for start in starts]
    zeros = np.zeros(length, np.int32)
    return TaggedSequences(ids, [zeros[: len(row)] for row in ids], labels=ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModellingTask(Task):
    """The task of causal language modelling."""

    unigram_entropy: float  # of the dev tokens (nat)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Loss of a token, and its exponential."""
        return ("loss", "perplexity")

    def loss(self, model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """Return the cross-entropy of each token given those before it in its row."""
        return losses.causal_lm(apply_model(model, params, batch, key).logits, batch["labels"])

    def eval_step(self, model: PreTrainedModel, params: Params, batch: Batch) -> EvalStepOutput:
        """Return the loss without dropout."""
        return EvalStepOutput({"loss": self.loss(model, params, batch, None)})

    def compute_metrics(
        self, name: str, evaluation: Evaluation, *, earlier: Mapping[str, Evaluation]
    ) -> dict[str, float]:
        """Return the perplexity."""
        return {"perplexity": math.exp(min(evaluation.means["loss"], 700.0))}

    def token_counts(self, batch: HostBatch) -> TokenCounts:
        """Return the tokens and the predicted positions of a batch."""
        return TokenCounts.of_batch(batch, predictions=int((batch["labels"][:, 1:] != IGNORE).sum()))

    def write_predictions(
        self, model: PreTrainedModel, params: Params, folder: Path, results: Mapping[str, Evaluation]
    ) -> Sequence[str]:
        """Compare the loss with the unigram entropy, and state the perplexity."""
        means = results[DEV].means
        line = compare_with_unigrams(means["loss"], self.unigram_entropy)
        return [f"{line}; perplexity {means['perplexity']:.1f}"]
