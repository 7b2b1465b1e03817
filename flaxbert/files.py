"""Files that are whole and on the disk, or not there; and others' files: small, plain, in the folder they belong to."""

import contextlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MAX_JSON = 64 * 2**20
_LONGEST, _END = 100_000, 2000


def path_inside(folder: Path, name: str) -> Path:
    """The file of this name in a folder, which a file there names; it need not exist.

    Links are followed within the folder, and from a snapshot of huggingface_hub's cache to the files it links to.

    Raises:
        ValueError: the name leads out of the folder.
    """
    plain = name not in ("", ".", "..") and Path(name).name == name and "\0" not in name
    plain = plain and len(name.encode(errors="replace")) < 256  # what file systems take
    if not plain or not _leads_into(folder.resolve(), folder / name):
        raise ValueError(f"{folder}: the file name {name[:200]!r} leads out of the folder")
    return folder / name


def _leads_into(folder: Path, file: Path) -> bool:
    root = folder.parent.parent if folder.parent.name == "snapshots" else folder
    try:
        return file.resolve().is_relative_to(root)
    except (OSError, RuntimeError, ValueError):  # links in a circle, a name too long or not to be encoded
        return False


def read_json(file: Path) -> Any:
    """The content of a JSON file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: too large, or not JSON.
    """
    size = file.stat().st_size
    if size > _MAX_JSON:
        raise ValueError(f"{file}: {size} bytes; at most {_MAX_JSON} are read")
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:  # ValueError: also bad UTF-8
        raise ValueError(f"{file}: not a JSON file ({error})") from None


@contextlib.contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Gives a path beside `target` to write to; renames it on success and removes it on failure."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        aside.chmod(0o666 & ~_umask())
        _sync(aside)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def require_absent(target: Path) -> None:
    """Raises FileExistsError where a folder to be made is there already."""
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target}: is there already; choose a folder that is not")


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Gives a folder beside `target`, which is not there yet; renames it on success and removes it on failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield aside
        aside.chmod(0o777 & ~_umask())
        for path in (*aside.rglob("*"), aside):
            _sync(path)
        os.rename(aside, target)
        _sync(target.parent)
    finally:
        for seconds in (0, 0.1, 1):  # threads of orbax write for a while after it has failed
            time.sleep(seconds)
            shutil.rmtree(aside, ignore_errors=True)
            if not aside.exists():
                break


def _sync(path: Path) -> None:
    """Waits for the disk: a name that is given after it will not outlive a power cut without its content."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError:
        if not path.is_dir():  # some file systems cannot with folders
            raise
    finally:
        os.close(opened)


def _umask() -> int:
    # The only way to read it; mkstemp ignores it and makes files that only their owner can read.
    current = os.umask(0)
    os.umask(current)
    return current


def escape_control_characters(text: str, *, lines: bool = True) -> str:
    """Text with all that is not printable as in Python's literals, and without its middle where it is endless.

    Args:
        text: whatever a file, or an error about it, says.
        lines: leave line ends as they are.
    """
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]}\n... ({len(text):,} characters) ...\n{text[-_END:]}"
    return "".join(c if c.isprintable() or (lines and c == "\n") else ascii(c)[1:-1] for c in text)


class EscapingFormatter(logging.Formatter):
    """Of log messages that are plain."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, plain."""
        return escape_control_characters(super().format(record))
