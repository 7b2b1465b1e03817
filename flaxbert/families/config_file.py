"""config.json of every family: read through an allow-list of keys, and written so that `transformers` reads it."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxbert.config import BertConfig
from flaxbert.families import BERT, FAMILIES, Family, family_of_config_class
from flaxbert.files import path_inside, read_json

_log = logging.getLogger("flaxbert")

GOOGLE_FILE = "bert_config.json"

# Keys that name the file, its tensors or the program that wrote it. They are written anew or not at all.
FILE_KEYS = frozenset(
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


def read_config(path: str | Path, family: Family | None = None) -> BertConfig:
    """Read config.json (or Google's bert_config.json) of a folder, or the file itself.

    Google's code calls the tanh approximation "gelu": "gelu" in a file named bert_config.json is read as "gelu_new",
    with a warning.

    Args:
        path: the folder or the file.
        family: the family that the configuration must be of; any where None.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not JSON, of another model type, or has a value that is impossible or not supported.
    """
    file, values = _read_values(path)
    if file.name == GOOGLE_FILE and values.get("hidden_act") == "gelu":
        values["hidden_act"] = "gelu_new"
        _log.warning('%s: Google\'s "gelu" is the tanh form; hidden_act is set to "gelu_new"', file)
    try:
        return config_from_dict(values, family)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def read_model_type(path: str | Path) -> str:
    """Return the "model_type" of a folder's config.json; "bert" where there is none, as in Google's files.

    Raises:
        FileNotFoundError, ValueError: as `read_config`.
    """
    file, values = _read_values(path)
    model_type = values.get("model_type", BERT.model_type)
    if not isinstance(model_type, str):
        raise ValueError(f"{file}: model_type is {str(model_type)[:80]!r}")
    return model_type


def architecture_name(values: Mapping[str, Any]) -> str | None:
    """Return the class that the keys of a config.json name; None where they name none, or several."""
    names = values.get("architectures")
    return names[0] if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) else None


def config_from_dict(values: Mapping[str, Any], family: Family | None = None) -> BertConfig:
    """Build a configuration from the known keys of a config.json; keep the others in `unused`, uninterpreted.

    Raises:
        ValueError: an impossible value, or a model type that is not read, or not that of `family`.
    """
    family = _family(values, family)
    known = {field.name for field in dataclasses.fields(family.config_class)} - {"unused"}
    fields = {key: value for key, value in values.items() if key in known}
    if fields.get("id2label") is not None:
        fields["id2label"] = _labels_by_id(fields["id2label"])
        fields.pop("num_labels", None)  # in transformers, id2label wins
    if not fields.get("pruned_heads"):
        fields.pop("pruned_heads", None)  # an empty mapping means none
    unused = {key: value for key, value in values.items() if key not in known}
    unknown = sorted(set(unused) - family.kept_config_keys - FILE_KEYS)
    if unknown:
        _log.warning("config.json: keys not understood, kept aside and ignored: %s", ", ".join(map(repr, unknown)))
    return family.config_class(**fields, unused=unused)


def config_to_dict(config: BertConfig, *, architecture: str | None = None, dtype: str = "float32") -> dict[str, Any]:
    """Return the content of a config.json that `transformers` reads.

    Of `config.unused`, the keys that the family keeps are written back.

    Args:
        config: the configuration.
        architecture: the class to name under "architectures".
        dtype: the type of the numbers in the weights.
    """
    family = family_of_config_class(type(config))
    written_below = ("unused", "pruned_heads", "num_labels", "id2label")
    kept = {
        key: value
        for key, value in config.unused.items()
        if key in family.kept_config_keys and isinstance(value, str | int | float)
    }
    values = kept | {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in written_below}
    values |= {
        "model_type": family.model_type,
        "dtype": dtype,
        "id2label": {str(i): name for i, name in enumerate(config.id2label)},
        "label2id": {name: i for i, name in enumerate(config.id2label)},
    }
    if architecture is not None:
        values["architectures"] = [architecture]
    return dict(sorted(values.items()))


def _read_values(path: str | Path) -> tuple[Path, dict[str, Any]]:
    file = Path(path)
    if file.is_dir():
        google = (file / GOOGLE_FILE).exists() and not (file / "config.json").exists()
        file = path_inside(file, GOOGLE_FILE if google else "config.json")
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; a model folder holds config.json and model.safetensors")
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file}: holds a JSON {type(values).__name__}, expected an object")
    return file, values


def _family(values: Mapping[str, Any], wanted: Family | None) -> Family:
    allowed = FAMILIES if wanted is None else {wanted.model_type: wanted}
    model_type = values.get("model_type", (wanted or BERT).model_type)  # Google's bert_config.json names none
    if model_type not in allowed:
        raise ValueError(f"model_type is {model_type!r}; only {' or '.join(map(repr, allowed))} is read")
    return allowed[model_type]


def _labels_by_id(labels: object) -> dict[int, Any]:
    """Turn the string keys of a JSON object into numbers: {"0": "NEGATIVE", "1": "POSITIVE"}."""
    if not isinstance(labels, Mapping):
        raise ValueError(f"id2label is {labels!r}; it must be an object from id to name")
    try:
        by_id = {int(key): name for key, name in labels.items()}
    except ValueError:
        raise ValueError(f"id2label has the ids {sorted(labels)}; they must be whole numbers") from None
    if len(by_id) < len(labels):  # "0" and "00"
        raise ValueError(f"id2label has the ids {sorted(labels)}; two of them are the same number")
    return by_id
