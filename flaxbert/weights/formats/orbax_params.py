"""Parameters in orbax's format: those of this library's training checkpoints, or alone in a folder beside config.json.

A leaf of the tree, all layers of a parameter, is read at a time. Needs orbax only when it is called.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flaxbert.families import BERT, FAMILIES, Family
from flaxbert.families.family import ParameterPath
from flaxbert.files import read_json
from flaxbert.weights.checksums import file_sha256
from flaxbert.weights.names import NameMapping, ParameterTensor, leaf_at, name_mappings, tree_of
from flaxbert.weights.tensors import LazyTensor

PARAMS_FOLDER = "params"
_METADATA = "_METADATA"
# How much larger the parameters may be than the files, which are compressed: equal numbers take next to no space.
_COMPRESSION, _SMALL = 100, 2**28
_DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in ("float32", "float16", "bfloat16", "float64")}


def find_orbax_params(path: Path) -> Path | None:
    """The folder that orbax wrote, for a path at or above it: a run, its checkpoints, one of them, or parameters alone.

    Of several checkpoints the newest.
    """
    if (path / _METADATA).is_file():
        return path
    for inner in (path / PARAMS_FOLDER, path / "default"):
        if (inner / _METADATA).is_file():
            return inner
    found = orbax_steps(path)
    return found[max(found)] if found else None


def orbax_steps(path: Path) -> dict[int, Path]:
    """The checkpoints of a run by step, for the run's folder or that of its checkpoints."""
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if not folder.is_dir():
        return {}
    items = {int(step.name): step / "default" for step in folder.iterdir() if step.name.isdecimal()}
    return {step: item for step, item in sorted(items.items()) if (item / _METADATA).is_file()}


def find_config_folder(item: Path) -> Path:
    """The folder with config.json that parameters belong to: theirs, or one above (of a run: three)."""
    above = [item, *item.absolute().parents[:3]]
    return next((folder for folder in above if (folder / "config.json").is_file()), item.parent)


