"""Flax weights of transformers 4 (flax_model.msgpack), read lazily and written one tensor at a time, without Flax.

Format (flax.serialization.to_bytes): msgpack of nested dicts whose leaves are arrays. An array is an extension of
type 1 (a numpy scalar: 3) that holds msgpack: [shape, name of the dtype, bytes]. An array of more than 2**30 bytes is a
dict of flat pieces, {"__msgpack_chunked_array__": true, "shape": {"0": ...}, "chunks": {"0": ...}}.

Keys, joined by "/"                             Hugging Face (PyTorch)
bert/encoder/layer/N/output/dense/kernel        bert.encoder.layer.N.output.dense.weight, transposed
.../LayerNorm/scale, .../sa_layer_norm/scale    .../LayerNorm.weight, .../sa_layer_norm.weight
.../word_embeddings/embedding                   .../word_embeddings.weight
cls/predictions/bias                            cls.predictions.bias (all other names likewise)
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from flaxbert.files import require_downloaded
from flaxbert.weights.formats.msgpack_tokens import MAX_STRING_BYTES, TRUE, MsgpackReader, pack_head, pack_string
from flaxbert.weights.tensors import ChunkedTensor, FileTensor, LazyTensor, TensorSpec, transposed

_MAX_CHUNK_BYTES = 2**30  # flax's limit
_MAX_DEPTH = 64  # of nested dicts; a BERT has 8
_MAX_AXES = 32  # numpy's limit before version 2
_CHUNKED = "__msgpack_chunked_array__"
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # types of extensions
_DTYPES = {
    np.dtype(code).name: np.dtype(code)
    for code in ("?", "u1", "i1", "<i2", "<u2", "<f2", ml_dtypes.bfloat16, "<i4", "<u4", "<f4", "<f8", "<i8", "<u8")
}
_NORMS = ("LayerNorm", "layer_norm")  # endings of the names of layer norms

_Tree = dict[str, "_Tree | TensorSpec"]


# -- names -----------------------------------------------------------------------------------------------


def from_flax_name(name: str) -> str:
    """Convert an array's keys, joined by "/", to Hugging Face's name."""
    path, slash, ending = name.rpartition("/")
    return f"{path}{slash}{'weight' if ending in ('kernel', 'scale', 'embedding') else ending}".replace("/", ".")


def to_flax_name(name: str) -> str:
    """Convert Hugging Face's name to the array's keys, joined by "/"."""
    path, dot, ending = name.rpartition(".")
    if ending == "weight":
        ending = "scale" if path.endswith(_NORMS) else "embedding" if path.endswith("_embeddings") else "kernel"
    return f"{path}{dot}{ending}".replace(".", "/")


def _is_linear(flax_name: str, shape: tuple[int, ...]) -> bool:
    """Return True for the kernel of a linear layer, [in, out] in Flax and [out, in] in PyTorch."""
    return len(shape) == 2 and flax_name.rpartition("/")[2] == "kernel"


def _check_key(key: str, where: str) -> str:
    if not key or "/" in key or "." in key or len(key.encode()) > MAX_STRING_BYTES:
        raise ValueError(f"{where} has the key {key[:80]!r}")
    return key


# -- reading ---------------------------------------------------------------------------------------------


def open_flax_msgpack(file: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a file by Hugging Face's names and in PyTorch's layout, unread.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file breaks a rule of the format.
    """
    tensors: dict[str, LazyTensor] = {}
    try:
        with file.open("rb") as opened:
            reader = MsgpackReader(file, opened)
            for tensor in _leaves(reader, (), reader.expect("map", "the content")):
                renamed = from_flax_name(tensor.name)
                if renamed in tensors:
                    raise ValueError(f"{tensor.name!r} and another array are both {renamed!r}")
                tensors[renamed] = transposed(tensor) if _is_linear(tensor.name, tensor.shape) else tensor
            if reader.bytes_left:
                raise ValueError(f"{reader.bytes_left} bytes follow the content")
    except ValueError as error:  # includes bad UTF-8
        require_downloaded(file)
        raise ValueError(f"{file}: not a readable flax_model.msgpack: {error}") from None
    return tensors


