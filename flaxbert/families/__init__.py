"""The families of models: one file describes one family; here they are listed and looked up.

To add a family, write its file and add it to `FAMILIES`.
"""

from collections.abc import Mapping

import numpy as np

from flaxbert.config import BertConfig
from flaxbert.families.bert import BERT
from flaxbert.families.family import Architecture, Family, HeadKind
from flaxbert.families.roberta import ROBERTA
from flaxbert.models import PreTrainedModel

__all__ = [
    "ARCHITECTURES",
    "BERT",
    "FAMILIES",
    "Architecture",
    "Family",
    "HeadKind",
    "ROBERTA",
    "architecture_of",
    "family_of",
    "family_of_config_class",
    "model_class",
    "random_inputs",
]

FAMILIES: Mapping[str, Family] = {family.model_type: family for family in (BERT, ROBERTA)}
"""The families by the "model_type" of config.json."""

ARCHITECTURES: Mapping[str, type[PreTrainedModel]] = {
    architecture.name: architecture.model_class for family in FAMILIES.values() for architecture in family.architectures
}
"""The model classes of all families by the name in config.json's "architectures"."""

_BY_CLASS = {
    architecture.model_class: (family, architecture)
    for family in FAMILIES.values()
    for architecture in family.architectures
}


def family_of(model: PreTrainedModel | type[PreTrainedModel]) -> Family:
    """Return the family of a model or model class.

    Raises:
        TypeError: neither its class nor one that it inherits from is listed by a family.
    """
    return _listed(model)[0]


def architecture_of(model: PreTrainedModel | type[PreTrainedModel]) -> Architecture:
    """Return the entry of a model's class, or of the class that it inherits from.

    Raises:
        TypeError: as `family_of`.
    """
    return _listed(model)[1]


def family_of_config_class(config_class: type[BertConfig]) -> Family:
    """Return the family of a configuration class, or of the class that it inherits from.

    Raises:
        TypeError: no family lists it.
    """
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
        "token_type_ids": random.integers(0, config.type_vocab_size, shape, np.int32),
    }
    return {name: arrays[name] for name in model.input_names}


def _listed(model: PreTrainedModel | type[PreTrainedModel]) -> tuple[Family, Architecture]:
    model_class = model if isinstance(model, type) else type(model)
    for ancestor in model_class.__mro__:
        if ancestor in _BY_CLASS:
            return _BY_CLASS[ancestor]
    raise TypeError(f"{model_class.__name__} is a class of no family; known: {', '.join(ARCHITECTURES)}")
