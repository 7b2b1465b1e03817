"""Parameters written by orbax: in a training checkpoint, or alone in a folder `params` beside config.json.

One leaf of the tree (all layers of a parameter) is read at a time. orbax is imported on demand.
"""

import contextlib
import dataclasses
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flaxbert.families import BERT, FAMILIES, Family
from flaxbert.families.family import ParameterPath
from flaxbert.files import file_sha256, read_json
from flaxbert.layers import Params
from flaxbert.weights.names import NameMapping, ParameterTensor, leaf_at, name_mappings, tree_of
from flaxbert.weights.tensors import LazyTensor

_log = logging.getLogger("flaxbert")

PARAMS_FOLDER = "params"
_METADATA = "_METADATA"
# Limit of the parameters' size: this many times the size of the files, which are compressed (equal values take almost
# no space), or the number of bytes.
_MAX_COMPRESSION, _ALWAYS_ALLOWED_BYTES = 100, 2**28
_DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in ("float32", "float16", "bfloat16", "float64")}


def find_orbax_params(path: Path) -> Path | None:
    """Return the folder that orbax wrote, or None; of several checkpoints of a run, the newest.

    The path is that folder, or the folder of one checkpoint, of a run's checkpoints, or of a run.
    """
    for folder in (path, path / PARAMS_FOLDER, path / "default"):
        if (folder / _METADATA).is_file():
            return folder
    steps = orbax_steps(path)
    return steps[max(steps)] if steps else None


def orbax_steps(path: Path) -> dict[int, Path]:
    """Return the checkpoints of a training run by step, given the run's folder or its folder `checkpoints`."""
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if not folder.is_dir():
        return {}
    items = {int(step.name): step / "default" for step in folder.iterdir() if step.name.isdecimal()}
    return {step: item for step, item in sorted(items.items()) if (item / _METADATA).is_file()}


def find_config_folder(item: Path) -> Path:
    """Return the folder of config.json: that of the parameters, or up to three levels above (in a training run)."""
    candidates = [item, *item.absolute().parents[:3]]
    return next((folder for folder in candidates if (folder / "config.json").is_file()), item.parent)


def open_orbax_params(item: Path) -> tuple[dict[str, LazyTensor], list[Path]]:
    """Return the parameters in the folder that orbax wrote, by Hugging Face's names and unread, and its files.

    Raises:
        ValueError: the checkpoint is damaged, or not one of a model of this library.
    """
    files = sorted(file for file in item.rglob("*") if not file.is_dir() or file.is_symlink())
    for file in files:
        if file.is_symlink() or not file.is_file():  # orbax follows links to anywhere, and waits for named pipes
            raise ValueError(f"{file}: a link or a special file, which no checkpoint of orbax holds")
    leaves = _read_metadata(item)
    size, file_size = sum(leaf.size for leaf in leaves.values()), sum(file.stat().st_size for file in files)
    if size > max(_ALWAYS_ALLOWED_BYTES, _MAX_COMPRESSION * file_size):
        raise ValueError(f"{item}: announces {size} bytes of parameters, in files of {file_size} bytes")
    family, vocab_size = _family_and_vocab_size(item)
    if left_out := sorted({path[0] for path in leaves} & set(family.training_only)):
        _log.warning("%s: left out, because only training needs it: %s", item, ", ".join(left_out))
        leaves = {path: leaf for path, leaf in leaves.items() if path[0] not in left_out}
    try:
        table = name_mappings(family, tree_of(leaves), vocab_size=vocab_size)
    except (ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{item}: not the parameters of a model of this library ({error})") from None
    reader = _LeafReader(item)
    tensors: dict[str, LazyTensor] = {}
    for mapping in table:
        leaf = leaves[mapping.path]
        tensors[mapping.name] = ParameterTensor(mapping, leaf.dtype, reader.bind(leaf))
    return tensors, files


def _family_and_vocab_size(item: Path) -> tuple[Family, int | None]:
    """Return the family and the vocabulary size that config.json states: the vocabulary of a run may be padded."""
    config = find_config_folder(item) / "config.json"
    values = read_json(config) if config.is_file() else None
    values = values if isinstance(values, dict) else {}
    size, model_type = values.get("vocab_size"), values.get("model_type")
    if model_type == "encoder-decoder":
        raise ValueError(
            f"{item}: a training checkpoint of an encoder-decoder, which its own run alone resumes from; give the "
            "folder `model` that the finished run has"
        )
    family = FAMILIES.get(model_type, BERT) if isinstance(model_type, str) else BERT
    return family, size if isinstance(size, int) and size > 0 else None


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """A parameter of a checkpoint; `checkpoint_path` begins with "params" in a training checkpoint."""

    path: ParameterPath
    checkpoint_path: ParameterPath
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _read_metadata(item: Path) -> dict[ParameterPath, _Leaf]:
    import orbax.checkpoint as ocp

    with _orbax_errors(item):
        handler: Any = ocp.PyTreeCheckpointHandler()  # not a Checkpointer, which hides the errors
        metadata = handler.metadata(item.absolute())
        tree = metadata.tree
        prefix = ("params",) if "params" in tree else ()
        return {leaf.path: leaf for leaf in _leaves(tree["params"] if prefix else tree, prefix, ())}


def _leaves(node: Params, prefix: ParameterPath, path: ParameterPath) -> Iterator[_Leaf]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, prefix, (*path, key))
            continue
        dtype = _DTYPES.get(np.dtype(value.dtype).name)
        if dtype is None:
            raise ValueError(f"{'/'.join((*path, key))} is of type {value.dtype}; known: {', '.join(_DTYPES)}")
        yield _Leaf((*path, key), (*prefix, *path, key), tuple(map(int, value.shape)), dtype)


