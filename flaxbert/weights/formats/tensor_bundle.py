"""TensorFlow's checkpoint format (PREFIX.index, PREFIX.data-?????-of-?????), read without TensorFlow.

The index is a sorted table in LevelDB's format: blocks of prefix-compressed keys, each block followed by a compression
byte and a CRC-32C. Its values are the protobuf messages BundleHeaderProto (key "") and BundleEntryProto of TensorFlow's
tensor_bundle.proto. The data files are the tensors' bytes one after the other. Every size is checked against the files
before it is used, and every block and tensor against its checksum.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import ml_dtypes
import numpy as np

from flaxbert.files import path_inside

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER = 48
_TRAILER = 5  # of a block: compression, checksum
_MAX_INDEX = 256 * 2**20  # a BERT's is some tens of kilobytes
_MAX_UNPACKED = 32  # the names beside the index, in which each shares the start of the one before it: 3 times
# DataType of TensorFlow's types.proto.
_DTYPES = {
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    3: np.dtype("<i4"),
    4: np.dtype("u1"),
    5: np.dtype("<i2"),
    6: np.dtype("i1"),
    9: np.dtype("<i8"),
    10: np.dtype("?"),
    14: np.dtype(ml_dtypes.bfloat16),
    19: np.dtype("<f2"),
}


@dataclasses.dataclass(frozen=True)
class BundleTensor:
    """A tensor of a checkpoint: its type, and where its bytes are."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    file: Path
    offset: int
    size: int
    checksum: int

    @property
    def supports_row_reads(self) -> bool:
        """All of it is read for some rows."""
        return False

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """The tensor, or consecutive rows of it; all of it is read for them, since its checksum covers all.

        Raises:
            ValueError: its bytes are not those that were written.
        """
        with self.file.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) != self.size or not _matches(content, self.checksum):
            raise ValueError(
                f"{self.file}: the bytes of {self.name!r} do not match their checksum; the file is damaged"
            )
        tensor = np.frombuffer(content, self.dtype).reshape(self.shape)
        return tensor[rows] if self.shape else tensor


def read_bundle_index(prefix: Path) -> dict[str, BundleTensor]:
    """The variables of the checkpoint PREFIX, by name; strings and other types without numbers are left out.

    Raises:
        FileNotFoundError: the index or a data file is missing.
        ValueError: what is damaged or not supported, and in which file.
    """
    index = prefix.with_name(f"{prefix.name}.index")
    if not index.is_file():  # a pipe has nothing to read, for ever
        raise FileNotFoundError(f"{index}: no such file")
    size = index.stat().st_size
    if size > _MAX_INDEX:
        raise ValueError(f"{index}: {size} bytes; an index of at most {_MAX_INDEX} is read")
    try:
        return _variables(prefix, _records(index.read_bytes()))
    except _Damaged as error:
        raise ValueError(f"{index}: not a readable TensorFlow checkpoint index ({error})") from None


class _Damaged(Exception):
    """What is wrong with the bytes at hand; turned into a ValueError that names the file."""


