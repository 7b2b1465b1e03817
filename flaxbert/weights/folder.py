"""A Hugging Face model folder: config.json and safetensors, in one file or several."""

import contextlib
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from flaxbert import config_json
from flaxbert.files import inside, read_json, written_whole
from flaxbert.weights import names, safetensors
from flaxbert.weights.names import Tensor
from flaxbert.weights.safetensors import Spec, Stored

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = ("float32", "float16", "bfloat16")
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def read(path: Path) -> tuple[Path, dict[str, Stored]]:
    """The tensors of a folder, or of a .safetensors file, by name; and the file that lists them.

    Raises:
        FileNotFoundError: no weights there, or a file that the index names is missing.
        ValueError: what is wrong with which file; a file outside of the folder.
    """
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; weights are read from {WEIGHTS}")
        return path, safetensors.read_header(path)[0]
    if (path / WEIGHTS).exists() or not (path / INDEX).exists():
        file = _existing(path, WEIGHTS)
        return file, safetensors.read_header(file)[0]
    index = inside(path, INDEX)
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise ValueError(f"{index}: has no weight_map from tensor names to file names")
    tensors: dict[str, Stored] = {}
    shards = {shard: _existing(path, shard) for shard in sorted(set(places.values()))}  # all names, before any is read
    for shard, file in shards.items():
        for name, tensor in safetensors.read_header(file)[0].items():
            if places.get(name) != shard:
                raise ValueError(f"{file}: holds {name!r}, which {index.name} places in {places.get(name)}")
            tensors[name] = tensor
    lost = sorted(places.keys() - tensors.keys())
    if lost:
        raise ValueError(f"{index}: {len(lost)} tensors are not in the files that it names: {', '.join(lost[:5])}")
    return index, tensors


def _existing(folder: Path, name: str) -> Path:
    file = inside(folder, name)
    if file.is_file():
        return file
    beside = ", ".join(sorted(p.name for p in folder.iterdir())[:10])
    hint = f"; the folder holds {beside}" if beside else ""
    raise FileNotFoundError(f"{file}: no such file; weights are read from {WEIGHTS}{hint}")


def save(
    path: str | Path,
    model: Any,
    params: Mapping[str, Any],
    *,
    dtype: DTypeLike = jnp.float32,
    max_shard_size: int | None = None,
) -> None:
    """Writes config.json and model.safetensors, which `transformers` loads; other files there stay.

    All files are written aside and then renamed, the config last, so a reader never sees half of one and a failure
    leaves the old ones. The host holds one tensor at a time.

    Args:
        path: the folder; made where it does not exist.
        model: the `PreTrainedModel` that the parameters are of.
        params: its parameters, on the host or on devices.
        dtype: of the numbers in the file: float32, float16 or bfloat16.
        max_shard_size: bytes; more are written as several files and model.safetensors.index.json.

    Raises:
        ValueError: the parameters are not those of the model (lists each difference), or a dtype that is not allowed.
    """
    differing = names.shape_differences(dict(params), model.parameter_shapes())
    if differing:
        raise ValueError("\n".join([f"these are not the parameters of {type(model).__name__}:", *differing]))
    target = np.dtype(dtype)
    if target.name not in _DTYPES:
        raise ValueError(f"dtype is {target.name}; allowed: {', '.join(_DTYPES)}")
    tensors = {entry.name: _Parameter(entry, params, target) for entry in names.entries(params)}
    write(path, model, tensors, max_shard_size)


def write(path: str | Path, model: Any, tensors: Mapping[str, Tensor], max_shard_size: int | None = None) -> None:
    """Writes a folder as `save` does, from tensors under the names of the table."""
    architecture, config, tensors = type(model).__name__, model.config, dict(tensors)
    if names.UNTIED_BIAS in tensors:
        tensors[names.SPARE_BIAS] = tensors[names.UNTIED_BIAS]  # transformers 5 misses it otherwise
    if architecture == "BertModel":
        tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    if "qa_outputs.weight" in tensors and config.num_labels != 2:
        config = config.replace(num_labels=2)  # transformers sizes this head by it
    specs = [Spec(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    widest = max({spec.dtype for spec in specs}, key=lambda dtype: dtype.itemsize)
    values = config_json.to_dict(config, architecture=architecture, dtype=widest.name)
    shards = _shards(specs, max_shard_size)
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as files:  # left in the opposite order: the config is renamed last
        config_file = files.enter_context(written_whole(folder / "config.json"))
        if len(shards) > 1:
            files.enter_context(written_whole(folder / INDEX)).write_text(_index(shards))
        for name, shard in shards.items():
            file, shard = files.enter_context(written_whole(folder / name)), safetensors.ordered(shard)
            safetensors.write(file, shard, (tensors[spec.name].read() for spec in shard), metadata={"format": "pt"})
        config_file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    _remove_others(folder, {*shards, *([INDEX] if len(shards) > 1 else [])})


@dataclasses.dataclass(frozen=True)
class _Parameter:
    """A tensor of the file, made from the parameters when it is asked for."""

    entry: names.Entry
    params: Mapping[str, Any]
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.foreign_shape

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        parameter = names.leaf(self.params, self.entry.path)
        part = parameter if self.entry.layer is None else parameter[self.entry.layer]
        return self.entry.to_foreign(np.asarray(jax.device_get(part)).astype(self.dtype))[rows]


def _shards(specs: list[Spec], max_shard_size: int | None) -> dict[str, list[Spec]]:
    """File names and their tensors: each file filled up to the limit, with at least one tensor."""
    shards: list[list[Spec]] = [[]]
    room = limit = float("inf") if max_shard_size is None else max_shard_size
    for spec in specs:
        if shards[-1] and spec.size > room:
            shards.append([])
            room = limit
        shards[-1].append(spec)
        room -= spec.size
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": shard for i, shard in enumerate(shards, 1)}


def _index(shards: Mapping[str, list[Spec]]) -> str:
    places = {spec.name: name for name, shard in shards.items() for spec in shard}
    total = sum(spec.size for shard in shards.values() for spec in shard)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}, indent=2) + "\n"


def _remove_others(folder: Path, written: set[str]) -> None:
    """Takes away weights of another layout that were there before: a reader could not tell which are meant."""
    for file in folder.iterdir():
        if file.name not in written and (file.name in (WEIGHTS, INDEX) or _SHARD.fullmatch(file.name)):
            file.unlink()