def _leaves(reader: MsgpackReader, path: tuple[str, ...], count: int) -> Iterator[FileTensor | ChunkedTensor]:
    """Yield the arrays of a dict of `count` entries, whose head has been read."""
    where = repr("/".join(path)) if path else "the outermost dict"
    if len(path) >= _MAX_DEPTH:
        raise ValueError(f"dicts are nested deeper than {_MAX_DEPTH}")
    keys: set[str] = set()
    for _ in range(count):
        key = _check_key(reader.string(f"a key in {where}"), where)
        if key == _CHUNKED and path and not keys:
            yield _read_chunked_array(reader, "/".join(path), count)
            return
        if key in keys:
            raise ValueError(f"{where} has the key {key!r} twice")
        keys.add(key)
        name = "/".join((*path, key))
        kind, length = reader.next()
        if kind == "map":
            yield from _leaves(reader, (*path, key), length)
        elif kind == "extension":
            yield _read_array(reader, name, length)
        else:
            raise ValueError(f"{name!r} is {kind}, neither dict nor array")


def _read_array(reader: MsgpackReader, name: str, length: int) -> FileTensor:
    """Read an array's description and skip its bytes; the head of the extension, of `length` bytes, has been read."""
    code = reader.take(1)[0]
    end = reader.position + length
    if code not in (_ARRAY, _SCALAR):
        found = "a complex number" if code == _COMPLEX else f"an extension of type {code}"
        raise ValueError(f"{name!r} is {found}, not an array")
    parts = reader.expect("array", f"the content of {name!r}")
    if parts != 3:
        raise ValueError(f"{name!r} has {parts} parts instead of shape, type and bytes")
    axes = reader.expect("array", f"the shape of {name!r}")
    if axes > _MAX_AXES:
        raise ValueError(f"{name!r} has {axes} axes")
    shape = tuple(reader.expect("number", f"the shape's axis {axis} of {name!r}") for axis in range(axes))
    dtype = reader.string(f"the type of {name!r}")
    if dtype not in _DTYPES:
        raise ValueError(f"{name!r} is of type {dtype[:80]!r}; known: {', '.join(_DTYPES)}")
    size = reader.expect("bytes", f"the data of {name!r}")
    tensor = FileTensor(name, _DTYPES[dtype], shape, reader.file, reader.position)
    if tensor.size != size or not _fits_numpy(tensor):
        raise ValueError(f"{name!r} of shape {list(shape)} and type {dtype} has {size} bytes")
    reader.skip(size)
    if reader.position != end:
        raise ValueError(f"{name!r} ends at byte {reader.position}, its extension at {end}")
    return tensor


def _fits_numpy(spec: TensorSpec) -> bool:
    """Return True if numpy accepts the shape. It may refuse even an array without values, if other axes are long."""
    return math.prod(max(1, axis) for axis in spec.shape) * spec.dtype.itemsize < 2**63


def _read_chunked_array(reader: MsgpackReader, name: str, count: int) -> ChunkedTensor:
    """Read the description of an array in pieces; the first key has been read."""

    def numbered_entries(key: str) -> Iterator[str]:
        if reader.string(f"a key in {name!r}") != key:
            raise ValueError(f"{name!r} is chunked, but {key!r} is not where it must be")
        for i in range(reader.expect("map", f"{key!r} of {name!r}")):
            if reader.string(f"a key in {key!r} of {name!r}") != str(i):
                raise ValueError(f"{key!r} of {name!r} is not numbered from 0")
            yield f"{name}/{key}/{i}"

    if count != 3 or reader.next()[0] != "true":
        raise ValueError(f"{name!r} has the key {_CHUNKED!r}, but is not chunked as flax does")
    shape = tuple(reader.expect("number", repr(axis)) for axis in numbered_entries("shape"))
    chunks = tuple(
        _read_array(reader, chunk, reader.expect("extension", repr(chunk))) for chunk in numbered_entries("chunks")
    )
    if len(shape) > _MAX_AXES:
        raise ValueError(f"{name!r} has {len(shape)} axes")
    if not chunks or any(len(chunk.shape) != 1 or chunk.dtype != chunks[0].dtype for chunk in chunks):
        raise ValueError(f"the chunks of {name!r} are not all flat and of one type")
    tensor = ChunkedTensor(name, chunks[0].dtype, shape, chunks)
    if tensor.size != sum(chunk.size for chunk in chunks) or not _fits_numpy(tensor):
        raise ValueError(f"{name!r} of shape {list(shape)} has chunks of {sum(chunk.size for chunk in chunks)} bytes")
    return tensor


