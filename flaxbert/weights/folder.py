"""Writing a model folder: config.json and the weights, in one file or several, SHA256SUMS, the tokenizer's files."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from flaxbert.encoder_decoder import AnyModel
from flaxbert.families import HeadKind, architecture_name, architecture_of, config_to_dict, family_of, read_keys
from flaxbert.families.family import ParameterPath
from flaxbert.files import CHECKSUMS_FILE, atomic_write, file_sha256, format_checksums, path_inside
from flaxbert.layers import Params
from flaxbert.models import PreTrainedModel
from flaxbert.sharding import is_multihost
from flaxbert.tokenizer_files import copy_tokenizer_files
from flaxbert.weights.checkpoint import FLAX, SAFETENSORS, FileFormat
from flaxbert.weights.names import ParameterTensor, leaf_at, name_mappings, shape_differences
from flaxbert.weights.sentence_transformers import (
    MODULES_FILE,
    copy_files_of_other_tokenizers,
    copy_sentence_transformers_files,
    transformer_folder,
)
from flaxbert.weights.tensors import LazyTensor, TensorSpec, constant

_log = logging.getLogger("flaxbert")

DTYPES = ("float32", "float16", "bfloat16")
_ENCODER_AND_LANGUAGE_MODELS = (HeadKind.NONE, HeadKind.PRETRAINING, HeadKind.MASKED_LM, HeadKind.CAUSAL_LM)


@dataclasses.dataclass(frozen=True)
class WriteOptions:
    """The form of the weights in a folder, and how they are written.

    Attributes:
        max_shard_size: bytes; more are written as several files and an index.
        in_given_order: read the tensors in the order in which they are given, where the format leaves a choice. Faster
            for a checkpoint that stores all layers of a parameter together.
        only_gather: read every tensor and write nothing, to take part in the gathers of a parameter that is split over
            processes.
    """

    file_format: FileFormat = SAFETENSORS
    max_shard_size: int | None = None
    checksums: bool = True
    in_given_order: bool = False
    only_gather: bool = False


def save_pretrained(
    path: str | Path,
    model: AnyModel,
    params: Params,
    *,
    dtype: DTypeLike = jnp.float32,
    max_shard_size: int | None = None,
    checksums: bool = False,
) -> None:
    """Write a folder with config.json and model.safetensors that `transformers` loads; other files of it stay.

    All files are written to temporary names and then renamed, config.json last, so that a reader never sees a partial
    file and a failure leaves the old ones. The host holds one tensor at a time. Parameters that several processes hold
    together are gathered one tensor at a time: all processes call this, and the first one writes.

    The tokenizer's files are copied from the folder that the model was loaded from, and those of sentence-transformers
    if they are of use to the class, except files that the target has already.

    Args:
        dtype: the type of the numbers in the file: float32, float16 or bfloat16.
        max_shard_size: bytes; more are written as several files and model.safetensors.index.json.
        checksums: write SHA256SUMS too; it is compared with the weights whenever this library loads the folder.

    Raises:
        ValueError: the parameters are not those of the model (lists each difference), or a dtype that is not allowed.
    """
    if not isinstance(model, PreTrainedModel):
        from flaxbert.weights.encoder_decoder import save_encoder_decoder  # which calls this module for its parts

        save_encoder_decoder(path, model, params, dtype=dtype, max_shard_size=max_shard_size, checksums=checksums)
        return
    differences = shape_differences(dict(params), model.parameter_shapes())
    if differences:
        raise ValueError("\n".join([f"these are not the parameters of {type(model).__name__}:", *differences]))
    tensors = file_tensors(model, params, np.dtype(dtype))
    only_gather = is_multihost(params) and jax.process_index() > 0
    options = WriteOptions(max_shard_size=max_shard_size, checksums=checksums, only_gather=only_gather)
    write_folder(path, config_text(model, tensors), tensors, options)
    if not only_gather and model.origin is not None and model.origin.is_dir():
        copy_other_files(model.origin, Path(path), model)


def file_tensors(model: PreTrainedModel, params: Params, dtype: np.dtype) -> dict[str, LazyTensor]:
    """Return the parameters of a model as tensors of a safetensors file, by their names in it.

    Raises:
        ValueError: a dtype that is not allowed.
    """
    if dtype.name not in DTYPES:
        raise ValueError(f"dtype is {dtype.name}; allowed: {', '.join(DTYPES)}")

    def parameter(path: ParameterPath) -> Callable[[], ArrayLike]:
        return lambda: leaf_at(params, path)

    tensors = {
        mapping.name: ParameterTensor(mapping, dtype, parameter(mapping.path))
        for mapping in name_mappings(family_of(model), params, vocab_size=model.config.vocab_size)
    }
    return _with_file_names(model, tensors, SAFETENSORS)


def copy_other_files(
    source: Path, target: Path, model: AnyModel, *, max_length: int | None = None, tokenizer: bool = True
) -> list[str]:
    """Copy the tokenizer's and sentence-transformers' files of a model folder; existing files of the target stay.

    The modules of sentence-transformers are of use to the encoder, whatever language-model head is beside it, and to
    the class that config.json of the source names; otherwise a warning says that they are left out. With `max_length`,
    files that the tokenizer lacks are written; without `tokenizer` its files are left to the caller. Return the paths
    of the files in the target.

    Raises:
        ValueError: a file is damaged, or a link out of its folder.
    """
    transformer = transformer_folder(source)
    copied = copy_tokenizer_files(transformer, target, max_length=max_length) if tokenizer else []
    copied += copy_files_of_other_tokenizers(transformer, target)
    copied += copy_generation_settings(transformer, target)
    if not isinstance(model, PreTrainedModel):  # two models: no sentence-transformer
        return copied
    head, name = architecture_of(model).head, architecture_of(model).name
    named = architecture_name(read_keys(transformer)) if (transformer / "config.json").is_file() else None
    if head in _ENCODER_AND_LANGUAGE_MODELS or name == named:
        copied += copy_sentence_transformers_files(source, target)
    elif (source / MODULES_FILE).is_file():
        _log.warning("%s: %s is left out: it is of no use to %s", source, MODULES_FILE, name)
    return copied


def copy_generation_settings(source: Path, target: Path) -> list[str]:
    """Copy generation_config.json, which says how a language model generates; an existing one stays."""
    file = path_inside(source, "generation_config.json")
    if not file.is_file() or (target / file.name).exists():
        return []
    with atomic_write(target / file.name) as temporary:
        temporary.write_bytes(file.read_bytes())
    return [file.name]


def write_model_folder(
    path: str | Path, model: PreTrainedModel, tensors: Mapping[str, LazyTensor], options: WriteOptions
) -> None:
    """Write a folder as `save_pretrained` does, from tensors by canonical name."""
    tensors = _with_file_names(model, tensors, options.file_format)
    write_folder(path, config_text(model, tensors), tensors, options)


def write_folder(path: str | Path, config: str, tensors: Mapping[str, LazyTensor], options: WriteOptions) -> None:
    """Write a folder from the content of config.json and from tensors under their names in the file."""
    file_format = options.file_format
    specs = [TensorSpec(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    files = file_format.assign_to_files(specs, options.max_shard_size)
    if options.in_given_order and file_format is not FLAX:  # descending item size keeps every tensor aligned
        files = {name: sorted(specs, key=lambda spec: -spec.dtype.itemsize) for name, specs in files.items()}
    else:
        files = {name: file_format.order(specs) for name, specs in files.items()}
    if options.only_gather:
        for spec in (spec for specs in files.values() for spec in specs):
            # Same order and number of reads as on the writing process, because each read is a collective.
            tensors[spec.name].read()
        return
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    index = {file_format.index: file_format.index_text(files)} if len(files) > 1 else {}
    with contextlib.ExitStack() as opened:  # closed, and the files renamed, in the opposite order: config.json last
        config_file = opened.enter_context(atomic_write(folder / "config.json"))
        sums_file = opened.enter_context(atomic_write(folder / CHECKSUMS_FILE)) if options.checksums else None
        for name, text in index.items():
            opened.enter_context(atomic_write(folder / name)).write_text(text, encoding="utf-8")
        digests = {}
        for name, specs in files.items():
            file = opened.enter_context(atomic_write(folder / name))
            file_format.write(file, specs, (tensors[spec.name] for spec in specs))
            if options.checksums:
                digests[name] = file_sha256(file)
        config_file.write_text(config, encoding="utf-8")
        if sums_file is not None:
            sums_file.write_text(format_checksums(digests), encoding="utf-8")
        (folder / CHECKSUMS_FILE).unlink(missing_ok=True)  # of the files that are replaced now
    for file in folder.iterdir():  # files of an earlier save in another number of shards would be ambiguous
        if file.name not in {*files, *index} and file_format.owns(file.name):
            file.unlink()


def _with_file_names(
    model: PreTrainedModel, tensors: Mapping[str, LazyTensor], file_format: FileFormat
) -> dict[str, LazyTensor]:
    """Return the tensors under the names that a file of this model has."""
    family, named = family_of(model), dict(tensors)
    decoder = family.decoder
    if decoder.untied_bias in named:
        named[decoder.bias] = named[decoder.untied_bias]  # transformers 5 reports it as missing otherwise
    if file_format is FLAX and decoder.untied_bias != decoder.bias:
        named.pop(decoder.untied_bias, None)  # Flax's decoder has no bias, and adds `decoder.bias`
    for name in [name for name in named if name.endswith(".alpha_p")]:  # transformers does not set them itself
        for buffer, value in {"beta": 0.5, "eps": -1e-6}.items():
            named[name.removesuffix("alpha_p") + buffer] = constant(value, named[name].dtype)
    if architecture_of(model).is_base_model:
        named = {name.removeprefix(family.prefixed("")): tensor for name, tensor in named.items()}
    return named


def config_text(model: PreTrainedModel, tensors: Mapping[str, LazyTensor]) -> str:
    """Return the content of config.json for a model and the tensors of its file; warn of a class that is ours alone."""
    config, architecture = model.config, architecture_of(model)
    if not architecture.is_in_transformers:
        _log.warning("transformers has no %s: of this folder it loads the encoder, without the head", architecture.name)
    if architecture.head is HeadKind.QUESTION_ANSWERING and config.num_labels != 2:
        config = config.replace(num_labels=2)  # transformers takes the size of this head from it
    widest = max({tensor.dtype for tensor in tensors.values()}, key=lambda dtype: dtype.itemsize)
    values = config_to_dict(config, architecture=architecture.name, dtype=widest.name)
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
