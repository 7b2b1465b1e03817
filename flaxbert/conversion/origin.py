"""What a user names as a checkpoint, as a path: a folder or file, a zip to unpack, a name on the Hugging Face hub."""

import contextlib
import errno
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from flaxbert.companions import SENTENCES, TOKENIZER
from flaxbert.weights.file_format import FILE_FORMATS

# org/name or name, as the hub allows them.
_HUB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_BESIDE = ["config.json", "bert_config.json", "SHA256SUMS", *TOKENIZER, *SENTENCES, "*_*/config.json"]
_SAFE = ["model*.safetensors", "model.safetensors.index.json", "*_*/model.safetensors"]
_OTHER = ["pytorch_model*", "flax_model*", "*.ckpt.index", "*.ckpt.data-*", "*_*/pytorch_model.bin"]
# Weights hardly shrink when they are compressed; what grows more than this is made to fill the disk.
_GROWTH, _SMALL = 20, 2**26
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OverflowError, struct.error)


@contextlib.contextmanager
def located(name: str, *, revision: str | None = None) -> Iterator[Path]:
    """The path of what is named; what is unpacked for it is gone afterwards.

    Args:
        name: of a folder or file, a .zip (as Google publishes its checkpoints), or of a model on the hub. There
            huggingface_hub's settings hold: its cache, tokens, and HF_HUB_OFFLINE.
        revision: of a model on the hub: a branch, tag or commit.

    Raises:
        FileNotFoundError: nothing of that name.
        ValueError: what is wrong with a zip, or a revision of something that is not on the hub.
    """
    path = Path(name)
    if not name:
        raise FileNotFoundError("the checkpoint's name is empty")
    if not path.exists() and not path.with_name(f"{path.name}.index").exists():
        yield _downloaded(name, revision)
        return
    if revision is not None:
        raise ValueError(f"{path}: lies here; only models on the hub have a revision ({revision!r})")
    if path.suffix.lower() == ".zip" and path.is_file():
        with tempfile.TemporaryDirectory(prefix="flaxbert-") as above:
            folder = Path(above) / path.name  # messages about its files name the zip
            folder.mkdir()
            _unpack(path, folder)
            yield folder
        return
    yield path


def _downloaded(name: str, revision: str | None) -> Path:
    if not _HUB.fullmatch(name) or len(name) > 96:
        raise FileNotFoundError(f"{name}: no such file or folder")
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*_BESIDE, *_SAFE]))
        if not FILE_FORMATS[0].is_in(folder):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*_BESIDE, *_OTHER]))
    except Exception as error:  # the hub's own, requests', the file system's
        said = str(error).strip().split("\n")[0][:300] or type(error).__name__
        raise FileNotFoundError(
            f"{name}: no such file or folder here, and none to be had from the Hugging Face hub ({said})"
        ) from None
    return folder


# -- zips ------------------------------------------------------------------------------------------------


def _unpack(file: Path, folder: Path) -> None:
    """Writes the checkpoint's files of a zip into a folder, whatever folders they are in there."""
    try:
        with zipfile.ZipFile(file) as archive:
            for member in _wanted(archive, file):
                with archive.open(member) as packed, (folder / _base(member)).open("xb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, 2**20)
    except _DAMAGED as error:
        raise ValueError(f"{file}: not a readable zip ({error})") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # of a seek to before the file's start
            raise ValueError(f"{file}: not a readable zip ({error})") from None
        raise


def _wanted(archive: zipfile.ZipFile, file: Path) -> list[zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = _base(member)
        if member.is_dir() or "__MACOSX" in member.filename or not _is_of_a_checkpoint(name):
            continue
        if name in found:
            raise ValueError(f"{file}: holds two checkpoints ({found[name].filename} and {member.filename}); unpack it")
        if member.flag_bits & 1:
            raise ValueError(f"{file}: {member.filename} is encrypted")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others take memory unasked
            raise ValueError(f"{file}: {member.filename} is packed by method {member.compress_type}; deflate is read")
        found[name] = member
    if not found:
        raise FileNotFoundError(f"{file}: holds no checkpoint; looked for weights and config.json")
    size, packed = sum(member.file_size for member in found.values()), file.stat().st_size
    if size > max(_SMALL, _GROWTH * packed):
        raise ValueError(f"{file}: {packed} bytes that would unpack to {size}; at most {_GROWTH} times is unpacked")
    return list(found.values())


def _base(member: zipfile.ZipInfo) -> str:
    return member.filename.replace("\\", "/").rpartition("/")[2]


def _is_of_a_checkpoint(name: str) -> bool:
    plain = len(name) < 200 and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is not None
    known = name in _BESIDE or any(form.owns(name) for form in FILE_FORMATS)
    return plain and (known or re.fullmatch(r".*\.(index|data-\d{5}-of-\d{5})", name) is not None)