# -- writing ---------------------------------------------------------------------------------------------


def write_flax_msgpack(file: Path, specs: Sequence[TensorSpec], tensors: Iterable[LazyTensor]) -> None:
    """Write a file, one tensor at a time, from tensors in PyTorch's layout and in the order of `specs`.

    Tensors of one dict must follow each other; `flax_msgpack_order` sorts them so.

    Raises:
        ValueError: the format does not allow a name or a type, the order is wrong, or a tensor does not match its spec.
    """
    heads = list(_heads(_tree(specs)))
    if [spec for _, spec in heads] != list(specs):
        raise ValueError(f"{file}: tensors of one dict do not follow each other; sort them by `flax_msgpack_order`")
    with file.open("wb") as opened:
        if not heads:
            opened.write(pack_head("map", 0))
        for (head, spec), tensor in zip(heads, tensors, strict=True):
            spec.require_match(tensor)
            opened.write(head)
            values = tensor.read()
            for part in _pack_array(values.T if _is_linear(to_flax_name(spec.name), spec.shape) else values):
                opened.write(part)


def flax_msgpack_order(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """Sort specs as JAX sorts nested dicts: by key."""
    return sorted(specs, key=lambda spec: to_flax_name(spec.name).split("/"))


def _tree(specs: Sequence[TensorSpec]) -> _Tree:
    """Return the nested dicts of a file with the specs as leaves."""
    tree: _Tree = {}
    for spec in specs:
        name = to_flax_name(spec.name)
        *path, last = name.split("/")
        if from_flax_name(name) != spec.name or len(path) >= _MAX_DEPTH:
            raise ValueError(f"{spec.name!r} cannot be written as nested keys")
        if _DTYPES.get(spec.dtype.name) != spec.dtype:
            raise ValueError(f"{spec.name!r} is of type {spec.dtype}; known: {', '.join(_DTYPES)}")
        node = tree
        for key in path:
            child = node.setdefault(_check_key(key, repr(spec.name)), {})
            if isinstance(child, TensorSpec):
                raise ValueError(f"{child.name!r} cannot hold {spec.name!r}")
            node = child
        if last in node:
            raise ValueError(f"{spec.name!r} occurs twice, or holds another tensor")
        node[_check_key(last, repr(spec.name))] = spec
    return tree


def _heads(node: _Tree, before: bytes = b"") -> Iterator[tuple[bytes, TensorSpec]]:
    """Yield each array's spec and the bytes before it: its key, and heads and keys of dicts that begin with it."""
    before += pack_head("map", len(node))
    for key, child in node.items():
        before += pack_string(key)
        if isinstance(child, TensorSpec):
            yield before, child
        else:
            yield from _heads(child, before)
        before = b""


def _pack_array(array: np.ndarray) -> Iterator[bytes | memoryview]:
    """Yield the bytes of an array as flax writes them: one extension, or a dict of chunks."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if array.nbytes <= _MAX_CHUNK_BYTES:
        yield from _extension(array.shape, flat)
        return
    yield pack_head("map", 3) + pack_string(_CHUNKED) + TRUE + pack_string("shape")
    yield pack_head("map", array.ndim)
    for axis, length in enumerate(array.shape):
        yield pack_string(str(axis)) + pack_head("number", length)
    step = max(1, _MAX_CHUNK_BYTES // array.itemsize)
    starts = range(0, flat.size, step)
    yield pack_string("chunks") + pack_head("map", len(starts))
    for i, start in enumerate(starts):
        chunk = flat[start : start + step]
        yield pack_string(str(i))
        yield from _extension(chunk.shape, chunk)


def _extension(shape: tuple[int, ...], flat: np.ndarray) -> Iterator[bytes | memoryview]:
    axes = b"".join([pack_head("array", len(shape)), *(pack_head("number", axis) for axis in shape)])
    description = pack_head("array", 3) + axes + pack_string(flat.dtype.name) + pack_head("bytes", flat.nbytes)
    yield pack_head("extension", len(description) + flat.nbytes) + bytes([_ARRAY]) + description
    yield flat.view(np.uint8).data
