"""The task classes: a `BertModel` and a few parameters on top of it. Their losses are in `losses.py`.

Each takes the keyword arguments of `BertModel.__call__` and returns logits; axis letters as in `encoder.py`.
"""

from typing import Any, Unpack

import flax.linen as nn
import jax.numpy as jnp
from jax.nn.initializers import zeros
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float, Int

from flaxbert import functional
from flaxbert.base import PreTrainedModel
from flaxbert.config import BertConfig
from flaxbert.encoder import BertModel, ModelInputs
from flaxbert.layers import LayerNorm, Linear, parameter
from flaxbert.outputs import (
    BaseModelOutput,
    CausalLMOutput,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    NextSentencePredictorOutput,
    PreTrainingOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from flaxbert.sharding import constrain


class MaskedLMHead(nn.Module):
    """Dense, activation, norm, then a score for every word: the tied embedding table plus a bias of its own."""

    config: BertConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], bert: BertModel) -> Float[Array, "B T V"]:
        """Scores each position; `bert` lends its word embeddings, unless the config unties them, and their number."""
        c, rows = self.config, bert.padded_vocab_size
        size = (c.hidden_size, c.hidden_size)
        transform = Linear("BTD,DE->BTE", size, ("embed", None), c.initializer_range, self.dtype, name="transform")
        x = functional.ACTIVATIONS[c.hidden_act](transform(x))
        x = LayerNorm(c.hidden_size, c.layer_norm_eps, name="norm")(x)
        if not c.tie_word_embeddings:
            shape, axes = (c.hidden_size, rows), ("embed", "vocab")
            how = c.initializer_range, self.dtype, c.vocab_size
            decoder = Linear("BTD,DV->BTV", shape, axes, *how, name="decoder")
            scores = decoder(x).astype(jnp.float32)
        else:
            bias = parameter(self, "bias", zeros, (rows,), ("vocab",))
            scores = bert.decode(x) + bias[None, None]
        if rows > c.vocab_size:
            scores = jnp.where((jnp.arange(rows) < c.vocab_size)[None, None], scores, jnp.finfo(jnp.float32).min)
        return constrain(scores, "batch", None, "vocab")


class _Head(PreTrainedModel):
    """A task class; `_encoder` and `_linear` build its two usual parts."""

    def _encoder(self, *, add_pooling_layer: bool) -> BertModel:
        how = self.dtype, self.scan, self.remat, self.attn_implementation, self.vocab_multiple
        return BertModel(self.config, *how, add_pooling_layer=add_pooling_layer)

    def _linear(self, equation: str, outputs: int) -> Linear:
        c = self.config
        return Linear(equation, (c.hidden_size, outputs), ("embed", "label"), c.initializer_range, self.dtype)

    def _dropout(self, x: Float[Array, "..."], deterministic: bool) -> Float[Array, "..."]:
        key = None if deterministic else self.make_rng("dropout")
        return functional.dropout(x, key, rate=self.config.head_dropout_prob)


def _pooled(out: BaseModelOutput) -> Float[Array, "B *P D"]:
    assert out.pooler_output is not None  # the heads that call this build their encoder with a pooler
    return out.pooler_output


def _at(x: Float[Array, "B T D"], positions: Int[ArrayLike, "B P"] | None) -> Float[Array, "B P D"]:
    """The vectors at some positions: scoring only masked words saves most of the decoder's work."""
    if positions is None:
        return x
    functional.require_range("masked_lm_positions", positions, 0, x.shape[1] - 1, why="the sequence's length")
    return functional.at_positions(x, positions)


class BertForPreTraining(_Head):
    """Masked words and next sentence, as BERT was trained."""

    def setup(self):
        """Declares the encoder and both heads."""
        self.bert = self._encoder(add_pooling_layer=True)
        self.predictions = MaskedLMHead(self.config, self.dtype)
        self.seq_relationship = self._linear("...D,DN->...N", 2)

    def __call__(
        self,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        *,
        masked_lm_positions: Int[ArrayLike, "B M"] | None = None,
        first_positions: Int[ArrayLike, "B P"] | None = None,
        deterministic: bool = True,
        **inputs: Unpack[ModelInputs],
    ) -> PreTrainingOutput:
        """Scores words, at every position or at `masked_lm_positions`, and whether the second segment is random.

        The latter for every row [B, 2], or, where a row holds several examples, at the `first_positions` [B, P, 2].
        """
        out = self.bert(input_ids, first_positions=first_positions, deterministic=deterministic, **inputs)
        return PreTrainingOutput(
            prediction_logits=self.predictions(_at(out.last_hidden_state, masked_lm_positions), self.bert),
            seq_relationship_logits=self.seq_relationship(_pooled(out)).astype(jnp.float32),
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )


class BertForMaskedLM(_Head):
    """Words at masked positions."""

    def setup(self):
        """Declares the encoder, without pooler, and the head."""
        self.bert = self._encoder(add_pooling_layer=False)
        self.predictions = MaskedLMHead(self.config, self.dtype)

    def __call__(
        self,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        *,
        masked_lm_positions: Int[ArrayLike, "B P"] | None = None,
        deterministic: bool = True,
        **inputs: Unpack[ModelInputs],
    ) -> MaskedLMOutput:
        """Scores every position's word, or only those at `masked_lm_positions`: logits [B, P, V]."""
        out = self.bert(input_ids, deterministic=deterministic, **inputs)
        logits = self.predictions(_at(out.last_hidden_state, masked_lm_positions), self.bert)
        return MaskedLMOutput(logits, out.hidden_states, out.attentions)


