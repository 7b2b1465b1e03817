"""Checkpoints of families without a class here, such as DistilBERT: every tensor is copied into another format."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flaxbert.files import path_inside, read_json
from flaxbert.weights.checkpoint_files import Checkpoint
from flaxbert.weights.file_format import FILE_FORMATS, FLAX, FileFormat
from flaxbert.weights.tensors import CastTensor, LazyTensor

_log = logging.getLogger("flaxbert")

# Model types of which the names of the tensors that Flax's classes transpose are known to the Flax format.
_FLAX_MODEL_TYPES = ("distilbert",)


def choose_file_format(
    checkpoint: Checkpoint, model_type: str, format: str, *, head: str | None, hidden_act: str | None
) -> FileFormat:
    """Return the format to write.

    Raises:
        ValueError: the request needs a class of this library: another head, another activation, other formats.
    """
    folder = checkpoint.config_folder
    for name, value in {"head": head, "hidden_act": hidden_act}.items():
        if value is not None:
            raise ValueError(
                f"{folder}: {name} is {value!r}; model_type is {model_type!r}, which has no class here that takes it"
            )
    file_format = next((known for known in FILE_FORMATS if known.name == format), None)
    to_or_from_flax = FLAX.name in (format, checkpoint.format) and format != checkpoint.format
    if file_format is None or (to_or_from_flax and model_type not in _FLAX_MODEL_TYPES):
        raise ValueError(
            f"{folder}: {model_type!r} has no class here; it cannot be converted from {checkpoint.format} to {format}"
        )
    _log.warning("%s: model_type is %r, which has no class here; its tensors are copied unchanged", folder, model_type)
    return file_format


def copied_tensors(checkpoint: Checkpoint, dtype: str | None = None) -> dict[str, LazyTensor]:
    """Return all tensors but position ids, which old files hold; floating-point ones as `dtype` where it is given."""

    def convert(name: str, tensor: LazyTensor) -> LazyTensor:
        floating = np.dtype(tensor.dtype).kind in "fV"  # V: bfloat16
        return CastTensor(tensor, name, np.dtype(dtype)) if dtype is not None and floating else tensor

    return {
        name: convert(name, tensor)
        for name, tensor in checkpoint.tensors.items()
        if not name.endswith("embeddings.position_ids")
    }


def copied_config(folder: Path, dtype: str | None) -> str:
    """Return the content of config.json with its dtype replaced, and without the keys that name code to run."""
    values: Mapping[str, Any] = read_json(path_inside(folder, "config.json"))
    dropped = ("auto_map", "torch_dtype", "trust_remote_code")
    kept = {key: value for key, value in values.items() if not key.startswith("_") and key not in dropped}
    if dtype is not None or "torch_dtype" in values:
        kept["dtype"] = dtype if dtype is not None else values["torch_dtype"]
    return json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