def _variables(prefix: Path, records: dict[bytes, bytes]) -> dict[str, BundleTensor]:
    header = _message(records.pop(b"", b""))
    shards, big_endian = _integer(header, 1, 0), _integer(header, 2, 0)
    if not 1 <= shards <= 99999:
        raise _Damaged(f"it says that there are {shards} data files")
    if big_endian:
        raise _Damaged("big-endian numbers are not supported")
    found: dict[str, BundleTensor] = {}
    left: dict[Path, int] = {}  # bytes of each data file beyond those of the variables before
    for key, value in records.items():
        if key.startswith(b"\0"):  # a slice of a variable, whose own entry comes later and is refused
            continue
        try:
            name = key.decode()
        except UnicodeDecodeError:
            raise _Damaged(f"the name {key!r} is not UTF-8") from None
        entry = _message(value)
        dtype, shard = _DTYPES.get(_integer(entry, 1, 0)), _integer(entry, 3, 0)
        if dtype is None:
            continue
        if 7 in entry:
            raise _Damaged(f"{name!r} is stored in slices (a partitioned variable), which is not supported")
        if shard >= shards:
            raise _Damaged(f"{name!r} is in data file {shard} of {shards}")
        file = path_inside(prefix.parent, f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")
        offset, size, checksum = (_integer(entry, field, 0) for field in (4, 5, 6))
        variable = BundleTensor(name, dtype, _shape(entry, name), file, offset, size, checksum)
        if math.prod(variable.shape) * dtype.itemsize != size:
            raise _Damaged(f"{name!r} of shape {list(variable.shape)} and type {dtype} has {size} bytes")
        file_size = file.stat().st_size
        if offset + size > file_size:
            raise _Damaged(f"{name!r} ends at byte {offset + size} of {file.name}, which has {file_size}")
        left[file] = left.get(file, file_size) - size
        if left[file] < 0:
            raise _Damaged(f"its variables overlap: they take more bytes than {file.name} has")
        found[name] = variable
    return found


def _shape(entry: dict[int, list[int | bytes]], name: str) -> tuple[int, ...]:
    """A TensorShapeProto: dimensions in field 2, the size of each in its field 1."""
    shape = []
    for message in entry.get(2, [])[:1]:
        fields = _message(message)
        if 3 in fields:
            raise _Damaged(f"{name!r} has no known shape")
        shape = [_integer(_message(dimension), 1, 0) for dimension in fields.get(2, [])]
    if len(shape) > 32 or any(length >= 2**40 for length in shape):
        raise _Damaged(f"{name!r} has the shape {shape}")
    return tuple(shape)


# -- the table -------------------------------------------------------------------------------------------


def _records(content: bytes) -> dict[bytes, bytes]:
    """All keys and values of a table; the index block at its end says where the others are."""
    footer = content[-_FOOTER:]
    if len(footer) < _FOOTER or footer[-8:] != _MAGIC:
        raise _Damaged("its last bytes are not those of a table; is it cut short?")
    _, place = _handle(footer, 0)  # of a block of meta data, which TensorFlow leaves empty
    handle, _ = _handle(footer, place)
    records: dict[bytes, bytes] = {}
    end = unpacked = 0
    for _, value in _block(content, handle):
        (offset, size), _ = _handle(value, 0)
        if offset < end:  # as they are written; one read over and over would take for ever
            raise _Damaged(f"the blocks at byte {offset} and before it overlap")
        end = offset + size
        for key, record in _block(content, (offset, size)):
            if key in records:
                raise _Damaged(f"the name {key!r} is there twice")
            records[key] = record
            unpacked += len(key)
            if unpacked > _MAX_UNPACKED * len(content):
                raise _Damaged(f"its names take more than {_MAX_UNPACKED} times its size")
    return records


def _handle(content: bytes, place: int) -> tuple[tuple[int, int], int]:
    """Offset and size of a block, and where the reading of them ended."""
    offset, place = _varint(content, place)
    size, place = _varint(content, place)
    return (offset, size), place


def _block(content: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block: each key shares a prefix with the one before it."""
    offset, size = handle
    end = offset + size
    if size < 4 or end + _TRAILER > len(content):
        raise _Damaged(f"a block at byte {offset} of {size} bytes does not fit into {len(content)}")
    compression, checksum = content[end], int.from_bytes(content[end + 1 : end + _TRAILER], "little")
    if not _matches(content[offset : end + 1], checksum):
        raise _Damaged(f"the block at byte {offset} does not match its checksum")
    if compression:
        raise _Damaged("its blocks are compressed, which TensorFlow never does")
    block = content[offset:end]
    restarts = int.from_bytes(block[-4:], "little")  # places where a key is whole, for searching
    stop = len(block) - 4 - 4 * restarts
    if stop < 0:
        raise _Damaged(f"the block at byte {offset} has {restarts} restarts in {size} bytes")
    key, place = b"", 0
    while place < stop:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        if shared > len(key) or place + own + length > stop:
            raise _Damaged(f"an entry of the block at byte {offset} runs over its end")
        key = key[:shared] + block[place : place + own]
        place += own
        yield key, block[place : place + length]
        place += length


# -- protobuf --------------------------------------------------------------------------------------------


def _message(content: int | bytes) -> dict[int, list[int | bytes]]:
    """The fields of a message by number: integers as they are, strings and inner messages as bytes."""
    if isinstance(content, int):
        raise _Damaged("a number stands where a message should")
    fields: dict[int, list[int | bytes]] = {}
    place = 0
    while place < len(content):
        tag, place = _varint(content, place)
        number, kind = tag >> 3, tag & 7
        value: int | bytes
        if kind == 0:
            value, place = _varint(content, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
            value, place = int.from_bytes(content[place : place + length], "little"), place + length
        elif kind == 2:
            length, place = _varint(content, place)
            value, place = content[place : place + length], place + length
        else:
            raise _Damaged(f"field {number} has the wire type {kind}")
        if place > len(content):
            raise _Damaged(f"field {number} runs over the end of its message")
        fields.setdefault(number, []).append(value)
    return fields


def _integer(fields: dict[int, list[int | bytes]], number: int, default: int) -> int:
    value = fields.get(number, [default])[-1]
    if not isinstance(value, int):
        raise _Damaged(f"field {number} is no number")
    return value


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first; and where the next one begins."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(content):
            raise _Damaged("a number runs over the end")
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), place
    raise _Damaged("a number has more than ten bytes")


def _matches(content: bytes, checksum: int) -> bool:
    """Whether a CRC-32C is that of `content`, in LevelDB's disguise of those stored beside what they cover."""
    plain = google_crc32c.value(content)
    return checksum == (((plain >> 15) | (plain << 17)) + 0xA282EAD8) & 0xFFFFFFFF
