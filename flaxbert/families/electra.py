"""ELECTRA (Clark et al., 2020): BERT's layers over narrower embeddings, trained to find tokens that were replaced.

Differences from BERT:
    - embeddings have a width of their own (`embedding_size`) and are projected to that of the layers;
    - there is no pooler: classifiers of sequences and choices read the last hidden state of the first token through a
      dense layer with GELU;
    - the generator, a masked language model with GELU whatever `hidden_act` is, has the embeddings' width in its head;
    - the discriminator tells for each token whether the generator replaced it.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Unpack

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Int

from flaxbert.answer_pointer import BertForPointerQuestionAnswering
from flaxbert.config import BertConfig
from flaxbert.dropout import dropout
from flaxbert.families.bert import ANSWER_POINTER, BUFFERS, ENCODER, KEPT_CONFIG_KEYS
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
from flaxbert.functional import ACTIVATIONS, activate, linear
from flaxbert.heads import (
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForTokenClassification,
    FirstTokenClassifier,
)
from flaxbert.layers import Declaration, Params, declare_activation, declare_linear
from flaxbert.lm_heads import BertForMaskedLM, BertLMHeadModel
from flaxbert.models import ModelInputs, PoolerlessModel, PreTrainedModel, TaskModel
from flaxbert.outputs import BaseModelOutput, ReplacedTokenOutput


@dataclasses.dataclass(frozen=True)
class ElectraConfig(BertConfig):
    """The fields of Hugging Face's ELECTRA configuration that change the mathematics; defaults are Hugging Face's.

    Those that begin with "summary" are of multiple choice alone. Defaults are ELECTRA-small.

    Raises:
        ValueError: a value is impossible; the message names the field, the value and what is allowed.
    """

    model_type: ClassVar[str] = "electra"
    embedding_size: int = 128
    hidden_size: int = 256
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    summary_type: str = "first"
    summary_use_proj: bool = True
    summary_activation: str = "gelu"  # "" for none
    summary_first_dropout: float = 0.0
    summary_last_dropout: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        size = self.embedding_size
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 2**28:
            raise ValueError(f"embedding_size is {size!r}; it must be a whole number from 1 to {2**28}")
        if self.summary_type != "first":
            raise ValueError(f"summary_type is {self.summary_type!r}; allowed: 'first', that of published models")
        if self.summary_activation and self.summary_activation not in ACTIVATIONS:
            allowed = ", ".join(map(repr, ("", *ACTIVATIONS)))
            raise ValueError(f"summary_activation is {self.summary_activation!r}; allowed: {allowed}")

    @property
    def embedding_width(self) -> int:
        """Width of the embeddings, which are projected to `hidden_size`."""
        return self.embedding_size


class ElectraEncoder(PreTrainedModel):
    """ELECTRA's configuration and names for BERT's classes."""

    config: ElectraConfig

    config_class = ElectraConfig
    base_model_prefix = "electra"
    has_pooler: ClassVar[bool] = False


class ElectraModel(ElectraEncoder, PoolerlessModel):
    """The encoder."""


class ElectraForPreTraining(ElectraEncoder, TaskModel):
    """The discriminator: for every position, whether its token was replaced."""

    @nn.nowrap
    def head_declaration(self) -> Declaration:
        """Return the declaration of the dense layer and the output layer of one column."""
        width, stddev = self.config.hidden_size, self.config.initializer_range
        head: Declaration = {
            "dense": declare_linear((width, width), ("embed", None), stddev=stddev),
            "output": declare_linear((width, 1), ("embed", "label"), stddev=stddev),
            **declare_activation(self.config.hidden_act),
        }
        return {"discriminator": head}

    @nn.compact
    def __call__(
        self,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        *,
        deterministic: bool = True,
        **inputs: Unpack[ModelInputs],
    ) -> ReplacedTokenOutput:
        """Score every position: logits [B, T], above 0 for a token that was replaced."""
        params = self._ready_parameters()
        out = self._encode(params, input_ids, deterministic, inputs)
        head = params["discriminator"]
        x = linear(head["dense"], out.last_hidden_state, "BTD,DE->BTE")
        x = activate(head.get("activation", {}), x, self.config.hidden_act)
        logits = linear(head["output"], x, "BTD,DN->BTN").astype(jnp.float32)[..., 0]
        return ReplacedTokenOutput(logits, out.hidden_states, out.attentions, lengths=out.lengths)


class ElectraGenerator(ElectraEncoder):
    """The head of the two language models."""

    head_activation = "gelu"


class ElectraForMaskedLM(ElectraGenerator, BertForMaskedLM):
    """The generator: words at masked positions."""


class ElectraForCausalLM(ElectraGenerator, BertLMHeadModel):
    """The next word; attention is causal where `config.is_decoder` is true."""


class ElectraForSequenceClassification(ElectraEncoder, FirstTokenClassifier):
    """One label, several labels or a number for a whole sequence, through a dense layer with GELU."""

    dense_activation = "gelu"


class ElectraForMultipleChoice(ElectraEncoder, BertForMultipleChoice):
    """One of C continuations, from a summary of the first token's state."""

    @property
    def head_dropout_prob(self) -> float:
        """Dropout rate before the last layer of the head."""
        return self.config.summary_last_dropout

    @nn.nowrap
    def head_declaration(self) -> Declaration:
        """Return the declaration of the summary's dense layer and of the classifier."""
        if not self.config.summary_use_proj:
            return super().head_declaration()
        width = self.config.hidden_size
        summary = declare_linear((width, width), ("embed", None), stddev=self.config.initializer_range)
        return {"summary": summary, **super().head_declaration()}

    @nn.nowrap
    def _encode(
        self,
        params: Params,
        input_ids: ArrayLike | None,
        deterministic: bool,
        inputs: Mapping[str, object],
        **ours: object,
    ) -> BaseModelOutput:
        """Run the encoder; the pooled vector is the summary."""
        c, out = self.config, super()._encode(params, input_ids, deterministic, inputs, **ours)
        x = dropout(out.last_hidden_state[:, 0], self._dropout_key(deterministic), rate=c.summary_first_dropout)
        x = linear(params["summary"], x, "BD,DE->BE") if c.summary_use_proj else x
        return dataclasses.replace(out, pooler_output=activate({}, x, c.summary_activation or "linear"))


