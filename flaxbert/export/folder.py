"""The folder that an export makes: the program, loaded again and compared, and what is said about it."""

import dataclasses
import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxbert import companions
from flaxbert.base import PreTrainedModel
from flaxbert.files import atomic_folder

ABOUT = "export.json"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")

Arrays = dict[str, tuple[str, tuple[int | str, ...]]]  # dtype and shape by name; axes of any length have a letter
Run = Callable[..., Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        format: "stablehlo" or "onnx".
        architecture: the model's class.
        inputs: dtype and shape by name; "B" any number of rows, "C" of choices, "T" of tokens.
        outputs: likewise, under the names of the class's.
        max_length: the most tokens that it takes.
        platforms: what it runs on.
        versions: of the libraries that wrote it.
        files: their names.
        parity: the largest difference from the model on random input, of what was loaded again.
    """

    format: str
    architecture: str
    inputs: Arrays
    outputs: Arrays
    max_length: int
    platforms: tuple[str, ...]
    versions: dict[str, str]
    files: tuple[str, ...]
    parity: float


def outputs_of(model: PreTrainedModel, params: Any, *inputs: Any) -> dict[str, Any]:
    """What the model returns for `INPUTS`, by name."""
    out: Any = model.apply({"params": params}, **dict(zip(INPUTS, inputs, strict=True)))
    fields = {field.name: getattr(out, field.name) for field in dataclasses.fields(out)}
    return {name: value for name, value in fields.items() if value is not None}


def written(
    target: Path,
    format: str,
    model: PreTrainedModel,
    params: Any,
    described: dict[str, Any],
    write: Callable[[Path], Run],
    length: int | None,
) -> Exported:
    """Makes the folder: what `write` puts there and gives back loaded, the tokenizer, and export.json.

    `described` are the inputs, outputs, platforms and versions of `Exported`.
    """
    with atomic_folder(target) as folder:
        parity = _parity(model, params, write(folder), length)
        if model.origin is not None:
            companions.carry(model.origin, folder, sentences=False)
        files = sorted([*(path.name for path in folder.iterdir()), ABOUT])
        longest = length or model.config.max_position_embeddings
        found = {**described, "max_length": longest, "files": tuple(files), "parity": parity}
        done = Exported(format, type(model).__name__, **found)
        (folder / ABOUT).write_text(json.dumps(dataclasses.asdict(done), indent=2) + "\n", encoding="utf-8")
    return done


def _parity(model: PreTrainedModel, params: Mapping[str, Any], run: Run, length: int | None) -> float:
    """The largest difference of two outputs, for two shapes of inputs."""
    reference = jax.jit(lambda params, *inputs: outputs_of(model, params, *inputs))
    apart = []
    for rows, tokens in ((2, 16), (3, 9)):
        inputs = _random(model, rows, length or min(tokens, model.config.max_position_embeddings))
        wanted, found = jax.device_get(reference(params, *inputs)), run(*inputs)
        for name in wanted:
            if wanted[name].shape != found[name].shape:
                raise ValueError(
                    f"{name} has the shape {found[name].shape} when loaded again, not {wanted[name].shape}"
                )
            apart.append(np.abs(wanted[name].astype(np.float64) - found[name]).max())
    return float(max(apart))


def _random(model: PreTrainedModel, rows: int, length: int) -> Sequence[np.ndarray]:
    """Inputs whose rows but the first end in padding."""
    random, config = np.random.default_rng(0), model.config
    shape = (rows, 2, length) if model.takes_choices else (rows, length)
    mask = np.ones(shape, np.int32)
    mask[1:, ..., -(-length * 3 // 4) :] = 0
    ids, types = (random.integers(0, size, shape, np.int32) for size in (config.vocab_size, config.type_vocab_size))
    return ids, mask, types


def checked_length(model: PreTrainedModel, length: int | None) -> int | None:
    """The length itself; raises ValueError where the model has no such."""
    limit = model.config.max_position_embeddings
    if length is not None and not 1 <= length <= limit:
        raise ValueError(f"length is {length}; allowed: 1 to {limit}, the model's number of positions")
    return length


def versions(*names: str) -> dict[str, str]:
    """The versions of installed packages."""
    return {name: importlib.metadata.version(name) for name in names}


def require(name: str, extra: str) -> None:
    """Raises ValueError, which says how to install it, where a package is missing."""
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"this needs {name}, which is not installed: pip install 'flaxbert[{extra}]'")
