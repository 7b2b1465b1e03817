"""Outputs of the models: one dataclass for each kind of head, with Hugging Face's field names.

Axis letters as in `encoder.py`. Logits are float32 for every compute dtype. `hidden_states` holds the output of the
embeddings and then of every layer (L+1 arrays [B, T, D]); `attentions` the attention probabilities of every layer
(L arrays [B, H, T, S], after dropout and head mask), and `cross_attentions` those of cross-attention, [B, H, T, X]. All
are None unless asked for. `cache` is that of the call, extended by its tokens. With `length_config`, the arrays of a
layer have the tokens that it kept, in their original order.
"""

from flax import struct
from jaxtyping import Array, Float, Int

from flaxbert.cache import KeyValueCache

# Layers may keep fewer tokens, and pruned ones have fewer heads.
HiddenStates = tuple[Float[Array, "B _ D"], ...]
Attentions = tuple[Float[Array, "B _ _ _"], ...]
CrossAttentions = tuple[Float[Array, "B H T X"], ...]


@struct.dataclass
class AdaptiveOutput:
    """Base of the outputs of models that can drop tokens and layers.

    `lengths` are the tokens after each layer that ran, static under `jit`; None without `length_config` and
    `layer_config`.
    """

    lengths: tuple[int, ...] | None = struct.field(pytree_node=False, default=None, kw_only=True)


@struct.dataclass
class BaseModelOutput(AdaptiveOutput):
    """Output of `BertModel`; `pooler_output` is None without a pooling layer.

    `last_hidden_state` has R = T positions; with `first_positions_only` it has P, or 1 without `first_positions`.
    """

    last_hidden_state: Float[Array, "B R D"]
    pooler_output: Float[Array, "B D"] | Float[Array, "B P D"] | None = None
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None
    cross_attentions: CrossAttentions | None = None
    cache: KeyValueCache | None = None

    @property
    def pooled(self) -> Float[Array, "B *P D"]:
        """`pooler_output` of a model that has a pooler."""
        assert self.pooler_output is not None
        return self.pooler_output


@struct.dataclass
class PreTrainingOutput(AdaptiveOutput):
    """Output of `BertForPreTraining`."""

    prediction_logits: Float[Array, "B R V"]
    seq_relationship_logits: Float[Array, "B 2"] | Float[Array, "B P 2"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class ReplacedTokenOutput(AdaptiveOutput):
    """Output of `ElectraForPreTraining`."""

    logits: Float[Array, "B T"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class MaskedLMOutput(AdaptiveOutput):
    """Output of `BertForMaskedLM`; M masked positions where only those were asked for."""

    logits: Float[Array, "B R V"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None
    cross_attentions: CrossAttentions | None = None


@struct.dataclass
class CausalLMOutput(AdaptiveOutput):
    """Output of `BertLMHeadModel`."""

    logits: Float[Array, "B R V"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None
    cross_attentions: CrossAttentions | None = None
    cache: KeyValueCache | None = None


@struct.dataclass
class NextSentencePredictorOutput(AdaptiveOutput):
    """Output of `BertForNextSentencePrediction`; column 0 scores "follows", column 1 "random"."""

    logits: Float[Array, "B *P 2"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class SequenceClassifierOutput(AdaptiveOutput):
    """Output of `BertForSequenceClassification`, N labels; with `first_positions` for each of P sequences."""

    logits: Float[Array, "B N"] | Float[Array, "B P N"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class MultipleChoiceModelOutput(AdaptiveOutput):
    """Output of `BertForMultipleChoice`; hidden states and attentions have B*C batch rows."""

    logits: Float[Array, "B C"]
    hidden_states: tuple[Float[Array, "BC _ D"], ...] | None = None
    attentions: tuple[Float[Array, "BC _ _ _"], ...] | None = None


@struct.dataclass
class TokenClassifierOutput(AdaptiveOutput):
    """Output of `BertForTokenClassification`, N labels."""

    logits: Float[Array, "B T N"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class QuestionAnsweringModelOutput(AdaptiveOutput):
    """Output of `BertForQuestionAnswering`."""

    start_logits: Float[Array, "B T"]
    end_logits: Float[Array, "B T"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class PointerQuestionAnsweringModelOutput(AdaptiveOutput):
    """Output of `BertForPointerQuestionAnswering`; all logits are log-probabilities.

    `end_logits` are those given one start, of the call's `start_positions` or else the most likely one. For n-best
    answers, `starts` are G positions, [CLS] first, and `end_logits_by_start` the logits of ends given each of them.
    """

    start_logits: Float[Array, "B T"]
    end_logits: Float[Array, "B T"]
    starts: Int[Array, "B G"] | None = None
    end_logits_by_start: Float[Array, "B G T"] | None = None
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class Seq2SeqLMOutput:
    """Output of `EncoderDecoderModel`; T positions of the decoder, X of the encoder."""

    logits: Float[Array, "B T V"]
    decoder_hidden_states: HiddenStates | None = None
    decoder_attentions: Attentions | None = None
    cross_attentions: CrossAttentions | None = None
    encoder_last_hidden_state: Float[Array, "B X D"] | None = None
    encoder_hidden_states: tuple[Float[Array, "B X E"], ...] | None = None
    encoder_attentions: tuple[Float[Array, "B _ X X"], ...] | None = None