def open_orbax_params(item: Path) -> tuple[dict[str, LazyTensor], list[Path]]:
    """The parameters of what `find_orbax_params` found, by Hugging Face's names; and the files there.

    Raises:
        ValueError: what is wrong with the checkpoint.
    """
    files = [file for file in item.rglob("*") if not file.is_dir() or file.is_symlink()]
    strange = [file for file in files if file.is_symlink() or not file.is_file()]
    if strange:  # orbax follows links wherever they lead, and waits for what a pipe says
        raise ValueError(f"{strange[0]}: a link, or no plain file; a checkpoint holds none")
    leaves = _leaves(item)
    size, limit = sum(leaf.size for leaf in leaves.values()), sum(file.stat().st_size for file in files)
    if size > max(_SMALL, _COMPRESSION * limit):
        raise ValueError(f"{item}: says that it holds {size} bytes of parameters, in files of {limit} bytes")
    family, vocab_size = _family_and_vocab_size(item)
    try:
        table = name_mappings(family, tree_of(leaves), vocab_size=vocab_size)
    except (ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{item}: not the parameters of a model of this library ({error})") from None
    restored = _Restored(item)
    tensors: dict[str, LazyTensor] = {}
    for mapping in table:
        leaf = leaves[mapping.path]
        tensors[mapping.name] = ParameterTensor(mapping, leaf.dtype, restored.leaf(leaf))
    return tensors, files


def _family_and_vocab_size(item: Path) -> tuple[Family, int | None]:
    """Return the family and the vocabulary size that config.json states: the vocabulary of a run may be padded."""
    config = find_config_folder(item) / "config.json"
    values = read_json(config) if config.is_file() else None
    values = values if isinstance(values, dict) else {}
    size, model_type = values.get("vocab_size"), values.get("model_type")
    family = FAMILIES.get(model_type, BERT) if isinstance(model_type, str) else BERT
    return family, size if isinstance(size, int) and size > 0 else None


@dataclasses.dataclass(frozen=True)
class _Leaf:
    path: ParameterPath
    within: ParameterPath  # the tree of orbax: ("params", ...) in a training checkpoint
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _leaves(item: Path) -> dict[ParameterPath, _Leaf]:
    """The parameters that a checkpoint says it has."""
    import orbax.checkpoint as ocp

    with _Told(item), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        metadata: Any = checkpointer.metadata(item.absolute()).item_metadata
        tree = metadata.tree
        within = ("params",) if "params" in tree else ()
        return {leaf.path: leaf for leaf in _walk(tree["params"] if within else tree, within, ())}


def _walk(node: Any, within: ParameterPath, path: ParameterPath) -> Iterator[_Leaf]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _walk(value, within, (*path, key))
            continue
        dtype = _DTYPES.get(np.dtype(value.dtype).name)
        if dtype is None:
            raise ValueError(f"{'/'.join((*path, key))} is of type {value.dtype}; known: {', '.join(_DTYPES)}")
        yield _Leaf((*path, key), (*within, *path, key), tuple(map(int, value.shape)), dtype)


class _Restored:
    """Reads leaves of a checkpoint and keeps the last, of which each layer is asked for in turn."""

    def __init__(self, item: Path):
        self._item = item
        self._last: tuple[_Leaf | None, Any] = None, None

    def leaf(self, leaf: _Leaf) -> Callable[[], np.ndarray]:
        """What reads a leaf."""
        return lambda: self._read(leaf)

    def _read(self, leaf: _Leaf) -> np.ndarray:
        if self._last[0] != leaf:
            self._last = None, None  # not two at a time
            self._last = leaf, self._restore(leaf)
        return self._last[1]

    def _restore(self, leaf: _Leaf) -> np.ndarray:
        import orbax.checkpoint as ocp

        arguments = ocp.args.PyTreeRestore(
            item=tree_of({leaf.within: 0}),
            restore_args=tree_of({leaf.within: ocp.RestoreArgs(restore_type=np.ndarray)}),
            partial_restore=True,
        )
        with _Told(self._item), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            array = leaf_at(checkpointer.restore(self._item.absolute(), args=arguments), leaf.within)
            if array.shape != leaf.shape or array.dtype != leaf.dtype:
                raise ValueError(f"{'/'.join(leaf.path)} is {array.dtype}{list(array.shape)}, announced as {leaf}")
            return array


class _Told:
    """Turns what orbax raises, which may be anything, into a ValueError that names the checkpoint."""

    def __init__(self, item: Path):
        self._item = item

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        if isinstance(error, Exception):
            said = str(error).strip().split("\n")[0][:300] or type(error).__name__
            raise ValueError(f"{self._item}: not a readable orbax checkpoint ({said})") from None


def write_orbax_params(
    folder: Path, table: Mapping[str, NameMapping], tensors: Mapping[str, LazyTensor]
) -> dict[str, str]:
    """Writes the parameters into `folder`/params; the SHA-256 of each file there, by its name from `folder`.

    All of the parameters are in memory at once, as orbax wants them.
    """
    import orbax.checkpoint as ocp

    leaves: dict[ParameterPath, np.ndarray] = {}
    depth = 1 + max((entry.layer for entry in table.values() if entry.layer is not None), default=-1)
    for name, entry in table.items():
        part = entry.read(tensors[name], (slice(None),) * len(entry.shape))
        if entry.layer is None:
            leaves[entry.path] = np.ascontiguousarray(part)
            continue
        if entry.path not in leaves:
            leaves[entry.path] = np.empty((depth, *entry.shape), part.dtype)
        stack = leaves[entry.path]
        if np.promote_types(stack.dtype, part.dtype) != stack.dtype:
            leaves[entry.path] = stack = stack.astype(np.promote_types(stack.dtype, part.dtype))
        stack[entry.layer] = part
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / PARAMS_FOLDER).absolute(), tree_of(leaves))
    files = sorted(file for file in (folder / PARAMS_FOLDER).rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file_sha256(file) for file in files}
