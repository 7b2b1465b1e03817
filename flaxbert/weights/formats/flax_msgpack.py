"""Flax weights of transformers 4 (flax_model.msgpack), read and written one tensor at a time and without Flax.

The layout (flax.serialization.to_bytes): msgpack of nested dicts whose leaves are arrays. An array is an extension of
type 1 (a numpy scalar: 3), its content again msgpack: [shape, dtype's name, bytes]. One of more than 2**30 bytes is a
dict of flattened ones, {"__msgpack_chunked_array__": true, "shape": {"0": ...}, "chunks": {"0": ...}}.

Keys, joined by "/"                             Hugging Face (PyTorch)
bert/encoder/layer/N/output/dense/kernel        bert.encoder.layer.N.output.dense.weight, transposed
.../LayerNorm/scale, .../sa_layer_norm/scale    .../LayerNorm.weight, .../sa_layer_norm.weight
.../word_embeddings/embedding                   .../word_embeddings.weight
cls/predictions/bias                            cls.predictions.bias (all other names likewise)
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flaxbert.weights.checksums import HashingFileWriter
from flaxbert.weights.formats.msgpack_tokens import MAX_KEY, TRUE, Tokens, string, token
from flaxbert.weights.tensors import FileTensor, LazyTensor, TensorSpec, TransposedTensor

_MAX_CHUNK_SIZE = 2**30  # bytes; flax's own
_MAX_DEPTH = 64  # of dicts; a BERT's is 8
_MAX_AXES = 32  # numpy's own limit was so until its version 2
_CHUNKED = "__msgpack_chunked_array__"
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # types of extensions
_DTYPES = {
    np.dtype(code).name: np.dtype(code)
    for code in ("?", "u1", "i1", "<i2", "<u2", "<f2", ml_dtypes.bfloat16, "<i4", "<u4", "<f4", "<f8", "<i8", "<u8")
}
_NORMS = ("LayerNorm", "layer_norm")  # with all that ends so


# -- names -----------------------------------------------------------------------------------------------


def from_flax_name(name: str) -> str:
    """Hugging Face's name of an array, given its keys joined by "/"."""
    path, slash, ending = name.rpartition("/")
    return f"{path}{slash}{'weight' if ending in ('kernel', 'scale', 'embedding') else ending}".replace("/", ".")


def to_flax_name(name: str) -> str:
    """The keys, joined by "/", of a tensor of Hugging Face's."""
    path, dot, ending = name.rpartition(".")
    if ending == "weight":
        ending = "scale" if path.endswith(_NORMS) else "embedding" if path.endswith("_embeddings") else "kernel"
    return f"{path}{dot}{ending}".replace(".", "/")


def _is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether an array, named as in the file, is [in, out]."""
    return len(shape) == 2 and name.rpartition("/")[2] == "kernel"


def _check_key(key: str, where: str) -> str:
    if not key or "/" in key or "." in key or len(key.encode()) > MAX_KEY:
        raise ValueError(f"{where} has the key {key[:80]!r}")
    return key


# -- tensors ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ChunkedTensor(TensorSpec):
    """A tensor that lies in a file in several pieces of its flattened self."""

    chunks: tuple[FileTensor, ...]

    @property
    def supports_row_reads(self) -> bool:
        """Rows lie one after the other."""
        return True

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """The tensor, or consecutive rows of it (of its first axis).

        Raises:
            ValueError: the file ends within the tensor.
        """
        start, stop, shape = 0, math.prod(self.shape), self.shape
        if self.shape:
            first, last, _ = rows.indices(self.shape[0])
            shape = (max(0, last - first), *self.shape[1:])
            start, stop = (n * math.prod(self.shape[1:]) for n in (first, first + shape[0]))
        content = np.empty(stop - start, self.dtype)
        begin = 0  # of the chunk
        for chunk in self.chunks:
            low, high = max(start, begin), min(stop, begin + chunk.shape[0])
            if low < high:
                content[low - start : high - start] = chunk.read(slice(low - begin, high - begin))
            begin += chunk.shape[0]
        return content.reshape(shape)


# -- reading ---------------------------------------------------------------------------------------------


def open_flax_msgpack(file: Path) -> dict[str, LazyTensor]:
    """The tensors of a file by Hugging Face's names and in its layout; no tensor is read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: in what the file breaks the format's rules.
    """
    found: dict[str, LazyTensor] = {}
    try:
        with file.open("rb") as opened:
            tokens = Tokens(file, opened)
            for name, tensor in _leaves(tokens, (), tokens.expect("map", "the content")):
                renamed = from_flax_name(name)
                if renamed in found:
                    raise ValueError(f"{name!r} and another array are both {renamed!r}")
                found[renamed] = TransposedTensor(tensor) if _is_linear(name, tensor.shape) else tensor
            if tokens.left:
                raise ValueError(f"{tokens.left} bytes follow the content")
    except ValueError as error:  # also bad UTF-8
        raise ValueError(f"{file}: not a readable flax_model.msgpack: {error}") from None
    return found


def _leaves(tokens: Tokens, path: tuple[str, ...], count: int) -> Iterator[tuple[str, FileTensor | ChunkedTensor]]:
    """The arrays of a dict of so many entries, and their keys joined by "/"; the dict's head has been read."""
    where = repr("/".join(path)) if path else "the outermost dict"
    if len(path) >= _MAX_DEPTH:
        raise ValueError(f"dicts are nested deeper than {_MAX_DEPTH}")
    keys: set[str] = set()
    for _ in range(count):
        key = _check_key(tokens.text(f"a key in {where}"), where)
        if key == _CHUNKED and path and not keys:
            yield _chunked(tokens, "/".join(path), count)
            return
        if key in keys:
            raise ValueError(f"{where} has the key {key!r} twice")
        keys.add(key)
        inner, name = (*path, key), "/".join((*path, key))
        kind, length = tokens.next()
        if kind == "map":
            yield from _leaves(tokens, inner, length)
        elif kind == "extension":
            yield name, _array(tokens, name, length)
        else:
            raise ValueError(f"{name!r} is {kind}, neither dict nor array")


