"""Checkpoints of models that have no class here, such as DistilBERT's: every tensor as it is, in another format."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flaxbert.files import inside, read_json
from flaxbert.weights.layout import FLAX, LAYOUTS, Layout
from flaxbert.weights.source import Source
from flaxbert.weights.tensors import Cast, Tensor

_log = logging.getLogger("flaxbert")

# Of which it is known which tensors Flax's classes transpose: `flax_msgpack` has their names.
_IN_FLAX = ("distilbert",)


def layout_of(source: Source, kind: str, format: str, **unusable: Any) -> Layout:
    """The layout to write.

    Raises:
        ValueError: what can only be done with BERT: another head, another activation, other formats.
    """
    for name, value in unusable.items():
        if value is not None:
            raise ValueError(f"{source.home}: {name} is {value!r}; that takes a BERT, but model_type is {kind!r}")
    layout = next((layout for layout in LAYOUTS if layout.format == format), None)
    if layout is None or (FLAX.format in (format, source.format) and kind not in _IN_FLAX and format != source.format):
        raise ValueError(f"{source.home}: {kind!r} cannot be converted from {source.format} to {format}, only BERT")
    _log.warning("%s: model_type is %r; its tensors are carried over as they are", source.home, kind)
    return layout


def tensors_of(source: Source, dtype: str | None = None) -> dict[str, Tensor]:
    """All tensors but the numbers of positions, which old files hold; floating-point ones in the type asked for."""

    def wanted(name: str, tensor: Tensor) -> Tensor:
        floating = np.dtype(tensor.dtype).kind in "fV"  # V: bfloat16
        return Cast(tensor, name, np.dtype(dtype)) if dtype is not None and floating else tensor

    kept = {name: tensor for name, tensor in source.tensors.items() if not name.endswith("embeddings.position_ids")}
    return {name: wanted(name, tensor) for name, tensor in kept.items()}


def config_text(home: Path, dtype: str | None) -> str:
    """The content of config.json as it is, but for its dtype and for what would name code to run."""
    values: Mapping[str, Any] = read_json(inside(home, "config.json"))
    dropped = ("auto_map", "torch_dtype", "trust_remote_code")
    kept = {key: value for key, value in values.items() if not key.startswith("_") and key not in dropped}
    if dtype is not None or "torch_dtype" in values:
        kept["dtype"] = dtype if dtype is not None else values["torch_dtype"]
    return json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
