"""The tokens of msgpack that a file of arrays is made of: dicts, lists, strings, bytes, whole numbers, extensions."""

from pathlib import Path
from typing import BinaryIO

MAX_KEY = 1024  # bytes of a string
_MAX_ENTRIES = 100_000  # of all dicts of a file together; a large BERT has 700

# A token of msgpack is a byte for its kind and length in one (for a number: its value), or one for the kind alone,
# which is followed by the length in so many bytes.
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
_TRUE = 0xC3
TRUE = bytes([_TRUE])
_TOKENS = (
    {code: (kind, length, 0) for kind, codes in _SHORT.items() for length, code in codes.items()}
    | {code: (kind, 0, width) for kind, codes in _LONG.items() for width, code in codes.items()}
    | {0xC0: ("nil", 0, 0), 0xC2: ("false", 0, 0), _TRUE: ("true", 0, 0)}
)
# How many bytes each 1 of a length takes at least.
_LEAST = {"map": 2, "array": 1, "string": 1, "bytes": 1, "extension": 1, "number": 0, "nil": 0, "false": 0, "true": 0}


class Tokens:
    """The tokens of a file in turn. No length leaves here that the rest of the file could not hold."""

    def __init__(self, file: Path, opened: BinaryIO):
        self.file = file
        self._opened = opened
        self.left = file.stat().st_size  # bytes
        self.at = 0
        self._entries = 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        content = b"" if count > self.left else self._opened.read(count)
        if len(content) < count:
            raise ValueError(f"{count} bytes are expected at byte {self.at}, {self.left} are there")
        self.at, self.left = self.at + count, self.left - count
        return content

    def skip(self, count: int) -> None:
        """Passes over bytes that are there."""
        self._opened.seek(count, 1)
        self.at, self.left = self.at + count, self.left - count

    def next(self) -> tuple[str, int]:
        """Kind and length of the next token."""
        start, code = self.at, self.take(1)[0]
        if code not in _TOKENS:
            return f"a token 0x{code:02x}", 0
        kind, length, width = _TOKENS[code]
        if width:
            length = int.from_bytes(self.take(width), "big")
        if length * _LEAST[kind] + (kind == "extension") > self.left:  # an extension's type is a byte more
            raise ValueError(f"{kind} of length {length} at byte {start}, but {self.left} bytes follow")
        if kind == "map":
            self._entries += length
            if self._entries > _MAX_ENTRIES:
                raise ValueError(f"more than {_MAX_ENTRIES} entries")
        return kind, length

    def expect(self, kind: str, what: str) -> int:
        """The length of the next token, which must be of this kind."""
        found, length = self.next()
        if found != kind:
            raise ValueError(f"{what} is {found}, not {kind}")
        return length

    def text(self, what: str) -> str:
        """The string that the next token must be."""
        length = self.expect("string", what)
        if length > MAX_KEY:
            raise ValueError(f"{what} has {length} bytes")
        return self.take(length).decode()


def string(text: str) -> bytes:
    """A string with its head."""
    content = text.encode()
    return token("string", len(content)) + content


def token(kind: str, length: int) -> bytes:
    """The shortest head of this kind, as msgpack writes it."""
    if length in _SHORT[kind]:
        return bytes([_SHORT[kind][length]])
    width, code = next((width, code) for width, code in _LONG[kind].items() if length < 256**width)
    return bytes([code]) + length.to_bytes(width, "big")
