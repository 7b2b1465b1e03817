"""Load a checkpoint into a model: match names, report differences, and read each tensor onto its devices."""

import dataclasses
import functools
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from flaxbert.config import BertConfig
from flaxbert.families import (
    ARCHITECTURES,
    architecture_name,
    architecture_of,
    family_of,
    family_of_config_class,
    read_config,
)
from flaxbert.families.family import Architecture, Family, ParameterPath
from flaxbert.models import Model, PreTrainedModel
from flaxbert.sharding import AxisRules, check_divisible, tree_shardings
from flaxbert.weights import names
from flaxbert.weights.checkpoint import Checkpoint, open_checkpoint
from flaxbert.weights.names import NameMapping, ParameterTensor, leaf_at
from flaxbert.weights.tensors import LazyTensor, tensors_equal

_log = logging.getLogger("flaxbert")


def load_model(
    cls: type[Model],
    path: str | Path,
    *,
    strict: bool = True,
    ignore_mismatched_sizes: bool = False,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
    rules: AxisRules | None = None,
    **attributes: Any,
) -> tuple[Model, dict[str, Any]]:
    """Load a checkpoint for a model class: return the model and its float32 parameters.

    The host holds one layer, or one other tensor, at a time; with a mesh, each process reads only the parts of its own
    devices.

    Args:
        path: a folder with config.json and weights: safetensors, pytorch_model.bin (needs the extra `torch`),
            flax_model.msgpack, each in one file or several, or parameters saved by orbax, as training runs do;
            or the folder of a TensorFlow 1 checkpoint of google-research/bert (bert_config.json, index and data).
        strict: raise on any missing or unexpected weight. Only named in a warning are a pooler that the class does
            without, and, where config.json names this class, the weights of other heads. With False the *head* may
            differ: parameters of this class's head that the file lacks are newly initialised from `key`, weights of
            another head are left out, and a warning of the "flaxbert" logger names both.
        ignore_mismatched_sizes: newly initialise parameters that have another shape in the file, with a warning.
        key: for new parameters; `jax.random.key(0)` where None.
        mesh, rules: placement of the parameters; one device without a mesh, `AxisRules()` without rules. The rules
            become the model's.
        **attributes: of the class: `dtype`, `scan`, `remat`, `attn_implementation`, `vocab_multiple`,
            `add_pooling_layer`; or `config` to replace the file's (another number of labels, for instance).

    Raises:
        FileNotFoundError, ValueError: one error that lists every missing, unexpected and mis-shaped name.
    """
    checkpoint = open_checkpoint(Path(path))
    config = attributes.pop("config", None) or read_config(checkpoint.config_folder, family_of(cls))
    model = cls(config, **{"origin": checkpoint.model_folder, "rules": rules or AxisRules(), **attributes})
    params = load_parameters(
        checkpoint, model, strict=strict, ignore_mismatched_sizes=ignore_mismatched_sizes, key=key, mesh=mesh
    )
    return model, params


