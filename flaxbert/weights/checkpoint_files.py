"""What lies at a path: which format, and its tensors under Hugging Face's names."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from flaxbert.files import path_inside
from flaxbert.weights.checksums import verify_checksums
from flaxbert.weights.file_format import FILE_FORMATS, SAFETENSORS, FileFormat, folder_contents, open_model_folder
from flaxbert.weights.formats.orbax_params import find_config_folder, find_orbax_params, open_orbax_params
from flaxbert.weights.formats.tf1 import open_tf1
from flaxbert.weights.tensors import LazyTensor

ORBAX = "orbax"  # the format
# Weights of Keras, which are not read.
_KERAS = ("tf_model.h5", "saved_model.pb", "keras_metadata.pb")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint: its tensors, none of them read yet.

    Attributes:
        format: what it is.
        file: that lists the tensors.
        config_folder: the folder of its config and tokenizer.
        tensors: by Hugging Face's names.
        files: that hold them.
        skipped_names: the names of what is no weight, such as an optimizer's.
    """

    format: str
    file: Path
    config_folder: Path
    tensors: Mapping[str, LazyTensor]
    files: Sequence[Path]
    skipped_names: Sequence[str] = ()

    def verify_checksums(self) -> bool:
        """Compares its files with the SHA256SUMS beside them; whether there were any.

        Raises:
            ValueError: a file is not the one that was written.
        """
        return verify_checksums(self.file.parent, self.files)


def open_checkpoint(path: Path) -> Checkpoint:
    """Looks at a path.

    A Hugging Face folder or one of its weight files; a TensorFlow 1 checkpoint: its folder, its index or PREFIX;
    a folder of this library's training runs, of one checkpoint, or of parameters that orbax wrote.

    Raises:
        FileNotFoundError: no weights there.
        ValueError: what is wrong with which file.
    """
    return _folder(path) if path.is_dir() else _file(path)


def _folder(path: Path) -> Checkpoint:
    for form in FILE_FORMATS:
        if form.is_in(path):
            return _hugging_face(path, form)
    item = find_orbax_params(path)
    if item is not None:
        if not item.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"{item}: leads out of the folder {path}")
        tensors, files = open_orbax_params(item)
        return Checkpoint(ORBAX, item, find_config_folder(item), tensors, files)
    indices = sorted(file.name for file in path.glob("*.index"))
    if len(indices) > 1:
        raise ValueError(f"{path}: holds {len(indices)} checkpoints ({', '.join(indices[:5])}); name the one you mean")
    if indices:
        return _tensorflow(path_inside(path, indices[0]))
    if any((path / name).exists() for name in _KERAS):
        raise ValueError(f"{path}: holds weights of TensorFlow 2 (Keras), which are not read; save it as safetensors")
    known = ", ".join(form.file_name for form in FILE_FORMATS)
    raise FileNotFoundError(
        f"{path / SAFETENSORS.file_name}: no such file, nor other weights ({known}, "
        f"an index of TensorFlow 1, a checkpoint of orbax){folder_contents(path)}"
    )


def _file(path: Path) -> Checkpoint:
    if path.suffix == ".index":
        return _tensorflow(path)
    beside = path.with_name(f"{path.name}.index")
    if not path.is_file() and beside.is_file():
        return _tensorflow(beside)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder")
    for form in FILE_FORMATS:
        if path.name == form.index:
            return _hugging_face(path.parent, form)
        if path.suffix == Path(form.file_name).suffix:
            return Checkpoint(form.name, path, path.parent, form.open(path), [path])
    kinds = ", ".join(Path(form.file_name).suffix for form in FILE_FORMATS)
    raise ValueError(f"{path}: not a file of weights that is read; known: {kinds}, and .index of TensorFlow 1")


def _hugging_face(folder: Path, form: FileFormat) -> Checkpoint:
    file, tensors, files = open_model_folder(folder, form)
    return Checkpoint(form.name, file, folder, tensors, files)


def _tensorflow(index: Path) -> Checkpoint:
    tensors, skipped_names = open_tf1(index.with_suffix(""))
    files = sorted({index, *index.parent.glob(f"{index.stem}.data-*")})
    return Checkpoint("TensorFlow 1", index, index.parent, tensors, files, skipped_names)
