"""Encodings of TensorFlow's files: varints, protobuf messages, masked CRC-32C, and sorted tables of LevelDB."""

import dataclasses
from collections.abc import Iterator

import google_crc32c
import numpy as np

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_MAX_VARINT_BYTES = 10
# Of tables.
_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # after a block: compression, CRC
_MAX_NAMES_RATIO = 32  # bytes of all names over bytes of the index, where names share prefixes; a BERT's ratio is 3


def masked_crc32c(content: bytes | memoryview) -> int:
    """Return the CRC-32C of `content`, rotated and shifted as LevelDB and TFRecord files store it."""
    crc = google_crc32c.value(bytes(content))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_varint(content: bytes | memoryview, position: int) -> tuple[int, int]:
    """Decode the unsigned 64-bit number at a position; return it and the position after it.

    Raises:
        ValueError: the number runs over the end, or has more than ten bytes.
    """
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        if position >= len(content):
            raise ValueError("a number runs over the end")
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), position
    raise ValueError("a number has more than ten bytes")


def read_packed_varints(content: bytes) -> np.ndarray:
    """Decode all of `content` as signed 64-bit numbers.

    Raises:
        ValueError: the last number has no end, or a number has more than ten bytes.
    """
    if not content:
        return np.zeros(0, np.int64)
    groups = np.frombuffer(content, np.uint8)
    ends = np.flatnonzero(groups < 128)
    if not len(ends) or ends[-1] != len(groups) - 1:
        raise ValueError("a number runs over the end")
    starts = np.concatenate([[0], ends[:-1] + 1])
    sizes = ends - starts + 1
    if sizes.max() > _MAX_VARINT_BYTES:
        raise ValueError("a number has more than ten bytes")
    shifts = 7 * (np.arange(len(groups)) - np.repeat(starts, sizes))
    return np.add.reduceat((groups & 127).astype(np.uint64) << shifts.astype(np.uint64), starts).astype(np.int64)


@dataclasses.dataclass(frozen=True, slots=True)
class _Value:
    wire_type: int
    content: bytes | memoryview


class Message:
    """The fields of a protobuf message by number, each with all its values in order.

    Methods raise ValueError for a malformed message and for a field of another type.
    """

    def __init__(self, content: bytes | memoryview):
        """Parse a message without copying its content."""
        self._fields: dict[int, list[_Value]] = {}
        position = 0
        while position < len(content):
            tag, position = read_varint(content, position)
            number, wire_type = tag >> 3, tag & 7
            if wire_type == _VARINT:
                _, end = read_varint(content, position)
            elif wire_type in (_FIXED32, _FIXED64):
                end = position + (4 if wire_type == _FIXED32 else 8)
            elif wire_type == _BYTES:
                length, position = read_varint(content, position)
                end = position + length
            else:
                raise ValueError(f"field {number} has the wire type {wire_type}")
            if end > len(content):
                raise ValueError(f"field {number} runs over the end of its message")
            self._fields.setdefault(number, []).append(_Value(wire_type, content[position:end]))
            position = end

    def __contains__(self, number: int) -> bool:
        return number in self._fields

    def integer(self, number: int) -> int:
        """Return the last value of a field of integers as an unsigned number, or 0 where the field is missing."""
        if number not in self._fields:
            return 0
        value = self._fields[number][-1]
        if value.wire_type == _VARINT:
            return read_varint(value.content, 0)[0]
        if value.wire_type == _BYTES:
            raise ValueError(f"field {number} is not a number")
        return int.from_bytes(value.content, "little")

    def strings(self, number: int) -> list[bytes | memoryview]:
        """Return the values of a field of strings or messages."""
        values = self._fields.get(number, [])
        if any(value.wire_type != _BYTES for value in values):
            raise ValueError(f"a number stands in field {number}, where a string or a message should")
        return [value.content for value in values]

    def messages(self, number: int) -> "list[Message]":
        """Parse the values of a field of messages."""
        return [Message(content) for content in self.strings(number)]

    def packed(self, number: int) -> bytes:
        """Return the encoded values of a field of repeated numbers, packed or one by one, one after the other."""
        return b"".join(value.content for value in self._fields.get(number, []))


# -- tables ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _BlockHandle:
    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


def read_table(content: bytes) -> dict[bytes, bytes]:
    """Return all keys and values of a table; the index block at the end lists the other blocks.

    Raises:
        ValueError: the table is damaged.
    """
    footer = content[-_FOOTER_BYTES:]
    if len(footer) < _FOOTER_BYTES or footer[-8:] != _MAGIC:
        raise ValueError("it does not end as a table does; the file may be cut short")
    _, position = _read_handle(footer, 0)  # the block of metadata, which TensorFlow leaves empty
    index_block, _ = _read_handle(footer, position)
    records: dict[bytes, bytes] = {}
    end = name_bytes = 0
    for _, value in _read_block(content, index_block):
        block, _ = _read_handle(value, 0)
        if block.offset < end:  # blocks are written in order; one that is listed repeatedly would take forever
            raise ValueError(f"the blocks at byte {block.offset} and before it overlap")
        end = block.end
        for key, record in _read_block(content, block):
            if key in records:
                raise ValueError(f"the name {key!r} occurs twice")
            records[key] = record
            name_bytes += len(key)
            if name_bytes > _MAX_NAMES_RATIO * len(content):
                raise ValueError(f"its names take more than {_MAX_NAMES_RATIO} times its size")
    return records


def _read_handle(content: bytes, position: int) -> tuple[_BlockHandle, int]:
    """Return the block handle at a position, and the position after it."""
    offset, position = read_varint(content, position)
    size, position = read_varint(content, position)
    return _BlockHandle(offset, size), position


def _read_block(content: bytes, handle: _BlockHandle) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block. Each key shares a prefix with the one before it."""
    offset, size, end = handle.offset, handle.size, handle.end
    if size < 4 or end + _TRAILER_BYTES > len(content):
        raise ValueError(f"a block at byte {offset} of {size} bytes does not fit into {len(content)}")
    compression, crc = content[end], int.from_bytes(content[end + 1 : end + _TRAILER_BYTES], "little")
    if masked_crc32c(content[offset : end + 1]) != crc:
        raise ValueError(f"the block at byte {offset} does not match its checksum")
    if compression:
        raise ValueError("its blocks are compressed, which TensorFlow never does")
    block = content[offset:end]
    restarts = int.from_bytes(block[-4:], "little")  # positions of complete keys, for binary search
    stop = len(block) - 4 - 4 * restarts
    if stop < 0:
        raise ValueError(f"the block at byte {offset} has {restarts} restarts in {size} bytes")
    key, position = b"", 0
    while position < stop:
        shared, position = read_varint(block, position)
        unshared, position = read_varint(block, position)
        length, position = read_varint(block, position)
        if shared > len(key) or position + unshared + length > stop:
            raise ValueError(f"an entry of the block at byte {offset} runs over its end")
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length