def load_parameters(
    source: str | Path | Checkpoint,
    model: PreTrainedModel,
    *,
    strict: bool = True,
    ignore_mismatched_sizes: bool = False,
    new_head: bool = False,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Load a checkpoint for a model that exists; arguments and errors are those of `load_model`.

    With `new_head` the head is newly initialised even where the file has one of this name.
    """
    if mesh is not None:
        check_divisible(mesh, model.rules, model.parameter_shapes(), model.logical_axes())
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(Path(source))
    if new_head:
        checkpoint = _without_head(checkpoint, family_of(model))
    matched = match(
        checkpoint,
        model,
        strict=strict,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        leave_out_heads=architecture_name(model.config.unused) == architecture_of(model).name,
    )
    checkpoint.verify_checksums()
    shardings = None if mesh is None else tree_shardings(mesh, model.rules, model.logical_axes())
    return place_on_devices(matched, initialise(matched, model, key, shardings), shardings)


def _without_head(checkpoint: Checkpoint, family: Family) -> Checkpoint:
    """Return the checkpoint without the tensors of its head; a pooler stays."""
    canonical = {name: names.canonical_name(family, name, add_prefix=False) for name in checkpoint.tensors}
    head = {name for name, own in canonical.items() if names.belongs_to_head(family, own)}
    head = {name for name in head if canonical[name] not in family.pooler_names}
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in head}
    return dataclasses.replace(checkpoint, tensors=tensors)


def from_pretrained(path: str | Path, **arguments: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a checkpoint with the class that config.json names under "architectures".

    Where it names none, as Google's, the class is the one that has these tensors. A base model (`BertModel`) has a
    pooler where the checkpoint has one; those of sentence-transformers often have none. The arguments, results and
    errors are those of `PreTrainedModel.from_pretrained`.

    Raises:
        ValueError: config.json names no class of this library.
    """
    checkpoint = open_checkpoint(Path(path))
    config = arguments.pop("config", None) or read_config(checkpoint.config_folder)
    architecture = find_architecture(checkpoint, config)
    if architecture.is_base_model and "add_pooling_layer" not in arguments:
        arguments["add_pooling_layer"] = has_pooler(family_of(architecture.model_class), checkpoint.tensors)
        if not arguments["add_pooling_layer"]:
            _log.warning("%s: the checkpoint has no pooler; the model is loaded without one", path)
    return architecture.model_class.from_pretrained(path, config=with_label_count(checkpoint, config), **arguments)


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
    canonical = {names.canonical_name(family, name, add_prefix=True) for name in tensor_names}
    for architecture in family.architectures:
        if architecture.marks and all(any(name.startswith(mark) for name in canonical) for mark in architecture.marks):
            return architecture
    return family.base_model


def with_label_count(checkpoint: Checkpoint, config: BertConfig) -> BertConfig:
    """Take the number of labels from the classifier where the config names no class: Google's does not state it."""
    weight = checkpoint.tensors.get(family_of_config_class(type(config)).label_weight)
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
        for mapping in names.name_mappings(family, model.parameter_shapes(), vocab_size=model.config.vocab_size)
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


def _canonical_names(family: Family, stored: Mapping[str, LazyTensor], file: Path) -> dict[str, str]:
    """Return the name in the file by canonical name."""
    base_model = not any(name.startswith(family.prefixed("")) for name in stored)
    file_names: dict[str, str] = {}
    for name in stored:
        canonical = names.canonical_name(family, name, add_prefix=base_model)
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
    if family.pooler_names.issubset(unexpected):  # every checkpoint has a pooler; a model class without one ignores it
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
    other_head = not strict and all(names.belongs_to_head(family, name) for name in missing + unexpected)
    if not not_floating and (ignore_shapes or not mis_shaped) and (other_head or not missing + unexpected):
        _log.warning("%s: loading %s:\n%s", file, class_name, "\n".join(lines))
        return frozenset([*missing, *mis_shaped])
    base = family.base_model.name
    hint = (
        "Embeddings and layers must match; heads may differ. In Python, strict=False initialises missing tensors of a "
        "head and leaves out unexpected ones, and ignore_mismatched_sizes=True initialises tensors of another shape. "
        f"On the command line, remove the head first: flaxbert convert SRC NEW --head {base}"
    )
    raise ValueError("\n".join([f"{file}: the weights do not fit {class_name}:", *lines, hint]))


def _titled(title: str, lines: list[str]) -> list[str]:
    return [f"  {len(lines)} {title}:", *(f"    {line}" for line in lines)] if lines else []


# -- arrays ----------------------------------------------------------------------------------------------


def initialise(
    matched: MatchedTensors, model: PreTrainedModel, key: jax.Array | None = None, shardings: Any = None
) -> dict[ParameterPath, jax.Array]:
    """Draw the parameters that the checkpoint lacks, and compute no other; `shardings` is a tree of all parameters."""
    paths = sorted({matched.mappings[name].path for name in matched.missing})
    if not paths:
        return {}

    def initialise(key: jax.Array) -> list[jax.Array]:
        params = model.init(key, model.example_ids)["params"]
        return [leaf_at(params, path) for path in paths]

    out_shardings = None if shardings is None else [leaf_at(shardings, path) for path in paths]
    values = jax.jit(initialise, out_shardings=out_shardings)(jax.random.key(0) if key is None else key)
    return dict(zip(paths, values, strict=True))


def place_on_devices(
    matched: MatchedTensors, initialised: Mapping[ParameterPath, jax.Array] | None = None, shardings: Any = None
) -> dict[str, Any]:
    """Build the params dict: the initialised parameters and the checkpoint's tensors, in float32 on their devices."""
    leaves: dict[ParameterPath, jax.Array] = dict(initialised or {})
    by_layer: dict[int, list[tuple[NameMapping, LazyTensor]]] = {}
    for name, tensor in matched.tensors.items():
        mapping = matched.mappings[name]
        sharding = leaf_at(shardings, mapping.path) if shardings else None
        if isinstance(tensor, ParameterTensor) and mapping.stored_rows is tensor.mapping.stored_rows is None:
            # The parameter with all its layers is read at once, and once.
            if mapping.layer in (None, 0):
                leaves[mapping.path] = _place_parameter(tensor.parameter(), sharding)
        elif mapping.layer is None:
            leaves[mapping.path] = _place_tensor(mapping, tensor, sharding)
        else:
            by_layer.setdefault(mapping.layer, []).append((mapping, tensor))
    num_layers = 1 + max((m.layer for m in matched.mappings.values() if m.layer is not None), default=-1)
    for layer, tensors in by_layer.items():
        # One call for each layer, so that its tensors are freed before the next layer is read.
        leaves |= _place_layer(layer, tensors, leaves, num_layers, shardings)
    return names.tree_of(leaves)


def _place_layer(
    layer: int,
    tensors: list[tuple[NameMapping, LazyTensor]],
    leaves: Mapping[ParameterPath, jax.Array],
    num_layers: int,
    shardings: Any,
) -> dict[ParameterPath, jax.Array]:
    """Read one layer's tensors and return the stacked parameters with that layer set."""
    stacks, parts = {}, {}
    for mapping, tensor in tensors:
        sharding = leaf_at(shardings, mapping.path) if shardings else None
        stacks[mapping.path] = (
            leaves[mapping.path]
            if mapping.path in leaves
            else jnp.zeros((num_layers, *mapping.shape), jnp.float32, device=sharding)
        )
        of_layer = None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
        parts[mapping.path] = _place_tensor(mapping, tensor, of_layer)
    return _set_layer(stacks, parts, layer)


def _place_tensor(mapping: NameMapping, tensor: LazyTensor, sharding: NamedSharding | None) -> jax.Array:
    """Read a tensor in the parameter's layout and in float32; each device reads its own part."""

    def part(index: Any) -> np.ndarray:  # a slice for each axis
        return np.ascontiguousarray(mapping.read(tensor, index), np.float32)

    if sharding is None:
        return jnp.asarray(part((slice(None),) * len(mapping.shape)))
    return jax.make_array_from_callback(mapping.shape, sharding, part)


def _place_parameter(parameter: np.ndarray, sharding: NamedSharding | None) -> jax.Array:
    if sharding is None:
        return jnp.asarray(parameter, jnp.float32)
    return jax.make_array_from_callback(parameter.shape, sharding, lambda index: parameter[index].astype(np.float32))


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(
    stacks: dict[ParameterPath, jax.Array], parts: dict[ParameterPath, jax.Array], layer: ArrayLike
) -> dict[ParameterPath, jax.Array]:
    """Write one layer's parameters into the stacks, in place."""
    return {path: stacks[path].at[layer].set(part) for path, part in parts.items()}
