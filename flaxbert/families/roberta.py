"""RoBERTa (Liu et al., 2019): BERT's encoder with other positions, and heads of its own.

XLM-RoBERTa (Conneau et al., 2020) and CamemBERT (Martin et al., 2020) are the same models, with the same tensor names,
under other names; their files are `xlm_roberta.py` and `camembert.py`.

Differences from BERT:
    - positions are counted from `pad_token_id` + 1 and skip padding, whose position is `pad_token_id`;
    - published models have one token type, and their tokenizer makes no `token_type_ids`;
    - the classifier reads the last hidden state of the first token through a dense layer, without a pooler;
    - the masked-LM head has GELU whatever `hidden_act` is.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int

from flaxbert import functional
from flaxbert.answer_pointer import BertForPointerQuestionAnswering
from flaxbert.config import BertConfig
from flaxbert.encoder import EncoderInputs
from flaxbert.families.bert import ANSWER_POINTER, BUFFERS, ENCODER, KEPT_CONFIG_KEYS, POOLER
from flaxbert.families.family import (
    Architecture,
    Family,
    HeadKind,
    SpecialTokens,
    TensorName,
    TokenDecoder,
    layer_norm_names,
    linear_names,
)
from flaxbert.heads import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForTokenClassification,
    FirstTokenClassifier,
)
from flaxbert.layers import Declaration, Params, declare_embedding
from flaxbert.lm_heads import BertForMaskedLM, BertLMHeadModel
from flaxbert.models import BertModel, PreTrainedModel
from flaxbert.outputs import BaseModelOutput


@dataclasses.dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """The fields of Hugging Face's RoBERTa configuration that change the mathematics; defaults are Hugging Face's.

    Published models have `max_position_embeddings` 514, for sequences of up to 512 tokens.

    Raises:
        ValueError: a value is impossible; the message names the field, the value and what is allowed.
    """

    model_type: ClassVar[str] = "roberta"
    vocab_size: int = 50265
    pad_token_id: int | None = 1

    def __post_init__(self):
        super().__post_init__()
        if self.pad_token_id is None:
            raise ValueError("pad_token_id is None; RoBERTa counts positions from it, so it must be a token id")
        if self.pad_token_id < -1:
            raise ValueError(f"pad_token_id is {self.pad_token_id}; positions begin behind it, so it is at least -1")
        if self.max_sequence_length < 1:
            raise ValueError(
                f"max_position_embeddings is {self.max_position_embeddings}; it must exceed pad_token_id + 1, "
                f"{self.pad_token_id + 1}, where positions begin"
            )

    @property
    def position_offset(self) -> int:
        """The position of a sequence's first token: the one behind that of padding."""
        assert self.pad_token_id is not None  # checked when built
        return self.pad_token_id + 1


def count_positions(
    input_ids: Int[ArrayLike, "B T"], *, position_offset: int, cached: Int[ArrayLike, ""] = 0
) -> Int[Array, "B T"]:
    """Number the tokens that are not padding from `position_offset`; padding has the position before it.

    The id of padding is `position_offset` - 1 too. `cached` is the number of tokens before these.
    """
    padding = position_offset - 1
    is_token = jnp.asarray(input_ids) != padding
    return jnp.where(is_token, jnp.cumsum(is_token, axis=1) + cached, 0) + padding


def _with_positions(inputs: EncoderInputs, config: BertConfig) -> EncoderInputs:
    """Return the inputs with RoBERTa's positions where none are given."""
    tokens = inputs.inputs_embeds if inputs.input_ids is None else inputs.input_ids
    if inputs.position_ids is not None or tokens is None:  # `encode` refuses inputs without tokens
        return inputs
    functional.require_shape("input_ids", inputs.input_ids, ("B", "T"))
    functional.require_shape("inputs_embeds", inputs.inputs_embeds, ("B", "T", config.hidden_size))
    length, limit = jnp.shape(tokens)[1], config.max_sequence_length
    if length > limit:
        raise ValueError(f"the sequence has {length} tokens; the model takes {limit}: truncate it")
    cached = 0 if inputs.cache is None else inputs.cache.length
    if inputs.input_ids is None:
        positions = (jnp.arange(length) + cached)[None] + config.position_offset
    else:
        positions = count_positions(inputs.input_ids, position_offset=config.position_offset, cached=cached)
    return dataclasses.replace(inputs, position_ids=positions)


class RobertaEncoder(PreTrainedModel):
    """RoBERTa's positions in BERT's encoder.

    As in `torch.nn.Embedding(padding_idx=...)`, the position of padding is zero in a new model and has no gradient.
    """

    config_class = RobertaConfig
    base_model_prefix = "roberta"
    input_names = ("input_ids", "attention_mask")

    @nn.nowrap
    def _declare_encoder(self, *, pooler: bool) -> Declaration:
        c, encoder = self.config, super()._declare_encoder(pooler=pooler)
        embeddings = encoder["embeddings"]
        assert isinstance(embeddings, dict)
        shape = (c.max_position_embeddings, c.hidden_size)
        position = declare_embedding(shape, "position", stddev=c.initializer_range, pad_row=c.position_offset - 1)
        return encoder | {"embeddings": embeddings | {"position": position}}

    @nn.nowrap
    def _run_encoder(self, params: Params, inputs: EncoderInputs, deterministic: bool) -> BaseModelOutput:
        table = jnp.asarray(params["embeddings"]["position"]["embedding"])
        row = self.config.position_offset - 1
        table = table.at[row].set(jax.lax.stop_gradient(table[row]))
        params = {**params, "embeddings": {**params["embeddings"], "position": {"embedding": table}}}
        return super()._run_encoder(params, _with_positions(inputs, self.config), deterministic)


