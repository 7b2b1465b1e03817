"""Formats of Hugging Face model folders: one weights file, or several and an index from tensor names to files.

one file             several                                index
model.safetensors    model-00001-of-00002.safetensors       model.safetensors.index.json
pytorch_model.bin    pytorch_model-00001-of-00002.bin       pytorch_model.bin.index.json
flax_model.msgpack   flax_model-00001-of-00002.msgpack      flax_model.msgpack.index.json
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from flaxbert.weights.formats import safetensors
from flaxbert.weights.formats.flax_msgpack import (
    flax_msgpack_order,
    from_flax_name,
    open_flax_msgpack,
    to_flax_name,
    write_flax_msgpack,
)
from flaxbert.weights.formats.torch_bin import open_torch_bin, write_torch_bin
from flaxbert.weights.tensors import LazyTensor, TensorSpec


def _unchanged(name: str) -> str:
    return name


@dataclasses.dataclass(frozen=True)
class FileFormat:
    """A file format of Hugging Face folders: its file names, reader and writer.

    Attributes:
        name: the name of the format, as in `flaxbert convert --format`.
        file_name: the file name of a model in one file.
        open: returns the tensors of a file by Hugging Face's names, unread.
        write: writes a file from specs and, in the same order, tensors.
        order: sorts specs in the order that a file requires.
        to_index_name: converts a Hugging Face name to the tensor's name in the index.
        from_index_name: the inverse of `to_index_name`.
    """

    name: str
    file_name: str
    open: Callable[[Path], Mapping[str, LazyTensor]]
    write: Callable[[Path, Sequence[TensorSpec], Iterable[LazyTensor]], None]
    order: Callable[[Iterable[TensorSpec]], list[TensorSpec]]
    to_index_name: Callable[[str], str] = _unchanged
    from_index_name: Callable[[str], str] = _unchanged

    @property
    def index(self) -> str:
        """File name of the index."""
        return f"{self.file_name}.index.json"

    def shard(self, number: int, count: int) -> str:
        """Return the name of file `number` (from 1) of `count`."""
        stem, _, suffix = self.file_name.rpartition(".")
        return f"{stem}-{number:05d}-of-{count:05d}.{suffix}"

    def owns(self, name: str) -> bool:
        """Return True if a file name belongs to this format."""
        stem, _, suffix = self.file_name.rpartition(".")
        shard = re.fullmatch(rf"{re.escape(stem)}-\d{{5}}-of-\d{{5}}\.{suffix}", name)
        return name in (self.file_name, self.index) or shard is not None

    def is_in(self, folder: Path) -> bool:
        """Return True if a folder holds weights of this format."""
        return (folder / self.file_name).exists() or (folder / self.index).exists()

    def assign_to_files(self, specs: Iterable[TensorSpec], max_bytes: int | None) -> dict[str, list[TensorSpec]]:
        """Return file names and their tensors, in order; each file holds at most `max_bytes`, or one tensor."""
        files: list[list[TensorSpec]] = [[]]
        room = limit = float("inf") if max_bytes is None else max_bytes
        for spec in specs:
            if files[-1] and spec.size > room:
                files.append([])
                room = limit
            files[-1].append(spec)
            room -= spec.size
        if len(files) == 1:
            return {self.file_name: files[0]}
        return {self.shard(number, len(files)): file for number, file in enumerate(files, 1)}

    def index_text(self, files: Mapping[str, Sequence[TensorSpec]]) -> str:
        """Return the content of the index for the tensors of each file."""
        weight_map = {self.to_index_name(spec.name): file for file, specs in files.items() for spec in specs}
        total = sum(spec.size for specs in files.values() for spec in specs)
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        return json.dumps(content, indent=2) + "\n"


def _write_safetensors(file: Path, specs: Sequence[TensorSpec], tensors: Iterable[LazyTensor]) -> None:
    safetensors.write_safetensors(file, specs, tensors, metadata={"format": "pt"})


SAFETENSORS = FileFormat(
    name="safetensors",
    file_name="model.safetensors",
    open=lambda file: safetensors.read_safetensors_header(file)[0],
    write=_write_safetensors,
    order=safetensors.safetensors_order,
)
PYTORCH = FileFormat("pytorch", "pytorch_model.bin", open=open_torch_bin, write=write_torch_bin, order=list)
FLAX = FileFormat(
    name="flax",
    file_name="flax_model.msgpack",
    open=open_flax_msgpack,
    write=write_flax_msgpack,
    order=flax_msgpack_order,
    to_index_name=to_flax_name,
    from_index_name=from_flax_name,
)
FILE_FORMATS = (SAFETENSORS, PYTORCH, FLAX)  # a folder is searched for them in this order
