"""Export models as StableHLO through `jax.export`.

The weights are not part of the program but its first argument, from weights.safetensors beside it. As constants inside
the program they would make MiniLM's program 91 MB instead of 31 KB and its compilation three times as long, models of
equal sizes could not share a program, and flatbuffers end at 2 GB. JAX runs the program without this library:

    program = jax.export.deserialize((folder / "program.stablehlo").read_bytes())
    weights = safetensors.numpy.load_file(folder / "weights.safetensors")
    program.call(weights, input_ids, attention_mask, token_type_ids)

`jax.export` guarantees compatibility for a limited time, counted between the jaxlib releases that write and read:
https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees. `ExportedModel.readable_by` states it.
"""

from pathlib import Path
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike
from safetensors.numpy import load_file, save_file

from flaxbert.config import AdaptiveArguments, given_adaptive_arguments
from flaxbert.export.exported_model import (
    DESCRIPTION,
    ExportedModel,
    LoadedProgram,
    array_specs,
    installed_versions,
    load_model_to_export,
    model_outputs,
    require_packages,
    write_export,
)
from flaxbert.families import architecture_of
from flaxbert.files import read_json

PROGRAM, WEIGHTS = "program.stablehlo", "weights.safetensors"
PLATFORMS = ("cpu", "cuda", "tpu")
_PACKAGES = ("flatbuffers",)


def export_stablehlo(
    source: str | Path,
    target: str | Path,
    *,
    length: int | None = None,
    dtype: DTypeLike = jnp.float32,
    **adaptive: Unpack[AdaptiveArguments],
) -> ExportedModel:
    """Export a model folder as StableHLO, for any batch size and for inputs of any length or of a fixed one.

    Args:
        source: a folder that `from_pretrained` reads.
        target: the folder to create.
        length: number of tokens of all inputs; None allows 1 to the model's number of positions.
        dtype: compute dtype; the weights stay float32.
        **adaptive: layers that run and tokens that they keep; None takes the folder's. A `length_config` needs a fixed
            `length`.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: as `load_model_to_export`, for the extra [export]; or as
            `length_adaptive.resolve`.
    """
    model, params, specs = load_model_to_export(
        source, target, length=length, packages=_PACKAGES, extra="export", dtype=dtype
    )
    changes = {name: value for name, value in adaptive.items() if value is not None}
    model = model.clone(config=model.config.replace(**changes))
    weights = {name: np.asarray(leaf) for name, leaf in traverse_util.flatten_dict(params, sep="/").items()}
    weight_specs = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in weights.items()}

    def program(weights, *inputs):
        return model_outputs(model, traverse_util.unflatten_dict(weights, sep="/"), *inputs)

    exported = jax.export.export(jax.jit(program), platforms=PLATFORMS)(weight_specs, *specs.values())
    versions = installed_versions("flaxbert", "jax", "jaxlib")
    description = ExportedModel(
        format="stablehlo",
        inputs=array_specs(specs),
        outputs=array_specs(jax.tree.unflatten(exported.out_tree, exported.out_avals)),
        platforms=PLATFORMS,
        versions=versions,
        readable_by=(
            f"jax {versions['jax']} with jaxlib {versions['jaxlib']}, and releases built up to 6 months later or up to "
            "3 weeks earlier"
        ),
        architecture=architecture_of(model).name,
        max_length=length or model.config.max_sequence_length,
        adaptive=given_adaptive_arguments(model.config),
    )

    def write_program(folder: Path) -> LoadedProgram:
        (folder / PROGRAM).write_bytes(exported.serialize())
        save_file(weights, folder / WEIGHTS)
        return _load_program(folder, description.max_length)

    return write_export(Path(target), model, params, description, write_program, length=length)


def load_stablehlo(folder: str | Path) -> LoadedProgram:
    """Load the program of a folder that `export_stablehlo` wrote.

    The program takes the arrays listed under "inputs" in export.json, in that order, and returns the outputs by name.
    It raises ValueError for inputs that are longer than its maximum.

    Raises:
        FileNotFoundError: the folder holds no such program.
        ValueError: the file is not a program of `jax.export`, or is too old for this jax.
    """
    require_packages(_PACKAGES, extra="export")
    return _load_program(Path(folder), read_json(Path(folder) / DESCRIPTION)["max_length"])


def _load_program(folder: Path, max_length: int) -> LoadedProgram:
    file = folder / PROGRAM
    data = bytearray(file.read_bytes())
    try:
        program = jax.export.deserialize(data)
    except Exception as error:  # flatbuffers and MLIR raise their own
        raise ValueError(f"{file}: not a program of jax.export ({error})") from None
    weights = jax.device_put(load_file(folder / WEIGHTS))
    compiled = jax.jit(program.call)

    def run(*inputs: np.ndarray) -> dict[str, np.ndarray]:
        if inputs[0].shape[-1] > max_length:  # jax would only say that it cannot refine the shapes
            raise ValueError(f"the inputs have {inputs[0].shape[-1]} tokens; the program takes {max_length} at most")
        return jax.device_get(compiled(weights, *inputs))

    return run
