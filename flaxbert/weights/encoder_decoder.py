"""Folders of Hugging Face's `EncoderDecoderModel`: two configurations in config.json, two prefixes of tensor names."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from flaxbert.config import BertConfig
from flaxbert.encoder_decoder import PROJECTION, EncoderDecoderModel
from flaxbert.families import (
    HeadKind,
    architecture_of,
    carried_keys,
    config_from_dict,
    config_to_dict,
    family_of_config_class,
    model_class,
    read_config,
    read_keys,
)
from flaxbert.files import JsonObject
from flaxbert.layers import Declaration, Params, ParamsDict, fresh_parameters, map_specs
from flaxbert.models import PreTrainedModel
from flaxbert.sharding import AxisRules, is_multihost, tree_shardings
from flaxbert.weights.checkpoint import Checkpoint, open_checkpoint
from flaxbert.weights.folder import WriteOptions, copy_other_files, file_tensors, write_folder
from flaxbert.weights.load import ENCODER_DECODER, load_parameters
from flaxbert.weights.match import has_pooler
from flaxbert.weights.names import NameMapping, ParameterTensor, leaf_at, shape_differences
from flaxbert.weights.tensors import tensors_equal

_log = logging.getLogger("flaxbert")

_HEADS = {"encoder": HeadKind.NONE, "decoder": HeadKind.CAUSAL_LM}
_TIED = "tie_encoder_decoder"
_FLOAT32 = np.dtype(np.float32)
_OWN_KEYS = frozenset(
    [*_HEADS, "decoder_start_token_id", "pad_token_id", "is_encoder_decoder", "tie_word_embeddings", _TIED]
)


def load_encoder_decoder(
    path: str | Path, *, mesh: Mesh | None = None, rules: AxisRules | None = None, **attributes: Any
) -> tuple[EncoderDecoderModel, ParamsDict]:
    """Load a folder with config.json of the type "encoder-decoder" and weights in any format of a model folder.

    Args:
        mesh, rules: placement of the parameters, as in `load_model`.
        **attributes: of both models: `dtype`, `scan`, `remat`, ...

    Raises:
        FileNotFoundError, ValueError: as `load_model`; or config.json is of another type, or lacks a part.
    """
    checkpoint = open_checkpoint(Path(path))
    keys = read_keys(checkpoint.config_folder)
    configs = part_configs(keys, str(path))
    unknown = sorted(name for name in checkpoint.tensors if name.partition(".")[0] not in (*_HEADS, PROJECTION))
    if unknown:
        raise ValueError(f"{checkpoint.file}: tensors of neither encoder nor decoder: {', '.join(unknown[:5])}")
    models, params, tied = {}, {}, keys.get(_TIED) is True
    for part, config in configs.items():
        tensors = {
            name.removeprefix(f"{part}."): tensor
            for name, tensor in checkpoint.tensors.items()
            if name.startswith(f"{part}.")
        }
        if tied and part == "decoder":  # transformers 4 stores what is shared once
            prefix = family_of_config_class(type(config)).prefixed("")
            shared = {
                f"{prefix}{name.removeprefix('encoder.')}": tensor
                for name, tensor in checkpoint.tensors.items()
                if name.startswith("encoder.") and not name.startswith("encoder.pooler.")
            }
            both = sorted(shared.keys() & tensors)
            if other := [name for name in both if not tensors_equal(shared[name], tensors[name])]:
                tied = False
                _log.warning(
                    "%s: config.json has %s, but %d tensors of the decoder, among them %s, differ from the encoder's; "
                    "both are kept, as in transformers 5",
                    checkpoint.file,
                    _TIED,
                    len(other),
                    other[0],
                )
            tensors = shared | tensors
        own = dataclasses.replace(checkpoint, tensors=tensors)
        models[part] = _model(own, config, part, rules=rules, **attributes)
        params[part] = load_parameters(own, models[part], strict=True, key=None, mesh=mesh)
    unused = {key: value for key, value in keys.items() if key not in _OWN_KEYS}
    model = EncoderDecoderModel(
        encoder=models["encoder"],
        decoder=models["decoder"],
        decoder_start_token_id=keys.get("decoder_start_token_id"),
        pad_token_id=keys.get("pad_token_id"),
        tied=tied,
        origin=checkpoint.model_folder,
        unused=unused,
    )
    if tied:
        params["decoder"] = _common(params["decoder"], model.declaration()["decoder"])
    return model, params | _projection(checkpoint, model, mesh)


def part_configs(keys: JsonObject, source: str) -> dict[str, BertConfig]:
    """Return the configurations of "encoder" and "decoder" from the keys of a config.json; `source` is its folder.

    Raises:
        ValueError: it is of another type, or lacks a part.
    """
    if keys.get("model_type") != ENCODER_DECODER:
        raise ValueError(f"{source}: model_type is {keys.get('model_type')!r}, expected {ENCODER_DECODER!r}")
    for part in _HEADS:
        if not isinstance(keys.get(part), Mapping):
            raise ValueError(f"{source}: config.json has no {part!r}, the configuration of one of the two models")
    return {part: config_from_dict(keys[part]) for part in _HEADS}


def join_checkpoints(
    encoder: str | Path,
    decoder: str | Path,
    *,
    decoder_start_token_id: int | None = None,
    pad_token_id: int | None = None,
    tied: bool = False,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
    rules: AxisRules | None = None,
    **attributes: Any,
) -> tuple[EncoderDecoderModel, ParamsDict]:
    """Join an encoder and a decoder from two checkpoints, or from one given twice.

    As in transformers, the decoder gets is_decoder and add_cross_attention, and what its checkpoint lacks is newly
    initialised from `key` (`jax.random.key(0)` where None), with a warning: the cross-attention, and a head.

    Args:
        encoder, decoder: of any format and class; heads of the encoder's are left out.
        decoder_start_token_id, pad_token_id: None takes the decoder's [CLS] (`cls_token_id`), where its config.json
            names one, and its `pad_token_id`.
        tied: use the encoder's embeddings and layers in the decoder, too.
        mesh, rules, **attributes: as in `load_encoder_decoder`.

    Raises:
        FileNotFoundError, ValueError: as `load_model`; or the two are to be tied and differ.
    """
    key = jax.random.key(0) if key is None else key
    models, params, folders = {}, {}, {}
    for part, path in {"encoder": encoder, "decoder": decoder}.items():
        checkpoint = open_checkpoint(Path(path))
        folders[part] = checkpoint.model_folder
        is_decoder = part == "decoder"
        config = read_config(checkpoint.config_folder).replace(is_decoder=is_decoder, add_cross_attention=is_decoder)
        models[part] = _model(checkpoint, config, part, rules=rules, **attributes)
        own_key = jax.random.fold_in(key, is_decoder)
        params[part] = load_parameters(checkpoint, models[part], strict=False, key=own_key, mesh=mesh)
    config = models["decoder"].config
    start = config.unused.get("cls_token_id") if decoder_start_token_id is None else decoder_start_token_id
    pad = config.pad_token_id if pad_token_id is None else pad_token_id
    model = EncoderDecoderModel(models["encoder"], models["decoder"], start, pad, tied=tied, origin=folders["encoder"])
    declaration = model.declaration()
    if tied:
        _require_equal(model, params, encoder=encoder, decoder=decoder)
        params["decoder"] = _common(params["decoder"], declaration["decoder"])
    if PROJECTION in declaration:
        projection = fresh_parameters(declaration[PROJECTION], jax.random.fold_in(key, 2))
        params[PROJECTION] = _placed_projection(projection, model, mesh)
    return model, params


def save_encoder_decoder(
    path: str | Path,
    model: EncoderDecoderModel,
    params: Params,
    *,
    dtype: DTypeLike = jnp.float32,
    max_shard_size: int | None = None,
    checksums: bool = False,
) -> None:
    """Write a folder that `transformers` loads as `EncoderDecoderModel`; arguments as in `save_pretrained`."""
    differences = shape_differences(dict(params), model.parameter_shapes())
    if differences:
        raise ValueError("\n".join(["these are not the parameters of EncoderDecoderModel:", *differences]))
    target = np.dtype(dtype)
    of_parts = {"encoder": params["encoder"], "decoder": model.decoder_params(params)}
    tensors = {
        f"{part}.{name}": tensor
        for part, own in of_parts.items()
        for name, tensor in file_tensors(getattr(model, part), own, target).items()
    }
    for mapping in _projection_names(model):
        tensors[mapping.name] = ParameterTensor(mapping, target, lambda path=mapping.path: leaf_at(params, path))
    text = json.dumps(config_values(model, dtype=target), indent=2, ensure_ascii=False) + "\n"
    only_gather = is_multihost(params) and jax.process_index() > 0
    options = WriteOptions(max_shard_size=max_shard_size, checksums=checksums, only_gather=only_gather)
    write_folder(path, text, tensors, options)
    if not only_gather and model.origin is not None and model.origin.is_dir():
        copy_other_files(model.origin, Path(path), model)


def config_values(model: EncoderDecoderModel, *, dtype: np.dtype = _FLOAT32) -> JsonObject:
    """Return the content of a config.json that `transformers` reads; `dtype` is that of the weights."""
    values = carried_keys(model.unused) | {
        "architectures": ["EncoderDecoderModel"],
        "model_type": ENCODER_DECODER,
        "is_encoder_decoder": True,
        "decoder_start_token_id": model.decoder_start_token_id,
        "pad_token_id": model.pad_token_id,
        **({_TIED: True} if model.tied else {}),
        "tie_word_embeddings": model.decoder.config.tie_word_embeddings,
        "dtype": dtype.name,
    }
    for part in _HEADS:
        own = getattr(model, part)
        values[part] = config_to_dict(own.config, architecture=architecture_of(own).name, dtype=dtype.name)
    return dict(sorted(values.items()))


def _require_equal(model: EncoderDecoderModel, params: ParamsDict, *, encoder: str | Path, decoder: str | Path) -> None:
    """Raise ValueError if the decoder's checkpoint has other weights than the encoder's where they would be shared."""
    declared = model.declaration()["decoder"]  # raises where the shapes differ
    alone = {**params, "decoder": _common(params["decoder"], declared)}
    joined, given = model.decoder_params(alone), params["decoder"]
    if not all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(joined), jax.tree.leaves(given), strict=True)):
        raise ValueError(
            f"tied is true, but the weights of {decoder} differ from those of {encoder}, which would replace them; "
            "give the same checkpoint twice, or tied=False"
        )


def _common(params: Params, declaration: Declaration) -> Params:
    """Return the parameters that are declared."""
    return map_specs(lambda _, leaf: leaf, declaration, params)


def _model(
    checkpoint: Checkpoint, config: BertConfig, part: str, *, rules: AxisRules | None, **attributes: Any
) -> PreTrainedModel:
    """Return the model of a part: the encoder without head, the decoder with that of a causal language model."""
    if part == "encoder":
        family = family_of_config_class(type(config))
        attributes["add_pooling_layer"] = has_pooler(family, checkpoint.tensors)
    return model_class(config, _HEADS[part])(config, **{"rules": rules or AxisRules(), **attributes})


def _projection_names(model: EncoderDecoderModel) -> list[NameMapping]:
    shapes = model.parameter_shapes().get(PROJECTION)
    if shapes is None:
        return []
    return [
        NameMapping(f"{PROJECTION}.weight", (PROJECTION, "kernel"), shapes["kernel"].shape, input_axes=1),
        NameMapping(f"{PROJECTION}.bias", (PROJECTION, "bias"), shapes["bias"].shape),
    ]


def _projection(checkpoint: Checkpoint, model: EncoderDecoderModel, mesh: Mesh | None) -> ParamsDict:
    """Read the layer between two widths, where the model has one."""
    leaves: dict[str, jax.Array] = {}
    mappings = _projection_names(model)
    found = {name: tensor.shape for name, tensor in checkpoint.tensors.items() if name.startswith(f"{PROJECTION}.")}
    if found != {mapping.name: mapping.file_shape for mapping in mappings}:
        raise ValueError(
            f"{checkpoint.file}: {PROJECTION} has {found or 'no tensors'}; the widths of encoder and decoder, "
            f"{model.encoder.config.hidden_size} and {model.decoder.config.hidden_size}, need "
            f"{ {mapping.name: mapping.file_shape for mapping in mappings} or 'none' }"
        )
    for mapping in mappings:
        whole = mapping.read(checkpoint.tensors[mapping.name], (slice(None),) * len(mapping.shape))
        leaves[mapping.path[1]] = jnp.asarray(whole, jnp.float32)
    return {PROJECTION: _placed_projection(leaves, model, mesh)} if leaves else {}


def _placed_projection(leaves: ParamsDict, model: EncoderDecoderModel, mesh: Mesh | None) -> ParamsDict:
    if mesh is None:
        return leaves
    return jax.device_put(leaves, tree_shardings(mesh, model.encoder.rules, model.logical_axes()[PROJECTION]))
