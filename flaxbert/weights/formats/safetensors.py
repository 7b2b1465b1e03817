"""Safetensors files, read lazily and written one tensor at a time.

Format (huggingface/safetensors): eight bytes with the header's length, a JSON header from names to
{"dtype", "shape", "data_offsets"}, then the tensors' bytes in order and without gaps. Written files equal those of the
library byte for byte. The library is not used: its writer needs all tensors in memory, and its reader accepts a name
that occurs twice and maps the file, so that the process dies if the file is cut short meanwhile.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

from flaxbert.files import require_downloaded
from flaxbert.weights.tensors import FileTensor, LazyTensor, TensorSpec, tensor_bytes

_MAX_HEADER_BYTES = 100_000_000  # the library's limit
_MAX_AXES = 32  # numpy's limit before version 2
# In the library's order. It writes tensors with the last of these types first, so that all tensors are aligned.
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


def open_safetensors(file: Path) -> dict[str, FileTensor]:
    """Return the tensors of a file by name, unread.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file breaks a rule of the format.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = opened.read(length)
        if header[:1] != b"{":
            raise ValueError("the header is not an object")
        entries = json.loads(header, object_pairs_hook=_dict_of_unique_names)
        metadata = entries.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ holds values that are not strings")
        tensors = [_parse_entry(name, entry, file, 8 + length) for name, entry in entries.items()]
        end = 8 + length
        for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size)):
            if tensor.offset != end:
                raise ValueError(f"{tensor.name!r} begins at byte {tensor.offset}, but the one before it ends at {end}")
            end += tensor.size
        if end != size:
            raise ValueError(f"the tensors end at byte {end}, the file at {size}")
    except (ValueError, RecursionError) as error:  # ValueError includes bad JSON and bad UTF-8
        require_downloaded(file)
        raise ValueError(f"{file}: not a readable safetensors file: {error}") from None
    return {tensor.name: tensor for tensor in tensors}


def _dict_of_unique_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name occurs twice")
    return content


def _parse_entry(name: str, entry: object, file: Path, start: int) -> FileTensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name!r} is {str(entry)[:80]}")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise ValueError(f"{name!r} is of type {str(code)[:80]!r}; known: {', '.join(_DTYPES)}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
            raise ValueError(f"{name!r} has shape {str(shape)[:80]} and offsets {str(offsets)[:80]}")
    if len(shape) > _MAX_AXES or len(offsets) != 2:
        raise ValueError(f"{name!r} has {len(shape)} axes and {len(offsets)} offsets")
    tensor = FileTensor(name, _DTYPES[code], tuple(shape), file, start + offsets[0])
    if tensor.size != offsets[1] - offsets[0]:
        raise ValueError(f"{name!r} of shape {shape} and type {code} has {offsets[1] - offsets[0]} bytes")
    return tensor


def write_safetensors(file: Path, specs: Sequence[TensorSpec], tensors: Iterable[LazyTensor]) -> None:
    """Write a file, one tensor at a time; `specs` and `tensors` are in the same order.

    `safetensors_order` aligns all of them. Raise ValueError where a tensor does not match its spec.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}  # the layout of tensors is PyTorch's
    end = 0
    for spec in specs:
        offsets = [end, end := end + spec.size]
        entries[spec.name] = {"dtype": _CODES[spec.dtype], "shape": list(spec.shape), "data_offsets": offsets}
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with file.open("wb") as opened:
        opened.write(len(header).to_bytes(8, "little") + header)
        for spec, tensor in zip(specs, tensors, strict=True):
            spec.require_match(tensor)
            for part in tensor_bytes(tensor):
                opened.write(part)


def safetensors_order(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """Sort specs in the library's order: by type, then by name."""
    rank = {dtype: i for i, dtype in enumerate(_CODES)}
    return sorted(specs, key=lambda spec: (-rank[spec.dtype], spec.name))
