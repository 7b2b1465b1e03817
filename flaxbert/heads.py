"""The classes for pretraining, and for tasks on texts, tokens, choices and answers; losses are in `losses.py`.

Each takes the keyword arguments of `BertModel.__call__` and returns logits in float32; axis letters as in `encoder.py`.
"""

from typing import Any, ClassVar, Unpack

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Int, Shaped

from flaxbert.config import BertConfig
from flaxbert.dropout import dropout
from flaxbert.functional import activate, linear
from flaxbert.layers import Declaration, declare_linear
from flaxbert.lm_heads import MaskedLMModel
from flaxbert.models import ModelInputs, TaskModel
from flaxbert.outputs import (
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    PreTrainingOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)


def declare_label_layer(config: BertConfig, outputs: int) -> Declaration:
    """Declare a linear layer from the model's width to `outputs` columns."""
    shape = (config.hidden_size, outputs)
    return declare_linear(shape, ("embed", "label"), stddev=config.initializer_range)


class BertForPreTraining(MaskedLMModel):
    """Masked words and next sentence, as BERT was trained."""

    has_pooler = True

    @nn.nowrap
    def head_declaration(self) -> Declaration:
        """Return the declaration of both heads."""
        return super().head_declaration() | {"seq_relationship": declare_label_layer(self.config, 2)}

    @nn.compact
    def __call__(
        self,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        *,
        masked_lm_positions: Int[ArrayLike, "B M"] | None = None,
        first_positions: Int[ArrayLike, "B P"] | None = None,
        deterministic: bool = True,
        **inputs: Unpack[ModelInputs],
    ) -> PreTrainingOutput:
        """Score the vocabulary at every position or at `masked_lm_positions`, and if the second segment is random.

        The latter for each batch row [B, 2], or, for rows that hold several examples, at `first_positions` [B, P, 2].
        """
        params = self._ready_parameters()
        out = self._encode(params, input_ids, deterministic, inputs, first_positions=first_positions)
        words = self._masked_lm_logits(params, out.last_hidden_state, masked_lm_positions)
        following = linear(params["seq_relationship"], out.pooled, "...D,DN->...N").astype(jnp.float32)
        return PreTrainingOutput(words, following, out.hidden_states, out.attentions, lengths=out.lengths)


class BertForNextSentencePrediction(TaskModel):
    """Next-sentence prediction: the second segment follows the first (0) or is random (1)."""

    has_pooler = True

    @nn.nowrap
    def head_declaration(self) -> Declaration:
        """Return the declaration of the classifier."""
        return {"seq_relationship": declare_label_layer(self.config, 2)}

    @nn.compact
    def __call__(
        self,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        *,
        first_positions: Int[ArrayLike, "B P"] | None = None,
        deterministic: bool = True,
        **inputs: Unpack[ModelInputs],
    ) -> NextSentencePredictorOutput:
        """Score both answers from the pooled vector: [B, 2], or [B, P, 2] with `first_positions`."""
        params = self._ready_parameters()
        out = self._encode(
            params, input_ids, deterministic, inputs, first_positions=first_positions, first_positions_only=True
        )
        logits = linear(params["seq_relationship"], out.pooled, "...D,DN->...N").astype(jnp.float32)
        return NextSentencePredictorOutput(logits, out.hidden_states, out.attentions, lengths=out.lengths)


class BertForSequenceClassification(TaskModel):
    """One label, several labels or a number for a whole sequence."""

    has_pooler = True

    @nn.nowrap
    def head_declaration(self) -> Declaration:
        """Return the declaration of the classifier."""
        return {"classifier": declare_label_layer(self.config, self.config.num_labels)}

    @nn.compact
    def __call__(
        self,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        *,
        first_positions: Int[ArrayLike, "B P"] | None = None,
        deterministic: bool = True,
        **inputs: Unpack[ModelInputs],
    ) -> SequenceClassifierOutput:
        """Score the labels from the pooled vector, after dropout: [B, N], or [B, P, N] with `first_positions`."""
        params = self._ready_parameters()
        out = self._encode(
            params, input_ids, deterministic, inputs, first_positions=first_positions, first_positions_only=True
        )
        pooled = dropout(out.pooled, self._dropout_key(deterministic), rate=self.head_dropout_prob)
        logits = linear(params["classifier"], pooled, "...D,DN->...N").astype(jnp.float32)
        return SequenceClassifierOutput(logits, out.hidden_states, out.attentions, lengths=out.lengths)


