"""What the models return: one dataclass a kind of head, with Hugging Face's field names.

Axes are those of `encoder.py`'s glossary. Logits are float32 whatever the compute dtype. `hidden_states` holds the
embedding output and then every layer's output (L+1 arrays [B, T, D]); `attentions` the weights of every layer
(L arrays [B, H, T, S], after dropout and head mask). Both are None unless asked for.
"""

from flax import struct
from jaxtyping import Array, Float

HiddenStates = tuple[Float[Array, "B T D"], ...]
Attentions = tuple[Float[Array, "B H T S"], ...]


@struct.dataclass
class BaseModelOutput:
    """Of `BertModel`; `pooler_output` is None without a pooling layer.

    P sequences share a row where `first_positions` were given. R is T; with `first_positions_only` it is P, or 1.
    """

    last_hidden_state: Float[Array, "B R D"]
    pooler_output: Float[Array, "B D"] | Float[Array, "B P D"] | None = None
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class PreTrainingOutput:
    """Of `BertForPreTraining`."""

    prediction_logits: Float[Array, "B T V"] | Float[Array, "B M V"]
    seq_relationship_logits: Float[Array, "B 2"] | Float[Array, "B P 2"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class MaskedLMOutput:
    """Of `BertForMaskedLM`; P predicted positions where only those were asked for."""

    logits: Float[Array, "B T V"] | Float[Array, "B P V"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class CausalLMOutput:
    """Of `BertLMHeadModel`."""

    logits: Float[Array, "B T V"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class NextSentencePredictorOutput:
    """Of `BertForNextSentencePrediction`; column 0 scores "follows", column 1 "random"."""

    logits: Float[Array, "B *P 2"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class SequenceClassifierOutput:
    """Of `BertForSequenceClassification`, N labels; P sequences share a row where `first_positions` were given."""

    logits: Float[Array, "B N"] | Float[Array, "B P N"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class MultipleChoiceModelOutput:
    """Of `BertForMultipleChoice`; hidden states and attentions have B*C rows."""

    logits: Float[Array, "B C"]
    hidden_states: tuple[Float[Array, "BC T D"], ...] | None = None
    attentions: tuple[Float[Array, "BC H T S"], ...] | None = None


@struct.dataclass
class TokenClassifierOutput:
    """Of `BertForTokenClassification`, N labels."""

    logits: Float[Array, "B T N"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None


@struct.dataclass
class QuestionAnsweringModelOutput:
    """Of `BertForQuestionAnswering`."""

    start_logits: Float[Array, "B T"]
    end_logits: Float[Array, "B T"]
    hidden_states: HiddenStates | None = None
    attentions: Attentions | None = None
