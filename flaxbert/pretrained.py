"""Model folders: `from_pretrained` picks the class that config.json names, `save_pretrained` writes one."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from flaxbert import companions, config_json, weights
from flaxbert.base import PreTrainedModel
from flaxbert.config import BertConfig
from flaxbert.heads import ARCHITECTURES
from flaxbert.sharding import spread
from flaxbert.weights.checkpoint_files import open_checkpoint

_log = logging.getLogger("flaxbert")


def save_pretrained(path: str | Path, model: PreTrainedModel, params: Mapping[str, Any], **arguments: Any) -> None:
    """Writes a folder that `transformers` loads; other files there stay.

    A model that was loaded from a folder takes its tokenizer's files along, and a `BertModel` those of
    sentence-transformers, unless there are such files already.

    The arguments and errors are those of `flaxbert.weights.save`.
    """
    weights.save(path, model, params, **arguments)
    if spread(params) and jax.process_index() > 0:
        return
    if model.origin is not None and model.origin.is_dir():
        companions.carry(model.origin, Path(path), sentences=type(model).__name__ == "BertModel")


def from_pretrained(path: str | Path, **arguments: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Loads a Hugging Face folder with the class named by its "architectures".

    A `BertModel` has a pooler where the folder has one; sentence-transformers' folders often have none.

    The arguments, results and errors are those of `PreTrainedModel.from_pretrained`.

    Raises:
        ValueError: config.json names no architecture of this library.
    """
    found = BertConfig.from_pretrained(path).unused
    name = config_json.architecture(found)
    if name not in ARCHITECTURES:
        raise ValueError(
            f"{path}: config.json has architectures {found.get('architectures')!r}; known: {', '.join(ARCHITECTURES)}. "
            "Call the class's own from_pretrained to choose one yourself"
        )
    assert name is not None
    if name == "BertModel" and "add_pooling_layer" not in arguments:
        arguments["add_pooling_layer"] = _has_pooler(Path(path))
    return ARCHITECTURES[name].from_pretrained(path, **arguments)


def _has_pooler(path: Path) -> bool:
    found = any(name.endswith("pooler.dense.weight") for name in open_checkpoint(path).tensors)
    if not found:
        _log.warning("%s: the checkpoint has no pooler, and neither has the model that is loaded", path)
    return found
