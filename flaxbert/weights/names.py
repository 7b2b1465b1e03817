"""The one table of names: Hugging Face's tensor name, our path in the params dict, and the layout between them.

    Hugging Face (PyTorch)                                 params dict (L layers stacked on a leading axis)
    bert.embeddings.word_embeddings.weight [V, D]          bert/embeddings/word/embedding        [V, D]
    bert.encoder.layer.N.attention.self.query.weight       bert/layers/attention/query/kernel    [L, D, H, K]
    bert.encoder.layer.N.attention.output.dense.weight     bert/layers/attention/output/kernel   [L, H, K, D]
    bert.encoder.layer.N.intermediate.dense.weight [F, D]  bert/layers/up/kernel                 [L, D, F]

`BertModel` has the same names without `bert`. PyTorch's linear weights are [out, in], ours [in, out].
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from flaxbert.weights.tensors import LazyTensor

Path = tuple[str, ...]

# Hugging Face module -> our module. A linear layer's weight and bias become kernel and bias, a norm's scale and
# bias, an embedding's weight embedding.
_LINEARS = {
    "attention.self.query": "attention/query",
    "attention.self.key": "attention/key",
    "attention.self.value": "attention/value",
    "attention.output.dense": "attention/output",
    "intermediate.dense": "up",
    "output.dense": "down",
}
_NORMS = {"attention.output.LayerNorm": "attention_norm", "output.LayerNorm": "output_norm"}
_EMBEDDINGS = {
    "word_embeddings": "embeddings/word",
    "position_embeddings": "embeddings/position",
    "token_type_embeddings": "embeddings/token_type",
}
_HEADS = {
    "cls.predictions.transform.dense": "predictions/transform",
    "cls.predictions.decoder": "predictions/decoder",
    "cls.seq_relationship": "seq_relationship",
    "classifier": "classifier",
    "qa_outputs": "qa_outputs",
}

# Names that files carry although they hold no parameter of their own.
BUFFERS = frozenset({"bert.embeddings.position_ids", "bert.embeddings.token_type_ids"})
POOLER = frozenset({"bert.pooler.dense.weight", "bert.pooler.dense.bias"})
WORDS = "bert.embeddings.word_embeddings.weight"
# alias -> the name that a model with tied embeddings stores the tensor under
TIED = {"cls.predictions.decoder.weight": WORDS, "cls.predictions.decoder.bias": "cls.predictions.bias"}
# An untied decoder's bias is the first. Files of transformers 5 hold the second too, which it never reads then;
# those of version 4 hold the second alone.
_OF_WORDS = frozenset({WORDS, *TIED, *TIED.values()})  # a row a word
UNTIED_BIAS, SPARE_BIAS = "cls.predictions.decoder.bias", "cls.predictions.bias"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One Hugging Face tensor and its place: the parameter at `path`, row `layer` of it where that is not None."""

    name: str
    path: Path
    shape: tuple[int, ...]  # of our slice
    layer: int | None = None
    inputs: int | None = None  # how many leading axes of a kernel are inputs; None: not a kernel, same layout
    words: int | None = None  # rows of the file's tensor, where ours has more: a padded vocabulary

    @property
    def foreign_shape(self) -> tuple[int, ...]:
        """The tensor's shape in the file."""
        rows, *rest = self._whole_shape
        return rows if self.words is None else self.words, *rest

    @property
    def _whole_shape(self) -> tuple[int, ...]:
        """In the file's layout, rows included that no file has."""
        if self.inputs is not None:
            return math.prod(self.shape[self.inputs :]), math.prod(self.shape[: self.inputs])
        return self.shape if self.path[-1] == "embedding" else (math.prod(self.shape),)

    def read(self, tensor: LazyTensor, index: tuple[slice, ...]) -> np.ndarray:
        """A part of our slice, `index` in our layout, read from the file: of its rows only those that are needed."""
        axis = self.inputs or 0  # which of our axes the file's rows begin with; those after it are flattened into it
        start, stop, _ = index[axis].indices(self.shape[axis])
        inner = 1 if self.path[-1] == "embedding" else math.prod(self.shape[axis + 1 :])
        rows = tensor.read(slice(start * inner, stop * inner))  # beyond the end there are none
        missing = (stop - start) * inner - len(rows)
        if missing and self.words is not None:
            rows = np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])
        part = (rows if self.inputs is None else rows.T).reshape(
            *self.shape[:axis], stop - start, *self.shape[axis + 1 :]
        )
        return part[(*index[:axis], slice(None), *index[axis + 1 :])]

    def to_foreign(self, parameter: np.ndarray) -> np.ndarray:
        """The parameter (already the layer's slice) in the file's layout."""
        if self.inputs is None:
            return parameter.reshape(self._whole_shape)[: self.words]
        return np.ascontiguousarray(parameter.reshape(self._whole_shape[::-1]).T[: self.words])


