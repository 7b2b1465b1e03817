"""Checkpoints of families without a class here, such as ALBERT: their tensors are copied unchanged."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flaxbert.conversion.output import Conversion, Output, compare, file_format, total_bytes
from flaxbert.families import (
    architecture_name,
)
from flaxbert.files import (
    CHECKSUMS_FILE,
    atomic_folder,
    path_inside,
    read_json,
)
from flaxbert.tokenizer_files import copy_tokenizer_files
from flaxbert.weights.checkpoint import FLAX, ORBAX, Checkpoint, open_checkpoint
from flaxbert.weights.folder import (
    WriteOptions,
    write_folder,
)
from flaxbert.weights.load import ENCODER_DECODER
from flaxbert.weights.sentence_transformers import copy_files_of_other_tokenizers, copy_sentence_transformers_files
from flaxbert.weights.tensors import FiniteCheck, LazyTensor, cast

_log = logging.getLogger("flaxbert")


def copy_unknown_model(checkpoint: Checkpoint, model_type: str, output: Output) -> Conversion:
    """Write the folder of a checkpoint with its tensors and config as they are."""
    checkpoint.verify_checksums()
    tensors = FiniteCheck(checkpoint.file).tensors(copied_tensors(checkpoint, output.dtype))
    with atomic_folder(output.target) as folder:
        config = _copied_config(checkpoint.config_folder, output.dtype)
        options = WriteOptions(file_format(output.format), output.max_shard_size)
        write_folder(folder, config, output.observed(tensors), options)
        if output.verify:
            compare(folder, tensors, open_checkpoint(folder).tensors)
        files = copy_tokenizer_files(checkpoint.config_folder, folder)
        files += copy_files_of_other_tokenizers(checkpoint.config_folder, folder)
        files += copy_sentence_transformers_files(checkpoint.model_folder, folder)
    return Conversion(
        read=checkpoint.format,
        written=output.format,
        head=architecture_name(json.loads(config)) or model_type,
        tensors=len(tensors),
        bytes=total_bytes(tensors),
        newly_initialised=[],
        left_out=sorted(checkpoint.tensors.keys() - tensors.keys()),
        files=["config.json", CHECKSUMS_FILE, *files],
    )


def require_copyable(checkpoint: Checkpoint, model_type: str, format: str, requests: Mapping[str, object]) -> None:
    """Raise ValueError for a request that needs a class of this library."""
    folder = checkpoint.config_folder
    for name, value in requests.items():
        if value is not None:
            raise ValueError(
                f"{folder}: {name} is {value!r}; {_no_single_class(model_type)}, only copied as it is: leave it out"
            )
    if format != checkpoint.format and {ORBAX, FLAX.name} & {format, checkpoint.format}:
        raise ValueError(
            f"{folder}: {_no_single_class(model_type)}; it cannot be converted from {checkpoint.format} to {format}"
        )
    _log.warning("%s: %s; its tensors are copied unchanged", folder, _no_single_class(model_type))


def _no_single_class(model_type: str) -> str:
    """Return the reason why a checkpoint cannot be changed."""
    if model_type == ENCODER_DECODER:
        return f"model_type is {model_type!r}, two models (in Python: flaxbert.EncoderDecoderModel)"
    return f"model_type is {model_type!r}, which has no class here"


def copied_tensors(checkpoint: Checkpoint, dtype: str | None = None) -> dict[str, LazyTensor]:
    """Return all tensors but position ids, which old files hold; floating-point ones as `dtype` where it is given."""

    def convert(name: str, tensor: LazyTensor) -> LazyTensor:
        floating = np.dtype(tensor.dtype).kind in "fV"  # V: bfloat16
        return cast(tensor, np.dtype(dtype), name=name) if dtype is not None and floating else tensor

    return {
        name: convert(name, tensor)
        for name, tensor in checkpoint.tensors.items()
        if not name.endswith("embeddings.position_ids")
    }


def _copied_config(folder: Path, dtype: str | None) -> str:
    """Return the content of config.json with its dtype replaced, and without the keys that name code to run."""
    values: Mapping[str, object] = read_json(path_inside(folder, "config.json"))
    dropped = ("auto_map", "torch_dtype", "trust_remote_code")
    kept = {key: value for key, value in values.items() if not key.startswith("_") and key not in dropped}
    if dtype is not None or "torch_dtype" in values:
        kept["dtype"] = dtype if dtype is not None else values["torch_dtype"]
    return json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
