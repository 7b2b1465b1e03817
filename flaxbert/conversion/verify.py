"""Compare two checkpoints: tensor by tensor, and by the outputs of their models."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from flaxbert.conversion.copied_model import copied_tensors
from flaxbert.conversion.model_checkpoint import ModelCheckpoint
from flaxbert.families import FAMILIES, architecture_of, config_to_dict, random_inputs, read_config, read_model_type
from flaxbert.models import PreTrainedModel
from flaxbert.weights.checkpoint import open_checkpoint
from flaxbert.weights.load import place_on_devices
from flaxbert.weights.match import MatchedTensors
from flaxbert.weights.tensors import LazyTensor, row_slices


@dataclasses.dataclass(frozen=True)
class Verification:
    """The differences between two checkpoints, A and B.

    Attributes:
        compared: the number of tensors that both have.
        only_a, only_b: names of tensors that the other lacks.
        shapes, config: "A's and B's" by the name of a tensor or a setting, where they differ.
        differing: the largest difference of two numbers by name, where a tensor differs; infinite for a NaN in one.
        tensors: the largest difference of two numbers in any tensor.
        outputs: the largest difference of two outputs on random input; None where it was not asked for, or where the
            models differ in class or config sizes.
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
        """Return True where names and settings are equal and no two numbers differ by more than `tolerance`."""
        largest = max(self.tensors, self.outputs or 0.0)
        return not (self.only_a or self.only_b or self.shapes or self.config) and largest <= tolerance


def verify(a: str | Path, b: str | Path, *, outputs: bool = True, seed: int = 0) -> Verification:
    """Compare two checkpoints that `from_pretrained` reads; with `outputs`, run both models on random input too.

    Some rows of two tensors are in memory at a time, then both models.

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
    differences = {name: _tensor_difference(left[name], right[name]) for name in shared if name not in shapes}
    same_names = not shapes and left.keys() == right.keys()
    return Verification(
        compared=len(shared),
        only_a=sorted(left.keys() - right.keys()),
        only_b=sorted(right.keys() - left.keys()),
        shapes=shapes,
        differing={name: difference for name, difference in differences.items() if difference > 0},
        config=_setting_differences(one.settings, other.settings),
        tensors=max(differences.values(), default=0.0),
        outputs=_output_difference(one, other, seed) if outputs and same_names else None,
    )


@dataclasses.dataclass(frozen=True)
class _Model:
    model: PreTrainedModel
    matched: MatchedTensors

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return every array that the model computes."""
        params = place_on_devices(self.matched)
        apply = jax.jit(lambda params, inputs: self.model.apply({"params": params}, **inputs))
        return jax.device_get(jax.tree.leaves(apply(params, inputs)))


@dataclasses.dataclass(frozen=True)
class _Side:
    """One of the two checkpoints; without a model where this library has no class for it."""

    tensors: Mapping[str, LazyTensor]
    settings: Mapping[str, object]
    model: _Model | None = None

    @classmethod
    def open(cls, path: Path) -> "_Side":
        checkpoint = open_checkpoint(path)
        model_type = read_model_type(checkpoint.config_folder)
        if model_type not in FAMILIES:
            checkpoint.verify_checksums()
            return cls(copied_tensors(checkpoint), {"model_type": model_type})
        model, matched = ModelCheckpoint(checkpoint, read_config(checkpoint.config_folder)).match()
        checkpoint.verify_checksums()
        settings = config_to_dict(model.config, architecture=architecture_of(model).name)
        return cls(matched.tensors, settings, _Model(model, matched))


def _tensor_difference(one: LazyTensor, other: LazyTensor) -> float:
    return max((_difference(one.read(rows), other.read(rows)) for rows in row_slices(one, other)), default=0.0)


def _difference(left: np.ndarray, right: np.ndarray) -> float:
    """Return the largest difference in float64: 0 for two NaN, and infinite where one number is NaN."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    differ = ~((left == right) | (np.isnan(left) & np.isnan(right)))
    differences = np.abs(left[differ] - right[differ])
    return float(np.where(np.isnan(differences), np.inf, differences).max(initial=0.0))


def _setting_differences(one: Mapping[str, object], other: Mapping[str, object]) -> dict[str, str]:
    names = sorted(one.keys() | other.keys())
    return {name: f"{one.get(name)!r} and {other.get(name)!r}" for name in names if one.get(name) != other.get(name)}


def _output_difference(one: _Side, other: _Side, seed: int) -> float | None:
    if one.model is None or other.model is None or type(one.model.model) is not type(other.model.model):
        return None
    model = one.model.model
    inputs = random_inputs(model, rows=2, length=min(16, model.config.max_sequence_length), seed=seed)
    outputs = zip(one.model.outputs(inputs), other.model.outputs(inputs), strict=True)
    return max((_difference(left, right) for left, right in outputs), default=0.0)
