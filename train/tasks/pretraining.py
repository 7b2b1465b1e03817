"""Pretraining on text: predict masked tokens, and whether the second segment of a pair follows the first."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flaxbert import BertConfig, PreTrainedModel, losses
from flaxbert.families import HeadKind, architecture_of, model_class
from flaxbert.layers import Params
from flaxbert.losses import IGNORE, Loss
from flaxbert.outputs import AdaptiveOutput, MaskedLMOutput, PreTrainingOutput
from flaxbert.sharding import fetch_global, is_multihost
from flaxbert.tokenizer import WordPieceTokenizer
from train.config import Config, expand_home
from train.data.bad_rows import bad_row_facts
from train.data.pretraining.datasets import BatchPlan, ExampleOptions, PretrainingData, store_data
from train.data.pretraining.masking import Masking
from train.data.pretraining.records import record_data
from train.data.pretraining.store import TOKENIZER
from train.distributed import WHOLE_BATCH, HostBatch, HostShard, Placement
from train.evaluate import EvalStepOutput, Evaluation
from train.multihost.hosts import SINGLE_HOST, HostGroup
from train.step import Batch
from train.tasks.task import (
    SoftTarget,
    Task,
    TokenCounts,
    TrainSpec,
    apply_model,
    load_tokenizer,
    model_config,
    model_config_without_data,
)
from train.tasks.text_corpus import TextCorpus, compare_with_unigrams

_RECORDS_PREFIX = "tfrecords:"


@dataclasses.dataclass(frozen=True)
class Pretraining(ExampleOptions, TextCorpus):
    """Settings of pretraining."""

    text: str
    """A store made by `python -m train.data.prepare`. Or text, tokenized when the run starts: a file (a blank line
    ends a document), a folder of files, "datasets:NAME", or "pydoc:" for Python's own documentation. Or
    "tfrecords:PATH", pairs and masks written by Google's create_pretraining_data.py."""
    prompts: tuple[str, ...] = ()
    """Texts with one mask token ([MASK] for BERT, <mask> for RoBERTa), which is filled at the end of the run."""

    def __post_init__(self):
        super().__post_init__()
        expand_home(self)

    @property
    def head(self) -> HeadKind:
        """Head of the model: one for next sentences too where examples are pairs."""
        return HeadKind.PRETRAINING if self.two_segments else HeadKind.MASKED_LM

    def prepare(
        self, config: Config, *, host_shard: HostShard = WHOLE_BATCH, host_group: HostGroup = SINGLE_HOST
    ) -> "PretrainingTask":
        """Open the store or tokenize the text, and split it by documents; see `TaskSettings.prepare`."""
        data = self._data(config, host_shard, host_group)
        tokenizer, entropy = data.tokenizer, data.unigram_entropy
        sizes = model_config(config.model, tokenizer, max_length=self.max_length)
        for prompt in self.prompts:
            ids = tokenizer.encode([prompt], [None], max_length=self.max_length)[0].ids
            mask = tokenizer.special_tokens.mask
            if ids.count(tokenizer.token_id(mask)) != 1:
                raise ValueError(f"the prompt {prompt!r} must hold {mask} once within {self.max_length} tokens")
        facts = {"vocabulary": tokenizer.vocab_size, "unigram entropy of the held-out tokens (nat)": round(entropy, 4)}
        return PretrainingTask(
            config=sizes,
            architecture=self._model_class(sizes),
            tokenizer=tokenizer,
            train=data.train,
            steps_per_epoch=data.steps_per_epoch,
            evaluations={"dev": data.held_out},
            facts={**data.facts, **facts, **bad_row_facts({"text": data.bad_rows})},
            bad_rows={"text": data.bad_rows},
            digests={"text": data.digest},
            max_length=self.max_length,
            prompts=self.prompts,
            unigram_entropy=entropy,
        )

    def train_spec(self, config: Config) -> TrainSpec:
        """Return the spec for rows without padding, as long as the settings allow; the text is not read."""
        tokenizer, store_tokenizer = self.tokenizer, Path(self.text).expanduser() / TOKENIZER
        # A store has its own tokenizer. Where there is no text yet, it is taken to be a store that is still to be made,
        # with the vocabulary size of the model's sizes. For text that exists, a tokenizer will be learned.
        text_exists = ":" in self.text or Path(self.text).expanduser().exists()
        if tokenizer is None and (store_tokenizer.is_dir() or not text_exists):
            tokenizer = store_tokenizer
        sizes = model_config_without_data(
            config, tokenizer, learned_vocab_size=self.vocab_size, max_length=self.max_length
        )
        return TrainSpec(
            config=sizes,
            architecture=self._model_class(sizes),
            loss=pretraining_loss,
            token_counts=pretraining_token_counts,
            batch=self.full_batch(config.run.batch_size, from_records=self.text.startswith(_RECORDS_PREFIX)),
        )

    def _data(self, config: Config, host_shard: HostShard, host_group: HostGroup) -> PretrainingData:
        self._check_stages(config)
        run, tokenizer = config.run, load_tokenizer(config, self.tokenizer)
        self._check_model(config, tokenizer)
        plan = BatchPlan(
            size=run.batch_size,
            evaluation_size=run.evaluation_batch_size or run.batch_size,
            seed=run.seed,
            host_shard=host_shard,
        )
        if self.text.startswith(_RECORDS_PREFIX):
            if tokenizer is None:
                raise ValueError(f"{self.text} holds no vocabulary: give the one that made it as --task.tokenizer")
            if not self.two_segments or self.row_length is not None or self.stages:
                raise ValueError(
                    f"{self.text} holds pairs of one length, one a row; segments, row_length and stages are for text"
                )
            path = Path(self.text.removeprefix(_RECORDS_PREFIX)).expanduser()
            return record_data(path, tokenizer, self, plan, bad_rows=self.bad_rows)

        store = self.open_corpus([self.text], config, tokenizer, host_group=host_group)
        return store_data(store, self, plan)

    def _check_model(self, config: Config, tokenizer: WordPieceTokenizer | None) -> None:
        """Check what is known before the text is read: the model's family and sizes, and the masking."""
        self._model_class(model_config(config.model, tokenizer, max_length=self.max_length))
        if tokenizer is not None:
            Masking.of(tokenizer, self.masking_rule)

    def _model_class(self, sizes: BertConfig) -> type[PreTrainedModel]:
        try:
            return model_class(sizes, self.head)
        except ValueError as error:
            remedy = "; give --task.segments full-sentences or stream" if self.two_segments else ""
            raise ValueError(f"{error}{remedy}") from None

    def _check_stages(self, config: Config) -> None:
        for number, stage in enumerate(self.stages):
            if (stage.max_length or 0) > self.max_length:
                raise ValueError(
                    f"max_length of stage {number} is {stage.max_length}; allowed: up to max_length of the run, "
                    f"{self.max_length}"
                )
        run, steps = config.run, sum(stage.steps for stage in self.stages)
        if self.stages and (run.steps is None or steps >= run.steps):
            raise ValueError(
                f"the stages take {steps} steps, and run.steps is {run.steps}; give --run.steps above {steps}, "
                "or shorter stages (--task.stages.0.steps ...)"
            )
        for number, stage in enumerate(self.stages):
            Placement.of(config.mesh).check_rows(
                f"batch_size of stage {number}",
                stage.batch_size or run.batch_size,
                gradient_accumulation_steps=run.gradient_accumulation_steps,
            )


