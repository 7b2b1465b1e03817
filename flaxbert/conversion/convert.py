"""Convert any checkpoint that can be read to any format that can be written, with one tensor in memory at a time."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from flaxbert.config import BertConfig
from flaxbert.conversion.copied_model import copy_unknown_model, require_copyable
from flaxbert.conversion.model_checkpoint import ModelCheckpoint
from flaxbert.conversion.output import Conversion, Output, ReportProgress, compare, file_format, total_bytes
from flaxbert.conversion.shape_changes import ShapeChanges, change_family, require_room_for_tokenizer
from flaxbert.families import (
    ARCHITECTURES,
    FAMILIES,
    HeadKind,
    architecture_of,
    family_of,
    family_of_config_class,
    read_config,
    read_model_type,
)
from flaxbert.families.family import ParameterPath
from flaxbert.files import (
    CHECKSUMS_FILE,
    atomic_folder,
    atomic_write,
    format_checksums,
)
from flaxbert.models import PreTrainedModel
from flaxbert.weights.checkpoint import FLAX, ORBAX, Checkpoint, open_checkpoint
from flaxbert.weights.folder import (
    WriteOptions,
    config_text,
    copy_other_files,
    write_model_folder,
)
from flaxbert.weights.formats.orbax_params import write_orbax_params
from flaxbert.weights.load import initialise
from flaxbert.weights.match import MatchedTensors, match
from flaxbert.weights.names import ParameterTensor
from flaxbert.weights.tensors import FiniteCheck, LazyTensor, cast

_log = logging.getLogger("flaxbert")


def convert(
    path: str | Path,
    target: str | Path,
    *,
    head: str | None = None,
    format: str = "safetensors",
    dtype: str | None = None,
    max_shard_size: int | None = None,
    hidden_act: str | None = None,
    changes: ShapeChanges | None = None,
    verify: bool = False,
    key: jax.Array | None = None,
    progress: ReportProgress | None = None,
) -> Conversion:
    """Write a model folder: config.json, weights, SHA256SUMS, tokenizer files, sentence-transformers files.

    The folder appears when it is complete, or not at all. Without a `dtype` the numbers are copied bit for bit.

    Args:
        path: a checkpoint that `from_pretrained` reads.
        target: the folder to write; it must not exist.
        head: the class of the result. Tensors that the checkpoint lacks of its head are initialised from `key`, and
            another head is left out, both with a warning. By default nothing is initialised or left out: the class is
            the one that config.json names, or else the one that has these tensors. A causal language model gets
            `is_decoder`. A BERT becomes a DistilBERT of the same layers (`surgery.change_family`).
        format: "safetensors", "pytorch", "flax" (the layout of transformers 4's Flax classes) or "orbax" (parameters).
        dtype: the type of the numbers: "float32", "float16" or "bfloat16"; the checkpoint's own where None.
        max_shard_size: bytes a file; more are written as several files. Not for orbax.
        hidden_act: replaces the activation of the checkpoint's config ("gelu" keeps what Google's config says).
        changes: pruned heads, fewer layers, another vocabulary. All parameters are in memory then.
        verify: read the folder before it appears and compare it with the checkpoint.
        key: for a new head and new vectors; `jax.random.key(0)` where None.
        progress: called with the number of bytes written.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: an argument or the checkpoint is wrong.
    """
    output = Output(Path(target), format, dtype, max_shard_size, verify, progress)
    output.check()
    checkpoint = open_checkpoint(Path(path))
    model_type = read_model_type(checkpoint.config_folder)
    if model_type not in FAMILIES:
        requests = {"head": head, "hidden_act": hidden_act} | (changes.given if changes else {})
        require_copyable(checkpoint, model_type, format, requests)
        return copy_unknown_model(checkpoint, model_type, output)
    config = read_config(checkpoint.config_folder)
    if hidden_act is not None:
        config = config.replace(hidden_act=hidden_act)
    config = _with_attention(config, head)
    own_head = _own_class(config, head)
    model, matched = ModelCheckpoint(checkpoint, config).match(own_head)
    checkpoint.verify_checksums()
    if head is not None and head != own_head:
        model, matched = change_family(model, matched, ARCHITECTURES[head], key)
    initialised = sorted(matched.missing)
    if changes is not None and changes.given:
        if changes.vocab_size is not None and changes.vocab_size < 1:
            require_room_for_tokenizer(checkpoint.model_folder, changes.vocab_size)
        model, matched = changes.apply(model, matched, key)
        if model.config.vocab_size < config.vocab_size:
            require_room_for_tokenizer(checkpoint.model_folder, model.config.vocab_size)
    if format == FLAX.name and (model.config.pruned_heads or model.config.has_relative_positions):
        raise ValueError(
            "format is 'flax'; the Flax classes of transformers 4 ignore pruned heads and relative positions, and "
            "would fail or compute something else: write another format"
        )
    conversion = _convert_model(checkpoint, model, matched, key, output)
    sized = changes is not None and changes.given.keys() & {"vocab_size", "pad_to_multiple_of"}
    return dataclasses.replace(
        conversion, newly_initialised=initialised, vocab_size=model.config.vocab_size if sized else None
    )


def _with_attention(config: BertConfig, head: str | None) -> BertConfig:
    """Return the configuration with `is_decoder` where the class given needs it; say so, and where it stays."""
    model_class = None if head is None else ARCHITECTURES.get(head)
    if model_class is not None and architecture_of(model_class).head is HeadKind.CAUSAL_LM:
        if not config.is_decoder:
            _log.warning("is_decoder is set to true: attention becomes causal; train the %s before it generates", head)
        return config.replace(is_decoder=True)
    if model_class is not None and config.is_decoder:
        _log.warning("is_decoder stays true: the attention of the %s is causal, each token sees those before it", head)
    return config


def _own_class(config: BertConfig, head: str | None) -> str | None:
    """Return the class to read a checkpoint as: `head`, or, of a family that takes its layers, its own one like it."""
    family, target = family_of_config_class(type(config)), ARCHITECTURES.get(head or "")
    if target is None or family.model_type not in family_of(target).takes_layers_of:
        return head
    kind = architecture_of(target).head
    return next((known.name for known in family.architectures if known.head is kind), family.base_model.name)


def _convert_model(
    checkpoint: Checkpoint, model: PreTrainedModel, matched: MatchedTensors, key: jax.Array | None, output: Output
) -> Conversion:
    tensors = FiniteCheck(checkpoint.file).tensors(_all_tensors(model, matched, key))
    if output.dtype is not None:
        tensors = {name: cast(tensor, np.dtype(output.dtype), name=name) for name, tensor in tensors.items()}
    architecture = architecture_of(model)
    with atomic_folder(output.target) as folder:
        _write(folder, model, matched, output.observed(tensors), output, in_given_order=checkpoint.format == ORBAX)
        if output.verify:
            written = open_checkpoint(folder)
            written.verify_checksums()
            compare(folder, tensors, match(written, model).tensors)
        files = copy_other_files(checkpoint.model_folder, folder, model, max_length=model.config.max_sequence_length)
    return Conversion(
        read=checkpoint.format,
        written=output.format,
        head=architecture.name,
        tensors=len(tensors),
        bytes=total_bytes(tensors),
        newly_initialised=sorted(matched.missing),
        left_out=sorted([*matched.left_out, *checkpoint.skipped_names]),
        files=["config.json", CHECKSUMS_FILE, *files],
    )


def _all_tensors(model: PreTrainedModel, matched: MatchedTensors, key: jax.Array | None) -> dict[str, LazyTensor]:
    """Return all tensors of the model in the order of its table: the checkpoint's, and those initialised here."""
    initialised = initialise(matched, model, key)

    def parameter(path: ParameterPath) -> Callable[[], jax.Array]:
        return lambda: initialised[path]

    return {
        name: ParameterTensor(mapping, np.dtype(np.float32), parameter(mapping.path))
        if name in matched.missing
        else matched.tensors[name]
        for name, mapping in matched.mappings.items()
    }


def _write(
    folder: Path,
    model: PreTrainedModel,
    matched: MatchedTensors,
    tensors: Mapping[str, LazyTensor],
    output: Output,
    *,
    in_given_order: bool,
) -> None:
    if output.format != ORBAX:
        options = WriteOptions(file_format(output.format), output.max_shard_size, in_given_order=in_given_order)
        write_model_folder(folder, model, tensors, options)
        return
    digests = write_orbax_params(folder, matched.mappings, tensors)
    texts = {"config.json": config_text(model, tensors), CHECKSUMS_FILE: format_checksums(digests)}
    for name, text in texts.items():
        with atomic_write(folder / name) as file:
            file.write_text(text, encoding="utf-8")
