"""Checkpoints of every format: detect the format at a path, and list the tensors by Hugging Face's names, unread.

The formats of Hugging Face model folders have one weights file, or several and an index from tensor names to files:

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

from flaxbert.files import path_inside, read_json, verify_checksums
from flaxbert.weights.formats import flax_msgpack
from flaxbert.weights.formats.orbax_params import find_config_folder, find_orbax_params, open_orbax_params
from flaxbert.weights.formats.safetensors import open_safetensors, safetensors_order, write_safetensors
from flaxbert.weights.formats.tf1 import open_tf1
from flaxbert.weights.formats.torch_bin import open_torch_bin, write_torch_bin
from flaxbert.weights.sentence_transformers import transformer_folder
from flaxbert.weights.tensors import LazyTensor, TensorSpec


@dataclasses.dataclass(frozen=True)
class FileFormat:
    """A file format of Hugging Face folders: its file names, reader and writer.

    Attributes:
        name: as in `flaxbert convert --format`.
        file_name: of a model in one file.
        open: returns the tensors of a file by Hugging Face's names, unread.
        write: writes a file from specs and, in the same order, tensors.
        order: sorts specs in the order that a file requires.
        to_index_name, from_index_name: convert a Hugging Face name to the tensor's name in the index, and back.
    """

    name: str
    file_name: str
    open: Callable[[Path], Mapping[str, LazyTensor]]
    write: Callable[[Path, Sequence[TensorSpec], Iterable[LazyTensor]], None]
    order: Callable[[Iterable[TensorSpec]], list[TensorSpec]]
    to_index_name: Callable[[str], str] = str
    from_index_name: Callable[[str], str] = str

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


SAFETENSORS = FileFormat(
    "safetensors", "model.safetensors", open=open_safetensors, write=write_safetensors, order=safetensors_order
)
PYTORCH = FileFormat("pytorch", "pytorch_model.bin", open=open_torch_bin, write=write_torch_bin, order=list)
FLAX = FileFormat(
    name="flax",
    file_name="flax_model.msgpack",
    open=flax_msgpack.open_flax_msgpack,
    write=flax_msgpack.write_flax_msgpack,
    order=flax_msgpack.flax_msgpack_order,
    to_index_name=flax_msgpack.to_flax_name,
    from_index_name=flax_msgpack.from_flax_name,
)
FILE_FORMATS = (SAFETENSORS, PYTORCH, FLAX)  # a folder is searched for them in this order


# -- opening ---------------------------------------------------------------------------------------------

ORBAX, TENSORFLOW = "orbax", "TensorFlow 1"  # formats, beside those of `FILE_FORMATS`
_KERAS_FILES = ("tf_model.h5", "saved_model.pb", "keras_metadata.pb")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The files and lazy tensors of a checkpoint.

    Attributes:
        format: the name of the format.
        file: the file that lists the tensors, used in messages.
        config_folder: holds config.json and the tokenizer.
        tensors: by Hugging Face's names.
        files: hold the tensors.
        skipped_names: names of variables that are not weights, such as an optimizer's.
    """

    format: str
    file: Path
    config_folder: Path
    tensors: Mapping[str, LazyTensor]
    files: Sequence[Path]
    skipped_names: Sequence[str] = ()
    outer_folder: Path | None = None

    @property
    def model_folder(self) -> Path:
        """The folder that holds modules.json of sentence-transformers: the config's, or one above it."""
        return self.outer_folder or self.config_folder

    def verify_checksums(self) -> bool:
        """Compare the files with the SHA256SUMS beside them, if it lists them; return whether it does."""
        return verify_checksums(self.file.parent, self.files)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open the checkpoint at a path without reading its tensors.

    The path is a Hugging Face folder or one of its weights files; a TensorFlow 1 checkpoint, given as its folder, its
    index or PREFIX; or the folder of a training run, of one of its checkpoints, or of parameters that orbax wrote.

    Raises:
        FileNotFoundError: there are no weights, or a file that an index names is missing.
        ValueError: a file is damaged, not supported, or outside of the folder.
    """
    return _open_folder(path) if path.is_dir() else _open_file(path)


def _open_folder(path: Path) -> Checkpoint:
    for file_format in FILE_FORMATS:
        if file_format.is_in(path):
            return _open_model_folder(path, file_format)
    item = find_orbax_params(path)
    if item is not None:
        if not item.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"{item}: leads out of the folder {path}")
        tensors, files = open_orbax_params(item)
        return Checkpoint(ORBAX, item, find_config_folder(item), tensors, files)
    indices = sorted(file.name for file in path.glob("*.index"))
    if len(indices) > 1:
        raise ValueError(f"{path}: holds {len(indices)} checkpoints ({', '.join(indices[:5])}); give the path of one")
    if indices:
        return _open_tensorflow(path_inside(path, indices[0]))
    transformer = transformer_folder(path)
    if transformer != path:
        return dataclasses.replace(_open_folder(transformer), outer_folder=path)
    if any((path / name).exists() for name in _KERAS_FILES):
        raise ValueError(f"{path}: TensorFlow 2 (Keras) weights are not supported; save the model as safetensors")
    known = ", ".join(file_format.file_name for file_format in FILE_FORMATS)
    raise FileNotFoundError(
        f"{path / SAFETENSORS.file_name}: no such file, nor other weights ({known}, an index of TensorFlow 1, "
        f"an orbax checkpoint){_folder_contents(path)}"
    )


def _open_file(path: Path) -> Checkpoint:
    if path.suffix == ".index":
        return _open_tensorflow(path)
    index = path.with_name(f"{path.name}.index")
    if not path.is_file() and index.is_file():
        return _open_tensorflow(index)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder")
    for file_format in FILE_FORMATS:
        if path.name == file_format.index:
            return _open_model_folder(path.parent, file_format)
        if path.suffix == Path(file_format.file_name).suffix:
            return Checkpoint(file_format.name, path, path.parent, file_format.open(path), [path])
    suffixes = ", ".join(Path(file_format.file_name).suffix for file_format in FILE_FORMATS)
    raise ValueError(f"{path}: not a supported weights file; supported: {suffixes}, and .index of TensorFlow 1")


def _open_tensorflow(index: Path) -> Checkpoint:
    tensors, skipped_names = open_tf1(index.with_suffix(""))
    files = sorted({index, *index.parent.glob(f"{index.stem}.data-*")})
    return Checkpoint(TENSORFLOW, index, index.parent, tensors, files, skipped_names)


def _open_model_folder(folder: Path, file_format: FileFormat) -> Checkpoint:
    if (folder / file_format.file_name).exists():
        file = _existing_file(folder, file_format.file_name)
        return Checkpoint(file_format.name, file, folder, file_format.open(file), [file])
    index = _existing_file(folder, file_format.index)
    weight_map = _read_index(index, file_format)
    shards = {name: _existing_file(folder, name) for name in sorted(set(weight_map.values()))}  # all before any is read
    tensors: dict[str, LazyTensor] = {}
    for shard, file in shards.items():
        for name, tensor in file_format.open(file).items():
            if weight_map.get(name) != shard:
                raise ValueError(f"{file}: holds {name!r}, which {index.name} places in {weight_map.get(name)}")
            tensors[name] = tensor
    missing = sorted(weight_map.keys() - tensors.keys())
    if missing:
        raise ValueError(
            f"{index}: {len(missing)} tensors are not in the files that it names: {', '.join(missing[:5])}"
        )
    return Checkpoint(file_format.name, index, folder, tensors, list(shards.values()))


def _read_index(index: Path, file_format: FileFormat) -> dict[str, str]:
    """Return file names by Hugging Face tensor name."""
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"{index}: has no weight_map from tensor names to file names")
    return {file_format.from_index_name(name): file for name, file in weight_map.items()}


def _existing_file(folder: Path, name: str) -> Path:
    file = path_inside(folder, name)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file{_folder_contents(folder)}")
    return file


def _folder_contents(folder: Path) -> str:
    """Return the end of a "not found" message: the first ten names in the folder."""
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:10])
    return f"; the folder holds {names}" if names else ""
