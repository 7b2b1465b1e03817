"""The export folder: a program that was loaded again and compared with its model, and the description export.json."""

import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike

from flaxbert.config import AdaptiveArguments
from flaxbert.families import random_inputs
from flaxbert.files import atomic_folder, require_absent
from flaxbert.layers import Params
from flaxbert.models import PreTrainedModel
from flaxbert.tokenizer_files import copy_tokenizer_files
from flaxbert.weights.load import from_pretrained

DESCRIPTION = "export.json"

# A loaded program: arrays in the order of the family's input names to outputs by name.
LoadedProgram = Callable[..., Mapping[str, np.ndarray]]


class ArraySpec(NamedTuple):
    """Dtype and shape of an input or output. Axes of any size have a letter: B batch, C choices, T tokens."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclasses.dataclass(frozen=True)
class ExportedModel:
    """Content of an export folder, as stored in its export.json.

    Attributes:
        format: "stablehlo" or "onnx".
        inputs: by name.
        outputs: by name; the names are the fields of the model's output dataclass.
        platforms: where the program runs.
        versions: libraries that wrote it.
        readable_by: library versions that are guaranteed to read it.
        architecture: class name of the model.
        max_length: maximum number of tokens of an input.
        adaptive: layers that run and tokens that they keep, where not all: the arguments of `AdaptiveArguments`.
        files: names of the files in the folder.
        parity: largest absolute difference between the outputs of the model and of the loaded program, for random
            input.
        exported_on: date of the export (UTC), as YYYY-MM-DD.
    """

    format: str
    inputs: Mapping[str, ArraySpec]
    outputs: Mapping[str, ArraySpec]
    platforms: tuple[str, ...]
    versions: Mapping[str, str]
    readable_by: str
    architecture: str
    max_length: int
    adaptive: AdaptiveArguments = dataclasses.field(default_factory=AdaptiveArguments)
    files: tuple[str, ...] = ()
    parity: float = 0.0
    exported_on: str = ""


def load_model_to_export(
    source: str | Path,
    target: str | Path,
    *,
    length: int | None,
    packages: Iterable[str],
    extra: str,
    dtype: DTypeLike = np.float32,
) -> tuple[PreTrainedModel, Params, dict[str, jax.ShapeDtypeStruct]]:
    """Return the model, its parameters, and the shape [B, T] or [B, C, T], int32, of each input.

    Axes are symbolic, except T where `length` is given.

    Raises:
        FileExistsError: `target` exists.
        FileNotFoundError: `source` does not exist.
        ValueError: `source` cannot be read, `length` is outside 1 to the model's number of positions, or a package of
            `extra` is missing.
    """
    require_packages(packages, extra=extra)
    require_absent(Path(target))
    model, params = from_pretrained(source, dtype=dtype)
    if not isinstance(model, PreTrainedModel) or model.config.add_cross_attention:
        raise ValueError(
            f"{source}: a {type(model).__name__} with cross-attention can't be exported, because its inputs include "
            "the states of an encoder; export an encoder, or a decoder without cross-attention"
        )
    limit = model.config.max_sequence_length
    if length is not None and not 1 <= length <= limit:
        raise ValueError(f"length is {length}; allowed: 1 to {limit}, the model's number of positions")
    axes = ["B", "C"] if model.takes_choices else ["B"]
    constraints = [f"{axis} >= 1" for axis in axes]
    if length is None:
        constraints += ["T >= 1", f"T <= {limit}"]
    shape = jax.export.symbolic_shape(", ".join([*axes, str(length or "T")]), constraints=constraints)
    return model, params, {name: jax.ShapeDtypeStruct(shape, np.int32) for name in type(model).input_names}


def model_outputs(model: PreTrainedModel, params: Params, *inputs: Any) -> dict[str, jax.Array]:
    """Return the model's outputs for the input arrays, by name; outputs that are None are left out."""
    outputs: Any = model.apply({"params": params}, **dict(zip(type(model).input_names, inputs, strict=True)))
    names = (field.name for field in dataclasses.fields(outputs) if field.name != "lengths")
    fields = {name: getattr(outputs, name) for name in names}
    return {name: value for name, value in fields.items() if value is not None}


def write_export(
    target: Path,
    model: PreTrainedModel,
    params: Params,
    description: ExportedModel,
    write_program: Callable[[Path], LoadedProgram],
    *,
    length: int | None,
) -> ExportedModel:
    """Write an export folder: the program, the tokenizer files and export.json.

    Args:
        target: the folder to create; it appears when it is complete.
        model: the exported model, for the comparison.
        params: its parameters.
        description: of the program; files, parity and date are filled in.
        write_program: writes the program into a folder and returns it, loaded again.
        length: fixed number of tokens of all inputs, or None.

    Raises:
        ValueError: the loaded program returns other shapes than the model.
    """
    with atomic_folder(target) as folder:
        parity = largest_difference(model, params, write_program(folder), length)
        if model.origin is not None:
            copy_tokenizer_files(model.origin, folder)
        exported = dataclasses.replace(
            description,
            files=tuple(sorted([*(path.name for path in folder.iterdir()), DESCRIPTION])),
            parity=parity,
            exported_on=datetime.datetime.now(datetime.UTC).date().isoformat(),
        )
        text = json.dumps(dataclasses.asdict(exported), indent=2)
        (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    return exported


def largest_difference(model: PreTrainedModel, params: Params, program: LoadedProgram, length: int | None) -> float:
    """Return the largest absolute difference between outputs of model and program, for random inputs of two shapes.

    Raises:
        ValueError: an output of the program has another shape than the model's.
    """
    reference = jax.jit(lambda params, *inputs: model_outputs(model, params, *inputs))
    differences = []
    for rows, tokens in ((2, 16), (3, 9)):
        tokens = length or min(tokens, model.config.max_sequence_length)
        inputs = random_inputs(model, rows=rows, length=tokens).values()
        expected, actual = jax.device_get(reference(params, *inputs)), program(*inputs)
        for name in expected:
            if expected[name].shape != actual[name].shape:
                raise ValueError(
                    f"the exported program returns {name} with shape {actual[name].shape}; the model returns shape "
                    f"{expected[name].shape}"
                )
            differences.append(np.abs(expected[name].astype(np.float64) - actual[name]).max())
    return float(max(differences))


def array_specs(
    arrays: Mapping[str, jax.Array | jax.ShapeDtypeStruct], *, dtype: str | None = None
) -> dict[str, ArraySpec]:
    """Return the specs of arrays or shapes by name; `dtype` replaces their own."""
    return {
        name: ArraySpec(dtype or str(array.dtype), tuple(a if isinstance(a, int) else str(a) for a in array.shape))
        for name, array in arrays.items()
    }


def installed_versions(*names: str) -> dict[str, str]:
    """Return the versions of installed packages by name."""
    return {name: importlib.metadata.version(name) for name in names}


def require_packages(names: Iterable[str], *, extra: str) -> None:
    """Raise ValueError, with the pip command that installs `extra`, if a package is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"this needs {name}, which is not installed: pip install 'flaxbert[{extra}]'")
