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

from flaxbert.files import inside, read_json
from flaxbert.weights import flax_msgpack, safetensors, torch_bin
from flaxbert.weights.safetensors import Spec
from flaxbert.weights.tensors import Tensor


def _same(name: str) -> str:
    return name


@dataclasses.dataclass(frozen=True)
class Layout:
    """The file names of a format, and how one of its files is read and written.

    Attributes:
        format: its name.
        file: of a model in one file.
        read: the tensors of a file by Hugging Face's names, none of them read yet.
        write: writes a file from tensors in the order of `ordered`; gives its SHA-256 in hex.
        ordered: the order in which a file wants its tensors.
        spelling: a tensor's name in the index, from Hugging Face's.
        name: the opposite.
    """

    format: str
    file: str
    read: Callable[[Path], Mapping[str, Tensor]]
    write: Callable[[Path, Sequence[Spec], Iterable[Tensor]], str]
    ordered: Callable[[Iterable[Spec]], list[Spec]]
    spelling: Callable[[str], str] = _same
    name: Callable[[str], str] = _same

    @property
    def index(self) -> str:
        """The file name of the index."""
        return f"{self.file}.index.json"

    def shard(self, number: int, count: int) -> str:
        """The file name of one of several files; the first is number 1."""
        stem, _, suffix = self.file.rpartition(".")
        return f"{stem}-{number:05d}-of-{count:05d}.{suffix}"

    def owns(self, name: str) -> bool:
        """Whether a file name is one of this format's."""
        stem, _, suffix = self.file.rpartition(".")
        shard = re.fullmatch(rf"{re.escape(stem)}-\d{{5}}-of-\d{{5}}\.{suffix}", name)
        return name in (self.file, self.index) or shard is not None

    def is_in(self, folder: Path) -> bool:
        """Whether a folder holds weights of this format."""
        return (folder / self.file).exists() or (folder / self.index).exists()


def _write_safetensors(file: Path, specs: Sequence[Spec], tensors: Iterable[Tensor]) -> str:
    return safetensors.write(file, specs, tensors, metadata={"format": "pt"})


SAFETENSORS = Layout(
    "safetensors",
    "model.safetensors",
    lambda file: safetensors.read_header(file)[0],
    _write_safetensors,
    safetensors.ordered,
)
PYTORCH = Layout("pytorch", "pytorch_model.bin", torch_bin.read, torch_bin.write, list)
FLAX = Layout(
    "flax",
    "flax_model.msgpack",
    flax_msgpack.read,
    flax_msgpack.write,
    flax_msgpack.ordered,
    flax_msgpack.flax_name,
    flax_msgpack.hugging_face_name,
)
# The order is that in which they are looked for in a folder.
LAYOUTS = (SAFETENSORS, PYTORCH, FLAX)


def read(folder: Path, layout: Layout) -> tuple[Path, dict[str, Tensor], list[Path]]:
    """The tensors of a folder by name, after the file that lists them; and the files that they are in.

    Raises:
        FileNotFoundError: a file that the index names is missing.
        ValueError: what is wrong with which file; a file outside of the folder.
    """
    if (folder / layout.file).exists():
        file = _existing(folder, layout.file)
        return file, dict(layout.read(file)), [file]
    index = _existing(folder, layout.index)
    places = _places(index, layout)
    shards = {shard: _existing(folder, shard) for shard in sorted(set(places.values()))}  # all, before any is read
    found: dict[str, Tensor] = {}
    for shard, file in shards.items():
        for name, tensor in layout.read(file).items():
            if places.get(name) != shard:
                raise ValueError(f"{file}: holds {name!r}, which {index.name} places in {places.get(name)}")
            found[name] = tensor
    lost = sorted(places.keys() - found.keys())
    if lost:
        raise ValueError(f"{index}: {len(lost)} tensors are not in the files that it names: {', '.join(lost[:5])}")
    return index, found, list(shards.values())


def _places(index: Path, layout: Layout) -> dict[str, str]:
    """File names by tensor name."""
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise ValueError(f"{index}: has no weight_map from tensor names to file names")
    return {layout.name(name): place for name, place in places.items()}


def _existing(folder: Path, name: str) -> Path:
    file = inside(folder, name)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file{beside(folder)}")
    return file


def beside(folder: Path) -> str:
    """What a folder holds, for the end of a message about what it does not."""
    held = ", ".join(sorted(path.name for path in folder.iterdir())[:10])
    return f"; the folder holds {held}" if held else ""


def shards(specs: list[Spec], layout: Layout, max_shard_size: int | None) -> dict[str, list[Spec]]:
    """File names and their tensors: each file filled up to the limit, with at least one tensor."""
    found: list[list[Spec]] = [[]]
    room = limit = float("inf") if max_shard_size is None else max_shard_size
    for spec in specs:
        if found[-1] and spec.size > room:
            found.append([])
            room = limit
        found[-1].append(spec)
        room -= spec.size
    if len(found) == 1:
        return {layout.file: found[0]}
    return {layout.shard(i, len(found)): shard for i, shard in enumerate(found, 1)}


def index_text(parts: Mapping[str, Sequence[Spec]], layout: Layout) -> str:
    """The content of the index."""
    places: dict[str, Any] = {layout.spelling(spec.name): name for name, shard in parts.items() for spec in shard}
    total = sum(spec.size for shard in parts.values() for spec in shard)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}, indent=2) + "\n"
