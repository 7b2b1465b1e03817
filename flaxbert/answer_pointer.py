"""The answer pointer (Wang and Jiang, 2016): a pointer network of two steps over the states of an encoder.

The first step points at the start of an answer, the second, fed with the state there, at its end. An answer's score is
log p(start) + log p(end | start). `pointer.py` has the equations; there is no LSTM encoder, and the first state is 0.
"""

import dataclasses
from typing import Unpack

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from flaxbert.dropout import dropout
from flaxbert.functional import require_shape
from flaxbert.heads import BertForQuestionAnswering
from flaxbert.layers import Declaration, Params
from flaxbert.lstm import zero_state
from flaxbert.models import ModelInputs, TaskModel
from flaxbert.outputs import PointerQuestionAnsweringModelOutput
from flaxbert.pointer import declare_pointer, inputs_at, map_context, pointer_step


class BertForPointerQuestionAnswering(TaskModel):
    """The first position of an answer, and the last one given the first. `transformers` has no such class."""

    head_dropout_prob = BertForQuestionAnswering.head_dropout_prob
    keeps_cls_token = False

    @nn.nowrap
    def head_declaration(self) -> Declaration:
        """Return the declaration of the pointer, whose states are as wide as the model's."""
        width = self.config.hidden_size
        return {"pointer": declare_pointer(width, width, stddev=self.config.initializer_range)}

    @nn.compact
    def __call__(
        self,
        input_ids: Int[ArrayLike, "B T"] | None = None,
        *,
        start_positions: Int[ArrayLike, "B"] | None = None,
        beams: int = 20,
        deterministic: bool = True,
        **inputs: Unpack[ModelInputs],
    ) -> PointerQuestionAnsweringModelOutput:
        """Score every position as start, and as end given a start; padding is never pointed at.

        Args:
            input_ids: as the other arguments, described in `BertModel.__call__`; `attention_mask` is [B, T].
            start_positions: the starts that `end_logits` are given, for training; the most likely ones where None. As
                in `losses.question_answering`, a negative one is 0 ([CLS]).
            beams: the number of starts whose ends are also scored, the most likely ones, beside [CLS]; 0 for none.
            deterministic: as in `BertModel.__call__`.
        """
        params = self._ready_parameters()
        mask = inputs.get("attention_mask")
        if mask is not None and jnp.ndim(mask) != 2:
            raise ValueError(
                f"attention_mask has shape {list(jnp.shape(mask))}; a pointer takes [B, T], without packing"
            )
        if beams < 0:
            raise ValueError(f"beams is {beams}; it must be at least 0")
        out = self._encode(params, input_ids, deterministic, inputs)
        states = dropout(out.last_hidden_state, self._dropout_key(deterministic), rate=self.head_dropout_prob)
        require_shape("start_positions", start_positions, states.shape[:1])
        used = jnp.ones(states.shape[:2], bool) if mask is None else jnp.asarray(mask) != 0
        given = None if start_positions is None else jnp.maximum(jnp.asarray(start_positions), 0)
        scores = point_at_answers(params["pointer"], states, used, start_positions=given, beams=beams)
        return dataclasses.replace(
            scores, hidden_states=out.hidden_states, attentions=out.attentions, lengths=out.lengths
        )


@jax.named_scope("answer_pointer")
def point_at_answers(
    params: Params,
    states: Float[Array, "B T D"],
    mask: Bool[Array, "B T"],
    *,
    start_positions: Int[Array, "B"] | None,
    beams: int,
) -> PointerQuestionAnsweringModelOutput:
    """Return the log-probabilities of starts and ends; the parameters are those of `pointer.declare_pointer`."""
    mapped = map_context(params, states)
    first_input = jnp.broadcast_to(params["first_input"].astype(states.dtype)[None], states.shape[::2])
    logits, state = pointer_step(params, first_input, zero_state(params["cell"], states.shape[0]), mapped, mask)
    start_logits = jax.nn.log_softmax(logits, axis=-1)

    def end_logits(starts: Int[Array, "B"]) -> Float[Array, "B T"]:
        logits, _ = pointer_step(params, inputs_at(states, starts), state, mapped, mask)
        return jax.nn.log_softmax(logits, axis=-1)

    given = jnp.argmax(logits, axis=-1) if start_positions is None else start_positions
    starts = ends = None
    if beams:
        starts = best_starts(start_logits, beams)
        # One start after another: together their energies would be [B, G, T, D].
        ends = jnp.swapaxes(jax.lax.map(end_logits, starts.T), 0, 1)
    return PointerQuestionAnsweringModelOutput(start_logits, end_logits(given), starts, ends)


def best_starts(start_logits: Float[Array, "B T"], beams: int) -> Int[Array, "B G"]:
    """Return position 0, [CLS], and the `beams` other positions of the highest logits; 0 where there are fewer."""
    rows, length = start_logits.shape
    lowest = jnp.finfo(start_logits.dtype).min
    others = start_logits.at[:, 0].set(lowest)
    others = jnp.concatenate([others, jnp.full((rows, beams), lowest)], axis=1)  # `beams` may exceed the length
    best = jax.lax.top_k(others, beams)[1]
    return jnp.concatenate([jnp.zeros((rows, 1), best.dtype), jnp.where(best < length, best, 0)], axis=1)