def _array(tokens: Tokens, name: str, length: int) -> FileTensor:
    """An array, of which the extension's length has been read; the content is passed over."""
    code = tokens.take(1)[0]
    end = tokens.at + length
    if code not in (_ARRAY, _SCALAR):
        what = "a complex number" if code == _COMPLEX else f"an extension of type {code}"
        raise ValueError(f"{name!r} is {what}, not an array")
    parts = tokens.expect("array", f"the content of {name!r}")
    if parts != 3:
        raise ValueError(f"{name!r} has {parts} parts instead of shape, type and bytes")
    axes = tokens.expect("array", f"the shape of {name!r}")
    if axes > _MAX_AXES:
        raise ValueError(f"{name!r} has {axes} axes")
    shape = tuple(tokens.expect("number", f"the shape's axis {axis} of {name!r}") for axis in range(axes))
    dtype = tokens.text(f"the type of {name!r}")
    if dtype not in _DTYPES:
        raise ValueError(f"{name!r} is of type {dtype[:80]!r}; known: {', '.join(_DTYPES)}")
    size = tokens.expect("bytes", f"what {name!r} holds")
    tensor = FileTensor(name, _DTYPES[dtype], shape, tokens.file, tokens.at)
    if tensor.size != size or not _fits_numpy(tensor):
        raise ValueError(f"{name!r} of shape {list(shape)} and type {dtype} has {size} bytes")
    tokens.skip(size)
    if tokens.at != end:
        raise ValueError(f"{name!r} ends at byte {tokens.at}, its extension at {end}")
    return tensor


def _fits_numpy(spec: TensorSpec) -> bool:
    """Whether numpy takes the shape, which it may refuse although an axis is 0 and nothing is stored."""
    return math.prod(max(1, axis) for axis in spec.shape) * spec.dtype.itemsize < 2**63


def _chunked(tokens: Tokens, name: str, count: int) -> tuple[str, ChunkedTensor]:
    """An array in pieces, of which the first key has been read."""

    def numbered(what: str) -> Iterator[str]:
        if tokens.text(f"a key in {name!r}") != what:
            raise ValueError(f"{name!r} is chunked, but {what!r} is not where it must be")
        for i in range(tokens.expect("map", f"{what!r} of {name!r}")):
            if tokens.text(f"a key in {what!r} of {name!r}") != str(i):
                raise ValueError(f"{what!r} of {name!r} is not numbered from 0")
            yield f"{name}/{what}/{i}"

    if count != 3 or tokens.next()[0] != "true":
        raise ValueError(f"{name!r} has the key {_CHUNKED!r}, but is not chunked as flax does")
    shape = tuple(tokens.expect("number", repr(axis)) for axis in numbered("shape"))
    chunks = tuple(_array(tokens, chunk, tokens.expect("extension", repr(chunk))) for chunk in numbered("chunks"))
    if len(shape) > _MAX_AXES:
        raise ValueError(f"{name!r} has {len(shape)} axes")
    if not chunks or any(len(chunk.shape) != 1 or chunk.dtype != chunks[0].dtype for chunk in chunks):
        raise ValueError(f"the chunks of {name!r} are not all flat and of one type")
    tensor = ChunkedTensor(name, chunks[0].dtype, shape, chunks)
    if tensor.size != sum(chunk.size for chunk in chunks) or not _fits_numpy(tensor):
        raise ValueError(f"{name!r} of shape {list(shape)} has chunks of {sum(chunk.size for chunk in chunks)} bytes")
    return name, tensor


