"""Load a checkpoint into a model: read each tensor straight onto its devices, and draw what the checkpoint lacks."""

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import PyTree

from flaxbert.families import HeadKind, architecture_name, architecture_of, family_of, read_config, read_keys
from flaxbert.families.family import ParameterPath
from flaxbert.layers import ParamsDict
from flaxbert.models import Model, PreTrainedModel
from flaxbert.sharding import AxisRules, check_divisible, tree_shardings
from flaxbert.weights.checkpoint import Checkpoint, open_checkpoint
from flaxbert.weights.match import MatchedTensors, find_architecture, has_pooler, match, with_label_count, without_head
from flaxbert.weights.names import NameMapping, ParameterTensor, leaf_at, tree_of
from flaxbert.weights.tensors import FiniteCheck, LazyTensor

_log = logging.getLogger("flaxbert")

ENCODER_DECODER = "encoder-decoder"
"""The "model_type" of a folder that holds two models."""


def is_encoder_decoder(config_folder: Path) -> bool:
    """Return whether config.json of a folder describes an encoder-decoder, two models."""
    return read_keys(config_folder).get("model_type") == ENCODER_DECODER


def load_model(
    cls: type[Model],
    path: str | Path | Checkpoint,
    *,
    strict: bool = True,
    ignore_mismatched_sizes: bool = False,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
    rules: AxisRules | None = None,
    **attributes: Any,
) -> tuple[Model, ParamsDict]:
    """Load a checkpoint for a model class: return the model and its float32 parameters.

    The host holds one layer, or one other tensor, at a time; with a mesh, each process reads only the parts of its own
    devices.

    Args:
        path: an open checkpoint, or a folder with config.json and weights: safetensors, pytorch_model.bin (needs the
            extra `torch`), flax_model.msgpack, each in one file or several, or parameters saved by orbax, as training
            runs do; or the folder of a TensorFlow 1 checkpoint of google-research/bert (bert_config.json, index and
            data).
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
    checkpoint = path if isinstance(path, Checkpoint) else open_checkpoint(Path(path))
    config = attributes.pop("config", None) or read_config(checkpoint.config_folder, family_of(cls))
    model = cls(config, **{"origin": checkpoint.model_folder, "rules": rules or AxisRules(), **attributes})
    params = load_parameters(
        checkpoint, model, strict=strict, ignore_mismatched_sizes=ignore_mismatched_sizes, key=key, mesh=mesh
    )
    return model, params


def load_parameters(
    checkpoint: Checkpoint,
    model: PreTrainedModel,
    *,
    strict: bool,
    ignore_mismatched_sizes: bool = False,
    new_head: bool = False,
    key: jax.Array | None,
    mesh: Mesh | None,
) -> ParamsDict:
    """Load the parameters of a model from a checkpoint; arguments and errors are those of `load_model`.

    With `new_head` the head is newly initialised even where the file has one of this name.
    """
    if mesh is not None:
        check_divisible(mesh, model.rules, model.parameter_shapes(), model.logical_axes())
    if model.config.is_decoder and architecture_of(model).head not in (HeadKind.NONE, HeadKind.CAUSAL_LM):
        _log.warning(
            "%s: is_decoder is true in the config, so the attention of %s is causal; config.replace(is_decoder=False), "
            "or false in config.json, makes it an encoder",
            checkpoint.file,
            type(model).__name__,
        )
    if new_head:
        checkpoint = without_head(checkpoint, family_of(model))
    matched = match(
        checkpoint,
        model,
        strict=strict,
        ignore_mismatched_sizes=ignore_mismatched_sizes,
        leave_out_heads=architecture_name(model.config.unused) == architecture_of(model).name,
    )
    checkpoint.verify_checksums()
    shardings = None if mesh is None else tree_shardings(mesh, model.rules, model.logical_axes())
    return place_on_devices(
        matched, initialise(matched, model, key, shardings), shardings, check=FiniteCheck(checkpoint.file)
    )


def from_pretrained(path: str | Path, **arguments: Any) -> tuple[Any, ParamsDict]:
    """Load a checkpoint with the class that config.json names under "architectures".

    The folder of an encoder-decoder gives an `EncoderDecoderModel` (`weights.encoder_decoder.load_encoder_decoder`).

    Where it names none, as Google's, the class is the one that has these tensors. A base model (`BertModel`) has a
    pooler where the checkpoint has one; those of sentence-transformers often have none. The arguments, results and
    errors are those of `PreTrainedModel.from_pretrained`.

    Raises:
        ValueError: config.json names no class of this library.
    """
    checkpoint = open_checkpoint(Path(path))
    if is_encoder_decoder(checkpoint.config_folder):
        from flaxbert.weights.encoder_decoder import load_encoder_decoder  # which calls this module for its parts

        return load_encoder_decoder(path, **arguments)
    config = arguments.pop("config", None) or read_config(checkpoint.config_folder)
    architecture = find_architecture(checkpoint, config)
    if architecture.is_base_model and "add_pooling_layer" not in arguments:
        arguments["add_pooling_layer"] = has_pooler(family_of(architecture.model_class), checkpoint.tensors)
        if family_of(architecture.model_class).pooler and not arguments["add_pooling_layer"]:
            _log.warning("%s: the checkpoint has no pooler; the model is loaded without one", path)
    return load_model(architecture.model_class, checkpoint, config=with_label_count(checkpoint, config), **arguments)


# -- arrays ----------------------------------------------------------------------------------------------


def initialise(
    matched: MatchedTensors, model: PreTrainedModel, key: jax.Array | None = None, shardings: PyTree = None
) -> dict[ParameterPath, jax.Array]:
    """Draw the parameters that the checkpoint lacks, and compute no other; `shardings` is a tree of all parameters."""
    paths = sorted({matched.mappings[name].path for name in matched.missing})
    if not paths:
        return {}

    def initial_leaves(key: jax.Array) -> list[jax.Array]:
        params = model.init(key, model.example_ids)["params"]
        return [leaf_at(params, path) for path in paths]

    out_shardings = None if shardings is None else [leaf_at(shardings, path) for path in paths]
    values = jax.jit(initial_leaves, out_shardings=out_shardings)(jax.random.key(0) if key is None else key)
    return dict(zip(paths, values, strict=True))


def place_on_devices(
    matched: MatchedTensors,
    initialised: Mapping[ParameterPath, jax.Array] | None = None,
    shardings: PyTree = None,
    *,
    check: FiniteCheck | None = None,
) -> ParamsDict:
    """Build the params dict: the initialised parameters and the checkpoint's tensors, in float32 on their devices."""
    leaves: dict[ParameterPath, jax.Array] = dict(initialised or {})
    by_layer: dict[int, list[tuple[NameMapping, LazyTensor]]] = {}
    checked = matched.tensors if check is None else check.tensors(matched.tensors)
    for name, tensor in matched.tensors.items():
        mapping = matched.mappings[name]
        sharding = leaf_at(shardings, mapping.path) if shardings else None
        if (
            isinstance(tensor, ParameterTensor)
            and mapping.path == tensor.mapping.path
            and mapping.stored_rows is tensor.mapping.stored_rows is None
        ):
            # The parameter with all its layers is read at once, and once.
            if mapping.layer in (None, 0):
                parameter = tensor.parameter()
                read = parameter.__getitem__ if check is None else check.reader(name, parameter.__getitem__)
                leaves[mapping.path] = _place(parameter.shape, sharding, read)
        elif mapping.layer is None:
            leaves[mapping.path] = _place(mapping.shape, sharding, functools.partial(mapping.read, checked[name]))
        else:
            by_layer.setdefault(mapping.layer, []).append((mapping, checked[name]))
    num_layers = 1 + max((m.layer for m in matched.mappings.values() if m.layer is not None), default=-1)
    for layer, tensors in by_layer.items():
        # One call for each layer, so that its tensors are freed before the next layer is read.
        leaves |= _place_layer(layer, tensors, leaves, num_layers, shardings)
    return tree_of(leaves)


def _place_layer(
    layer: int,
    tensors: list[tuple[NameMapping, LazyTensor]],
    leaves: Mapping[ParameterPath, jax.Array],
    num_layers: int,
    shardings: PyTree,
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
        parts[mapping.path] = _place(mapping.shape, of_layer, functools.partial(mapping.read, tensor))
    return _set_layer(stacks, parts, layer)


def _place(
    shape: tuple[int, ...], sharding: NamedSharding | None, read: Callable[[tuple[slice, ...]], np.ndarray]
) -> jax.Array:
    """Return a float32 array; each device reads its own part by `read`, which takes a slice for each axis."""

    def part(index: Any) -> np.ndarray:
        return np.asarray(read(index), np.float32, order="C")

    if sharding is None:
        return jnp.asarray(part((slice(None),) * len(shape)))
    return jax.make_array_from_callback(shape, sharding, part)


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(
    stacks: dict[ParameterPath, jax.Array], parts: dict[ParameterPath, jax.Array], layer: ArrayLike
) -> dict[ParameterPath, jax.Array]:
    """Write one layer's parameters into the stacks, in place."""
    return {path: stacks[path].at[layer].set(part) for path, part in parts.items()}
