"""Outputs of the models: one dataclass for each kind of head, with Hugging Face's field names.

Axis letters as in `encoder.py`. Logits are float32 for every compute dtype. `hidden_states` holds the output of the
embeddings and then of every layer (L+1 arrays [B, T, D]); `attentions` the attention probabilities of every layer
(L arrays [B, H, T, S], after dropout and head mask), and `cross_attentions` those of cross-attention, [B, H, T, X]. All
are None unless asked for. `cache` is that of the call, extended by its tokens.
"""

from flax import struct
from jaxtyping import Array, Float, Int

from flaxbert.cache import KeyValueCache

HiddenStates = tuple[Float[Array, "B T D"], ...]
Attentions = tuple[Float[Array, "B _ T S"], ...]  # pruned layers have fewer heads
CrossAttentions = tuple[Float[Array, "B H T X"], ...]


@struct.dataclass
class BaseModelOutput:
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
class PreTrainingOutput:
    """Output of `BertForPreTraining`."""

    prediction_logits: Float[Array, "B R V"]
    seq_relationship_logits: Float[Array, "B 2"] | Float[Array, "B P 2"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class ReplacedTokenOutput:
    """Output of `ElectraForPreTraining`."""

    logits: Float[Array, "B T"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class MaskedLMOutput:
    """Output of `BertForMaskedLM`; M masked positions where only those were asked for."""

    logits: Float[Array, "B R V"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None
    cross_attentions: CrossAttentions | None = None


@struct.dataclass
class CausalLMOutput:
    """Output of `BertLMHeadModel`."""

    logits: Float[Array, "B R V"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None
    cross_attentions: CrossAttentions | None = None
    cache: KeyValueCache | None = None


@struct.dataclass
class NextSentencePredictorOutput:
    """Output of `BertForNextSentencePrediction`; column 0 scores "follows", column 1 "random"."""

    logits: Float[Array, "B *P 2"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class SequenceClassifierOutput:
    """Output of `BertForSequenceClassification`, N labels; with `first_positions` for each of P sequences."""

    logits: Float[Array, "B N"] | Float[Array, "B P N"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class MultipleChoiceModelOutput:
    """Output of `BertForMultipleChoice`; hidden states and attentions have B*C batch rows."""

    logits: Float[Array, "B C"]
    hidden_states: tuple[Float[Array, "BC T D"], ...] | None = None
    attentions: tuple[Float[Array, "BC H T S"], ...] | None = None


@struct.dataclass
class TokenClassifierOutput:
    """Output of `BertForTokenClassification`, N labels."""

    logits: Float[Array, "B T N"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class QuestionAnsweringModelOutput:
    """Output of `BertForQuestionAnswering`."""

    start_logits: Float[Array, "B T"]
    end_logits: Float[Array, "B T"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class PointerQuestionAnsweringModelOutput:
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