class RobertaModel(RobertaEncoder, BertModel):
    """The encoder. Without `position_ids`, tokens that are not padding are counted from `pad_token_id` + 1."""


class RobertaLMHead(RobertaEncoder):
    """The head of the two language models."""

    head_activation = "gelu"


class RobertaForMaskedLM(RobertaLMHead, BertForMaskedLM):
    """Tokens at masked positions."""


class RobertaForCausalLM(RobertaLMHead, BertLMHeadModel):
    """The next token; attention is causal where `config.is_decoder` is true.

    Positions continue from the cache as in a call without one. `generate` of transformers 5.24 counts them from 0
    instead, so that its tokens are not those of its own model called on the whole text.
    """


class RobertaForSequenceClassification(RobertaEncoder, FirstTokenClassifier):
    """One label, several labels or a number for a whole sequence, through a dense layer with tanh."""


class RobertaForMultipleChoice(RobertaEncoder, BertForMultipleChoice):
    """One of C continuations, by the pooled vector."""


class RobertaForTokenClassification(RobertaEncoder, BertForTokenClassification):
    """A label for every position."""


class RobertaForQuestionAnswering(RobertaEncoder, BertForQuestionAnswering):
    """The first and the last position of an answer."""


class RobertaForPointerQuestionAnswering(RobertaEncoder, BertForPointerQuestionAnswering):
    """The first position of an answer, and the last one given the first."""


HEADS: tuple[TensorName, ...] = (
    *layer_norm_names("lm_head.layer_norm", "predictions/norm"),
    TensorName("lm_head.bias", ("predictions", "bias"), per_token=True),
    *linear_names("lm_head.dense", "predictions/transform"),
    *linear_names("lm_head.decoder", "predictions/decoder", per_token=True),
    *linear_names("classifier.dense", "classifier/dense"),
    *linear_names("classifier.out_proj", "classifier/output"),
    *linear_names("classifier", "classifier"),
    *linear_names("qa_outputs", "qa_outputs"),
    *ANSWER_POINTER,
)
_MARKS = {
    HeadKind.MASKED_LM: ("lm_head.",),
    HeadKind.SEQUENCE_CLASSIFICATION: ("classifier.out_proj.weight",),
    HeadKind.TOKEN_CLASSIFICATION: ("classifier.weight",),
    HeadKind.QUESTION_ANSWERING: ("qa_outputs.weight",),
    HeadKind.ANSWER_POINTER: ("pointer.score.weight",),
}


def token_decoder(prefix: str) -> TokenDecoder:
    """Return the tensors of the masked-LM head's decoder; `prefix` is that of the encoder."""
    return TokenDecoder(
        embeddings=f"{prefix}.embeddings.word_embeddings.weight",
        weight="lm_head.decoder.weight",
        bias="lm_head.bias",
        untied_bias="lm_head.decoder.bias",
    )


def roberta_family(config_class: type[RobertaConfig], classes: Mapping[HeadKind, type[PreTrainedModel]]) -> Family:
    """Describe RoBERTa, or a family that differs from it in its names and sizes alone."""
    return Family(
        model_type=config_class.model_type,
        config_class=config_class,
        kept_config_keys=KEPT_CONFIG_KEYS,
        prefix=RobertaEncoder.base_model_prefix,
        encoder=ENCODER,
        pooler=POOLER,
        heads=HEADS,
        buffers=BUFFERS,
        decoder=token_decoder(RobertaEncoder.base_model_prefix),
        label_weights=("classifier.out_proj.weight", "classifier.weight"),
        architectures=tuple(
            Architecture(model_class, head, _MARKS.get(head, ())) for head, model_class in classes.items()
        ),
        special_tokens=SpecialTokens(pad="<pad>", unknown="<unk>", cls="<s>", sep="</s>", mask="<mask>"),
    )


ROBERTA = roberta_family(
    RobertaConfig,
    {
        HeadKind.NONE: RobertaModel,
        HeadKind.MASKED_LM: RobertaForMaskedLM,
        HeadKind.CAUSAL_LM: RobertaForCausalLM,
        HeadKind.SEQUENCE_CLASSIFICATION: RobertaForSequenceClassification,
        HeadKind.MULTIPLE_CHOICE: RobertaForMultipleChoice,
        HeadKind.TOKEN_CLASSIFICATION: RobertaForTokenClassification,
        HeadKind.QUESTION_ANSWERING: RobertaForQuestionAnswering,
        HeadKind.ANSWER_POINTER: RobertaForPointerQuestionAnswering,
    },
)
