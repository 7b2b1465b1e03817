"""The loss of every head, as a sum and a weight, with the values of PyTorch's `transformers`.

A mean over a batch is `sum / weight`. Sums and weights of gradient-accumulation steps or devices add up (`a + b`),
so the mean of the whole batch is exact; a mean of means is not. All are computed in float32.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.core import Tracer
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Num

from flaxbert.config import PROBLEM_TYPES
from flaxbert.functional import require_range, require_shape

IGNORE = -100  # a label that does not count, as in PyTorch


@struct.dataclass
class Loss:
    """A loss of one or more terms. Each term is sum / weight; the loss is the sum of the terms."""

    sum: Float[Array | np.ndarray, "*terms"]
    weight: Float[Array | np.ndarray, "*terms"]

    @property
    def terms(self) -> Float[Array, "*terms"]:
        """Each term's quotient; that of a term in which nothing counts is 0 (PyTorch's is NaN)."""
        return jnp.divide(self.sum, jnp.where(self.weight == 0, 1.0, self.weight))

    @property
    def mean(self) -> Float[Array, ""]:
        """The loss: the terms added up."""
        return jnp.sum(self.terms)

    def __add__(self, other: "Loss") -> "Loss":
        return Loss(self.sum + other.sum, self.weight + other.weight)


def cross_entropy(logits: Float[Array, "*batch N"], labels: Int[Array, "*batch"], weight: Num[Array, "*batch"]) -> Loss:
    """Softmax cross-entropy, each entry times its weight; labels of weight 0 may be anything."""
    weight = weight.astype(jnp.float32)
    safe = jnp.where(weight == 0, 0, labels)
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    picked = jnp.take_along_axis(log_probabilities, safe[..., None], axis=-1)[..., 0]
    return Loss(-jnp.sum(picked * weight), jnp.sum(weight))


def _with_ignored(logits: Float[Array, "*batch N"], labels: Int[ArrayLike, "*batch"]) -> Loss:
    """Cross-entropy over the labels that are not IGNORE."""
    labels = _checked(labels, logits.shape[:-1], logits.shape[-1])
    return cross_entropy(logits, labels, (labels != IGNORE).astype(jnp.float32))


def masked_lm(logits: Float[Array, "B T V"], labels: Int[ArrayLike, "B T"]) -> Loss:
    """Cross-entropy over the positions whose label is not -100."""
    return _with_ignored(logits, labels)


def causal_lm(logits: Float[Array, "B T V"], labels: Int[ArrayLike, "B T"]) -> Loss:
    """Each position against the label of the next one; -100 does not count."""
    return _with_ignored(logits[:, :-1], jnp.asarray(labels)[:, 1:])


def next_sentence(logits: Float[Array, "B *P 2"], labels: Int[ArrayLike, "B *P"]) -> Loss:
    """Label 0: the second segment follows; 1: it is random; -100 does not count."""
    return _with_ignored(logits, labels)


def pretraining(
    prediction_logits: Float[Array, "B T V"],
    seq_relationship_logits: Float[Array, "B *P 2"],
    labels: Int[ArrayLike, "B T"],
    next_sentence_label: Int[ArrayLike, "B *P"],
) -> Loss:
    """The masked-LM mean plus the next-sentence mean, as two terms in this order."""
    terms = masked_lm(prediction_logits, labels), next_sentence(seq_relationship_logits, next_sentence_label)
    return Loss(jnp.stack([term.sum for term in terms]), jnp.stack([term.weight for term in terms]))


def replaced_tokens(logits: Float[Array, "B T"], labels: Int[ArrayLike, "B T"]) -> Loss:
    """Binary cross-entropy (ELECTRA: Clark et al., 2020), 1 for a replaced token; -100, for padding, does not count."""
    labels = _checked(labels, logits.shape, 2)
    weight = (labels != IGNORE).astype(jnp.float32)
    return Loss(jnp.sum(_binary(logits, labels) * weight), jnp.sum(weight))


def multiple_choice(logits: Float[Array, "B C"], labels: Int[ArrayLike, "B"]) -> Loss:
    """Cross-entropy over the choices."""
    return _with_ignored(logits, labels)


def token_classification(logits: Float[Array, "B T N"], labels: Int[ArrayLike, "B T"]) -> Loss:
    """Cross-entropy over the positions whose label is not -100, so padding never dilutes the mean."""
    return _with_ignored(logits, labels)


def pointing(logits: Float[Array, "B U T"], labels: Int[ArrayLike, "B U"]) -> Loss:
    """Cross-entropy over the steps of a pointer network whose label, a position, is not -100."""
    return _with_ignored(logits, labels)


def sequence_classification(
    logits: Float[Array, "B N"],
    labels: Num[ArrayLike, "B"] | Num[ArrayLike, "B N"],
    *,
    problem_type: str | None = None,
    weights: Num[ArrayLike, "B"] | None = None,
) -> Loss:
    """Squared error, cross-entropy, or binary cross-entropy, by `problem_type`.

    None decides as the reference does: one column is regression; whole-number labels [B] are single-label;
    otherwise multi-label. Regression and multi-label average over all B*N entries.

    Args:
        logits: one column a label.
        labels: ids [B] (single-label), numbers [B] or [B, N] (regression), zeros and ones [B, N] (multi-label).
        problem_type: "regression", "single_label_classification", "multi_label_classification" or None.
        weights: a factor on each row: 0 leaves out rows that only fill a batch.

    Raises:
        ValueError: an unknown problem type, labels out of range or of the wrong shape.
    """
    columns = logits.shape[-1]
    if problem_type is None:
        whole = jnp.issubdtype(jnp.asarray(labels).dtype, jnp.integer)
        several = "single_label_classification" if whole else "multi_label_classification"
        problem_type = "regression" if columns == 1 else several
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(f"problem_type is {problem_type!r}; allowed: None, {', '.join(PROBLEM_TYPES)}")
    require_shape("weights", weights, logits.shape[:1])
    rows = jnp.ones(logits.shape[0]) if weights is None else jnp.asarray(weights, jnp.float32)
    if problem_type == "single_label_classification":
        ids = _checked(labels, logits.shape[:1], columns)
        return cross_entropy(logits, ids, rows * (ids != IGNORE))
    targets = _targets(labels, logits.shape, problem_type)
    scores = logits.astype(jnp.float32)
    errors = jnp.square(scores - targets) if problem_type == "regression" else _binary(scores, targets)
    return Loss(jnp.sum(errors * rows[:, None]), columns * jnp.sum(rows))


def question_answering(
    start_logits: Float[Array, "B T"],
    end_logits: Float[Array, "B T"],
    start_positions: Int[ArrayLike, "B"] | Int[ArrayLike, "B 1"],
    end_positions: Int[ArrayLike, "B"] | Int[ArrayLike, "B 1"],
) -> Loss:
    """Half the mean cross-entropy of starts plus half that of ends, as two terms.

    As in the reference, a negative position becomes 0 ([CLS]) and one beyond the sequence does not count.
    """
    batch, length = start_logits.shape
    require_shape("start_positions", start_positions, (batch,), (batch, 1))
    require_shape("end_positions", end_positions, (batch,), (batch, 1))

    def term(logits: Float[Array, "B T"], positions: ArrayLike) -> Loss:
        positions = jnp.maximum(jnp.asarray(positions).reshape(-1), 0)
        return cross_entropy(logits, positions, (positions < length).astype(jnp.float32))

    start, end = term(start_logits, start_positions), term(end_logits, end_positions)
    return Loss(0.5 * jnp.stack([start.sum, end.sum]), jnp.stack([start.weight, end.weight]))


def _binary(logits: Float[Array, "..."], targets: Num[Array, "..."]) -> Float[Array, "..."]:
    """Binary cross-entropy of each entry."""
    scores = logits.astype(jnp.float32)
    return jax.nn.softplus(scores) - scores * targets


def _targets(labels: ArrayLike, shape: tuple[int, ...], problem_type: str) -> Float[Array, "B N"]:
    given = jnp.shape(labels)
    if given != shape and not (shape[1] == 1 and given == shape[:1]):
        raise ValueError(f"labels have shape {given}; {problem_type} over logits {shape} needs {shape}")
    return jnp.asarray(labels, jnp.float32).reshape(shape)


def _checked(labels: ArrayLike, shape: tuple[int, ...], count: int) -> Int[Array, "..."]:
    """Labels as an array; values are checked on the host where not being traced: gathers would wrap silently."""
    array = jnp.asarray(labels)
    require_shape("labels", array, shape)  # [B, 1] would broadcast
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"labels are {array.dtype}; whole numbers are needed")
    if not isinstance(array, Tracer):
        shown = jnp.where(array == IGNORE, 0, array)
        require_range("labels", shown, 0, count - 1, why=f"{count} classes; {IGNORE} does not count")
    return array
