"""Match a checkpoint to a model: its class by its config or its tensors, and its tensors by their names."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax.numpy as jnp

from flaxbert.config import BertConfig
from flaxbert.families import ARCHITECTURES, architecture_name, family_of, family_of_config_class
from flaxbert.families.family import Architecture, Family
from flaxbert.models import PreTrainedModel
from flaxbert.weights.checkpoint import Checkpoint
from flaxbert.weights.names import NameMapping, name_mappings
from flaxbert.weights.tensors import LazyTensor, tensors_equal

_log = logging.getLogger("flaxbert")

_LEGACY_ENDINGS = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}

# -- class -----------------------------------------------------------------------------------------------


def find_architecture(checkpoint: Checkpoint, config: BertConfig) -> Architecture:
    """Return the architecture that the config names, or else the one that has tensors of these names.

    Raises:
        ValueError: the config names a class that this library lacks, or several.
    """
    family, given = family_of_config_class(type(config)), config.unused.get("architectures")
    if not given:
        return infer_architecture(family, checkpoint.tensors)
    architecture = family.architecture_named(architecture_name(config.unused))
    if architecture is None:
        raise ValueError(
            f"{checkpoint.config_folder}: config.json has architectures {given!r}; known: {', '.join(ARCHITECTURES)}. "
            "Write a folder that names one of them: flaxbert convert SRC NEW --head CLASS (in Python, call the class's "
            "own from_pretrained)"
        )
    return architecture


def infer_architecture(family: Family, tensor_names: Iterable[str]) -> Architecture:
    """Return the architecture of a family that has tensors of these names."""
    canonical = {canonical_name(family, name, add_prefix=True) for name in tensor_names}
    for architecture in family.architectures:
        if architecture.marks and all(any(name.startswith(mark) for name in canonical) for mark in architecture.marks):
            return architecture
    return family.base_model


def with_label_count(checkpoint: Checkpoint, config: BertConfig) -> BertConfig:
    """Take the number of labels from the classifier where the config names no class: Google's does not state it."""
    names = family_of_config_class(type(config)).label_weights
    weight = next((checkpoint.tensors[name] for name in names if name in checkpoint.tensors), None)
    if config.unused.get("architectures") or weight is None or not weight.shape:
        return config
    return config.replace(num_labels=weight.shape[0]) if 0 < weight.shape[0] != config.num_labels else config


def has_pooler(family: Family, tensor_names: Iterable[str]) -> bool:
    """Return True if a checkpoint's tensors include a pooler's."""
    pooler = tuple(row.name for row in family.pooler)
    return any(name.endswith(pooler) for name in tensor_names)


# -- names -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class MatchedTensors:
    """The tensors of a checkpoint that a model takes.

    Attributes:
        mappings: the name mapping of every parameter of the model, by tensor name.
        tensors: the tensors taken from the checkpoint, by tensor name.
        missing: the names of tensors to initialise.
        left_out: names in the file that the model does not take: another head's, buffers, aliases of tied weights.
    """

    mappings: Mapping[str, NameMapping]
    tensors: Mapping[str, LazyTensor]
    missing: frozenset[str]
    left_out: tuple[str, ...]


def match(
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    *,
    strict: bool = True,
    ignore_mismatched_sizes: bool = False,
    leave_out_heads: bool = False,
) -> MatchedTensors:
    """Match the names of a checkpoint to the parameters of a model, without reading a tensor.

    Differences raise one error or are named in a warning, as `load_model` describes; with `leave_out_heads`, weights of
    heads that the class does without are left out.
    """
    family, stored = family_of(model), checkpoint.tensors
    mappings = {
        mapping.name: mapping
        for mapping in name_mappings(family, model.parameter_shapes(), vocab_size=model.config.vocab_size)
    }
    file_names = _canonical_names(family, stored, checkpoint.file)
    _resolve_ties(family, file_names, stored, mappings, checkpoint.file)
    tensors = {name: stored[file_name] for name, file_name in file_names.items()}
    if leave_out_heads:
        tensors = _without_other_heads(checkpoint.file, model, tensors, mappings)
    missing = _report_differences(
        checkpoint.file, model, tensors, mappings, strict=strict, ignore_shapes=ignore_mismatched_sizes
    )
    taken = {name: tensors[name] for name in mappings if name not in missing}
    left_out = stored.keys() - {file_names[name] for name in taken}
    return MatchedTensors(mappings, taken, missing, tuple(sorted(left_out)))


def without_head(checkpoint: Checkpoint, family: Family) -> Checkpoint:
    """Return the checkpoint without the tensors of its head; a pooler stays."""
    canonical = {name: canonical_name(family, name, add_prefix=False) for name in checkpoint.tensors}
    head = {name for name, own in canonical.items() if belongs_to_head(family, own)}
    head = {name for name in head if canonical[name] not in family.pooler_names}
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in head}
    return dataclasses.replace(checkpoint, tensors=tensors)


def _canonical_names(family: Family, stored: Mapping[str, LazyTensor], file: Path) -> dict[str, str]:
    """Return the name in the file by canonical name."""
    base_model = not any(name.startswith(family.prefixed("")) for name in stored)
    file_names: dict[str, str] = {}
    for name in stored:
        canonical = canonical_name(family, name, add_prefix=base_model)
        if canonical in file_names:
            raise ValueError(f"{file}: {name!r} and {file_names[canonical]!r} are two spellings of one weight")
        file_names[canonical] = name
    return file_names


