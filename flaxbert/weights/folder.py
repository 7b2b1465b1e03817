"""Writing a model folder: config.json and the weights, in one file or several; SHA256SUMS where asked for."""

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from flaxbert import config_json
from flaxbert.files import atomic_write
from flaxbert.sharding import spread
from flaxbert.weights import names
from flaxbert.weights.checksums import CHECKSUMS_FILE, format_checksums
from flaxbert.weights.file_format import FLAX, SAFETENSORS, FileFormat, assign_to_files, index_text
from flaxbert.weights.formats.orbax_params import ParameterTensor
from flaxbert.weights.tensors import LazyTensor, TensorSpec

DTYPES = ("float32", "float16", "bfloat16")


def save(
    path: str | Path,
    model: Any,
    params: Mapping[str, Any],
    *,
    dtype: DTypeLike = jnp.float32,
    max_shard_size: int | None = None,
    checksums: bool = False,
) -> None:
    """Writes config.json and model.safetensors, which `transformers` loads; other files there stay.

    All files are written aside and then renamed, the config last, so a reader never sees half of one and a failure
    leaves the old ones. The host holds one tensor at a time. Parameters that several processes hold together are
    gathered a tensor at a time: all processes call this, and the first one writes.

    Args:
        path: the folder; made where it does not exist.
        model: the `PreTrainedModel` that the parameters are of.
        params: its parameters, on the host or on devices.
        dtype: of the numbers in the file: float32, float16 or bfloat16.
        max_shard_size: bytes; more are written as several files and model.safetensors.index.json.
        checksums: write SHA256SUMS too, which whoever loads the folder here compares the weights with.

    Raises:
        ValueError: the parameters are not those of the model (lists each difference), or a dtype that is not allowed.
    """
    differing = names.shape_differences(dict(params), model.parameter_shapes())
    if differing:
        raise ValueError("\n".join([f"these are not the parameters of {type(model).__name__}:", *differing]))
    target = np.dtype(dtype)
    if target.name not in DTYPES:
        raise ValueError(f"dtype is {target.name}; allowed: {', '.join(DTYPES)}")
    table = names.entries(params, vocab_size=model.config.vocab_size)
    tensors = {entry.name: ParameterTensor(entry, target, _leaf(params, entry)) for entry in table}
    elsewhere = spread(params) and jax.process_index() > 0
    write(path, model, tensors, max_shard_size=max_shard_size, checksums=checksums, elsewhere=elsewhere)


def _leaf(params: Mapping[str, Any], entry: names.Entry) -> Callable[[], Any]:
    return lambda: names.leaf(params, entry.path)


def write(
    path: str | Path,
    model: Any,
    tensors: Mapping[str, LazyTensor],
    *,
    file_format: FileFormat = SAFETENSORS,
    max_shard_size: int | None = None,
    checksums: bool = True,
    in_order: bool = False,
    elsewhere: bool = False,
) -> None:
    """Writes a folder as `save` does, from tensors under the names of the table, in any format of Hugging Face's.

    With `in_order` they are read in the order in which they are given, where the format leaves a choice: for a source
    that keeps the layers of a parameter together. `elsewhere`: another process writes what this one helps to gather.
    """
    tensors = _spelled(type(model).__name__, tensors, file_format)
    text = config_text(model, tensors)
    how: dict[str, Any] = {"file_format": file_format, "max_shard_size": max_shard_size, "checksums": checksums}
    write_files(path, text, tensors, in_order=in_order, elsewhere=elsewhere, **how)


def write_files(
    path: str | Path,
    config: str,
    tensors: Mapping[str, LazyTensor],
    *,
    file_format: FileFormat = SAFETENSORS,
    max_shard_size: int | None = None,
    checksums: bool = True,
    in_order: bool = False,
    elsewhere: bool = False,
) -> None:
    """Writes a folder as `save` does, from the content of config.json and tensors under the names of the file."""
    specs = [TensorSpec(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    parts = assign_to_files(specs, file_format, max_shard_size)
    if in_order and file_format is not FLAX:
        aligned = {name: sorted(part, key=lambda spec: -spec.dtype.itemsize) for name, part in parts.items()}
    else:
        aligned = {name: file_format.order(part) for name, part in parts.items()}
    if elsewhere:
        for spec in (spec for part in aligned.values() for spec in part):
            tensors[spec.name].read()  # in the writer's order, and as often: none is `supports_row_reads`
        return
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    written = {*parts, *([file_format.index] if len(parts) > 1 else [])}
    with contextlib.ExitStack() as files:  # left in the opposite order: the config is renamed last
        config_file = files.enter_context(atomic_write(folder / "config.json"))
        sums_file = files.enter_context(atomic_write(folder / CHECKSUMS_FILE)) if checksums else None
        if len(parts) > 1:
            files.enter_context(atomic_write(folder / file_format.index)).write_text(
                index_text(parts, file_format), encoding="utf-8"
            )
        digests = {}
        for name, part in aligned.items():
            file = files.enter_context(atomic_write(folder / name))
            digests[name] = file_format.write(file, part, (tensors[spec.name] for spec in part))
        config_file.write_text(config, encoding="utf-8")
        if sums_file is not None:
            sums_file.write_text(format_checksums(digests), encoding="utf-8")
        (folder / CHECKSUMS_FILE).unlink(missing_ok=True)  # those of the files that are replaced now
    for file in folder.iterdir():  # of another number of files: a reader could not tell which are meant
        if file.name not in written and file_format.owns(file.name):
            file.unlink()


def _spelled(architecture: str, tensors: Mapping[str, LazyTensor], file_format: FileFormat) -> dict[str, LazyTensor]:
    """The tensors under the names of a file."""
    found = dict(tensors)
    if names.UNTIED_BIAS in found:
        found[names.SPARE_BIAS] = found[names.UNTIED_BIAS]  # transformers 5 misses it otherwise
    if file_format is FLAX:
        found.pop(names.UNTIED_BIAS, None)  # its decoder has none, and adds the other one
    if architecture == "BertModel":
        found = {name.removeprefix("bert."): tensor for name, tensor in found.items()}
    return found


def config_text(model: Any, tensors: Mapping[str, LazyTensor]) -> str:
    """The content of config.json."""
    config = model.config
    if "qa_outputs.weight" in tensors and config.num_labels != 2:
        config = config.replace(num_labels=2)  # transformers sizes this head by it
    widest = max({tensor.dtype for tensor in tensors.values()}, key=lambda dtype: dtype.itemsize)
    values = config_json.to_dict(config, architecture=type(model).__name__, dtype=widest.name)
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