class ElectraForTokenClassification(ElectraEncoder, BertForTokenClassification):
    """A label for every position."""


class ElectraForQuestionAnswering(ElectraEncoder, BertForQuestionAnswering):
    """The first and the last position of an answer."""


class ElectraForPointerQuestionAnswering(ElectraEncoder, BertForPointerQuestionAnswering):
    """The first position of an answer, and the last one given the first."""


_HEADS: tuple[TensorName, ...] = (
    *linear_names("generator_predictions.dense", "predictions/transform"),
    *layer_norm_names("generator_predictions.LayerNorm", "predictions/norm"),
    TensorName("generator_lm_head.bias", ("predictions", "bias"), per_token=True),
    *linear_names("generator_lm_head", "predictions/decoder", per_token=True),
    *linear_names("discriminator_predictions.dense", "discriminator/dense"),
    *linear_names("discriminator_predictions.dense_prediction", "discriminator/output"),
    *linear_names("classifier.dense", "classifier/dense"),
    *linear_names("classifier.out_proj", "classifier/output"),
    *linear_names("sequence_summary.summary", "summary"),
    *linear_names("classifier", "classifier"),
    *linear_names("qa_outputs", "qa_outputs"),
    *ANSWER_POINTER,
)

ELECTRA = Family(
    model_type=ElectraConfig.model_type,
    config_class=ElectraConfig,
    kept_config_keys=KEPT_CONFIG_KEYS,
    prefix=ElectraEncoder.base_model_prefix,
    encoder=(*ENCODER, *linear_names("embeddings_project", "embeddings/projection")),
    pooler=(),
    heads=_HEADS,
    buffers=BUFFERS,
    decoder=TokenDecoder(
        embeddings="electra.embeddings.word_embeddings.weight",
        weight="generator_lm_head.weight",
        bias="generator_lm_head.bias",
        untied_bias="generator_lm_head.bias",
    ),
    training_only=("generator",),
    label_weights=("classifier.out_proj.weight", "classifier.weight"),
    architectures=(
        Architecture(ElectraModel, HeadKind.NONE),
        Architecture(ElectraForPreTraining, HeadKind.REPLACED_TOKENS, ("discriminator_predictions.",)),
        Architecture(ElectraForMaskedLM, HeadKind.MASKED_LM, ("generator_predictions.",)),
        Architecture(ElectraForCausalLM, HeadKind.CAUSAL_LM),
        Architecture(
            ElectraForSequenceClassification, HeadKind.SEQUENCE_CLASSIFICATION, ("classifier.out_proj.weight",)
        ),
        Architecture(ElectraForMultipleChoice, HeadKind.MULTIPLE_CHOICE, ("sequence_summary.",)),
        Architecture(ElectraForTokenClassification, HeadKind.TOKEN_CLASSIFICATION, ("classifier.weight",)),
        Architecture(ElectraForQuestionAnswering, HeadKind.QUESTION_ANSWERING, ("qa_outputs.weight",)),
        Architecture(ElectraForPointerQuestionAnswering, HeadKind.ANSWER_POINTER, ("pointer.score.weight",)),
    ),
    special_tokens=SpecialTokens(pad="[PAD]", unknown="[UNK]", cls="[CLS]", sep="[SEP]", mask="[MASK]"),
)
