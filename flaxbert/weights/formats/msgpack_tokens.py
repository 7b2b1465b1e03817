"""Tokens of msgpack, read one after the other with their byte offsets, and written.

The msgpack library cannot replace this: it gives no byte offsets, and loads the bytes of arrays into memory.
"""

from pathlib import Path
from typing import BinaryIO

MAX_STRING_BYTES = 1024
_MAX_ENTRIES = 100_000  # of all maps of a file together; a large BERT has 700

# A token begins with a byte that gives either both kind and length (of a number: its value), or the kind alone; then
# the length follows in the given number of bytes.
_SHORT = {
    "number": {n: n for n in range(128)},
    "map": {n: 0x80 + n for n in range(16)},
    "array": {n: 0x90 + n for n in range(16)},
    "string": {n: 0xA0 + n for n in range(32)},
    "bytes": {},
    "extension": {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8},
}
_LONG = {
    "number": {1: 0xCC, 2: 0xCD, 4: 0xCE, 8: 0xCF},
    "map": {2: 0xDE, 4: 0xDF},
    "array": {2: 0xDC, 4: 0xDD},
    "string": {1: 0xD9, 2: 0xDA, 4: 0xDB},
    "bytes": {1: 0xC4, 2: 0xC5, 4: 0xC6},
    "extension": {1: 0xC7, 2: 0xC8, 4: 0xC9},
}
_TOKENS = (
    {code: (kind, length, 0) for kind, codes in _SHORT.items() for length, code in codes.items()}
    | {code: (kind, 0, width) for kind, codes in _LONG.items() for width, code in codes.items()}
    | {0xC0: ("nil", 0, 0), 0xC2: ("false", 0, 0), 0xC3: ("true", 0, 0)}
)
# The least number of bytes for each unit of a token's length.
_MIN_BYTES = {"map": 2, "array": 1, "string": 1, "bytes": 1, "extension": 1}

TRUE = b"\xc3"
"""The token true."""


class MsgpackReader:
    """Sequential reader of msgpack's tokens: maps, arrays, strings, bytes, whole numbers, extensions.

    Methods raise ValueError where the tokens break the format; no length is returned that the rest of the file could
    not hold.
    """

    def __init__(self, file: Path, opened: BinaryIO):
        self.file = file
        self._opened = opened
        self.bytes_left = file.stat().st_size
        self.position = 0  # of the next byte
        self._entries = 0

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        content = b"" if count > self.bytes_left else self._opened.read(count)
        if len(content) < count:
            raise ValueError(f"{count} bytes are expected at byte {self.position}, {self.bytes_left} are there")
        self._advance(count)
        return content

    def skip(self, count: int) -> None:
        """Skip bytes, of which the file must have as many."""
        self._opened.seek(count, 1)
        self._advance(count)

    def _advance(self, count: int) -> None:
        self.position, self.bytes_left = self.position + count, self.bytes_left - count

    def next(self) -> tuple[str, int]:
        """Return the kind and the length (of a number: the value) of the next token."""
        start, code = self.position, self.take(1)[0]
        if code not in _TOKENS:
            return f"a token 0x{code:02x}", 0
        kind, length, width = _TOKENS[code]
        if width:
            length = int.from_bytes(self.take(width), "big")
        if length * _MIN_BYTES.get(kind, 0) + (kind == "extension") > self.bytes_left:  # one more for the type
            raise ValueError(f"{kind} of length {length} at byte {start}, but {self.bytes_left} bytes follow")
        if kind == "map":
            self._entries += length
            if self._entries > _MAX_ENTRIES:
                raise ValueError(f"more than {_MAX_ENTRIES} entries")
        return kind, length

    def expect(self, kind: str, description: str) -> int:
        """Return the length (of a number: the value) of the next token, which must be of this kind."""
        found, length = self.next()
        if found != kind:
            raise ValueError(f"{description} is {found}, not {kind}")
        return length

    def string(self, description: str) -> str:
        """Return the next token, which must be a string of at most 1,024 bytes."""
        length = self.expect("string", description)
        if length > MAX_STRING_BYTES:
            raise ValueError(f"{description} has {length} bytes")
        return self.take(length).decode()


def pack_string(text: str) -> bytes:
    """Return a string as a token."""
    content = text.encode()
    return pack_head("string", len(content)) + content


def pack_head(kind: str, length: int) -> bytes:
    """Return the shortest head of a token of this kind and length, as the msgpack library writes it."""
    if length in _SHORT[kind]:
        return bytes([_SHORT[kind][length]])
    width, code = next((width, code) for width, code in _LONG[kind].items() if length < 256**width)
    return bytes([code]) + length.to_bytes(width, "big")
