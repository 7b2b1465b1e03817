"""What lies at a path: which format, and its tensors under Hugging Face's names."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from flaxbert.files import inside
from flaxbert.weights import layout, orbax_params, sums, tf1
from flaxbert.weights.layout import LAYOUTS, SAFETENSORS, Layout
from flaxbert.weights.tensors import Tensor

ORBAX = "orbax"  # the format
# Weights of Keras, which are not read.
_KERAS = ("tf_model.h5", "saved_model.pb", "keras_metadata.pb")


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint: its tensors, none of them read yet.

    Attributes:
        format: what it is.
        file: that lists the tensors.
        home: the folder of its config and tokenizer.
        tensors: by Hugging Face's names.
        files: that hold them.
        left_out: the names of what is no weight, such as an optimizer's.
    """

    format: str
    file: Path
    home: Path
    tensors: Mapping[str, Tensor]
    files: Sequence[Path]
    left_out: Sequence[str] = ()

    def check(self) -> bool:
        """Compares its files with the SHA256SUMS beside them; whether there were any.

        Raises:
            ValueError: a file is not the one that was written.
        """
        return sums.check(self.file.parent, self.files)


def read(path: Path) -> Source:
    """Looks at a path.

    A Hugging Face folder or one of its weight files; a TensorFlow 1 checkpoint: its folder, its index or PREFIX;
    a folder of this library's training runs, of one checkpoint, or of parameters that orbax wrote.

    Raises:
        FileNotFoundError: no weights there.
        ValueError: what is wrong with which file.
    """
    return _folder(path) if path.is_dir() else _file(path)


def _folder(path: Path) -> Source:
    for form in LAYOUTS:
        if form.is_in(path):
            return _hugging_face(path, form)
    item = orbax_params.find(path)
    if item is not None:
        if not item.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"{item}: leads out of the folder {path}")
        tensors, files = orbax_params.read(item)
        return Source(ORBAX, item, orbax_params.home(item), tensors, files)
    indices = sorted(file.name for file in path.glob("*.index"))
    if len(indices) > 1:
        raise ValueError(f"{path}: holds {len(indices)} checkpoints ({', '.join(indices[:5])}); name the one you mean")
    if indices:
        return _tensorflow(inside(path, indices[0]))
    if any((path / name).exists() for name in _KERAS):
        raise ValueError(f"{path}: holds weights of TensorFlow 2 (Keras), which are not read; save it as safetensors")
    known = ", ".join(form.file for form in LAYOUTS)
    raise FileNotFoundError(
        f"{path / SAFETENSORS.file}: no such file, nor other weights ({known}, an index of TensorFlow 1, a checkpoint "
        f"of orbax){layout.beside(path)}"
    )


def _file(path: Path) -> Source:
    if path.suffix == ".index":
        return _tensorflow(path)
    beside = path.with_name(f"{path.name}.index")
    if not path.is_file() and beside.is_file():
        return _tensorflow(beside)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder")
    for form in LAYOUTS:
        if path.name == form.index:
            return _hugging_face(path.parent, form)
        if path.suffix == Path(form.file).suffix:
            return Source(form.format, path, path.parent, form.read(path), [path])
    kinds = ", ".join(Path(form.file).suffix for form in LAYOUTS)
    raise ValueError(f"{path}: not a file of weights that is read; known: {kinds}, and .index of TensorFlow 1")


def _hugging_face(folder: Path, form: Layout) -> Source:
    file, tensors, files = layout.read(folder, form)
    return Source(form.format, file, folder, tensors, files)


def _tensorflow(index: Path) -> Source:
    tensors, left_out = tf1.read(index.with_suffix(""))
    files = sorted({index, *index.parent.glob(f"{index.stem}.data-*")})
    return Source("TensorFlow 1", index, index.parent, tensors, files, left_out)
