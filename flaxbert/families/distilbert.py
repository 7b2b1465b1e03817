"""DistilBERT (Sanh et al., 2019): BERT's layers without token types and pooler, under names of its own.

Differences from BERT:
    - embeddings are words and positions; a new model's positions may be sinusoids (`sinusoidal_pos_embds`);
    - classifiers of sequences and choices read the last hidden state of the first token through a dense layer with
      ReLU, and drop out at the rate `seq_classif_dropout`, those of tokens at `dropout`;
    - question answering drops out at the rate `qa_dropout`.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
from jax.typing import ArrayLike

from flaxbert.answer_pointer import BertForPointerQuestionAnswering
from flaxbert.config import BertConfig
from flaxbert.families.bert import ANSWER_POINTER, KEPT_CONFIG_KEYS
from flaxbert.families.family import (
    Architecture,
    Family,
    HeadKind,
    SpecialTokens,
    TensorName,
    TokenDecoder,
    activation_names,
    embedding_name,
    layer_norm_names,
    linear_names,
)
from flaxbert.functional import linear
from flaxbert.heads import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)
from flaxbert.layers import Declaration, Params, declare_linear
from flaxbert.lm_heads import BertForMaskedLM
from flaxbert.models import PoolerlessModel, PreTrainedModel, TaskModel
from flaxbert.outputs import BaseModelOutput


@dataclasses.dataclass(frozen=True)
class DistilBertConfig(BertConfig):
    """The configuration of DistilBERT under BERT's field names; `DISTILBERT.config_keys` has its keys of config.json.

    Defaults are Hugging Face's. As in transformers 5, sinusoidal positions are trained like others: freeze
    "distilbert/embeddings/position" to keep them.

    Raises:
        ValueError: a value is impossible; the message names the field, the value and what is allowed.
    """

    model_type: ClassVar[str] = "distilbert"
    fixed_fields: ClassVar[Mapping[str, object]] = {
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-12,
        "position_embedding_type": "absolute",
        "classifier_dropout": None,
        "is_decoder": False,
        "add_cross_attention": False,
    }
    num_hidden_layers: int = 6
    type_vocab_size: int = 0
    qa_dropout: float = 0.1
    seq_classif_dropout: float = 0.2
    sinusoidal_pos_embds: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.sinusoidal_pos_embds, bool):
            raise ValueError(f"sinusoidal_pos_embds is {self.sinusoidal_pos_embds!r}; allowed: False, True")

    @property
    def has_sinusoidal_positions(self) -> bool:
        """True where a new model's table of positions holds sinusoids."""
        return self.sinusoidal_pos_embds


class DistilBertEncoder(PreTrainedModel):
    """DistilBERT's configuration, names and inputs for BERT's classes."""

    config: DistilBertConfig

    config_class = DistilBertConfig
    base_model_prefix = "distilbert"
    input_names = ("input_ids", "attention_mask")
    has_pooler: ClassVar[bool] = False


class DistilBertModel(DistilBertEncoder, PoolerlessModel):
    """The encoder."""


class DistilBertForMaskedLM(DistilBertEncoder, BertForMaskedLM):
    """Tokens at masked positions."""


class DistilBertClassifier(DistilBertEncoder, TaskModel):
    """Base of the classifiers that read the first token through a dense layer with ReLU, in place of a pooler."""

    @property
    def head_dropout_prob(self) -> float:
        """Dropout rate before the last layer of the head."""
        return self.config.seq_classif_dropout

    @nn.nowrap
    def head_declaration(self) -> Declaration:
        """Return the declaration of the dense layer and the classifier."""
        width = self.config.hidden_size
        dense = declare_linear((width, width), ("embed", None), stddev=self.config.initializer_range)
        return {"pre_classifier": dense, **super().head_declaration()}

    @nn.nowrap
    def _encode(
        self,
        params: Params,
        input_ids: ArrayLike | None,
        deterministic: bool,
        inputs: Mapping[str, object],
        **ours: object,
    ) -> BaseModelOutput:
        """Run the encoder; the pooled vector is that of the dense layer."""
        out = super()._encode(params, input_ids, deterministic, inputs, **ours)
        pooled = jax.nn.relu(linear(params["pre_classifier"], out.last_hidden_state, "BPD,DE->BPE"))
        return dataclasses.replace(out, pooler_output=pooled[:, 0] if ours.get("first_positions") is None else pooled)


class DistilBertForSequenceClassification(DistilBertClassifier, BertForSequenceClassification):
    """One label, several labels or a number for a whole sequence."""