class _LeafReader:
    """Reads leaves of a checkpoint. Keeps the last leaf, because its layers are read one after the other."""

    def __init__(self, item: Path):
        self._item = item
        self._leaf: _Leaf | None = None
        self._array = np.empty(0)

    def bind(self, leaf: _Leaf) -> Callable[[], np.ndarray]:
        return lambda: self._read(leaf)

    def _read(self, leaf: _Leaf) -> np.ndarray:
        if self._leaf != leaf:
            self._leaf, self._array = None, np.empty(0)  # free the previous leaf first
            self._array = self._restore(leaf)
            self._leaf = leaf
        return self._array

    def _restore(self, leaf: _Leaf) -> np.ndarray:
        import orbax.checkpoint as ocp

        arguments = ocp.args.PyTreeRestore(
            item=tree_of({leaf.checkpoint_path: 0}),
            restore_args=tree_of({leaf.checkpoint_path: ocp.RestoreArgs(restore_type=np.ndarray)}),
            partial_restore=True,
        )
        with _orbax_errors(self._item), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            array = leaf_at(checkpointer.restore(self._item.absolute(), args=arguments), leaf.checkpoint_path)
            if array.shape != leaf.shape or array.dtype != leaf.dtype:
                raise ValueError(f"{'/'.join(leaf.path)} is {array.dtype}{list(array.shape)}, announced as {leaf}")
            return array


@contextlib.contextmanager
def _orbax_errors(item: Path) -> Iterator[None]:
    """Convert exceptions of orbax, which may be of any type, to a ValueError that names the checkpoint or its file."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0].partition(" [tensorstore_spec=")[0][:600] or type(error).__name__
        raise ValueError(f"{damaged_file(item, str(error))}: not a readable orbax checkpoint ({reason})") from None


def damaged_file(folder: Path, message: str) -> Path:
    """Return the file in a checkpoint that a message of orbax names by its path or by the size that is too small.

    Otherwise return a file that should be JSON and is not, or else the folder.
    """
    named = [Path(path) for path in re.findall(r'local file "([^"]+)"', message)]
    if found := re.search(r"not valid for value of size (\d+)", message):
        named += [file for file in folder.rglob("*") if file.is_file() and file.stat().st_size == int(found[1])]
    for file in named:
        if file.is_file():
            return file
    for file in (*folder.rglob(_METADATA), *folder.rglob("array_metadatas/*")):
        try:
            json.loads(file.read_bytes())
        except (OSError, ValueError):
            return file
    return folder


def write_orbax_params(
    folder: Path, table: Mapping[str, NameMapping], tensors: Mapping[str, LazyTensor]
) -> dict[str, str]:
    """Write parameters to `folder`/params, while all of them are in memory, as orbax requires.

    `table` and `tensors` have the same keys. Return the SHA-256 of each file by its path relative to `folder`.
    """
    import orbax.checkpoint as ocp

    dtypes: dict[ParameterPath, np.dtype] = {}  # of layers with different types: one that holds all values
    for name, mapping in table.items():
        dtype = tensors[name].dtype
        dtypes[mapping.path] = np.promote_types(dtypes.get(mapping.path, dtype), dtype)
    depth = 1 + max((mapping.layer for mapping in table.values() if mapping.layer is not None), default=-1)
    leaves: dict[ParameterPath, np.ndarray] = {}
    for name, mapping in table.items():
        part = mapping.read(tensors[name], (slice(None),) * len(mapping.shape))
        if mapping.layer is None:
            leaves[mapping.path] = np.ascontiguousarray(part)
            continue
        if mapping.path not in leaves:
            leaves[mapping.path] = np.empty((depth, *mapping.shape), dtypes[mapping.path])
        leaves[mapping.path][mapping.layer] = part
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / PARAMS_FOLDER).absolute(), tree_of(leaves))
    files = sorted(file for file in (folder / PARAMS_FOLDER).rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file_sha256(file) for file in files}
