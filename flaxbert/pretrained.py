"""Model folders: `from_pretrained` picks the class that config.json names, `save_pretrained` writes one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxbert import companions, config_json, weights
from flaxbert.base import PreTrainedModel
from flaxbert.config import BertConfig
from flaxbert.heads import ARCHITECTURES


def save_pretrained(path: str | Path, model: PreTrainedModel, params: Mapping[str, Any], **arguments: Any) -> None:
    """Writes a folder that `transformers` loads; other files there stay.

    A model that was loaded from a folder takes its tokenizer's files along, and a `BertModel` those of
    sentence-transformers, unless there are such files already.

    The arguments and errors are those of `flaxbert.weights.save`.
    """
    weights.save(path, model, params, **arguments)
    if model.origin is not None and model.origin.is_dir():
        companions.carry(model.origin, Path(path), sentences=type(model).__name__ == "BertModel")


def from_pretrained(path: str | Path, **arguments: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Loads a Hugging Face folder with the class named by its "architectures".

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
    return ARCHITECTURES[name].from_pretrained(path, **arguments)
