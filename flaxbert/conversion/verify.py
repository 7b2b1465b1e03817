"""Whether two checkpoints are the same model: tensor by tensor, and by what they compute."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxbert import config_json
from flaxbert.base import PreTrainedModel
from flaxbert.config import BertConfig
from flaxbert.conversion import unchanged
from flaxbert.conversion.checkpoint import LoadedModel
from flaxbert.weights.checkpoint_files import open_checkpoint
from flaxbert.weights.load import Fitted, assemble
from flaxbert.weights.tensors import LazyTensor, row_slices


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
    one, other = _Side.open(Path(a)), _Side.open(Path(b))
    left, right = one.tensors, other.tensors
    shared = [name for name in left if name in right]
    shapes = {
        name: f"{list(left[name].shape)} and {list(right[name].shape)}"
        for name in shared
        if left[name].shape != right[name].shape
    }
    apart = {name: _apart(left[name], right[name]) for name in shared if name not in shapes}
    comparable = outputs and not shapes and left.keys() == right.keys()
    comparable = comparable and one.model is not None and type(one.model) is type(other.model)
    return Verification(
        compared=len(shared),
        only_a=sorted(left.keys() - right.keys()),
        only_b=sorted(right.keys() - left.keys()),
        shapes=shapes,
        differing={name: difference for name, difference in apart.items() if difference > 0},
        config=_settings(one.settings, other.settings),
        tensors=max(apart.values(), default=0.0),
        outputs=_outputs_apart(one, other, seed) if comparable else None,
    )


@dataclasses.dataclass(frozen=True)
class _Side:
    """One of the two; without a model where this library has no class for it."""

    tensors: Mapping[str, LazyTensor]
    settings: Mapping[str, Any]
    model: PreTrainedModel | None = None
    fitted: Fitted | None = None

    @classmethod
    def open(cls, path: Path) -> "_Side":
        found = open_checkpoint(path)
        kind = config_json.model_type(found.config_folder)
        if kind != config_json.BERT:
            found.verify_checksums()
            return cls(unchanged.tensors_of(found), {"model_type": kind})
        model, fitted = LoadedModel(found, BertConfig.from_pretrained(found.config_folder)).fit()
        found.verify_checksums()
        return cls(fitted.tensors, config_json.to_dict(model.config, architecture=type(model).__name__), model, fitted)


def _apart(one: LazyTensor, other: LazyTensor) -> float:
    """The largest difference of two numbers of the tensors."""
    return max((_numbers_apart(one.read(part), other.read(part)) for part in row_slices(one, other)), default=0.0)


def _numbers_apart(left: np.ndarray, right: np.ndarray) -> float:
    """The largest difference in float64: none of two that are both no number, and infinite where one is."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    differ = ~((left == right) | (np.isnan(left) & np.isnan(right)))
    apart = np.abs(left[differ] - right[differ])
    return float(np.where(np.isnan(apart), np.inf, apart).max(initial=0.0))


def _settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, str]:
    """The settings in which two configs differ."""
    names = sorted(one.keys() | other.keys())
    return {name: f"{one.get(name)!r} and {other.get(name)!r}" for name in names if one.get(name) != other.get(name)}


def _outputs_apart(one: _Side, other: _Side, seed: int) -> float:
    inputs = _inputs(one.model, seed)
    left, right = (_outputs(side.model, side.fitted, inputs) for side in (one, other))
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


def _outputs(model: Any, fitted: Any, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    params = assemble(fitted)
    found = jax.jit(lambda params, inputs: model.apply({"params": params}, **inputs))(params, inputs)
    return jax.device_get(jax.tree.leaves(found))
