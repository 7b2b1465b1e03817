"""The families of models, listed and looked up; config.json of every family, read and written.

One file describes one family. To add a family, write its file and add it to `FAMILIES`.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flaxbert.config import ADAPTIVE_FIELDS, BertConfig, given_adaptive_arguments
from flaxbert.families.bert import BERT
from flaxbert.families.camembert import CAMEMBERT
from flaxbert.families.distilbert import DISTILBERT
from flaxbert.families.electra import ELECTRA
from flaxbert.families.family import Architecture, Family, HeadKind
from flaxbert.families.mpnet import MPNET
from flaxbert.families.roberta import ROBERTA
from flaxbert.families.xlm_roberta import XLM_ROBERTA
from flaxbert.files import JsonObject, path_inside, read_json
from flaxbert.models import PreTrainedModel

_log = logging.getLogger("flaxbert")

FAMILIES: Mapping[str, Family] = {
    family.model_type: family for family in (BERT, DISTILBERT, ELECTRA, ROBERTA, XLM_ROBERTA, CAMEMBERT, MPNET)
}
"""The families by the "model_type" of config.json."""

_BY_CLASS = {
    architecture.model_class: (family, architecture)
    for family in FAMILIES.values()
    for architecture in family.architectures
}

ARCHITECTURES: Mapping[str, type[PreTrainedModel]] = {model_class.__name__: model_class for model_class in _BY_CLASS}
"""The model classes of all families by the name in config.json's "architectures"."""

GOOGLE_FILE = "bert_config.json"

# Keys that name code to run.
CODE_KEYS = frozenset(["auto_map", "custom_pipelines", "trust_remote_code"])
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

# -- models ----------------------------------------------------------------------------------------------


def family_of(model: PreTrainedModel | type[PreTrainedModel]) -> Family:
    """Return the family of a model or model class.

    Raises:
        TypeError: neither its class nor one that it inherits from is listed by a family.
    """
    return _listed(model)[0]


def architecture_of(model: PreTrainedModel | type[PreTrainedModel]) -> Architecture:
    """Return the entry of a model's class, or of the class that it inherits from; TypeError where no family has one."""
    return _listed(model)[1]


def _listed(model: PreTrainedModel | type[PreTrainedModel]) -> tuple[Family, Architecture]:
    model_class = model if isinstance(model, type) else type(model)
    for ancestor in model_class.__mro__:
        if ancestor in _BY_CLASS:
            return _BY_CLASS[ancestor]
    raise TypeError(f"{model_class.__name__} is a class of no family; known: {', '.join(ARCHITECTURES)}")


def family_of_config_class(config_class: type[BertConfig]) -> Family:
    """Return the family of a configuration class, or of the class that it inherits from; TypeError without one."""
    for ancestor in config_class.__mro__:
        for family in FAMILIES.values():
            if ancestor is family.config_class:
                return family
    raise TypeError(f"{config_class.__name__} is the configuration of no family; known: {', '.join(FAMILIES)}")


def model_class(config: BertConfig, head: HeadKind) -> type[PreTrainedModel]:
    """Return the class with this kind of head in the family of a configuration.

    Raises:
        ValueError: the family has no such class; lists the heads that it has.
    """
    family = family_of_config_class(type(config))
    for architecture in family.architectures:
        if architecture.head is head:
            return architecture.model_class
    heads = ", ".join(architecture.head.value for architecture in family.architectures)
    raise ValueError(
        f"{family.model_type!r} has no model for {head.value} here; it has models for: {heads}. Use one of these, or "
        "a model of another family"
    )


