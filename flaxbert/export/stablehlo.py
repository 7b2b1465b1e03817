"""Models as StableHLO, by `jax.export`.

The weights lie beside the program, in weights.safetensors, and are its first argument. Inside it they would be
constants: a program of MiniLM is then 91 MB instead of 31 KB and takes three times as long to compile, every model of
the same sizes needs one of its own, and flatbuffers end at 2 GB. Without this library jax runs it:

    program = jax.export.deserialize((folder / "program.stablehlo").read_bytes())
    weights = safetensors.numpy.load_file(folder / "weights.safetensors")
    program.call(weights, input_ids, attention_mask, token_type_ids)
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike
from safetensors.numpy import load_file, save_file

from flaxbert.base import PreTrainedModel
from flaxbert.export.folder import ABOUT, INPUTS, Exported, Run, checked_length, outputs_of, require, versions, written
from flaxbert.files import read_json, require_absent
from flaxbert.pretrained import from_pretrained

PROGRAM, WEIGHTS = "program.stablehlo", "weights.safetensors"
PLATFORMS = ("cpu", "cuda", "tpu")


def export_stablehlo(
    source: str | Path, target: str | Path, *, length: int | None = None, dtype: DTypeLike = jnp.float32
) -> Exported:
    """Writes a model folder as StableHLO that takes any number of rows, of any length or of a fixed one.

    Args:
        source: what `from_pretrained` reads.
        target: the folder to make.
        length: of all inputs; any up to the model's number of positions where None.
        dtype: of the computation; weights are float32.

    Raises:
        FileExistsError: `target` is there already.
        FileNotFoundError, ValueError: `source` cannot be read, `length` is impossible, or an extra is missing.
    """
    require("flatbuffers", "export")
    require_absent(Path(target))
    model, params = from_pretrained(source, dtype=dtype)
    shapes = _symbolic(model, checked_length(model, length))
    flat = {"/".join(path): np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(params).items()}
    like = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in flat.items()}

    def program(weights, *inputs):
        return outputs_of(model, traverse_util.unflatten_dict(weights, sep="/"), *inputs)

    exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(like, *shapes)
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    described = {
        "inputs": {name: _described(shape) for name, shape in zip(INPUTS, shapes, strict=True)},
        "outputs": {name: _described(outputs[name]) for name in outputs},
        "platforms": PLATFORMS,
        "versions": versions("flaxbert", "jax", "jaxlib"),
    }

    def write(folder: Path) -> Run:
        (folder / PROGRAM).write_bytes(exported.serialize())
        save_file(flat, folder / WEIGHTS)
        return _loaded(folder, length or model.config.max_position_embeddings)

    return written(Path(target), "stablehlo", model, params, described, write, length)


def load(folder: str | Path) -> Run:
    """The program of a folder that `export_stablehlo` wrote: input_ids, attention_mask, token_type_ids to outputs.

    Raises:
        FileNotFoundError, ValueError: no such program, or not one; of a call: inputs longer than it takes.
    """
    require("flatbuffers", "export")
    return _loaded(Path(folder), read_json(Path(folder) / ABOUT)["max_length"])


def _loaded(folder: Path, longest: int) -> Run:
    file = folder / PROGRAM
    data = bytearray(file.read_bytes())
    try:
        program = jax.export.deserialize(data)
    except Exception as error:  # of flatbuffers, of MLIR
        raise ValueError(f"{file}: not a program of jax.export ({error})") from None
    weights = jax.device_put(load_file(folder / WEIGHTS))
    compiled = jax.jit(program.call)

    def run(*inputs: np.ndarray) -> dict[str, np.ndarray]:
        if inputs[0].shape[-1] > longest:  # of which jax says no more than that it cannot refine the shapes
            raise ValueError(f"the inputs have {inputs[0].shape[-1]} tokens; the program takes {longest} at most")
        return jax.device_get(compiled(weights, *inputs))

    return run


def _symbolic(model: PreTrainedModel, length: int | None) -> list[jax.ShapeDtypeStruct]:
    axes = ["B", "C", "T"] if model.takes_choices else ["B", "T"]
    limits = [f"{axis} >= 1" for axis in axes] + [f"T <= {model.config.max_position_embeddings}"]
    if length is not None:
        axes[-1] = str(length)
        limits = limits[: len(axes) - 1]
    shape = jax.export.symbolic_shape(", ".join(axes), constraints=limits)
    return [jax.ShapeDtypeStruct(shape, np.int32) for _ in INPUTS]


def _described(array: Any) -> tuple[str, tuple[int | str, ...]]:
    return str(array.dtype), tuple(axis if isinstance(axis, int) else str(axis) for axis in array.shape)