class FirstTokenClassifier(TaskModel):
    """One label, several labels or a number for a whole sequence, from the first token's state: RoBERTa, ELECTRA.

    The state goes through a dense layer in place of a pooler, with dropout before and after it.
    """

    dense_activation: ClassVar[str] = "tanh"

    @nn.nowrap
    def head_declaration(self) -> Declaration:
        """Return the declaration of the dense layer and the classifier."""
        width = self.config.hidden_size
        dense = declare_linear((width, width), ("embed", None), stddev=self.config.initializer_range)
        return {"classifier": {"dense": dense, "output": declare_label_layer(self.config, self.config.num_labels)}}

    @nn.compact
    def __call__(
        self,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        *,
        first_positions: Int[ArrayLike, "B P"] | None = None,
        deterministic: bool = True,
        **inputs: Unpack[ModelInputs],
    ) -> SequenceClassifierOutput:
        """Score the labels from the first token: [B, N], or [B, P, N] with `first_positions`."""
        params = self._ready_parameters()
        out = self._encode(
            params, input_ids, deterministic, inputs, first_positions=first_positions, first_positions_only=True
        )
        head = params["classifier"]
        rate = self.head_dropout_prob
        x = dropout(out.last_hidden_state, self._dropout_key(deterministic), rate=rate)
        x = activate({}, linear(head["dense"], x, "BPD,DE->BPE"), self.dense_activation)
        x = dropout(x, self._dropout_key(deterministic), rate=rate)
        logits = linear(head["output"], x, "BPD,DN->BPN").astype(jnp.float32)
        logits = logits[:, 0] if first_positions is None else logits
        return SequenceClassifierOutput(logits, out.hidden_states, out.attentions, lengths=out.lengths)


class BertForMultipleChoice(TaskModel):
    """One of C continuations; every input has an axis of choices, [B, C, T]."""

    has_pooler = True
    takes_choices = True

    @nn.nowrap
    def head_declaration(self) -> Declaration:
        """Return the declaration of the classifier, which has one column."""
        return {"classifier": declare_label_layer(self.config, 1)}

    @nn.compact
    def __call__(
        self,
        input_ids: Int[ArrayLike, "B C T"] | None = None,
        *,
        deterministic: bool = True,
        **inputs: Unpack[ModelInputs],
    ) -> MultipleChoiceModelOutput:
        """Score each choice as a batch row of its own; return logits [B, C]."""
        example = inputs.get("inputs_embeds") if input_ids is None else input_ids
        if example is None:
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        flat: dict[str, Any] = dict(inputs)
        for name in ("attention_mask", "token_type_ids", "position_ids", "inputs_embeds"):
            if name in flat:
                flat[name] = flatten_choices(flat[name])
        flat_ids = flatten_choices(input_ids)
        params = self._ready_parameters()
        out = self._encode(params, flat_ids, deterministic, flat, first_positions_only=True)
        pooled = dropout(out.pooled, self._dropout_key(deterministic), rate=self.head_dropout_prob)
        logits = linear(params["classifier"], pooled, "BD,DN->BN").astype(jnp.float32)
        return MultipleChoiceModelOutput(
            logits.reshape(jnp.shape(example)[:2]), out.hidden_states, out.attentions, lengths=out.lengths
        )


def flatten_choices(x: Shaped[ArrayLike, "B C *rest"] | None) -> Shaped[Array, " BC *rest"] | None:
    """Reshape [B, C, ...] to [B*C, ...], so that every choice is a batch row; None stays None."""
    if x is None:
        return None
    x = jnp.asarray(x)
    if x.ndim < 3:
        raise ValueError(f"an input of shape {x.shape} has no axis of choices; [B, C, T] is needed")
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


class BertForTokenClassification(TaskModel):
    """A label for every position."""

    @nn.nowrap
    def head_declaration(self) -> Declaration:
        """Return the declaration of the classifier."""
        return {"classifier": declare_label_layer(self.config, self.config.num_labels)}

    @nn.compact
    def __call__(
        self,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        *,
        deterministic: bool = True,
        **inputs: Unpack[ModelInputs],
    ) -> TokenClassifierOutput:
        """Score the labels of every position, after dropout: logits [B, T, N]."""
        params = self._ready_parameters()
        out = self._encode(params, input_ids, deterministic, inputs)
        key = self._dropout_key(deterministic)
        x = dropout(out.last_hidden_state, key, rate=self.head_dropout_prob)
        logits = linear(params["classifier"], x, "BTD,DN->BTN").astype(jnp.float32)
        return TokenClassifierOutput(logits, out.hidden_states, out.attentions, lengths=out.lengths)


class BertForQuestionAnswering(TaskModel):
    """The first and the last position of an answer; no dropout before the two scores."""

    keeps_cls_token = False

    @property
    def head_dropout_prob(self) -> float:
        """0, whatever the configuration, as in the reference."""
        return 0.0

    @nn.nowrap
    def head_declaration(self) -> Declaration:
        """Return the declaration of the two-column output layer."""
        return {"qa_outputs": declare_label_layer(self.config, 2)}

    @nn.compact
    def __call__(
        self,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        *,
        deterministic: bool = True,
        **inputs: Unpack[ModelInputs],
    ) -> QuestionAnsweringModelOutput:
        """Score every position as start and as end of the answer."""
        params = self._ready_parameters()
        out = self._encode(params, input_ids, deterministic, inputs)
        x = dropout(out.last_hidden_state, self._dropout_key(deterministic), rate=self.head_dropout_prob)
        logits = linear(params["qa_outputs"], x, "BTD,DN->BTN").astype(jnp.float32)
        return QuestionAnsweringModelOutput(
            logits[..., 0], logits[..., 1], out.hidden_states, out.attentions, lengths=out.lengths
        )
