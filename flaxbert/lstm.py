"""Long short-term memory (Hochreiter and Schmidhuber, 1997) as pure functions; axis letters as in `encoder.py`.

The gates stand in PyTorch's order, input, forget, cell, output, on the last axis of the kernels "input" [E, 4D] and
"state" [D, 4D]: the transposes of `weight_ih` and `weight_hh`. There is one bias, the sum of PyTorch's two.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flaxbert.functional import linear
from flaxbert.layers import Declaration, Params, declare_linear

_FORWARD, _BACKWARD = "forward", "backward"


class LSTMState(NamedTuple):
    """The state of an LSTM: `hidden` in the compute dtype, `cell` in float32."""

    hidden: Float[Array, "B D"]
    cell: Float[Array, "B D"]


def declare_kernel(inputs: int, outputs: int, stddev: float | None) -> Declaration:
    """Declare a linear layer; `stddev` None is the inverse square root of the inputs."""
    return declare_linear((inputs, outputs), ("embed", None), stddev=inputs**-0.5 if stddev is None else stddev)


def declare_lstm(inputs: int, width: int, *, stddev: float | None) -> Declaration:
    """Declare an LSTM cell; `stddev` as in `declare_kernel`."""
    state = declare_kernel(width, 4 * width, stddev)
    return {"input": declare_kernel(inputs, 4 * width, stddev), "state": {"kernel": state["kernel"]}}


def declare_lstm_encoder(
    inputs: int, width: int, *, num_layers: int, bidirectional: bool, stddev: float | None
) -> Declaration:
    """Declare the parameters of `lstm_encoder`, whose states have `width` numbers, half from each of two directions."""
    names = (_FORWARD, _BACKWARD) if bidirectional else (_FORWARD,)
    return {
        str(number): {
            name: declare_lstm(width if number else inputs, width // len(names), stddev=stddev) for name in names
        }
        for number in range(num_layers)
    }


def zero_state(params: Params, rows: int) -> LSTMState:
    """Return the zero state of an LSTM for a batch of `rows`."""
    kernel = params["state"]["kernel"]
    return LSTMState(jnp.zeros((rows, kernel.shape[0]), kernel.dtype), jnp.zeros((rows, kernel.shape[0]), jnp.float32))


def lstm_step(params: Params, projected: Float[Array, "B gates"], state: LSTMState) -> LSTMState:
    """Return the next state of an LSTM; `projected` is its input after the layer "input"."""
    recurrent = linear(params["state"], state.hidden, "BD,DE->BE")
    gates = projected.astype(jnp.float32) + recurrent.astype(jnp.float32)
    add, forget, candidate, show = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(forget) * state.cell + jax.nn.sigmoid(add) * jnp.tanh(candidate)
    return LSTMState((jax.nn.sigmoid(show) * jnp.tanh(cell)).astype(state.hidden.dtype), cell)


def lstm_layer(
    params: Params, x: Float[Array, "B T E"], mask: Bool[Array, "B T"], *, reverse: bool = False
) -> tuple[Float[Array, "B T D"], LSTMState]:
    """Return the hidden states after each position, and the last state; positions that are masked change no state."""

    def step(state: LSTMState, inputs: tuple[Array, Array]) -> tuple[LSTMState, Array]:
        projected, used = inputs
        new = lstm_step(params, projected, state)
        state = LSTMState(*(jnp.where(used[:, None], *pair) for pair in zip(new, state, strict=True)))
        return state, state.hidden

    projected = linear(params["input"], x, "BTE,ED->BTD")  # one product for all positions
    inputs = jnp.swapaxes(projected, 0, 1), mask.T
    state, hidden = jax.lax.scan(step, zero_state(params, x.shape[0]), inputs, reverse=reverse)
    return jnp.swapaxes(hidden, 0, 1), state


def lstm_encoder(
    params: Params, x: Float[Array, "B T E"], mask: Bool[Array, "B T"]
) -> tuple[Float[Array, "B T D"], LSTMState]:
    """Run all layers; return the hidden states of the last one and its last state, both directions side by side."""
    state = None
    for number in range(len(params)):
        layer = params[str(number)]
        outputs = [
            lstm_layer(layer[name], x, mask, reverse=name == _BACKWARD) for name in (_FORWARD, _BACKWARD)[: len(layer)]
        ]
        hidden, states = zip(*outputs, strict=True)
        x = jnp.concatenate(hidden, axis=-1)
        state = LSTMState(*(jnp.concatenate(parts, axis=-1) for parts in zip(*states, strict=True)))
    assert state is not None  # there is one layer at least
    return x, state