def entries(shapes: Mapping[str, Any], *, vocab_size: int | None = None) -> list[Entry]:
    """The table for a model, given its tree of parameter shapes; covers every parameter exactly once.

    A vocabulary of more rows than `vocab_size` is a padded one: files hold only that many.
    Names carry the prefix `bert.` also for a bare `BertModel`; `without_prefix` is its spelling in files.
    """
    leaves = {
        tuple(key.key for key in path): leaf.shape for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]
    }
    bare = not any(path[0] == "bert" for path in leaves)
    found = []
    for entry_name, path, inputs in _candidates(leaves, bare):
        shape = leaves[path]
        if "{layer}" not in entry_name:
            padded = vocab_size is not None and entry_name in _OF_WORDS and shape[inputs or 0] > vocab_size
            found.append(Entry(entry_name, path, shape, None, inputs, vocab_size if padded else None))
            continue
        for layer in range(shape[0]):
            found.append(Entry(entry_name.format(layer=layer), path, shape[1:], layer, inputs))
    uncovered = set(leaves) - {entry.path for entry in found}
    if uncovered:
        raise ValueError(f"no Hugging Face name is known for the parameters {sorted('/'.join(p) for p in uncovered)}")
    return found


def _candidates(leaves: Mapping[Path, tuple[int, ...]], bare: bool) -> Iterator[tuple[str, Path, int | None]]:
    """Every (name, path, inputs) of the table whose path the model has."""
    root = "" if bare else "bert/"
    rows: list[tuple[str, str, int | None]] = []

    def linear(foreign: str, ours: str, inputs: int = 1):
        rows.extend([(f"{foreign}.weight", f"{ours}/kernel", inputs), (f"{foreign}.bias", f"{ours}/bias", None)])

    def norm(foreign: str, ours: str):
        rows.extend([(f"{foreign}.weight", f"{ours}/scale", None), (f"{foreign}.bias", f"{ours}/bias", None)])

    for foreign, ours in _EMBEDDINGS.items():
        rows.append((f"bert.embeddings.{foreign}.weight", f"{root}{ours}/embedding", None))
    norm("bert.embeddings.LayerNorm", f"{root}embeddings/norm")
    for foreign, ours in _LINEARS.items():
        inputs = 2 if ours == "attention/output" else 1  # [H, K, D]: heads and head size come in
        linear(f"bert.encoder.layer.{{layer}}.{foreign}", f"{root}layers/{ours}", inputs)
    for foreign, ours in _NORMS.items():
        norm(f"bert.encoder.layer.{{layer}}.{foreign}", f"{root}layers/{ours}")
    linear("bert.pooler.dense", f"{root}pooler")
    norm("cls.predictions.transform.LayerNorm", "predictions/norm")
    rows.append(("cls.predictions.bias", "predictions/bias", None))
    for foreign, ours in _HEADS.items():
        linear(foreign, ours)
    for foreign, ours, inputs in rows:
        path = tuple(ours.split("/"))
        if path in leaves:
            yield foreign, path, inputs


def leaf(tree: Any, path: Path) -> Any:
    """What a tree of dicts holds at a path."""
    for key in path:
        tree = tree[key]
    return tree


def tree(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """The tree of dicts with these leaves."""
    found: dict[str, Any] = {}
    for path, value in sorted(leaves.items()):
        node = found
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return found


def shape_differences(given: Any, wanted: Any) -> list[str]:
    """One line for each leaf of two trees of arrays (or shapes) that the other lacks or has in another shape."""
    found, expected = _shapes_by_path(given), _shapes_by_path(wanted)
    return [
        f"  {path}: {found.get(path, 'missing')}, expected {expected.get(path, 'nothing')}"
        for path in sorted({*found, *expected})
        if found.get(path) != expected.get(path)
    ]


def _shapes_by_path(tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf, by its path written "a/b/c"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape) for path, leaf in leaves}


def canonical(name: str, *, bare: bool) -> str:
    """A file's tensor name in the spelling of the table: with prefix, and without the legacy gamma and beta."""
    for old, new in ((".LayerNorm.gamma", ".LayerNorm.weight"), (".LayerNorm.beta", ".LayerNorm.bias")):
        if name.endswith(old) or name == old[1:]:
            name = name[: -len(old)] + new
    if bare and name.startswith(("embeddings.", "encoder.", "pooler.")):
        name = f"bert.{name}"
    return name


def is_head(name: str) -> bool:
    """Whether a canonical name belongs to a head (or the pooler) rather than to embeddings and layers."""
    return not name.startswith(("bert.embeddings.", "bert.encoder."))
