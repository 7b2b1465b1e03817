"""Any checkpoint that can be read, as a folder in any format that can be written; a tensor in memory at a time."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxbert import companions, config_json
from flaxbert.base import PreTrainedModel
from flaxbert.config import BertConfig
from flaxbert.conversion import unchanged
from flaxbert.conversion.checkpoint import LoadedModel
from flaxbert.files import atomic_folder, atomic_write, require_absent
from flaxbert.weights import checksums, folder
from flaxbert.weights.checkpoint_files import ORBAX, Checkpoint, open_checkpoint
from flaxbert.weights.file_format import FILE_FORMATS, FileFormat
from flaxbert.weights.folder import DTYPES
from flaxbert.weights.formats import orbax_params
from flaxbert.weights.formats.orbax_params import ParameterTensor
from flaxbert.weights.load import Fitted, draw, fit
from flaxbert.weights.tensors import CastTensor, LazyTensor, ObservedTensor, tensors_equal

FORMATS = (*(file_format.name for file_format in FILE_FORMATS), ORBAX)

Progress = Callable[[int, int], None]
"""Is told, after each tensor, how many bytes are written, and of how many."""


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What was done.

    Attributes:
        read: the format that was read.
        written: the format that was written.
        head: the class.
        tensors: how many were written.
        bytes: of their numbers.
        drawn: names of those that the checkpoint lacked.
        left_out: names of those that the class does not take: buffers, aliases of tied weights, another head,
            an optimizer's.
        files: all that were written, weights excepted.
    """

    read: str
    written: str
    head: str
    tensors: int
    bytes: int
    drawn: list[str]
    left_out: list[str]
    files: list[str]


