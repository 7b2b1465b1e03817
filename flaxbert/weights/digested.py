"""A file that is written, and its SHA-256."""

import concurrent.futures
import hashlib
import os
from pathlib import Path
from typing import Any

_PIECE = 2**16  # bytes a system call writes: as many megabytes take four times as long, measured on ext4
_AHEAD = 2**26  # bytes after which the disk is set to work, so that little is left to wait for in the end


class Digested:
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

    def __enter__(self) -> "Digested":
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
