"""Whether two checkpoints are the same model: tensor by tensor, and by what they compute."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxbert.conversion.checkpoint import Checkpoint
from flaxbert.weights.load import Fitted, assemble
from flaxbert.weights.tensors import Tensor, parts


@dataclasses.dataclass(frozen=True)
class Verification:
    """How two checkpoints, A and B, differ.

    Attributes:
        compared: how many tensors both have.
        only_a: names of tensors that B lacks.
        only_b: names of tensors that A lacks.
        shapes: "A's and B's" by name, where they differ.
        differing: the largest difference of two numbers by name, where a tensor differs; infinite for a NaN in one.
        config: "A's and B's" of each setting that differs.
        tensors: the largest difference of two numbers in any tensor.
        outputs: the largest difference of two outputs on random input; None where it was not asked for or both are not
            of one class and config size.
    """

    compared: int
    only_a: list[str]
    only_b: list[str]
    shapes: dict[str, str]
    differing: dict[str, float]
    config: dict[str, str]
    tensors: float
    outputs: float | None

    def same(self, tolerance: float = 0.0) -> bool:
        """Whether they are one model: the same names and settings, and no numbers further apart than this."""
        apart = max(self.tensors, self.outputs or 0.0)
        return not (self.only_a or self.only_b or self.shapes or self.config) and apart <= tolerance


def verify(a: str | Path, b: str | Path, *, outputs: bool = True, seed: int = 0) -> Verification:
    """Compares two checkpoints of any formats; some rows of two tensors are in memory at a time, then both models.

    Args:
        a: what `from_pretrained` reads.
        b: likewise.
        outputs: run both models on random input too.
        seed: of that input.

    Raises:
        FileNotFoundError, ValueError: one of them cannot be read, or its tensors fit no class.
    """
    one, other = Checkpoint.open(Path(a)), Checkpoint.open(Path(b))
    fitted = [checkpoint.fit() for checkpoint in (one, other)]
    for checkpoint in (one, other):
        checkpoint.source.check()
    (model, left), (other_model, right) = fitted
    shared = [name for name in left.tensors if name in right.tensors]
    shapes = {
        name: f"{list(left.tensors[name].shape)} and {list(right.tensors[name].shape)}"
        for name in shared
        if left.tensors[name].shape != right.tensors[name].shape
    }
    apart = {name: _apart(left.tensors[name], right.tensors[name]) for name in shared if name not in shapes}
    comparable = outputs and not shapes and left.tensors.keys() == right.tensors.keys()
    comparable = comparable and type(model) is type(other_model)
    return Verification(
        compared=len(shared),
        only_a=sorted(left.tensors.keys() - right.tensors.keys()),
        only_b=sorted(right.tensors.keys() - left.tensors.keys()),
        shapes=shapes,
        differing={name: difference for name, difference in apart.items() if difference > 0},
        config=_settings(model.config, other_model.config),
        tensors=max(apart.values(), default=0.0),
        outputs=_outputs_apart((model, left), (other_model, right), seed) if comparable else None,
    )


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest difference of two numbers of the tensors."""
    return max((_numbers_apart(one.read(part), other.read(part)) for part in parts(one, other)), default=0.0)


def _numbers_apart(left: np.ndarray, right: np.ndarray) -> float:
    """The largest difference in float64: none of two that are both no number, and infinite where one is."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    differ = ~((left == right) | (np.isnan(left) & np.isnan(right)))
    apart = np.abs(left[differ] - right[differ])
    return float(np.where(np.isnan(apart), np.inf, apart).max(initial=0.0))


def _settings(one: Any, other: Any) -> dict[str, str]:
    """The fields of two configs that differ; what each keeps aside unread is not compared."""
    return {
        field.name: f"{getattr(one, field.name)!r} and {getattr(other, field.name)!r}"
        for field in dataclasses.fields(one)
        if field.name != "unused" and getattr(one, field.name) != getattr(other, field.name)
    }


def _outputs_apart(one: Any, other: Any, seed: int) -> float:
    inputs = _inputs(one[0], seed)
    left, right = (_outputs(model, fitted, inputs) for model, fitted in (one, other))
    return max((_numbers_apart(x, y) for x, y in zip(left, right, strict=True)), default=0.0)


def _inputs(model: Any, seed: int) -> dict[str, np.ndarray]:
    """Two rows, the second of them padded."""
    random, config = np.random.default_rng(seed), model.config
    length = min(16, config.max_position_embeddings)
    shape = (2, 2, length) if model.takes_choices else (2, length)
    mask = np.ones(shape, np.int32)
    mask[1, ..., length * 3 // 4 :] = 0
    ids = random.integers(0, config.vocab_size, shape, np.int32)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": random.integers(0, config.type_vocab_size, shape, np.int32),
    }


def _outputs(model: Any, fitted: Fitted, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    params = assemble(fitted)
    found = jax.jit(lambda params, inputs: model.apply({"params": params}, **inputs))(params, inputs)
    return jax.device_get(jax.tree.leaves(found))
