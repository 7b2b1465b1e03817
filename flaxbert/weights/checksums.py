"""SHA256SUMS beside weights, by which a flipped bit is found; `sha256sum -c SHA256SUMS` reads it too."""

import concurrent.futures
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flaxbert.files import path_inside

CHECKSUMS_FILE = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^\0\n]+)")
_MAX_SIZE = 2**20
_CHUNK = 2**22
_PIECE = 2**16  # bytes a system call writes: as many megabytes take four times as long, measured on ext4
_AHEAD = 2**26  # bytes after which the disk is set to work, so that little is left to wait for in the end


def format_checksums(digests: Mapping[str, str]) -> str:
    """The file's content, from digests in hex by file name."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def verify_checksums(folder: Path, files: Iterable[Path]) -> bool:
    """Compares files in a folder with its SHA256SUMS; whether there was a sum of one of them.

    Raises:
        ValueError: a file is not the one that was written, or SHA256SUMS is malformed.
    """
    file = path_inside(folder, CHECKSUMS_FILE)
    if not file.is_file():
        return False
    digests = read_checksums(file)
    listed = {one: digests[name] for one in files if (name := one.relative_to(folder).as_posix()) in digests}
    for one, digest in listed.items():
        if not one.is_file():
            raise ValueError(f"{one}: is listed in {CHECKSUMS_FILE}, but no plain file")
        if file_sha256(one) != digest:
            raise ValueError(
                f"{one}: does not match {CHECKSUMS_FILE} beside it: the file is damaged, "
                f"or it was replaced after {CHECKSUMS_FILE} was written (then delete {CHECKSUMS_FILE})"
            )
    return bool(listed)


def read_checksums(file: Path) -> dict[str, str]:
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


def file_sha256(file: Path) -> str:
    """The digest of a file in hex."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class HashingFileWriter:
    """Writes a file from its start; meanwhile a thread takes the digest, about as much work; one waits for the disk."""

    def __init__(self, file: Path):
        """Opens the file, anew if it is there; use it in a `with` block."""
        # Not "wb": ext4 takes even an empty file that is cut to nothing for one that replaces another, and waits for
        # the disk when it is closed.
        self._opened = file.open("ab", buffering=0)
        if self._opened.tell():
            self._opened.truncate(0)
        self._digests, self._disk = (concurrent.futures.ThreadPoolExecutor(1) for _ in range(2))
        self._digest = hashlib.sha256()
        self._pending: concurrent.futures.Future[None] | None = None
        self._syncing: concurrent.futures.Future[None] | None = None
        self._unsynced = 0

    def __enter__(self) -> "HashingFileWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._digests.shutdown()
        self._disk.shutdown()
        self._opened.close()
        self._raise_failure()

    def write(self, content: Any) -> int:
        """Writes a buffer of bytes, which must stay as it is until the next call here; how many they are."""
        view = memoryview(content).cast("B")
        self.wait()
        self._pending = self._digests.submit(self._digest.update, view)
        for start in range(0, len(view), _PIECE):
            self._write_all(view[start : start + _PIECE])
        self._unsynced += len(view)
        if self._unsynced >= _AHEAD and (self._syncing is None or self._syncing.done()):
            self._raise_failure()
            self._syncing = self._disk.submit(os.fdatasync, self._opened.fileno())
            self._unsynced = 0
        return len(view)

    def _raise_failure(self) -> None:
        """The disk tells of a failure once: whoever syncs the file after this may hear nothing."""
        if self._syncing is not None:
            self._syncing.result()

    def _write_all(self, view: memoryview) -> None:
        while view:  # a disk that is nearly full takes a part, and says so at the next call
            view = view[self._opened.write(view) :]

    def wait(self) -> None:
        """Returns when no buffer is needed any more."""
        if self._pending is not None:
            self._pending.result()

    def hexdigest(self) -> str:
        """Of all that was written."""
        self.wait()
        return self._digest.hexdigest()
