"""`BertConfig` as a config.json: read through an allow-list, written so that `transformers` reads it."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxbert.config import BertConfig
from flaxbert.files import path_inside, read_json

_log = logging.getLogger("flaxbert")

GOOGLE = "bert_config.json"
BERT = "bert"  # the model_type

# Keys that do not change BERT's mathematics here. They are kept aside in `BertConfig.unused` without a warning;
# every other unknown key is kept aside with one. These are settings, and written back ...
_SETTINGS = frozenset(
    [
        "gradient_checkpointing",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "sep_token_id",
        "cls_token_id",
        "mask_token_id",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "chunk_size_feed_forward",
        "directionality",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
        "finetuning_task",
    ]
)
# ... these name the file, its tensors or what wrote it, and are written anew or not at all.
_ABOUT_THE_FILE = frozenset(
    [
        "architectures",
        "model_type",
        "torch_dtype",
        "dtype",
        "transformers_version",
        "_name_or_path",
        "name_or_path",
        "label2id",
    ]
)
HARMLESS_KEYS = _SETTINGS | _ABOUT_THE_FILE


def read(path: str | Path) -> BertConfig:
    """Reads config.json (or Google's bert_config.json) of a folder, or the file itself.

    Google's code calls the tanh form "gelu": from a file of its name, "gelu" is read as "gelu_new", with a warning.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, another model type, a feature not supported, or an impossible value.
    """
    file, values = _content(path)
    if file.name == GOOGLE and values.get("hidden_act") == "gelu":
        values["hidden_act"] = "gelu_new"
        _log.warning('%s: Google\'s "gelu" is the tanh form; hidden_act is set to "gelu_new"', file)
    try:
        return from_dict(values)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _content(path: str | Path) -> tuple[Path, dict[str, Any]]:
    file = Path(path)
    if file.is_dir():
        google = (file / GOOGLE).exists() and not (file / "config.json").exists()
        file = path_inside(file, GOOGLE if google else "config.json")
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; a model folder holds config.json and model.safetensors")
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file}: holds a JSON {type(values).__name__}, expected an object")
    return file, values


def model_type(path: str | Path) -> str:
    """The kind of model that the config of a folder names; "bert" where it names none, as Google's.

    Raises:
        FileNotFoundError, ValueError: as `read`.
    """
    file, values = _content(path)
    kind = values.get("model_type", BERT)
    if not isinstance(kind, str):
        raise ValueError(f"{file}: model_type is {str(kind)[:80]!r}")
    return kind


def architecture(values: Mapping[str, Any]) -> str | None:
    """The class that a config names, where it names one."""
    named = values.get("architectures")
    return named[0] if isinstance(named, list) and len(named) == 1 and isinstance(named[0], str) else None


def from_dict(values: Mapping[str, Any]) -> BertConfig:
    """Builds a config from the known keys of `values`; the others are kept in `unused`, never interpreted.

    Raises:
        ValueError: an impossible value, or a model type other than "bert".
    """
    kind = values.get("model_type", BERT)  # Google's bert_config.json names none
    if kind != BERT:
        raise ValueError(f"model_type is {kind!r}; only {BERT!r} is read")
    known = {field.name for field in dataclasses.fields(BertConfig)} - {"unused"}
    kept = {key: value for key, value in values.items() if key in known}
    if kept.get("id2label") is not None:
        kept["id2label"] = _labels(kept["id2label"])
        kept.pop("num_labels", None)  # transformers lets id2label win
    if not kept.get("pruned_heads"):
        kept.pop("pruned_heads", None)  # an empty mapping means none
    unused = {key: value for key, value in values.items() if key not in known}
    strange = sorted(set(unused) - HARMLESS_KEYS)
    if strange:
        _log.warning("config.json: keys not understood, kept aside and ignored: %s", ", ".join(map(repr, strange)))
    return BertConfig(**kept, unused=unused)


def to_dict(config: BertConfig, *, architecture: str | None = None, dtype: str = "float32") -> dict[str, Any]:
    """The content of a config.json that `transformers` reads; of the `unused` keys those that are plain settings."""
    derived = ("unused", "pruned_heads", "num_labels", "id2label")
    kept = {
        key: value for key, value in config.unused.items() if key in _SETTINGS and isinstance(value, str | int | float)
    }
    values = kept | {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in derived}
    values |= {
        "model_type": BERT,
        "dtype": dtype,
        "id2label": {str(i): name for i, name in enumerate(config.id2label)},
        "label2id": {name: i for i, name in enumerate(config.id2label)},
    }
    if architecture is not None:
        values["architectures"] = [architecture]
    return dict(sorted(values.items()))


def _labels(labels: object) -> dict[int, Any]:
    """JSON objects have string keys: {"0": "NEGATIVE", "1": "POSITIVE"}."""
    if not isinstance(labels, Mapping):
        raise ValueError(f"id2label is {labels!r}; it must be an object from id to name")
    try:
        by_id = {int(key): name for key, name in labels.items()}
    except ValueError:
        raise ValueError(f"id2label has the ids {sorted(labels)}; they must be whole numbers") from None
    if len(by_id) < len(labels):  # "0" and "00"
        raise ValueError(f"id2label has the ids {sorted(labels)}; two of them are the same number")
    return by_id
