"""SHA256SUMS beside weights, by which a flipped bit is found; `sha256sum -c SHA256SUMS` reads it too."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from flaxbert.files import inside

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^\0\n]+)")
_MAX_SIZE = 2**20
_CHUNK = 2**22


def text(digests: Mapping[str, str]) -> str:
    """The file's content, from digests in hex by file name."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def check(folder: Path, files: Iterable[Path]) -> bool:
    """Compares files in a folder with its SHA256SUMS; whether there was a sum of one of them.

    Raises:
        ValueError: a file is not the one that was written, or SHA256SUMS is malformed.
    """
    file = inside(folder, NAME)
    if not file.is_file():
        return False
    digests = read(file)
    listed = {one: digests[name] for one in files if (name := one.relative_to(folder).as_posix()) in digests}
    for one, digest in listed.items():
        if not one.is_file():
            raise ValueError(f"{one}: is listed in {NAME}, but no plain file")
        if of(one) != digest:
            raise ValueError(
                f"{one}: does not match {NAME} beside it: the file is damaged, "
                f"or it was replaced after {NAME} was written (then delete {NAME})"
            )
    return bool(listed)


def read(file: Path) -> dict[str, str]:
    """Digests by file name.

    Raises:
        ValueError: what is wrong with the file.
    """
    if file.stat().st_size > _MAX_SIZE:
        raise ValueError(f"{file}: {file.stat().st_size} bytes; at most {_MAX_SIZE} are read")
    try:
        lines = file.read_bytes().decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error})") from None
    matches = [_LINE.fullmatch(line) for line in lines if line]
    if not all(matches):
        raise ValueError(f"{file}: its lines are not those of sha256sum")
    return {match[2]: match[1] for match in matches if match}


def of(file: Path) -> str:
    """The digest of a file in hex."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
