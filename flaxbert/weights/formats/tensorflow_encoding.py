"""Encodings of TensorFlow's files: varints, protobuf messages, masked CRC-32C (checkpoints and TFRecord files)."""

import dataclasses

import google_crc32c
import numpy as np

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_MAX_VARINT_BYTES = 10


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
