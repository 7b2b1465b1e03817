"""Checkpoints of models that have no class here, such as DistilBERT's: every tensor as it is, in another format."""

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

# Of which it is known which tensors Flax's classes transpose: `flax_msgpack` has their names.
_IN_FLAX = ("distilbert",)


def file_format_of(source: Checkpoint, kind: str, format: str, **unusable: Any) -> FileFormat:
    """The file_format to write.

    Raises:
        ValueError: what can only be done with BERT: another head, another activation, other formats.
    """
    for name, value in unusable.items():
        if value is not None:
            raise ValueError(
                f"{source.config_folder}: {name} is {value!r}; that takes a BERT, but model_type is {kind!r}"
            )
    file_format = next((file_format for file_format in FILE_FORMATS if file_format.name == format), None)
    if file_format is None or (
        FLAX.name in (format, source.format) and kind not in _IN_FLAX and format != source.format
    ):
        raise ValueError(
            f"{source.config_folder}: {kind!r} cannot be converted from {source.format} to {format}, only BERT"
        )
    _log.warning("%s: model_type is %r; its tensors are carried over as they are", source.config_folder, kind)
    return file_format


def tensors_of(source: Checkpoint, dtype: str | None = None) -> dict[str, LazyTensor]:
    """All tensors but the numbers of positions, which old files hold; floating-point ones in the type asked for."""

    def wanted(name: str, tensor: LazyTensor) -> LazyTensor:
        floating = np.dtype(tensor.dtype).kind in "fV"  # V: bfloat16
        return CastTensor(tensor, name, np.dtype(dtype)) if dtype is not None and floating else tensor

    kept = {name: tensor for name, tensor in source.tensors.items() if not name.endswith("embeddings.position_ids")}
    return {name: wanted(name, tensor) for name, tensor in kept.items()}


def config_text(home: Path, dtype: str | None) -> str:
    """The content of config.json as it is, but for its dtype and for what would name code to run."""
    values: Mapping[str, Any] = read_json(path_inside(home, "config.json"))
    dropped = ("auto_map", "torch_dtype", "trust_remote_code")
    kept = {key: value for key, value in values.items() if not key.startswith("_") and key not in dropped}
    if dtype is not None or "torch_dtype" in values:
        kept["dtype"] = dtype if dtype is not None else values["torch_dtype"]
    return json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
