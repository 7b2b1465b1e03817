"""Names of a model's tensors in files and in params: the family's name table applied to the shapes of one model."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from flaxbert.families import Family
from flaxbert.families.family import ParameterPath, TensorName
from flaxbert.layers import LAYERS, Params, ParamsDict
from flaxbert.sharding import fetch_global
from flaxbert.weights.tensors import LazyTensor


@dataclasses.dataclass(frozen=True)
class NameMapping:
    """One tensor of a Hugging Face file and the parameter, or the layer of a stacked parameter, that it becomes.

    For example, `bert.encoder.layer.3.attention.output.dense.weight` [D, H * K] is layer 3 of the parameter with the
    path ("bert", "layers", "attention", "output", "kernel"), the shape [H, K, D] and two input axes.

    Attributes:
        name: with the family's prefix.
        shape: of the parameter, without the axis of layers.
        layer: the index on the axis of layers; None where the parameter is not stacked, or each layer has its own.
        input_axes: as in `TensorName`.
        stored_rows: the number of the file's rows, where the parameter has more because its vocabulary is padded.
    """

    name: str
    path: ParameterPath
    shape: tuple[int, ...]
    layer: int | None = None
    input_axes: int | None = None
    stored_rows: int | None = None

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The tensor's shape in the file."""
        rows, *columns = self._padded_file_shape
        return rows if self.stored_rows is None else self.stored_rows, *columns

    @property
    def _padded_file_shape(self) -> tuple[int, ...]:
        """The shape in the file's layout, with the rows of a padded vocabulary."""
        if self.input_axes is not None:
            return math.prod(self.shape[self.input_axes :]), math.prod(self.shape[: self.input_axes])
        return self.shape if self.path[-1] == "embedding" else (math.prod(self.shape),)

    def read(self, tensor: LazyTensor, index: tuple[slice, ...]) -> np.ndarray:
        """Read a part of the parameter, one slice for each axis, and only the rows of the tensor that it needs."""
        axis = self.input_axes or 0  # the parameter's axes from this one on are flattened into the file's rows
        start, stop, _ = index[axis].indices(self.shape[axis])
        rows_per_index = 1 if self.path[-1] == "embedding" else math.prod(self.shape[axis + 1 :])
        rows = tensor.read(slice(start * rows_per_index, stop * rows_per_index))
        missing = (stop - start) * rows_per_index - len(rows)
        if missing and self.stored_rows is not None:
            rows = np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])
        part = (rows if self.input_axes is None else rows.T).reshape(
            *self.shape[:axis], stop - start, *self.shape[axis + 1 :]
        )
        return part[(*index[:axis], slice(None), *index[axis + 1 :])]

    def to_file_layout(self, parameter: np.ndarray) -> np.ndarray:
        """Return the parameter (of one layer, where it is stacked) in the file's layout."""
        if self.input_axes is None:
            return parameter.reshape(self._padded_file_shape)[: self.stored_rows]
        return np.ascontiguousarray(parameter.reshape(self._padded_file_shape[::-1]).T[: self.stored_rows])


@dataclasses.dataclass(frozen=True)
class ParameterTensor:
    """A parameter, or one layer of a stacked one, as a tensor in the file's layout; converted when it is read.

    `parameter` returns the whole parameter, on the host or on devices.
    """

    mapping: NameMapping
    dtype: np.dtype
    parameter: Callable[[], Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the file."""
        return self.mapping.file_shape

    @property
    def supports_row_reads(self) -> bool:
        """False: every read converts the whole tensor."""
        return False

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """Return the tensor, or some of its rows."""
        part = fetch_global(self.parameter(), self.mapping.layer)
        return self.mapping.to_file_layout(part.astype(self.dtype, copy=False))[rows]


def name_mappings(family: Family, shapes: Params, *, vocab_size: int | None = None) -> list[NameMapping]:
    """Return the mapping of every parameter of a model, given its params dict or shapes, in the order of the table.

    Names have the family's prefix, for the base model too, whose files have none. Files hold `vocab_size` rows of
    tensors with a row for each token; parameters with more are padded.

    Raises:
        ValueError: a parameter has no name in the family's table.
    """
    leaves = {
        tuple(key.key for key in path): leaf.shape for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]
    }
    numbers = {path[path.index(LAYERS) + 1] for path in leaves if LAYERS in path}
    numbers = sorted(int(number) for number in numbers if number.isdecimal())
    mappings = []
    rows = [row.inside(family.prefix) for row in (*family.encoder, *family.pooler)]
    if not any(path[0] == family.prefix for path in leaves):  # the base model
        rows = [dataclasses.replace(row, path=row.path[1:]) for row in rows]
    own_layers = [own for row in rows if "{layer}" in row.name for own in _rows_of_own_layers(row, numbers)]
    for row in (*rows, *own_layers, *family.heads):
        shape = leaves.get(row.path)
        if shape is None:
            continue
        if "{layer}" in row.name:
            for layer in range(shape[0]):
                name = row.name.format(layer=layer)
                mappings.append(NameMapping(name, row.path, shape[1:], layer, row.input_axes))
        else:
            padded = vocab_size is not None and row.per_token and shape[row.input_axes or 0] > vocab_size
            stored_rows = vocab_size if padded else None
            mappings.append(NameMapping(row.name, row.path, shape, None, row.input_axes, stored_rows))
    unnamed = set(leaves) - {mapping.path for mapping in mappings}
    if unnamed:
        raise ValueError(f"no Hugging Face name is known for the parameters {sorted('/'.join(p) for p in unnamed)}")
    return mappings


def _rows_of_own_layers(row: TensorName, numbers: Sequence[int]) -> Iterator[TensorName]:
    """Yield the rows of layers that have a tree of parameters each, below their number."""
    after = row.path.index(LAYERS) + 1
    for number in numbers:
        path = (*row.path[:after], str(number), *row.path[after:])
        yield dataclasses.replace(row, name=row.name.format(layer=number), path=path)


def leaf_at(tree: PyTree, path: ParameterPath) -> PyTree:
    """Return the leaf of a tree of dicts at a path."""
    for key in path:
        tree = tree[key]
    return tree


def tree_of(leaves: Mapping[ParameterPath, object]) -> ParamsDict:
    """Build the tree of dicts from its leaves by path."""
    tree: ParamsDict = {}
    for path, value in sorted(leaves.items()):
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree


def shape_differences(given: PyTree, expected: PyTree) -> list[str]:
    """Return one line for each leaf of two trees of arrays (or shapes) that only one has, or that differs in shape."""
    given, expected = _shapes_by_path(given), _shapes_by_path(expected)
    return [
        f"  {path}: {given.get(path, 'missing')}, expected {expected.get(path, 'nothing')}"
        for path in sorted({*given, *expected})
        if given.get(path) != expected.get(path)
    ]


def _shapes_by_path(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}