def random_inputs(model: PreTrainedModel, *, rows: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw a batch of tokens by the names of the family's inputs: [rows, length], or [rows, 2, length] for choices.

    Every row but the first ends in padding.
    """
    random, config = np.random.default_rng(seed), model.config
    shape = (rows, 2, length) if model.takes_choices else (rows, length)
    mask = np.ones(shape, np.int32)
    mask[1:, ..., -(-length * 3 // 4) :] = 0
    arrays = {
        "input_ids": random.integers(0, config.vocab_size, shape, np.int32),
        "attention_mask": mask,
        "token_type_ids": random.integers(0, max(config.type_vocab_size, 1), shape, np.int32),
    }
    return {name: arrays[name] for name in model.input_names}


# -- config.json -----------------------------------------------------------------------------------------


def read_config(path: str | Path, family: Family | None = None) -> BertConfig:
    """Read config.json (or Google's bert_config.json) of a folder, or the file itself; of `family` where one is given.

    Google's code calls the tanh approximation "gelu": "gelu" in a file named bert_config.json is read as "gelu_new",
    with a warning.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not JSON, of another model type, or has a value that is impossible or not supported.
    """
    file, values = _config_file(path), read_keys(path)
    if file.name == GOOGLE_FILE and values.get("hidden_act") == "gelu":
        values["hidden_act"] = "gelu_new"
        _log.warning('%s: Google\'s "gelu" is the tanh form; hidden_act is set to "gelu_new"', file)
    try:
        return config_from_dict(values, family)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def read_model_type(path: str | Path) -> str:
    """Return the "model_type" of a folder's config.json; "bert" where there is none, as in Google's files."""
    model_type = read_keys(path).get("model_type", BERT.model_type)
    if not isinstance(model_type, str):
        raise ValueError(f"{_config_file(path)}: model_type is {str(model_type)[:80]!r}")
    return model_type


def read_keys(path: str | Path) -> JsonObject:
    """Return the keys of a folder's config.json as they are; the path and the errors are those of `read_config`."""
    file = _config_file(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; a model folder holds config.json and model.safetensors")
    values = read_json(file)
    if not isinstance(values, dict):
        raise ValueError(f"{file}: holds a JSON {type(values).__name__}, expected an object")
    return values


def _config_file(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_dir():
        return path
    google = (path / GOOGLE_FILE).exists() and not (path / "config.json").exists()
    return path_inside(path, GOOGLE_FILE if google else "config.json")


def architecture_name(values: Mapping[str, object]) -> str | None:
    """Return the class that the keys of a config.json name; None where they name none, or several."""
    names = values.get("architectures")
    return names[0] if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) else None


def config_from_dict(values: Mapping[str, Any], family: Family | None = None) -> BertConfig:
    """Build a configuration from the known keys of a config.json; keep the others in `unused`, uninterpreted.

    Raises:
        ValueError: an impossible value, or a model type that is not read, or not that of `family`.
    """
    allowed = FAMILIES if family is None else {family.model_type: family}
    model_type = values.get("model_type", (family or BERT).model_type)  # Google's bert_config.json names none
    if model_type not in allowed:
        pair = " here; in Python, flaxbert.from_pretrained loads both models" if model_type == "encoder-decoder" else ""
        raise ValueError(f"model_type is {model_type!r}; only {' or '.join(map(repr, allowed))} is read{pair}")
    family = allowed[model_type]
    known = _fields_by_key(family)
    for field, key in family.config_keys.items():
        if field in values and values[field] != values.get(key):
            remedy = "remove it, or give both the same value" if key in values else "rename it"
            raise ValueError(f"config.json has the key {field!r}; that of a {model_type} model is {key!r}: {remedy}")
    fields = {known[key]: value for key, value in values.items() if key in known}
    if fields.get("id2label") is not None:
        fields["id2label"] = _label_names(fields["id2label"])
        fields.pop("num_labels", None)  # in transformers, id2label wins
    unused = {key: value for key, value in values.items() if key not in known}
    unknown = sorted(set(unused) - family.kept_config_keys - FILE_KEYS)
    if unknown:
        names = ", ".join(map(repr, unknown))
        _log.warning("config.json: keys without a meaning here, written back as they are: %s", names)
    try:
        return family.config_class(**fields, unused=unused)
    except ValueError as error:
        keys = [
            f"{field} is {key!r} in config.json" for field, key in family.config_keys.items() if field in str(error)
        ]
        raise ValueError("; ".join([str(error), *keys])) from None


def _fields_by_key(family: Family) -> dict[str, str]:
    """Return the fields of a family's configuration by their keys in config.json."""
    omitted = {"unused", *family.config_class.fixed_fields}
    names = [field.name for field in dataclasses.fields(family.config_class) if field.name not in omitted]
    return {family.config_keys.get(name, name): name for name in names}


def _label_names(labels: object) -> tuple[str, ...]:
    """Return the names of the ids from 0 on, as many as an "id2label" has, which is the number of labels.

    As in transformers, an id without a name is LABEL_i, and a name of an id beyond them is not used.
    """
    if not isinstance(labels, Mapping):
        raise ValueError(f"id2label is {labels!r}; it must be an object from id to name")
    try:
        by_id = {int(key): name for key, name in labels.items()}
    except ValueError:
        raise ValueError(f"id2label has the ids {sorted(labels)}; they must be whole numbers") from None
    if len(by_id) < len(labels):  # "0" and "00"
        raise ValueError(f"id2label has the ids {sorted(labels)}; two of them are the same number")
    for key, name in by_id.items():
        if not isinstance(name, str | int | float | None):
            raise ValueError(f"id2label calls {key} {name!r}; a label is a text or a number")
    if by_id.keys() != set(range(len(by_id))):
        _log.warning(
            "config.json: id2label has the ids %s; as in transformers, there are %d labels, 0 to %d, and those without "
            "a name are called LABEL_i",
            ", ".join(map(str, sorted(by_id))),
            len(by_id),
            len(by_id) - 1,
        )
    names = [by_id.get(i) for i in range(len(by_id))]
    return tuple(f"LABEL_{i}" if name is None else str(name) for i, name in enumerate(names))


def carried_keys(values: Mapping[str, object]) -> JsonObject:
    """Return the keys of a config.json but those that name the file, code to run, or begin with "_"."""
    return {key: value for key, value in values.items() if key not in FILE_KEYS | CODE_KEYS and not key.startswith("_")}


def config_to_dict(config: BertConfig, *, architecture: str | None = None, dtype: str = "float32") -> JsonObject:
    """Return the content of a config.json that `transformers` reads.

    `architecture` is the class to name, `dtype` the type of the numbers in the weights. Keys without a meaning here are
    written back, because they may change what other programs do: the activation of a CrossEncoder, for example.
    """
    family = family_of_config_class(type(config))
    written_below = ("pruned_heads", "num_labels", "id2label", *ADAPTIVE_FIELDS)
    fields = {key: name for key, name in _fields_by_key(family).items() if name not in written_below}
    values = carried_keys(config.unused) | {key: getattr(config, name) for key, name in fields.items()}
    values |= {
        "model_type": family.model_type,
        "dtype": dtype,
        "id2label": {str(i): name for i, name in enumerate(config.id2label)},
        "label2id": {name: i for i, name in enumerate(config.id2label)},
    }
    values |= given_adaptive_arguments(config)
    if config.pruned_heads:
        values["pruned_heads"] = {str(layer): list(heads) for layer, heads in config.pruned_heads}
    if architecture is not None:
        values["architectures"] = [architecture]
    return dict(sorted(values.items()))