def pretraining_logits(
    model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Return logits of the masked positions [B, M, V], and of the pairs: [B, 2], or [B, P, 2] where P share a row.

    The latter are None for a model without next-sentence head.
    """
    if "next_sentence_labels" not in batch:
        # A model without next-sentence head takes no first_positions.
        batch = {name: values for name, values in batch.items() if name != "first_positions"}
    outputs = apply_model(model, params, batch, key)
    if isinstance(outputs, PreTrainingOutput):
        return outputs.prediction_logits, outputs.seq_relationship_logits
    return outputs.logits, None


def pretraining_loss(model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
    """Return the cross-entropy at the masked positions, and that of next sentences as a second term if there are any.

    Dropout is used if `key` is not None.
    """
    tokens, pairs = pretraining_logits(model, params, batch, key)
    if pairs is None:
        return losses.masked_lm(tokens, batch["masked_lm_labels"])
    return losses.pretraining(tokens, pairs, batch["masked_lm_labels"], batch["next_sentence_labels"])


def pretraining_token_counts(batch: HostBatch) -> TokenCounts:
    """Return the tokens and the predicted positions of a batch."""
    return TokenCounts.of_batch(batch, predictions=int((batch["masked_lm_labels"] != IGNORE).sum()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingTask(Task):
    """The task of pretraining."""

    max_length: int  # maximum tokens of a prompt
    prompts: tuple[str, ...]
    unigram_entropy: float  # of the held-out tokens (nat)

    @property
    def loss_terms(self) -> tuple[str, ...]:
        """Losses of masked tokens and of next sentences, if the model has both heads."""
        both = isinstance(self.architecture, type) and architecture_of(self.architecture).head is HeadKind.PRETRAINING
        return ("masked_lm_loss", "next_sentence_loss") if both else ()

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Loss and accuracy of each head, the training loss, and the perplexity of masked tokens."""
        heads = ("masked_lm", "next_sentence") if self.loss_terms else ("masked_lm",)
        return (*(f"{head}_{metric}" for head in heads for metric in ("loss", "accuracy")), "loss", "perplexity")

    def loss(self, model: PreTrainedModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """Return `pretraining_loss`."""
        return pretraining_loss(model, params, batch, key)

    def soft_targets(self, output: AdaptiveOutput, batch: Batch) -> Sequence[SoftTarget]:
        """Return the logits of the masked positions."""
        assert isinstance(output, PreTrainingOutput | MaskedLMOutput)
        logits = output.prediction_logits if isinstance(output, PreTrainingOutput) else output.logits
        return [SoftTarget(logits, batch["masked_lm_labels"] != IGNORE)]

    def eval_step(self, model: PreTrainedModel, params: Params, batch: Batch) -> EvalStepOutput:
        """Return loss and accuracy at the masked positions, and of next sentences."""
        tokens, pairs = pretraining_logits(model, params, batch, None)
        heads = {"masked_lm": (tokens, batch["masked_lm_labels"], losses.masked_lm)}
        if pairs is not None:
            heads["next_sentence"] = (pairs, batch["next_sentence_labels"], losses.next_sentence)
        metrics = {}
        for name, (logits, labels, loss) in heads.items():
            correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels)  # False where the label is -100
            metrics[f"{name}_loss"] = loss(logits, labels)
            metrics[f"{name}_accuracy"] = Loss(correct * 1.0, jnp.sum(labels != IGNORE) * 1.0)
        return EvalStepOutput(metrics)

    def compute_metrics(
        self, name: str, evaluation: Evaluation, *, earlier: Mapping[str, Evaluation]
    ) -> dict[str, float]:
        """Return the training loss, and the perplexity of masked tokens; nothing if no token is masked."""
        means = evaluation.means
        if "masked_lm_loss" not in means:
            return {}
        loss = means["masked_lm_loss"] + means.get("next_sentence_loss", 0.0)
        return {"loss": loss, "perplexity": math.exp(min(means["masked_lm_loss"], 700.0))}

    def has_labels(self, name: str) -> bool:
        """Return whether any token of the held-out text is masked."""
        return any((batch["masked_lm_labels"] != IGNORE).any() for batch in self.evaluations[name])

    def token_counts(self, batch: HostBatch) -> TokenCounts:
        """Return `pretraining_token_counts`."""
        return pretraining_token_counts(batch)

    def write_predictions(
        self, model: PreTrainedModel, params: Params, folder: Path, results: Mapping[str, Evaluation]
    ) -> Sequence[str]:
        """Compare the loss with the unigram entropy, and fill the prompts with the five most probable tokens each."""
        loss = results["dev"].means.get("masked_lm_loss")
        baseline = "no token of the held-out text is masked: raise --task.masking-rate or --task.heldout"
        if loss is not None:
            baseline = compare_with_unigrams(loss, self.unigram_entropy)
        return [baseline, *(f"{prompt}  ->  {self._fill(model, params, prompt)}" for prompt in self.prompts)]

    def _fill(self, model: PreTrainedModel, params: Params, prompt: str) -> str:
        ids = np.asarray([self.tokenizer.encode([prompt], [None], max_length=self.max_length)[0].ids])
        mask = self.tokenizer.token_id(self.tokenizer.special_tokens.mask)
        position = np.argmax(ids == mask, axis=1)[:, None]
        batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "masked_lm_positions": position}

        def most_probable(params: Params) -> tuple[jax.Array, jax.Array]:
            logits, _ = pretraining_logits(model, params, batch, None)
            return jax.lax.top_k(jax.nn.softmax(logits[0, 0]), 5)

        # Where the parameters are divided over hosts, only a compiled function can read all of them.
        top = jax.jit(most_probable)(params) if is_multihost(params) else most_probable(params)
        probabilities, best = map(fetch_global, top)
        tokens = zip(self.tokenizer.tokens(best), probabilities, strict=True)
        return "  ".join(f"{token} {probability:.0%}" for token, probability in tokens)
