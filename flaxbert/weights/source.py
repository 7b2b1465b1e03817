"""What lies at a path: which format, and its tensors under Hugging Face's names."""

from collections.abc import Mapping
from pathlib import Path

from flaxbert.files import inside
from flaxbert.weights import folder, tf1
from flaxbert.weights.names import Tensor


def read(path: Path) -> tuple[Path, Mapping[str, Tensor]]:
    """The tensors at a path, none of them read yet, and the file that lists them.

    A path is a Hugging Face folder, a .safetensors file, or a TensorFlow 1 checkpoint: its folder, its index or PREFIX.

    Raises:
        FileNotFoundError: no weights there.
        ValueError: what is wrong with which file.
    """
    index = _tf1_index(path)
    if index is None:
        return folder.read(path)
    return index, tf1.read(index.with_suffix(""))[0]


def _tf1_index(path: Path) -> Path | None:
    if path.is_dir():
        if (path / folder.WEIGHTS).exists() or (path / folder.INDEX).exists():
            return None
        found = sorted(file.name for file in path.glob("*.index"))
        if len(found) > 1:
            raise ValueError(f"{path}: holds {len(found)} checkpoints ({', '.join(found[:5])}); name the one you mean")
        return inside(path, found[0]) if found else None
    if path.suffix == ".index":
        return path
    beside = path.with_name(f"{path.name}.index")
    return beside if beside.is_file() and not path.is_file() else None
