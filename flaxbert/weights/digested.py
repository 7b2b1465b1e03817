"""A file that is written, and its SHA-256."""

import concurrent.futures
import hashlib
from pathlib import Path
from typing import Any

_PIECE = 2**16  # bytes a system call writes: as many megabytes take four times as long, measured on ext4


class Digested:
    """Writes a file from its start; a second thread takes the digest meanwhile, which is about as much work."""

    def __init__(self, file: Path):
        """Opens the file, anew if it is there; use it in a `with` block."""
        # Not "wb": ext4 takes even an empty file that is cut to nothing for one that replaces another, and waits for
        # the disk when it is closed.
        self._opened = file.open("ab", buffering=0)
        if self._opened.tell():
            self._opened.truncate(0)
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._digest = hashlib.sha256()
        self._pending: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> "Digested":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        self._opened.close()

    def write(self, content: Any) -> int:
        """Writes a buffer of bytes, which must stay as it is until the next call here; how many they are."""
        view = memoryview(content).cast("B")
        self.wait()
        self._pending = self._thread.submit(self._digest.update, view)
        for start in range(0, len(view), _PIECE):
            self._write_all(view[start : start + _PIECE])
        return len(view)

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