# -- writing ---------------------------------------------------------------------------------------------


def write_flax_msgpack(file: Path, specs: Sequence[TensorSpec], tensors: Iterable[LazyTensor]) -> str:
    """Writes a file from its tensors, named and laid out as Hugging Face's; the SHA-256 of it in hex.

    The tensors come in the order of `specs`, in which those of one dict must follow each other: `flax_msgpack_order`.

    Raises:
        ValueError: a name or type that the format does not take, another order, a tensor that was announced otherwise.
    """
    heads = list(_heads(_tree(specs)))
    if [spec for _, spec in heads] != list(specs):
        raise ValueError(f"{file}: the tensors of one dict do not follow each other; `flax_msgpack_order` puts them so")
    with HashingFileWriter(file) as digested:
        if not heads:
            digested.write(token("map", 0))
        for (head, spec), tensor in zip(heads, tensors, strict=True):
            if tensor.dtype != spec.dtype or tensor.shape != spec.shape:
                raise ValueError(f"{spec.name!r} is {tensor.dtype}{list(tensor.shape)}, announced as {spec}")
            digested.write(head)
            numbers = tensor.read()
            for part in _packed(numbers.T if _is_linear(to_flax_name(spec.name), spec.shape) else numbers):
                digested.write(part)
        return digested.hexdigest()


def flax_msgpack_order(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """The order in which JAX keeps nested dicts: by key."""
    return sorted(specs, key=lambda spec: to_flax_name(spec.name).split("/"))


def _tree(specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """The nested dicts of a file, with what each array is in its place."""
    tree: dict[str, Any] = {}
    for spec in specs:
        name = to_flax_name(spec.name)
        *path, last = name.split("/")
        if from_flax_name(name) != spec.name or len(path) >= _MAX_DEPTH:
            raise ValueError(f"{spec.name!r} cannot be written as nested keys")
        if _DTYPES.get(spec.dtype.name) != spec.dtype:
            raise ValueError(f"{spec.name!r} is of type {spec.dtype}; known: {', '.join(_DTYPES)}")
        node = tree
        for key in path:
            node = node.setdefault(_check_key(key, repr(spec.name)), {})
            if isinstance(node, TensorSpec):
                raise ValueError(f"{node.name!r} cannot hold {spec.name!r}")
        if last in node:
            raise ValueError(f"{spec.name!r} is there twice, or holds another tensor")
        node[_check_key(last, repr(spec.name))] = spec
    return tree


def _heads(node: dict[str, Any], before: bytes = b"") -> Iterator[tuple[bytes, TensorSpec]]:
    """Each array of a tree, and what stands before it: its key, and heads and keys of the dicts it is first in."""
    before += token("map", len(node))
    for key, child in node.items():
        before += string(key)
        if isinstance(child, TensorSpec):
            yield before, child
        else:
            yield from _heads(child, before)
        before = b""


def _packed(tensor: np.ndarray) -> Iterator[bytes | memoryview]:
    """The bytes of an array, in pieces."""
    flat = np.ascontiguousarray(tensor).reshape(-1)
    if tensor.nbytes <= _MAX_CHUNK_SIZE:
        yield from _extension(tensor.shape, flat)
        return
    yield token("map", 3) + string(_CHUNKED) + TRUE + string("shape") + token("map", tensor.ndim)
    for axis, length in enumerate(tensor.shape):
        yield string(str(axis)) + token("number", length)
    step = max(1, _MAX_CHUNK_SIZE // tensor.itemsize)
    chunks = range(0, flat.size, step)
    yield string("chunks") + token("map", len(chunks))
    for i, start in enumerate(chunks):
        chunk = flat[start : start + step]
        yield string(str(i))
        yield from _extension(chunk.shape, chunk)


def _extension(shape: tuple[int, ...], flat: np.ndarray) -> Iterator[bytes | memoryview]:
    axes = b"".join([token("array", len(shape)), *(token("number", axis) for axis in shape)])
    inner = token("array", 3) + axes + string(flat.dtype.name) + token("bytes", flat.nbytes)
    yield token("extension", len(inner) + flat.nbytes) + bytes([_ARRAY]) + inner
    yield flat.view(np.uint8).data
