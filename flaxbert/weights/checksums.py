"""Checksums in a file SHA256SUMS beside the weights, to detect damage; `sha256sum -c SHA256SUMS` reads it too."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from flaxbert.files import path_inside

CHECKSUMS_FILE = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^\0\n]+)")
_MAX_BYTES = 2**20


def format_checksums(digests: Mapping[str, str]) -> str:
    """Return the content of SHA256SUMS.

    Args:
        digests: SHA-256 in hexadecimal by file name.
    """
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def verify_checksums(folder: Path, files: Iterable[Path]) -> bool:
    """Compare files of a folder with its SHA256SUMS, and return whether it lists any of them.

    Raises:
        ValueError: a file differs from its checksum, or SHA256SUMS is malformed.
    """
    sums = path_inside(folder, CHECKSUMS_FILE)
    if not sums.is_file():
        return False
    digests = read_checksums(sums)
    listed = {file: digests[name] for file in files if (name := file.relative_to(folder).as_posix()) in digests}
    for file, digest in listed.items():
        if not file.is_file():
            raise ValueError(f"{file}: listed in {CHECKSUMS_FILE}, but not a regular file")
        if file_sha256(file) != digest:
            raise ValueError(
                f"{file}: does not match {CHECKSUMS_FILE} beside it. Either the file is damaged, "
                f"or it was replaced after {CHECKSUMS_FILE} was written (then delete {CHECKSUMS_FILE})"
            )
    return bool(listed)


def read_checksums(file: Path) -> dict[str, str]:
    """Read SHA-256 in hexadecimal by file name.

    Raises:
        ValueError: the file is larger than 1 MiB, or not in the format of sha256sum.
    """
    size = file.stat().st_size
    if size > _MAX_BYTES:
        raise ValueError(f"{file}: {size} bytes; at most {_MAX_BYTES} are read")
    try:
        lines = file.read_bytes().decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error})") from None
    matches = [_LINE.fullmatch(line) for line in lines if line]
    if not all(matches):
        raise ValueError(f"{file}: not in the format of sha256sum (DIGEST  FILE)")
    return {match[2]: match[1] for match in matches if match}


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
