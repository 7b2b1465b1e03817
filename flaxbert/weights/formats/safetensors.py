"""Safetensors files, read and written one tensor at a time: memory never holds more than that.

The layout (huggingface/safetensors): eight bytes with the header's length, a JSON header from names to
{"dtype", "shape", "data_offsets"}, then the tensors' bytes in order and without gaps. The library of that name maps
whole files into memory and writes only what is in memory already; the files are the same, byte for byte.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flaxbert.weights.checksums import HashingFileWriter
from flaxbert.weights.tensors import FileTensor, LazyTensor, TensorSpec, row_slices

_MAX_HEADER = 100_000_000  # bytes; the library's own limit
# In the library's order, by which it places tensors in a file: the last first, so that all are aligned.
_DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def read_safetensors_header(file: Path) -> tuple[dict[str, FileTensor], dict[str, str]]:
    """The tensors of a file by name, and its metadata; no tensor is read.

    Raises:
        FileNotFoundError: no such file.
        ValueError: in what the file breaks the format's rules.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = opened.read(length)
        if header[:1] != b"{":
            raise ValueError("the header is no object")
        entries = json.loads(header, object_pairs_hook=_without_repetition)
        metadata = entries.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ holds something other than strings")
        found = [_stored(name, entry, file, 8 + length) for name, entry in entries.items()]
        end = 8 + length
        for tensor in sorted(found, key=lambda tensor: (tensor.offset, tensor.size)):
            if tensor.offset != end:
                raise ValueError(f"{tensor.name!r} begins at byte {tensor.offset}, but the one before it ends at {end}")
            end += tensor.size
        if end != size:
            raise ValueError(f"the tensors end at byte {end}, the file at {size}")
    except (ValueError, RecursionError) as error:  # ValueError: also JSON's, and bad UTF-8
        raise ValueError(f"{file}: not a readable safetensors file: {error}") from None
    return {tensor.name: tensor for tensor in found}, metadata


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _stored(name: str, entry: Any, file: Path, start: int) -> FileTensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name!r} is {str(entry)[:80]}")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise ValueError(f"{name!r} is of type {str(code)[:80]!r}; known: {', '.join(_DTYPES)}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise ValueError(f"{name!r} has shape {str(shape)[:80]} and offsets {str(offsets)[:80]}")
    if len(shape) > 32 or len(offsets) != 2:  # 32: numpy's own limit was so until its version 2
        raise ValueError(f"{name!r} has {len(shape)} axes and {len(offsets)} offsets")
    tensor = FileTensor(name, _DTYPES[code], tuple(shape), file, start + offsets[0])
    if tensor.size != offsets[1] - offsets[0]:
        raise ValueError(f"{name!r} of shape {shape} and type {code} has {offsets[1] - offsets[0]} bytes")
    return tensor


def write_safetensors(
    file: Path, specs: Sequence[TensorSpec], tensors: Iterable[LazyTensor], *, metadata: Mapping[str, str]
) -> str:
    """Writes a file from its tensors, each in turn and in the order of `specs`; the SHA-256 of it in hex.

    In the order of `safetensors_order` every tensor is aligned.
    """
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for spec in specs:
        offsets = [end, end := end + spec.size]
        entries[spec.name] = {"dtype": _CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": offsets}
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with HashingFileWriter(file) as digested:
        digested.write(len(header).to_bytes(8, "little") + header)
        for spec, tensor in zip(specs, tensors, strict=True):
            if tensor.dtype != spec.dtype or tensor.shape != spec.shape:
                raise ValueError(f"{spec.name!r} is {tensor.dtype}{list(tensor.shape)}, announced as {spec}")
            for part in row_slices(tensor):
                digested.write(np.ascontiguousarray(tensor.read(part)).reshape(-1).view(np.uint8).data)
        return digested.hexdigest()


def safetensors_order(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """The library's order: by type, then by name."""
    rank = {dtype: i for i, dtype in enumerate(_CODES)}
    return sorted(specs, key=lambda spec: (-rank[spec.dtype], spec.name))
