"""Pointer networks (Vinyals et al., 2015): an LSTM reads a sequence, and an LSTM points at positions of it.

Pure functions over a tree of parameters; axis letters as in `encoder.py`. With W the layer "state", M "context", v
"score" and Q "mix", step k of the decoder computes

    h, c  = LSTM(x_k, h, c)                             x_0 is learned ("first_input")
    s_j   = v . tanh(W h + M e_j)                       the logit of position j, whose context is e_j
    p     = softmax(s) over the positions that are not masked
    h     = tanh(Q [sum_j p_j M e_j; h])                the glimpse, mixed back into the state
    x_k+1 = the input at the target, or without targets at the position with the highest logit

    sizes = pointer.PointerSizes(input_size=2, embedding_size=64, hidden_size=128)
    params = layers.fresh_parameters(pointer.declare_pointer_network(sizes), jax.random.key(0))
    output = pointer.pointer_network(params, points, mask, targets=positions)
    loss = losses.pointing(output.logits, positions).mean
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax.nn.initializers import normal
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num

from flaxbert.functional import linear, require_range, require_shape
from flaxbert.layers import Declaration, Params, declare_vector
from flaxbert.lstm import LSTMState, declare_kernel, declare_lstm, declare_lstm_encoder, lstm_encoder, lstm_step


@struct.dataclass
class PointerOutput:
    """Output of `pointer_network`.

    `logits` are float32, the lowest one where a position may not be pointed at. `positions` have the highest logits;
    those of more steps than there are positions to choose mean nothing.
    """

    logits: Float[Array, "B U T"]
    positions: Int[Array, "B U"]


@dataclasses.dataclass(frozen=True)
class PointerSizes:
    """The sizes of a pointer network.

    Attributes:
        input_size: of the vectors to point at.
        embedding_size: that they are mapped to before they enter an LSTM.
        hidden_size: of the decoder, and of the encoder's states; both directions together where it has two.
        encoder_layers: LSTMs above one another, at least 1.
        bidirectional: each layer also reads from the end, with half the hidden size for each direction.
        initializer_range: standard deviation of all kernels; None for the inverse square root of their inputs.

    Raises:
        ValueError: a size is below 1, or an odd hidden size is to be halved.
    """

    input_size: int
    embedding_size: int
    hidden_size: int
    encoder_layers: int = 1
    bidirectional: bool = False
    initializer_range: float | None = None

    def __post_init__(self):
        for name in ("input_size", "embedding_size", "hidden_size", "encoder_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.bidirectional and self.hidden_size % 2:
            raise ValueError(f"hidden_size is {self.hidden_size}; with bidirectional=True it must be even")


# -- declarations ------------------------------------------------------------------------------------------


def declare_pointer_network(sizes: PointerSizes) -> Declaration:
    """Declare the parameters of `pointer_network`."""
    width, stddev = sizes.hidden_size, sizes.initializer_range
    encoder = declare_lstm_encoder(
        sizes.embedding_size,
        width,
        num_layers=sizes.encoder_layers,
        bidirectional=sizes.bidirectional,
        stddev=stddev,
    )
    return {
        "embedding": declare_kernel(sizes.input_size, sizes.embedding_size, stddev),
        "encoder": encoder,
        "decoder": declare_pointer(sizes.embedding_size, width, stddev=stddev),
    }


def declare_pointer(inputs: int, width: int, *, stddev: float | None) -> Declaration:
    """Declare the parameters of `pointer_step` and `point`: inputs of size `inputs`, states and contexts of `width`."""
    first = normal(inputs**-0.5 if stddev is None else stddev)
    return {
        "first_input": declare_vector((inputs,), ("norm",), first),
        "cell": declare_lstm(inputs, width, stddev=stddev),
        "state": declare_kernel(width, width, stddev),
        "context": declare_kernel(width, width, stddev),
        "score": {"kernel": declare_kernel(width, 1, stddev)["kernel"]},
        "mix": declare_kernel(2 * width, width, stddev),
    }


# -- decoder -----------------------------------------------------------------------------------------------


def map_context(params: Params, context: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """Map the context of each position by the layer "context", once for all steps."""
    return linear(params["context"], context, "BTD,DE->BTE")


def pointer_step(
    params: Params,
    x: Float[Array, "B E"],
    state: LSTMState,
    mapped: Float[Array, "B T D"],
    allowed: Bool[Array, "B T"],
) -> tuple[Float[Array, "B T"], LSTMState]:
    """Point once: return the logits of the positions, and the state with the glimpse mixed in.

    `mapped` is the result of `map_context`, and x the input of the position pointed at before.
    """
    state = lstm_step(params["cell"], linear(params["cell"]["input"], x, "BE,ED->BD"), state)
    energies = jnp.tanh(mapped + linear(params["state"], state.hidden, "BD,DE->BE")[:, None])
    kernel = params["score"]["kernel"][:, 0]
    scores = jnp.einsum("BTD,D->BT", energies, kernel, preferred_element_type=jnp.float32)
    logits = jnp.where(allowed, scores, jnp.finfo(jnp.float32).min)
    probabilities = jax.nn.softmax(logits, axis=-1).astype(mapped.dtype)
    glimpse = jnp.einsum("BT,BTD->BD", probabilities, mapped)
    both = jnp.concatenate([glimpse, state.hidden], axis=-1)
    hidden = jnp.tanh(linear(params["mix"], both, "BD,DE->BE"))
    return logits, LSTMState(hidden, state.cell)


def inputs_at(inputs: Float[Array, "B T E"], positions: Int[Array, "B"]) -> Float[Array, "B E"]:
    """Return the input at a position of each batch row; positions out of range give the nearest one."""
    return jnp.take_along_axis(inputs, positions[:, None, None], axis=1, mode="clip")[:, 0]


def point(
    params: Params,
    inputs: Float[Array, "B T E"],
    context: Float[Array, "B T D"],
    mask: Bool[Array, "B T"],
    state: LSTMState,
    *,
    steps: int,
    targets: Int[Array, "B U"] | None = None,
    repeat: bool = False,
) -> PointerOutput:
    """Point `steps` times, from a state; the arguments are those of `pointer_network`."""
    mapped = map_context(params, context)

    def step(
        carry: tuple[Array, LSTMState, Array], target: Array | None
    ) -> tuple[tuple[Array, LSTMState, Array], tuple[Array, Array]]:
        x, state, allowed = carry
        logits, state = pointer_step(params, x, state, mapped, allowed)
        best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        chosen = best if target is None else target
        if not repeat:
            allowed = allowed & (jnp.arange(mask.shape[1])[None] != chosen[:, None])
        return (inputs_at(inputs, chosen), state, allowed), (logits, best)

    first = jnp.broadcast_to(params["first_input"].astype(inputs.dtype)[None], inputs.shape[::2])
    each = None if targets is None else targets.T
    _, (logits, positions) = jax.lax.scan(step, (first, state, mask), each, length=steps)
    return PointerOutput(jnp.swapaxes(logits, 0, 1), positions.T)


def pointer_network(
    params: Params,
    inputs: Float[ArrayLike, "B T I"],
    mask: Num[ArrayLike, "B T"] | Bool[ArrayLike, "B T"] | None = None,
    *,
    steps: int | None = None,
    targets: Int[ArrayLike, "B U"] | None = None,
    repeat: bool = False,
) -> PointerOutput:
    """Read vectors and point at them, one after another.

    Args:
        params: those of `declare_pointer_network`, ready for use (`layers.prepare`).
        inputs: the vectors.
        mask: nonzero where there is a vector; others are padding, which changes nothing and is never pointed at.
        steps: how many times to point; once for each position where None. Not with `targets`.
        targets: the position that each step points at, whatever its logits (teacher forcing). A negative one, as
            those that no loss counts, forbids no position, and the next step reads the input at 0.
        repeat: allow a position to be pointed at again. Otherwise the first steps, as many as there are vectors, are a
            permutation.

    Raises:
        ValueError: shapes or targets that do not fit, `steps` below 1, or both `steps` and `targets`.
    """
    inputs = jnp.asarray(inputs)
    rows, length, _ = inputs.shape
    require_shape("mask", mask, (rows, length))
    require_shape("targets", targets, (rows, "U"))
    require_range("targets", targets, -100, length - 1, why="the number of positions; -100 does not count")
    if steps is not None and (targets is not None or steps < 1):
        raise ValueError(
            f"steps is {steps}; it must be at least 1, and None where targets are given, one for each step"
        )
    steps = steps or (length if targets is None else jnp.shape(targets)[1])
    if steps > length and not repeat:
        raise ValueError(f"{steps} steps over {length} positions; give repeat=True to point at a position again")
    used = jnp.ones((rows, length), bool) if mask is None else jnp.asarray(mask) != 0
    x = linear(params["embedding"], inputs, "BTI,IE->BTE")
    context, state = lstm_encoder(params["encoder"], x, used)
    return point(
        params["decoder"],
        x,
        context,
        used,
        state,
        steps=steps,
        targets=None if targets is None else jnp.asarray(targets),
        repeat=repeat,
    )