def convert(
    path: str | Path,
    target: str | Path,
    *,
    head: str | None = None,
    format: str = "safetensors",
    dtype: str | None = None,
    max_shard_size: int | None = None,
    hidden_act: str | None = None,
    verify: bool = False,
    key: jax.Array | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Writes a model folder: config.json, weights, SHA256SUMS, the tokenizer's files, those of sentence-transformers.

    The folder appears when it is complete, or not at all. Numbers stay as they are, bit for bit, without a `dtype`.

    Args:
        path: what `from_pretrained` reads.
        target: the folder to write; it must not be there yet.
        head: the class of the result. What the checkpoint lacks of its head is drawn from `key`, and another head is
            left out, both with a warning. By default nothing is drawn and nothing left out: the class is the one that
            config.json names, or else the one that has these tensors.
        format: "safetensors", "pytorch", "flax" (the layout of transformers 4's Flax classes) or "orbax" (parameters).
        dtype: of the numbers, "float32", "float16" or "bfloat16"; the checkpoint's own where None.
        max_shard_size: bytes a file; more are written as several files. Not for orbax.
        hidden_act: replaces the activation of the checkpoint's config ("gelu" keeps what Google's config says).
        verify: read what was written and compare it, before the folder appears.
        key: for a fresh head; `jax.random.key(0)` where None.
        progress: told how far the writing is.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: what is wrong with the arguments or the checkpoint.
    """
    target = Path(target)
    _check_arguments(target, format, dtype, max_shard_size)
    found = open_checkpoint(Path(path))
    kind = config_json.model_type(found.config_folder)
    if kind != config_json.BERT:
        file_format = unchanged.file_format_of(found, kind, format, head=head, hidden_act=hidden_act)
        return _unchanged(found, target, file_format, dtype, max_shard_size, verify, progress)
    checkpoint = LoadedModel(found, BertConfig.from_pretrained(found.config_folder))
    if hidden_act is not None:
        checkpoint = dataclasses.replace(checkpoint, config=checkpoint.config.replace(hidden_act=hidden_act))
    model, fitted = checkpoint.fit(head)
    checkpoint.source.verify_checksums()
    tensors = _tensors(model, fitted, key)
    if dtype is not None:
        tensors = {name: CastTensor(tensor, name, np.dtype(dtype)) for name, tensor in tensors.items()}
    total = sum(_size(tensor) for tensor in tensors.values())
    with atomic_folder(target) as aside:
        in_order = found.format == ORBAX
        _write(aside, model, fitted, _watched(tensors, total, progress), format, max_shard_size, in_order)
        if verify:
            _verify(aside, model, tensors)
        home, positions = checkpoint.source.config_folder, model.config.max_position_embeddings
        files = companions.carry(home, aside, sentences=type(model).__name__ == "BertModel")
        files += companions.complete(aside, max_length=positions)
    return Conversion(
        read=checkpoint.source.format,
        written=format,
        head=type(model).__name__,
        tensors=len(tensors),
        bytes=total,
        drawn=sorted(fitted.afresh),
        left_out=sorted([*fitted.left_out, *checkpoint.source.skipped_names]),
        files=["config.json", checksums.CHECKSUMS_FILE, *files],
    )


def _unchanged(
    found: Checkpoint,
    target: Path,
    file_format: FileFormat,
    dtype: str | None,
    max_shard_size: int | None,
    verify: bool,
    progress: Progress | None,
) -> Conversion:
    """Converts a model that has no class here."""
    found.verify_checksums()
    tensors = unchanged.tensors_of(found, dtype)
    total = sum(_size(tensor) for tensor in tensors.values())
    with atomic_folder(target) as aside:
        text = unchanged.config_text(found.config_folder, dtype)
        watched = _watched(tensors, total, progress)
        folder.write_files(aside, text, watched, file_format=file_format, max_shard_size=max_shard_size)
        if verify:
            _compare(aside, tensors, open_checkpoint(aside).tensors)
        files = companions.carry(found.config_folder, aside, sentences=True)
    return Conversion(
        read=found.format,
        written=file_format.name,
        head=config_json.architecture(json.loads(text)) or config_json.model_type(found.config_folder),
        tensors=len(tensors),
        bytes=total,
        drawn=[],
        left_out=sorted(found.tensors.keys() - tensors.keys()),
        files=["config.json", checksums.CHECKSUMS_FILE, *files],
    )


def _check_arguments(target: Path, format: str, dtype: str | None, max_shard_size: int | None) -> None:
    require_absent(target)
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; allowed: {', '.join(FORMATS)}")
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
    if max_shard_size is not None and max_shard_size < 1:
        raise ValueError(f"max_shard_size is {max_shard_size}; it must be at least 1 byte")
    if max_shard_size is not None and format == ORBAX:
        raise ValueError("max_shard_size is for files of Hugging Face's; orbax divides its files itself")


def _tensors(model: PreTrainedModel, fitted: Fitted, key: jax.Array | None) -> dict[str, LazyTensor]:
    """All tensors of the model by name, in the order of its table: the checkpoint's, and what is drawn."""
    drawn = draw(fitted, model, key)

    def parameter(path: Any) -> Callable[[], Any]:
        return lambda: drawn[path]

    return {
        name: ParameterTensor(entry, np.dtype(np.float32), parameter(entry.path))
        if name in fitted.afresh
        else fitted.tensors[name]
        for name, entry in fitted.table.items()
    }


def _write(
    aside: Path,
    model: PreTrainedModel,
    fitted: Fitted,
    tensors: Mapping[str, LazyTensor],
    format: str,
    max_shard_size: int | None,
    in_order: bool,
) -> None:
    for file_format in FILE_FORMATS:
        if file_format.name == format:
            folder.write(
                aside, model, tensors, file_format=file_format, max_shard_size=max_shard_size, in_order=in_order
            )
            return
    digests = orbax_params.write_orbax_params(aside, fitted.table, tensors)
    for name, text in {
        "config.json": folder.config_text(model, tensors),
        checksums.CHECKSUMS_FILE: checksums.format_checksums(digests),
    }.items():
        with atomic_write(aside / name) as file:
            file.write_text(text, encoding="utf-8")


def _verify(aside: Path, model: PreTrainedModel, tensors: Mapping[str, LazyTensor]) -> None:
    """Reads the folder that was written as anyone would, and compares every tensor."""
    written = open_checkpoint(aside)
    written.verify_checksums()
    _compare(aside, tensors, fit(written, model).tensors)


def _compare(aside: Path, tensors: Mapping[str, LazyTensor], found: Mapping[str, LazyTensor]) -> None:
    differing = [
        name for name, tensor in tensors.items() if name not in found or not tensors_equal(tensor, found[name])
    ]
    if differing:
        raise ValueError(
            f"{aside}: {len(differing)} tensors are not what was to be written: {', '.join(differing[:5])}"
        )


def _watched(tensors: Mapping[str, LazyTensor], total: int, progress: Progress | None) -> Mapping[str, LazyTensor]:
    if progress is None:
        return tensors
    done = 0

    def told(size: int) -> None:
        nonlocal done
        done = min(done + size, total)  # a tensor may have two names in the files, and is read for both
        progress(done, total)

    return {name: ObservedTensor(tensor, told) for name, tensor in tensors.items()}


def _size(tensor: LazyTensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) * tensor.dtype.itemsize
