"""How Hugging Face keeps a model's weights in a folder: one file, or several and an index that says what is where.

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
from typing import Any

from flaxbert.files import path_inside, read_json
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


def _same(name: str) -> str:
    return name


@dataclasses.dataclass(frozen=True)
class FileFormat:
    """The file names of a format, and how one of its files is read and written.

    Attributes:
        name: its name.
        file_name: of a model in one file.
        open: the tensors of a file by Hugging Face's names, none of them read yet.
        write: writes a file from tensors in the order of `order`; gives its SHA-256 in hex.
        order: the order in which a file wants its tensors.
        to_index_name: a tensor's name in the index, from Hugging Face's.
        from_index_name: the opposite.
    """

    name: str
    file_name: str
    open: Callable[[Path], Mapping[str, LazyTensor]]
    write: Callable[[Path, Sequence[TensorSpec], Iterable[LazyTensor]], str]
    order: Callable[[Iterable[TensorSpec]], list[TensorSpec]]
    to_index_name: Callable[[str], str] = _same
    from_index_name: Callable[[str], str] = _same

    @property
    def index(self) -> str:
        """The file name of the index."""
        return f"{self.file_name}.index.json"

    def shard(self, number: int, count: int) -> str:
        """The file name of one of several files; the first is number 1."""
        stem, _, suffix = self.file_name.rpartition(".")
        return f"{stem}-{number:05d}-of-{count:05d}.{suffix}"

    def owns(self, name: str) -> bool:
        """Whether a file name is one of this format's."""
        stem, _, suffix = self.file_name.rpartition(".")
        shard = re.fullmatch(rf"{re.escape(stem)}-\d{{5}}-of-\d{{5}}\.{suffix}", name)
        return name in (self.file_name, self.index) or shard is not None

    def is_in(self, folder: Path) -> bool:
        """Whether a folder holds weights of this format."""
        return (folder / self.file_name).exists() or (folder / self.index).exists()


def _write_safetensors(file: Path, specs: Sequence[TensorSpec], tensors: Iterable[LazyTensor]) -> str:
    return safetensors.write_safetensors(file, specs, tensors, metadata={"format": "pt"})


SAFETENSORS = FileFormat(
    "safetensors",
    "model.safetensors",
    lambda file: safetensors.read_safetensors_header(file)[0],
    _write_safetensors,
    safetensors.safetensors_order,
)
PYTORCH = FileFormat("pytorch", "pytorch_model.bin", open_torch_bin, write_torch_bin, list)
FLAX = FileFormat(
    "flax",
    "flax_model.msgpack",
    open_flax_msgpack,
    write_flax_msgpack,
    flax_msgpack_order,
    to_flax_name,
    from_flax_name,
)
# The order is that in which they are looked for in a folder.
FILE_FORMATS = (SAFETENSORS, PYTORCH, FLAX)


def open_model_folder(folder: Path, file_format: FileFormat) -> tuple[Path, dict[str, LazyTensor], list[Path]]:
    """The tensors of a folder by name, after the file that lists them; and the files that they are in.

    Raises:
        FileNotFoundError: a file that the index names is missing.
        ValueError: what is wrong with which file; a file outside of the folder.
    """
    if (folder / file_format.file_name).exists():
        file = _existing(folder, file_format.file_name)
        return file, dict(file_format.open(file)), [file]
    index = _existing(folder, file_format.index)
    places = _places(index, file_format)
    shards = {shard: _existing(folder, shard) for shard in sorted(set(places.values()))}  # all, before any is read
    found: dict[str, LazyTensor] = {}
    for shard, file in shards.items():
        for name, tensor in file_format.open(file).items():
            if places.get(name) != shard:
                raise ValueError(f"{file}: holds {name!r}, which {index.name} places in {places.get(name)}")
            found[name] = tensor
    lost = sorted(places.keys() - found.keys())
    if lost:
        raise ValueError(f"{index}: {len(lost)} tensors are not in the files that it names: {', '.join(lost[:5])}")
    return index, found, list(shards.values())


def _places(index: Path, file_format: FileFormat) -> dict[str, str]:
    """File names by tensor name."""
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise ValueError(f"{index}: has no weight_map from tensor names to file names")
    return {file_format.from_index_name(name): place for name, place in places.items()}


def _existing(folder: Path, name: str) -> Path:
    file = path_inside(folder, name)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file{folder_contents(folder)}")
    return file


def folder_contents(folder: Path) -> str:
    """What a folder holds, for the end of a message about what it does not."""
    held = ", ".join(sorted(path.name for path in folder.iterdir())[:10])
    return f"; the folder holds {held}" if held else ""


def assign_to_files(
    specs: list[TensorSpec], file_format: FileFormat, max_shard_size: int | None
) -> dict[str, list[TensorSpec]]:
    """File names and their tensors: each file filled up to the limit, with at least one tensor."""
    found: list[list[TensorSpec]] = [[]]
    room = limit = float("inf") if max_shard_size is None else max_shard_size
    for spec in specs:
        if found[-1] and spec.size > room:
            found.append([])
            room = limit
        found[-1].append(spec)
        room -= spec.size
    if len(found) == 1:
        return {file_format.file_name: found[0]}
    return {file_format.shard(i, len(found)): shard for i, shard in enumerate(found, 1)}


def index_text(files: Mapping[str, Sequence[TensorSpec]], file_format: FileFormat) -> str:
    """The content of the index."""
    places: dict[str, Any] = {
        file_format.to_index_name(spec.name): name for name, shard in files.items() for spec in shard
    }
    total = sum(spec.size for shard in files.values() for spec in shard)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}, indent=2) + "\n"
