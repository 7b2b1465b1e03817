"""MPNet (Song et al., 2020): BERT's layers with a bias for distances, and RoBERTa's positions and heads.

Differences from BERT:
    - a table with a number for each bucket of distances and each head is added to the scores of every layer;
    - positions are counted as RoBERTa counts them, from the padding token 1 whatever `pad_token_id` is;
    - there are no token types;
    - the classifier and the masked-LM head are RoBERTa's.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
from jax.nn.initializers import normal

from flaxbert.config import BertConfig
from flaxbert.families.bert import KEPT_CONFIG_KEYS, POOLER
from flaxbert.families.family import (
    Architecture,
    Family,
    HeadKind,
    SpecialTokens,
    TensorName,
    activation_names,
    embedding_name,
    layer_norm_names,
    linear_names,
)
from flaxbert.families.roberta import (
    HEADS,
    RobertaEncoder,
    RobertaForMaskedLM,
    RobertaForMultipleChoice,
    RobertaForPointerQuestionAnswering,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
    token_decoder,
)
from flaxbert.layers import Declaration, ParameterKind, ParameterSpec

BUCKETS = 32


@dataclasses.dataclass(frozen=True)
class MPNetConfig(BertConfig):
    """The fields of Hugging Face's MPNet configuration that change the mathematics; defaults are Hugging Face's.

    Raises:
        ValueError: a value is impossible; the message names the field, the value and what is allowed.
    """

    model_type: ClassVar[str] = "mpnet"
    fixed_fields: ClassVar[Mapping[str, object]] = {
        "type_vocab_size": 0,
        "position_embedding_type": "absolute",
        "classifier_dropout": None,
        "is_decoder": False,
        "add_cross_attention": False,
    }
    vocab_size: int = 30527
    type_vocab_size: int = 0
    pad_token_id: int | None = 1
    relative_attention_num_buckets: int = BUCKETS

    def __post_init__(self):
        super().__post_init__()
        if self.relative_attention_num_buckets != BUCKETS:
            raise ValueError(
                f"relative_attention_num_buckets is {self.relative_attention_num_buckets!r}; allowed: {BUCKETS}, the "
                "number that transformers computes whatever the table has"
            )
        if self.vocab_size <= self.padding_row or self.max_sequence_length < 1:
            raise ValueError(
                f"vocab_size is {self.vocab_size} and max_position_embeddings {self.max_position_embeddings}; token 1 "
                f"is padding, and positions begin at {self.position_offset}"
            )

    @property
    def padding_row(self) -> int:
        """Row of padding in the tables of words and positions, as in the reference."""
        return 1

    @property
    def position_offset(self) -> int:
        """The position of a sequence's first token: the one behind that of padding."""
        return self.padding_row + 1


class MPNetEncoder(RobertaEncoder):
    """RoBERTa's positions, and the table of the distances' buckets."""

    config_class = MPNetConfig
    base_model_prefix = "mpnet"

    @nn.nowrap
    def _declare_encoder(self, *, pooler: bool) -> Declaration:
        c = self.config
        shape = (BUCKETS, c.num_attention_heads)
        table = ParameterSpec(shape, (None, "heads"), normal(c.initializer_range), ParameterKind.TABLE)
        return super()._declare_encoder(pooler=pooler) | {"relative_bias": {"embedding": table}}


class MPNetModel(MPNetEncoder, RobertaModel):
    """The encoder. Without `position_ids`, tokens that are not padding are counted from 2."""


class MPNetForMaskedLM(MPNetEncoder, RobertaForMaskedLM):
    """Tokens at masked positions."""


class MPNetForSequenceClassification(MPNetEncoder, RobertaForSequenceClassification):
    """One label, several labels or a number for a whole sequence."""


class MPNetForMultipleChoice(MPNetEncoder, RobertaForMultipleChoice):
    """One of C continuations, by the pooled vector."""


class MPNetForTokenClassification(MPNetEncoder, RobertaForTokenClassification):
    """A label for every position."""


class MPNetForQuestionAnswering(MPNetEncoder, RobertaForQuestionAnswering):
    """The first and the last position of an answer."""


class MPNetForPointerQuestionAnswering(MPNetEncoder, RobertaForPointerQuestionAnswering):
    """The first position of an answer, and the last one given the first."""


_LAYER = "encoder.layer.{layer}"

_ENCODER: tuple[TensorName, ...] = (
    embedding_name("embeddings.word_embeddings", "embeddings/word", per_token=True),
    embedding_name("embeddings.position_embeddings", "embeddings/position"),
    *layer_norm_names("embeddings.LayerNorm", "embeddings/norm"),
    embedding_name("encoder.relative_attention_bias", "relative_bias"),
    *linear_names(f"{_LAYER}.attention.attn.q", "layers/attention/query"),
    *linear_names(f"{_LAYER}.attention.attn.k", "layers/attention/key"),
    *linear_names(f"{_LAYER}.attention.attn.v", "layers/attention/value"),
    *linear_names(f"{_LAYER}.attention.attn.o", "layers/attention/output", input_axes=2),  # [H, K, D]
    *layer_norm_names(f"{_LAYER}.attention.LayerNorm", "layers/attention_norm"),
    *linear_names(f"{_LAYER}.intermediate.dense", "layers/up"),
    *linear_names(f"{_LAYER}.output.dense", "layers/down"),
    *layer_norm_names(f"{_LAYER}.output.LayerNorm", "layers/output_norm"),
    *activation_names(f"{_LAYER}.intermediate.intermediate_act_fn", "layers/activation"),
)

MPNET = Family(
    model_type=MPNetConfig.model_type,
    config_class=MPNetConfig,
    kept_config_keys=KEPT_CONFIG_KEYS,
    prefix=MPNetEncoder.base_model_prefix,
    encoder=_ENCODER,
    pooler=POOLER,
    heads=HEADS,
    buffers=("embeddings.position_ids",),
    decoder=token_decoder(MPNetEncoder.base_model_prefix),
    label_weights=("classifier.out_proj.weight", "classifier.weight"),
    architectures=(
        Architecture(MPNetModel, HeadKind.NONE),
        Architecture(MPNetForMaskedLM, HeadKind.MASKED_LM, ("lm_head.",)),
        Architecture(MPNetForSequenceClassification, HeadKind.SEQUENCE_CLASSIFICATION, ("classifier.out_proj.weight",)),
        Architecture(MPNetForMultipleChoice, HeadKind.MULTIPLE_CHOICE),
        Architecture(MPNetForTokenClassification, HeadKind.TOKEN_CLASSIFICATION, ("classifier.weight",)),
        Architecture(MPNetForQuestionAnswering, HeadKind.QUESTION_ANSWERING, ("qa_outputs.weight",)),
        Architecture(MPNetForPointerQuestionAnswering, HeadKind.ANSWER_POINTER, ("pointer.score.weight",)),
    ),
    special_tokens=SpecialTokens(pad="<pad>", unknown="[UNK]", cls="<s>", sep="</s>", mask="<mask>"),
)
