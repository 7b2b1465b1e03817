"""Writes TensorFlow 1 checkpoint indices, right ones and wrong ones, for the tests of their reader."""

import struct

import google_crc32c


def masked(content: bytes) -> int:
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def varint(value: int) -> bytes:
    groups = [value & 0x7F]
    while value := value >> 7:
        groups.append(value & 0x7F)
    return bytes([group | 0x80 for group in groups[:-1]] + groups[-1:])


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """A protobuf message: whole numbers, and bytes for strings and inner messages."""
    return b"".join(
        varint(number << 3 | 2) + varint(len(value)) + value
        if isinstance(value, bytes)
        else varint(number << 3) + varint(value)
        for number, value in fields
    )


def entry(content: bytes, *, dtype=1, shape=(2,), shard=0, offset=0, size=None, more=()) -> bytes:
    """A BundleEntryProto of some bytes of a data file."""
    dimensions = message(*((2, message((1, length))) for length in shape))
    size = len(content) if size is None else size
    fields = message((1, dtype), (2, dimensions), (3, shard), (4, offset), (5, size), *more)
    return fields + varint(6 << 3 | 5) + struct.pack("<I", masked(content))


def block(records: list[tuple[bytes, bytes]], *, compression=0, shared=0) -> bytes:
    """A block of a table; no key shares the start of another, unless the last one says so."""
    content = b""
    for number, (key, value) in enumerate(records, 1):
        content += varint(shared if number == len(records) else 0) + varint(len(key)) + varint(len(value)) + key + value
    content += struct.pack("<II", 0, 1) + bytes([compression])
    return content + struct.pack("<I", masked(content))


def index(*blocks: bytes, places=None) -> bytes:
    """A table of blocks: the index block says where they are (or says `places`), the footer where that is."""
    found, start = [], 0
    for number, content in enumerate(blocks):
        found.append((bytes([number]), varint(start) + varint(len(content) - 5)))
        start += len(content)
    last = block(found if places is None else [(b"k", varint(a) + varint(b)) for a, b in places])
    handles = varint(0) + varint(0) + varint(start) + varint(len(last) - 5)
    return b"".join(blocks) + last + handles.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