def _resolve_ties(
    family: Family,
    file_names: dict[str, str],
    stored: Mapping[str, LazyTensor],
    mappings: Mapping[str, NameMapping],
    file: Path,
) -> None:
    """Remove the aliases of tied weights from `file_names`, after checking that they equal the weights."""
    decoder = family.decoder
    if decoder.untied_bias in mappings and decoder.bias in file_names:
        spare = file_names.pop(decoder.bias)
        file_names.setdefault(decoder.untied_bias, spare)
    if decoder.bias not in mappings or decoder.weight in mappings:  # no tied decoder in this model
        return
    for alias, name in decoder.aliases.items():
        if alias not in file_names:
            continue
        if name not in file_names:
            file_names[name] = file_names.pop(alias)
        elif tensors_equal(stored[file_names[alias]], stored[file_names[name]]):
            del file_names[alias]
        else:
            raise ValueError(
                f"{file}: {alias} differs from {name}, but the config ties them; set tie_word_embeddings to false"
            )


def _without_other_heads(
    file: Path, model: PreTrainedModel, tensors: Mapping[str, LazyTensor], mappings: Mapping[str, NameMapping]
) -> Mapping[str, LazyTensor]:
    family = family_of(model)
    others = sorted(tensors.keys() & ({row.name for row in family.heads} | family.pooler_names) - mappings.keys())
    if not others:
        return tensors
    _log.warning("%s: weights that %s does without are left out: %s", file, type(model).__name__, ", ".join(others))
    return {name: tensor for name, tensor in tensors.items() if name not in others}


def _report_differences(
    file: Path,
    model: PreTrainedModel,
    tensors: Mapping[str, LazyTensor],
    mappings: Mapping[str, NameMapping],
    *,
    strict: bool,
    ignore_shapes: bool,
) -> frozenset[str]:
    """Raise one error that lists every difference, or warn of allowed ones; return the names to initialise."""
    family, class_name = family_of(model), type(model).__name__
    missing = [name for name in mappings if name not in tensors]
    unexpected = [name for name in tensors if name not in mappings and not family.is_buffer(name)]
    if family.pooler and family.pooler_names.issubset(
        unexpected
    ):  # every checkpoint has a pooler; a model class without one ignores it
        unexpected = [name for name in unexpected if name not in family.pooler_names]
        _log.warning("%s: %s has no pooler; left out: %s", file, class_name, ", ".join(sorted(family.pooler_names)))
    both = sorted(name for name in mappings if name in tensors)
    mis_shaped = [name for name in both if tensors[name].shape != mappings[name].file_shape]
    not_floating = [name for name in both if not jnp.issubdtype(tensors[name].dtype, jnp.floating)]
    shapes = {name: (list(tensors[name].shape), list(mappings[name].file_shape)) for name in mis_shaped}
    lines = [
        *_titled("missing", missing),
        *_titled("unexpected", unexpected),
        *_titled("of another shape", [f"{n}: {a} in the file, {b} in {class_name}" for n, (a, b) in shapes.items()]),
        *_titled("no floating-point numbers", [f"{name}: {tensors[name].dtype}" for name in not_floating]),
    ]
    if not lines:
        return frozenset()
    # A decoder that is made from an encoder gets a new cross-attention.
    added = {name for name in missing if {"cross_attention", "cross_attention_norm"} & {*mappings[name].path}}
    others = [name for name in missing + unexpected if name not in added]
    other_head = not strict and all(belongs_to_head(family, name) for name in others)
    if not not_floating and (ignore_shapes or not mis_shaped) and (other_head or not missing + unexpected):
        _log.warning("%s: loading %s:\n%s", file, class_name, "\n".join(lines))
        return frozenset([*missing, *mis_shaped])
    base = family.base_model.name
    hint = (
        "Embeddings and layers must match; heads may differ. In Python, strict=False initialises missing tensors of a "
        "head and leaves out unexpected ones, and ignore_mismatched_sizes=True initialises tensors of another shape. "
    )
    if all(belongs_to_head(family, name) for name in [*missing, *unexpected, *mis_shaped]):
        hint += f"On the command line, remove the head first: flaxbert convert SRC NEW --head {base}"
    else:
        hint += (
            "Or config.json is not that of these weights: compare its sizes, vocab_size, tie_word_embeddings, "
            "pruned_heads, position_embedding_type and add_cross_attention"
        )
    raise ValueError("\n".join([f"{file}: the weights do not fit {class_name}:", *lines, hint]))


def _titled(title: str, lines: list[str]) -> list[str]:
    return [f"  {len(lines)} {title}:", *(f"    {line}" for line in lines)] if lines else []


def canonical_name(family: Family, name: str, *, add_prefix: bool) -> str:
    """Return a file's tensor name as the table spells it: not with the legacy "gamma" and "beta" of layer norms.

    `add_prefix` puts the family's prefix before the encoder's names, for a file of the base model.
    """
    for old, new in _LEGACY_ENDINGS.items():
        if name.endswith(old) or name == old[1:]:
            name = name[: -len(old)] + new
    modules = {row.name.partition(".")[0] for row in (*family.encoder, *family.pooler)}
    return family.prefixed(name) if add_prefix and name.partition(".")[0] in modules and "." in name else name


def belongs_to_head(family: Family, name: str) -> bool:
    """Return True for a canonical name of a task head or the pooler, False for embeddings and layers."""
    modules = {row.name.partition(".")[0] for row in family.encoder}
    return not name.startswith(tuple(f"{family.prefixed(module)}." for module in modules))