class BertLMHeadModel(_Head):
    """The next word; attention is causal where `config.is_decoder` is true, as in the reference."""

    def setup(self):
        """Declares the encoder, without pooler, and the head."""
        self.bert = self._encoder(add_pooling_layer=False)
        self.predictions = MaskedLMHead(self.config, self.dtype)

    def __call__(
        self,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        *,
        deterministic: bool = True,
        **inputs: Unpack[ModelInputs],
    ) -> CausalLMOutput:
        """Scores the word that follows every position."""
        out = self.bert(input_ids, deterministic=deterministic, **inputs)
        logits = self.predictions(out.last_hidden_state, self.bert)
        return CausalLMOutput(logits, out.hidden_states, out.attentions)


class BertForNextSentencePrediction(_Head):
    """Whether the second segment follows the first (0) or is random (1)."""

    def setup(self):
        """Declares the encoder and the classifier."""
        self.bert = self._encoder(add_pooling_layer=True)
        self.seq_relationship = self._linear("...D,DN->...N", 2)

    def __call__(
        self,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        *,
        first_positions: Int[ArrayLike, "B P"] | None = None,
        deterministic: bool = True,
        **inputs: Unpack[ModelInputs],
    ) -> NextSentencePredictorOutput:
        """Scores both answers from the pooled vector: [B, 2], or [B, P, 2] with `first_positions`."""
        where: dict[str, Any] = {"first_positions": first_positions, "first_positions_only": True}
        out = self.bert(input_ids, deterministic=deterministic, **where, **inputs)
        logits = self.seq_relationship(_pooled(out)).astype(jnp.float32)
        return NextSentencePredictorOutput(logits, out.hidden_states, out.attentions)


class BertForSequenceClassification(_Head):
    """One label, several labels or a number for a whole sequence."""

    def setup(self):
        """Declares the encoder and the classifier."""
        self.bert = self._encoder(add_pooling_layer=True)
        self.classifier = self._linear("...D,DN->...N", self.config.num_labels)

    def __call__(
        self,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        *,
        first_positions: Int[ArrayLike, "B P"] | None = None,
        deterministic: bool = True,
        **inputs: Unpack[ModelInputs],
    ) -> SequenceClassifierOutput:
        """Scores the labels from the pooled vector, after dropout: [B, N], or [B, P, N] with `first_positions`."""
        where: dict[str, Any] = {"first_positions": first_positions, "first_positions_only": True}
        out = self.bert(input_ids, deterministic=deterministic, **where, **inputs)
        logits = self.classifier(self._dropout(_pooled(out), deterministic)).astype(jnp.float32)
        return SequenceClassifierOutput(logits, out.hidden_states, out.attentions)


class BertForMultipleChoice(_Head):
    """One of C continuations; every input has a choice axis, [B, C, T]."""

    def setup(self):
        """Declares the encoder and the one-column classifier."""
        self.bert = self._encoder(add_pooling_layer=True)
        self.classifier = self._linear("BD,DN->BN", 1)

    @property
    def takes_choices(self) -> bool:
        """True: [B, C, T]."""
        return True

    def __call__(
        self,
        input_ids: Int[ArrayLike, "B C T"] | None = None,
        *,
        deterministic: bool = True,
        **inputs: Unpack[ModelInputs],
    ) -> MultipleChoiceModelOutput:
        """Scores each choice as a row of its own, and returns them beside each other [B, C]."""
        example = inputs.get("inputs_embeds") if input_ids is None else input_ids
        if example is None:
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        choices = jnp.shape(example)[:2]
        per_choice = ("attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
        flat: dict[str, Any] = dict(inputs)
        flat |= {name: functional.flatten_choices(flat[name]) for name in per_choice if name in flat}
        flat_ids = functional.flatten_choices(input_ids)
        out = self.bert(flat_ids, first_positions_only=True, deterministic=deterministic, **flat)
        logits = self.classifier(self._dropout(_pooled(out), deterministic)).astype(jnp.float32)
        return MultipleChoiceModelOutput(logits.reshape(choices), out.hidden_states, out.attentions)


class BertForTokenClassification(_Head):
    """A label for every position."""

    def setup(self):
        """Declares the encoder, without pooler, and the classifier."""
        self.bert = self._encoder(add_pooling_layer=False)
        self.classifier = self._linear("BTD,DN->BTN", self.config.num_labels)

    def __call__(
        self,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        *,
        deterministic: bool = True,
        **inputs: Unpack[ModelInputs],
    ) -> TokenClassifierOutput:
        """Scores the labels of every position, after dropout."""
        out = self.bert(input_ids, deterministic=deterministic, **inputs)
        logits = self.classifier(self._dropout(out.last_hidden_state, deterministic)).astype(jnp.float32)
        return TokenClassifierOutput(logits, out.hidden_states, out.attentions)


class BertForQuestionAnswering(_Head):
    """The first and the last position of an answer; no dropout before the two scores, unlike DistilBERT."""

    def setup(self):
        """Declares the encoder, without pooler, and the two-column output."""
        self.bert = self._encoder(add_pooling_layer=False)
        self.qa_outputs = self._linear("BTD,DN->BTN", 2)

    def __call__(
        self,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        *,
        deterministic: bool = True,
        **inputs: Unpack[ModelInputs],
    ) -> QuestionAnsweringModelOutput:
        """Scores every position as start and as end."""
        out = self.bert(input_ids, deterministic=deterministic, **inputs)
        logits = self.qa_outputs(out.last_hidden_state).astype(jnp.float32)
        return QuestionAnsweringModelOutput(logits[..., 0], logits[..., 1], out.hidden_states, out.attentions)
