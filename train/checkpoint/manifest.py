"""Manifest of a checkpoint: its step, settings and metrics, and a digest of each of its files.

The file systems and formats below a checkpoint do not notice altered bytes: of the flipped bits in files of orbax most
load as other numbers. XXH3 of 128 bits finds all such damage; it is no protection against forgers.
"""

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import xxhash

from flaxbert.files import JsonObject, JsonValue, atomic_write, read_json, sync

MANIFEST_FILE = "manifest.json"

_FORMER_FILE = "_CHECKPOINT_METADATA"  # former versions wrote it instead of a manifest
_BLOCK_BYTES = 2**22

FileDigests = dict[str, list[JsonValue]]
"""Size, modification time in nanoseconds and digest of files, by their paths relative to the checkpoint."""


def digest_files(folder: Path, below: str = ".") -> FileDigests:
    """Return the digests of all files of a checkpoint, or of those in one of its folders.

    Raises:
        ValueError: one of them is a link or a special file.
    """
    return {name: _digest(folder / name) for name in sorted(_file_names(folder, folder / below))}


def write_manifest(folder: Path, facts: Mapping[str, JsonValue], *, known: FileDigests | None = None) -> None:
    """Digest the files of a checkpoint, wait until they are on the disk, and add a manifest with these facts.

    Args:
        folder: of the checkpoint, which nothing writes to any more.
        facts: step, score, metrics, settings.
        known: digests that other hosts took; those of files that have changed since are taken again.
    """
    files = {}
    for name in sorted(_file_names(folder, folder)):
        file, digest = folder / name, (known or {}).get(name)
        status = file.stat()
        if digest is None or digest[:2] != [status.st_size, status.st_mtime_ns]:
            digest = _digest(file)
        files[name] = {"bytes": digest[0], "xxh3_128": digest[2]}
        sync(file)
    manifest = folder / MANIFEST_FILE
    manifest.write_text(_manifest_text({**facts, "files": files}), encoding="utf-8")
    for path in (manifest, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(path)


def change_manifest(folder: Path, facts: Mapping[str, JsonValue]) -> None:
    """Replace facts in the manifest of a checkpoint."""
    content = {**read_manifest(folder), **facts}
    with atomic_write(folder / MANIFEST_FILE) as aside:
        aside.write_text(_manifest_text(content), encoding="utf-8")


def _manifest_text(content: Mapping[str, JsonValue]) -> str:
    return json.dumps({**content, "digest": _own_digest(content)}, indent=1) + "\n"


def is_unverifiable(folder: Path) -> bool:
    """Return whether a former version wrote the checkpoint, without a manifest."""
    return not os.path.lexists(folder / MANIFEST_FILE) and (folder / _FORMER_FILE).is_file()


def read_manifest(folder: Path) -> JsonObject:
    """Return the content of a checkpoint's manifest.

    Raises:
        ValueError: the manifest is missing or damaged, or belongs to another step than the folder's name.
    """
    file = folder / MANIFEST_FILE
    if not folder.is_dir() or not stat.S_ISREG(_mode(file)):
        raise ValueError(f"{file}: missing, or not a regular file")
    content = read_json(file)
    if not isinstance(content, dict) or content.pop("digest", None) != _own_digest(content):
        raise ValueError(f"{file}: altered; its content does not match its own digest")
    if str(content["step"]) != folder.name:
        raise ValueError(f"{file}: of step {content['step']}, in the folder of another checkpoint")
    return content


def find_damage(folder: Path, *, index: int = 0, count: int = 1) -> str | None:
    """Compare a checkpoint with its manifest; return None, or a sentence that names the first file that differs.

    Of several hosts that share the work, each compares the contents of every `count`th file from its `index`.

    Raises:
        PermissionError: a file must not be read.
    """
    try:
        if folder.is_symlink():
            return f"{folder}: a link, which no checkpoint is"
        if is_unverifiable(folder):
            list(_file_names(folder, folder))
            return None
        listed = read_manifest(folder)["files"]
        names = {name for name in _file_names(folder, folder) if name != MANIFEST_FILE}
        # Hidden files are left by network file systems and file managers; orbax does not read them.
        surplus = sorted(name for name in names - listed.keys() if not Path(name).name.startswith("."))
        for name in [*sorted(listed.keys() - names), *surplus]:
            return f"{folder / name}: {'not listed in the manifest' if name in names else 'missing'}"
        for number, (name, given) in enumerate(sorted(listed.items())):
            if (folder / name).stat().st_size != given["bytes"]:
                return f"{folder / name}: {(folder / name).stat().st_size} bytes instead of {given['bytes']}"
            if number % count == index and _digest(folder / name)[2] != given["xxh3_128"]:
                return f"{folder / name}: altered; its content does not match the digest in the manifest"
    except PermissionError:
        raise
    except OSError as error:
        return f"{error.filename or folder}: cannot be read ({error.strerror})"
    except ValueError as error:
        return str(error)
    return None


def _file_names(folder: Path, below: Path) -> Iterator[str]:
    """Yield the files below a folder by their paths relative to `folder`; raise ValueError for links and devices."""

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(below, onerror=fail):
        for name in (*folders, *files):
            path = Path(parent, name)
            mode = _mode(path)
            # orbax follows links to anywhere, and waits for named pipes.
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise ValueError(f"{path}: a link or a special file, which no checkpoint holds")
            if stat.S_ISREG(mode):
                yield path.relative_to(folder).as_posix()


def _digest(file: Path) -> list[JsonValue]:
    hasher = xxhash.xxh3_128()
    with file.open("rb", buffering=0) as opened:
        buffer = memoryview(bytearray(_BLOCK_BYTES))
        read: Callable[[memoryview], int | None] = opened.readinto
        while size := read(buffer):
            hasher.update(buffer[:size])
        status = os.fstat(opened.fileno())
    return [status.st_size, status.st_mtime_ns, hasher.hexdigest()]


def _own_digest(content: Mapping[str, JsonValue]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return 0