class DistilBertForMultipleChoice(DistilBertClassifier, BertForMultipleChoice):
    """One of C continuations; every input has an axis of choices, [B, C, T]."""


class DistilBertForTokenClassification(DistilBertEncoder, BertForTokenClassification):
    """A label for every position."""


class DistilBertForQuestionAnswering(DistilBertEncoder, BertForQuestionAnswering):
    """The first and the last position of an answer, after dropout."""

    @property
    def head_dropout_prob(self) -> float:
        """Dropout rate before the last layer of the head."""
        return self.config.qa_dropout


class DistilBertForPointerQuestionAnswering(DistilBertEncoder, BertForPointerQuestionAnswering):
    """The first position of an answer, after dropout, and the last one given the first."""

    head_dropout_prob = DistilBertForQuestionAnswering.head_dropout_prob


_LAYER = "transformer.layer.{layer}"

_ENCODER: tuple[TensorName, ...] = (
    embedding_name("embeddings.word_embeddings", "embeddings/word", per_token=True),
    embedding_name("embeddings.position_embeddings", "embeddings/position"),
    *layer_norm_names("embeddings.LayerNorm", "embeddings/norm"),
    *linear_names(f"{_LAYER}.attention.q_lin", "layers/attention/query"),
    *linear_names(f"{_LAYER}.attention.k_lin", "layers/attention/key"),
    *linear_names(f"{_LAYER}.attention.v_lin", "layers/attention/value"),
    *linear_names(f"{_LAYER}.attention.out_lin", "layers/attention/output", input_axes=2),  # [H, K, D]
    *layer_norm_names(f"{_LAYER}.sa_layer_norm", "layers/attention_norm"),
    *linear_names(f"{_LAYER}.ffn.lin1", "layers/up"),
    *linear_names(f"{_LAYER}.ffn.lin2", "layers/down"),
    *layer_norm_names(f"{_LAYER}.output_layer_norm", "layers/output_norm"),
    *activation_names(f"{_LAYER}.ffn.activation", "layers/activation"),
)

_HEADS: tuple[TensorName, ...] = (
    *linear_names("vocab_transform", "predictions/transform"),
    *activation_names("activation", "predictions/activation"),
    *layer_norm_names("vocab_layer_norm", "predictions/norm"),
    TensorName("vocab_projector.bias", ("predictions", "bias"), per_token=True),
    *linear_names("vocab_projector", "predictions/decoder", per_token=True),
    *linear_names("pre_classifier", "pre_classifier"),
    *linear_names("classifier", "classifier"),
    *linear_names("qa_outputs", "qa_outputs"),
    *ANSWER_POINTER,
)

DISTILBERT = Family(
    model_type=DistilBertConfig.model_type,
    config_class=DistilBertConfig,
    config_keys={
        "hidden_size": "dim",
        "intermediate_size": "hidden_dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
    },
    kept_config_keys=KEPT_CONFIG_KEYS | {"output_past", "tie_weights_"},
    prefix=DistilBertEncoder.base_model_prefix,
    encoder=_ENCODER,
    pooler=(),
    heads=_HEADS,
    buffers=("embeddings.position_ids",),
    decoder=TokenDecoder(
        embeddings="distilbert.embeddings.word_embeddings.weight",
        weight="vocab_projector.weight",
        bias="vocab_projector.bias",
        untied_bias="vocab_projector.bias",
    ),
    label_weights=("classifier.weight",),
    # As in BERT, a classifier of choices has the names of one of sequences.
    architectures=(
        Architecture(DistilBertModel, HeadKind.NONE),
        Architecture(DistilBertForMaskedLM, HeadKind.MASKED_LM, ("vocab_transform.",)),
        Architecture(DistilBertForQuestionAnswering, HeadKind.QUESTION_ANSWERING, ("qa_outputs.weight",)),
        Architecture(DistilBertForPointerQuestionAnswering, HeadKind.ANSWER_POINTER, ("pointer.score.weight",)),
        Architecture(DistilBertForSequenceClassification, HeadKind.SEQUENCE_CLASSIFICATION, ("pre_classifier.weight",)),
        Architecture(DistilBertForMultipleChoice, HeadKind.MULTIPLE_CHOICE),
        Architecture(DistilBertForTokenClassification, HeadKind.TOKEN_CLASSIFICATION, ("classifier.weight",)),
    ),
    takes_layers_of=(BertConfig.model_type,),
    special_tokens=SpecialTokens(pad="[PAD]", unknown="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]"),
)
