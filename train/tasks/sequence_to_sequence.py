"""Sequence to sequence: an encoder reads a text, and a decoder writes another one."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxbert import BertConfig, EncoderDecoderModel, losses
from flaxbert.families import HeadKind, model_class, read_keys
from flaxbert.generation import GenerationSettings
from flaxbert.generation.decoding import greedy_tokens
from flaxbert.layers import Params
from flaxbert.losses import IGNORE, Loss
from flaxbert.text.messages import raise_problems
from flaxbert.tokenizer import WordPieceTokenizer
from flaxbert.weights.encoder_decoder import part_configs
from flaxbert.weights.load import is_encoder_decoder
from train.config import Config
from train.data.labelled_texts import Columns, LabelledTexts, read_labelled_texts
from train.data.labels import LabelledText
from train.data.sources import reading_facts
from train.data.text_pairs import GenerationBatches, target_examples, target_text
from train.distributed import WHOLE_BATCH, HostBatch, HostShard, Placement
from train.evaluate import EvalStepOutput, Evaluation
from train.flops import cross_attention_flops, train_flops
from train.metrics.generated_texts import chrf, exact_match
from train.multihost.hosts import SINGLE_HOST, HostGroup
from train.step import Batch
from train.tasks.prediction_files import write_prediction_table, write_text
from train.tasks.supervised import Supervised, common_fields, rows_digests
from train.tasks.task import MODEL_FOLDER, Task, TokenCounts, config_folder, fitted_config, load_tokenizer, model_config
from train.tasks.text_corpus import learn_tokenizer


@dataclasses.dataclass(frozen=True)
class SequenceToSequence(Supervised):
    """Settings of sequence to sequence.

    Files are tables with a column "source", the text to read, and a column "target", the text to write. The model is an
    encoder and a decoder of the same sizes. A pretrained BERT gives the weights of both, without the decoder's
    attention to the encoder, which is new; a pretrained encoder-decoder keeps its own sizes.
    """

    columns: Columns = Columns(text="source", text_pair="target", label="")
    """Columns: `text` is the source, `text_pair` the target."""
    max_target_length: int = 128
    """Maximum tokens of a target and its start; longer ones are cut, and no longer ones are generated."""
    tied: bool = False
    """Use the encoder's embeddings and layers in the decoder, too."""
    generated: int | None = None
    """Number of examples, the first of each set, for which evaluations generate the target; None: all."""
    vocab_size: int = 8192
    """Vocabulary size of the tokenizer that is learned from the training data if there is no other one."""
    lowercase: bool = False
    """Fold case in a learned tokenizer."""

    def __post_init__(self):
        super().__post_init__()
        if self.columns.label:
            raise ValueError(f"columns.label is {self.columns.label!r}; there are no labels: leave it out")
        if self.generated is not None and self.generated < 1:
            raise ValueError(f"generated is {self.generated}; it must be at least 1, or None for all examples")

    def prepare(
        self, config: Config, *, host_shard: HostShard = WHOLE_BATCH, host_group: HostGroup = SINGLE_HOST
    ) -> "SequenceToSequenceTask":
        """Read and check all files."""
        tokenizer = load_tokenizer(config, self.tokenizer)
        self._model_configs(config, tokenizer)  # an error now, and not after the texts are read
        sets = self._read_sets()
        rows = self.split_validation(sets, lambda row: row.text, seed=config.run.seed)
        if tokenizer is None:
            texts = [text for row in rows["train"] for text in (row.text, target_text(row))]
            tokenizer = learn_tokenizer(texts, self.vocab_size, lowercase=self.lowercase, host_group=host_group)
        encoder, decoder = self._model_configs(config, tokenizer)
        facts = {**{f"{name} rows": len(own) for name, own in rows.items()}, **reading_facts(sets)}
        facts["vocabulary"] = tokenizer.vocab_size
        examples = {}
        for name, own in rows.items():
            examples[name], own_facts = target_examples(
                own, tokenizer, max_length=self.max_length, max_target_length=self.max_target_length
            )
            facts |= {f"{name} {fact}": value for fact, value in own_facts.items()}
        common = common_fields(
            examples,
            config,
            decoder,
            tokenizer,
            max_length=self.max_length + self.max_target_length,
            head=HeadKind.CAUSAL_LM,
            host_shard=host_shard,
        )
        special = tokenizer.special_tokens
        start, end, pad = (tokenizer.token_id(token) for token in (special.cls, special.sep, special.pad))
        fields: dict[str, Any] = {
            **common,
            "architecture": PairArchitecture(encoder, start=start, pad=pad, tied=self.tied),
            "evaluations": {
                name: GenerationBatches.of(own, self.generated) for name, own in common["evaluations"].items()
            },
        }
        settings = GenerationSettings(max_new_tokens=self.max_target_length - 1, eos_token_id=end, pad_token_id=pad)
        return SequenceToSequenceTask(
            **fields,
            facts=facts,
            digests=rows_digests(sets),
            bad_rows={name: own.bad.rows for name, own in sets.items()},
            rows=rows,
            generation_settings=settings,
        )

    def _read_sets(self) -> dict[str, LabelledTexts]:
        sets: dict[str, LabelledTexts] = {}
        for name, (source, split) in self.sources.items():
            sets[name] = read_labelled_texts(
                source,
                columns=self.columns,
                split=split,
                bad_rows=self.bad_rows,
                train=sets.get("train"),
            )
            single = [f"{row.source}: one text" for row in sets[name] if row.text_pair is None]
            raise_problems(single, len(sets[name]), "Name the columns: --task.columns.text, --task.columns.text-pair.")
        return sets

    def _model_configs(self, config: Config, tokenizer: WordPieceTokenizer | None) -> tuple[BertConfig, BertConfig]:
        """Return the configurations of encoder and decoder."""
        pretrained = config.model.pretrained
        folder = None if pretrained is None else config_folder(pretrained)
        if folder is not None and is_encoder_decoder(folder):
            parts = part_configs(read_keys(folder), str(pretrained))
            encoder = fitted_config(parts["encoder"], config.model, tokenizer, max_length=self.max_length)
            decoder = parts["decoder"]
        else:
            encoder = model_config(config.model, tokenizer, max_length=self.max_length)
            encoder = encoder.replace(is_decoder=False, add_cross_attention=False)
            model_class(encoder, HeadKind.CAUSAL_LM)  # raises for a family without such a class
            decoder = encoder.replace(is_decoder=True, add_cross_attention=True)
        length, name = self.max_target_length, "max_target_length"
        decoder = fitted_config(decoder, config.model, tokenizer, max_length=length, length_name=name)
        return encoder, decoder


