"""Atomic writes, safe reads of files named by untrusted checkpoints, and checksums.

Atomic means: write to a temporary file beside the target, fsync, rename. Readers never see half of a file.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

CHECKSUMS_FILE = "SHA256SUMS"  # beside the weights; `sha256sum -c SHA256SUMS` reads it too

_MAX_JSON_BYTES = 64 * 2**20
_MAX_NAME_BYTES = 255  # limit of common file systems
# As sha256sum writes a line (DIGEST  FILE), and as BSD's sha256 and `sha256sum --tag` do.
_CHECKSUM_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *]([^\0\n]+)|SHA256 \(([^\0\n]+)\) = ([0-9a-fA-F]{64})")
_MAX_CHECKSUMS_BYTES = 2**20
# Tags alone in the first line, <Error> being that of object stores: a text may begin with a word about <html>.
_WEB_PAGE = re.compile(rb"(<\?xml[^>]*>\s*)?<(!doctype html|html|error)\b[^>]*>[ \t]*([<\r\n]|$)", re.IGNORECASE)
# A name of `tempfile` for a file with one of these endings, or for a folder: users may have other hidden files.
_TEMPORARY = re.compile(r"\.(.+\.(json|jsonl|md|npz|png|safetensors|tsv|txt)|model|tokenizer|SHA256SUMS)\.[a-z0-9_]{8}")
_WEB_PAGE_BYTES = 1024  # of the start of a file


def path_inside(folder: Path, name: str) -> Path:
    """Return `folder / name` for a file name that comes from an untrusted file; the path need not exist.

    Links may point to other files of the folder and, in a snapshot of huggingface_hub's cache, to the cached blobs.

    Raises:
        ValueError: `name` is not a plain file name, or the path leads out of the folder.
    """
    is_plain = name not in ("", ".", "..") and Path(name).name == name and "\0" not in name
    is_plain = is_plain and len(name.encode(errors="replace")) <= _MAX_NAME_BYTES
    if not is_plain or not _resolves_into(folder.resolve(), folder / name):
        raise ValueError(f"{folder}: the file name {name[:200]!r} leads out of the folder")
    return folder / name


def _resolves_into(folder: Path, file: Path) -> bool:
    root = next((parent.parent for parent in folder.parents if parent.name == "snapshots"), folder)
    try:
        return file.resolve().is_relative_to(root)
    except (OSError, RuntimeError, ValueError):  # a circle of links, a name too long or impossible to encode
        return False


JsonValue: TypeAlias = "Mapping[str, JsonValue] | Sequence[JsonValue] | str | int | float | bool | None"
"""A value that can be written as JSON."""
JsonObject = dict[str, Any]
"""The content of a JSON file whose outermost value is an object."""


def read_json(file: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is larger than 64 MiB, or not JSON.
    """
    size = file.stat().st_size
    if size > _MAX_JSON_BYTES:
        raise ValueError(f"{file}: {size} bytes; JSON files of at most {_MAX_JSON_BYTES} bytes are read")
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:  # ValueError includes bad UTF-8
        require_downloaded(file)
        raise ValueError(f"{file}: not a JSON file ({error})") from None


def require_downloaded(file: Path, start: bytes | None = None) -> None:
    """Raise ValueError if a download left a pointer of git-lfs or a web page in the place of a file.

    `start` is the beginning of a file that the caller has opened: a pipe cannot be opened twice.
    """
    if start is None:
        with file.open("rb") as opened:
            start = opened.read(_WEB_PAGE_BYTES)
    start = start[:_WEB_PAGE_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise ValueError(
            f"{file}: a pointer of git-lfs in the place of the file; run `git lfs pull` in its folder, or download it "
            "again"
        )
    if _WEB_PAGE.match(start):
        raise ValueError(f"{file}: a web page in the place of the file; download it again")


@contextlib.contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` to write to; rename it on success, delete it on failure."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        sync(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete files and folders that `atomic_write` and `atomic_folder` left in a folder when their process was killed.

    Only call it where no other process writes.
    """
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name) and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def require_absent(target: Path) -> None:
    """Raise FileExistsError if a folder that is to be created already exists."""
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target}: already exists; choose another path")


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside the absent `target`; rename it on success, delete it on failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for path in (*temporary.rglob("*"), temporary):
            sync(path)
        os.rename(temporary, target)
        sync(target.parent)
    finally:
        for seconds in (0, 0.1, 1):  # orbax's threads may still write for a while after a failure
            time.sleep(seconds)
            shutil.rmtree(temporary, ignore_errors=True)
            if not temporary.exists():
                break


def sync(path: Path) -> None:
    """Wait for the disk, so that a later rename cannot survive a power cut without the content."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError:
        if not path.is_dir():  # some file systems cannot sync folders
            raise
    finally:
        os.close(opened)


def _umask() -> int:
    # mkstemp ignores the umask and creates files that only their owner can read. os.umask returns the old
    # value only when a new one is set.
    current = os.umask(0)
    os.umask(current)
    return current


# -- checksums -------------------------------------------------------------------------------------------


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def format_checksums(digests: Mapping[str, str]) -> str:
    """Return the content of SHA256SUMS for digests in hexadecimal by file name."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def verify_checksums(folder: Path, files: Iterable[Path]) -> bool:
    """Compare files of a folder with its SHA256SUMS, and return whether it lists any of them.

    Raises:
        ValueError: a file differs from its checksum, or SHA256SUMS is malformed or larger than 1 MiB.
    """
    sums = path_inside(folder, CHECKSUMS_FILE)
    if not sums.is_file():
        return False
    digests = _read_checksums(sums)
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


def _read_checksums(file: Path) -> dict[str, str]:
    size = file.stat().st_size
    if size > _MAX_CHECKSUMS_BYTES:
        raise ValueError(f"{file}: {size} bytes; at most {_MAX_CHECKSUMS_BYTES} are read")
    try:
        lines = file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error})") from None
    matches = [_CHECKSUM_LINE.fullmatch(line) for line in lines if line]
    if not all(matches):
        raise ValueError(f"{file}: not in the format of sha256sum (DIGEST  FILE)")
    return {(match[2] or match[3]).removeprefix("./"): (match[1] or match[4]).lower() for match in matches if match}