@dataclasses.dataclass(frozen=True)
class PairArchitecture:
    """Encoder-decoder models of one configuration of the encoder."""

    encoder: BertConfig
    _: dataclasses.KW_ONLY
    start: int  # the first token of the decoder's input
    pad: int
    tied: bool

    def __call__(self, config: BertConfig, **attributes: Any) -> EncoderDecoderModel:
        """Return the model whose decoder has this configuration; `attributes` are those of both models."""
        encoder = model_class(self.encoder, HeadKind.NONE)(self.encoder, **attributes)
        decoder = model_class(config, HeadKind.CAUSAL_LM)(config, **attributes)
        return EncoderDecoderModel(encoder, decoder, self.start, self.pad, tied=self.tied)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceToSequenceTask(Task):
    """The task of sequence to sequence."""

    architecture: PairArchitecture
    evaluations: Mapping[str, GenerationBatches]
    rows: Mapping[str, Sequence[LabelledText]]  # the examples of each set
    generation_settings: GenerationSettings

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Loss of a token and its exponential, and the metrics of the generated texts."""
        return ("loss", "perplexity", "exact_match", "chrf")

    def load_model(self, pretrained: Path, config: Config, placement: Placement) -> tuple[EncoderDecoderModel, Params]:
        """Return an encoder-decoder with its own start token, or a BERT given twice, and the parameters on the mesh."""
        options: dict[str, Any] = {"mesh": placement.mesh, "rules": placement.rules, **config.model.attributes}
        tied = self.architecture.tied
        if is_encoder_decoder(config_folder(pretrained)):
            model, params = EncoderDecoderModel.from_pretrained(pretrained, **options)
            if model.tied != tied:
                flag = "--task.tied" if model.tied else "--task.no-tied"
                raise ValueError(f"tied is {tied}, but the model of {pretrained} is the opposite; give {flag}")
        else:
            key = jax.random.key(config.run.seed)
            model, params = EncoderDecoderModel.from_two(pretrained, pretrained, tied=tied, key=key, **options)
        return dataclasses.replace(
            model,
            encoder=model.encoder.clone(config=self.architecture.encoder),
            decoder=model.decoder.clone(config=self.config),
            decoder_start_token_id=_first_given(model.decoder_start_token_id, self.architecture.start),
            pad_token_id=_first_given(model.pad_token_id, self.architecture.pad),
        ), params

    def loss(self, model: EncoderDecoderModel, params: Params, batch: Batch, key: jax.Array | None) -> Loss:
        """Return the cross-entropy of each token of the target, given the source and the tokens before it."""
        out = model.apply(
            {"params": params},
            batch["input_ids"],
            decoder_input_ids=model.shift_right(batch["labels"]),
            attention_mask=batch["attention_mask"],
            deterministic=key is None,
            rngs=None if key is None else {"dropout": key},
        )
        return losses.masked_lm(out.logits, batch["labels"])

    def eval_step(self, model: EncoderDecoderModel, params: Params, batch: Batch) -> EvalStepOutput:
        """Return the loss without dropout; the outputs are the tokens that are generated [B, S]."""
        tokens = greedy_tokens(
            model,
            params,
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            settings=self.generation_settings,
            rows=batch["generated"] > 0,
        )
        return EvalStepOutput({"loss": self.loss(model, params, batch, None)}, tokens)

    def compute_metrics(
        self, name: str, evaluation: Evaluation, *, earlier: Mapping[str, Evaluation]
    ) -> dict[str, float]:
        """Return the perplexity, and compare the generated texts with the targets."""
        texts = self._texts(name, evaluation)
        targets = [target_text(row) for row in self.rows[name][: len(texts)]]
        perplexity = math.exp(min(evaluation.means["loss"], 700.0))
        return {"perplexity": perplexity, "exact_match": exact_match(texts, targets), "chrf": chrf(texts, targets)}

    def token_counts(self, batch: HostBatch) -> TokenCounts:
        """Return the tokens of sources and targets, all of which are predicted."""
        sources = batch["attention_mask"].sum(axis=1, dtype=np.int64)
        targets = (batch["labels"] != IGNORE).sum(axis=1, dtype=np.int64)
        encoder, decoder = self.architecture.encoder, self.config
        tokens, squares = int(sources.sum()), int(np.square(sources).sum())
        difference = [train_flops(config, tokens=tokens, squares=squares) for config in (encoder, decoder)]
        attention = cross_attention_flops(
            decoder, tokens=int(targets.sum()), encoder_tokens=tokens, pairs=int((sources * targets).sum())
        )
        return TokenCounts(
            tokens=tokens + int(targets.sum()),
            squares=squares + int(np.square(targets).sum()),
            predictions=int(targets.sum()),
            other_flops=attention + difference[0] - difference[1],
        )

    def write_predictions(
        self, model: EncoderDecoderModel, params: Params, folder: Path, results: Mapping[str, Evaluation]
    ) -> Sequence[str]:
        """Write predictions_NAME.tsv for every set, and generation_config.json beside the model, where it has none.

        Lines compare the metrics of each set with those of its sources, taken as they are.
        """
        if jax.process_index() > 0:
            return []
        file = folder / MODEL_FOLDER / "generation_config.json"
        if not file.exists():
            write_text(file, json.dumps(self._generation_keys(model), indent=2) + "\n")
        lines = []
        for name, result in results.items():
            texts = self._texts(name, result)
            rows = self.rows[name][: len(texts)]
            table = [(row.source, target_text(row), text, None) for row, text in zip(rows, texts, strict=True)]
            lines.append(write_prediction_table(folder, name, table))
            sources, targets = [row.text for row in rows], [target_text(row) for row in rows]
            lines.append(
                f"{name}: exact match {result.means['exact_match']:.4f}, chrF {result.means['chrf']:.2f}; of the "
                f"sources as they are {exact_match(sources, targets):.4f}, {chrf(sources, targets):.2f}"
            )
        return lines

    def _generation_keys(self, model: EncoderDecoderModel) -> dict[str, object]:
        settings = self.generation_settings
        return {
            "decoder_start_token_id": model.decoder_start_token_id,
            "eos_token_id": settings.ends[0],
            "max_new_tokens": settings.new_tokens,
            "pad_token_id": model.pad_token_id,
        }

    def _texts(self, name: str, evaluation: Evaluation) -> list[str]:
        """Return the generated texts, those of the first examples of the set."""
        tokens, end = self.evaluations[name].by_example(evaluation.outputs), self.generation_settings.ends[0]
        hidden = {*self.tokenizer.special_ids}
        texts = []
        for row in tokens:
            new = row[: int(np.argmax(row == end))] if end in row else row
            texts.append(self.tokenizer.decode([i for i in new if int(i) not in hidden]))
        return texts


def _first_given(value: int | None, default: int) -> int:
    return default if value is None else value
