"""The path of a checkpoint that a user names: a folder or file, a zip to unpack, a model on the Hugging Face hub."""

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

from flaxbert.tokenizer_files import TOKENIZER_FILES
from flaxbert.weights.checkpoint import FILE_FORMATS
from flaxbert.weights.sentence_transformers import MODULES_FILE, OTHER_TOKENIZER_FILES, module_paths, transformer_folder

# org/name or name, as the hub allows them.
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_OTHER_FILES = [
    "config.json",
    "bert_config.json",
    "SHA256SUMS",
    *TOKENIZER_FILES,
    *OTHER_TOKENIZER_FILES,
    MODULES_FILE,
    "sentence_*_config.json",
    "config_sentence_transformers.json",
]
_SAFETENSORS = ["model*.safetensors", "model.safetensors.index.json"]
_OTHER_WEIGHTS = ["pytorch_model*", "flax_model*", "*.ckpt.index", "*.ckpt.data-*"]
# Weights hardly shrink when they are compressed: a zip that grows by more than this factor is made to fill the disk.
_MAX_GROWTH, _ALWAYS_ALLOWED_BYTES = 20, 2**26
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OverflowError, struct.error)


@contextlib.contextmanager
def resolve_checkpoint_path(name: str, *, revision: str | None = None) -> Iterator[Path]:
    """Give the path of a checkpoint inside a `with` block; files unpacked for it are removed at its end.

    Args:
        name: a folder or file, a .zip (as Google publishes its checkpoints), or a model on the hub, for which
            huggingface_hub's settings hold: its cache, tokens, and HF_HUB_OFFLINE.
        revision: the branch, tag or commit of a model on the hub.

    Raises:
        FileNotFoundError: neither a path nor a model on the hub has this name.
        ValueError: a zip is damaged or unsafe, or a revision is given for a local path.
    """
    path = Path(name)
    if not name:
        raise FileNotFoundError("the checkpoint's name is empty")
    if not path.exists() and not path.with_name(f"{path.name}.index").exists():
        yield _download(name, revision)
        return
    if revision is not None:
        raise ValueError(f"{path}: a local path; only models on the hub have a revision ({revision!r})")
    if path.suffix.lower() == ".zip" and path.is_file():
        with tempfile.TemporaryDirectory(prefix="flaxbert-") as parent:
            folder = Path(parent) / path.name
            folder.mkdir()
            _unpack(path, folder)
            try:
                yield folder
            except (FileNotFoundError, ValueError) as error:
                # The user knows the zip, and cannot look into the temporary folder.
                kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
                raise kind(str(error).replace(str(folder), str(path))) from error
        return
    yield path


def _download(name: str, revision: str | None) -> Path:
    if not _HUB_NAME.fullmatch(name) or len(name) > 96:
        raise FileNotFoundError(f"{name}: no such file or folder")
    from huggingface_hub import snapshot_download

    try:
        wanted = [*_OTHER_FILES, *_SAFETENSORS]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
        modules = [f"{path}/*" for path in module_paths(folder)]
        if modules:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*wanted, *modules]))
        if not FILE_FORMATS[0].is_in(transformer_folder(folder)):
            wanted = [*_OTHER_FILES, *_OTHER_WEIGHTS, *modules]
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub's own, requests', the file system's
        reason = str(error).strip().split("\n")[0][:300] or type(error).__name__
        raise FileNotFoundError(
            f"{name}: no such file or folder here, and no such model on the Hugging Face hub ({reason})"
        ) from None
    return folder


# -- zips ------------------------------------------------------------------------------------------------


def _unpack(file: Path, folder: Path) -> None:
    """Write the checkpoint's files of a zip into one folder, without the folders that they have in the zip."""
    try:
        with zipfile.ZipFile(file) as archive:
            for member in _members(archive, file):
                with archive.open(member) as packed, (folder / _base_name(member)).open("xb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, 2**20)
    except _ZIP_ERRORS as error:
        raise ValueError(f"{file}: not a readable zip ({error})") from None
    except OSError as error:
        if error.errno == errno.EINVAL:  # a seek to before the start of the file
            raise ValueError(f"{file}: not a readable zip ({error})") from None
        raise


def _members(archive: zipfile.ZipFile, file: Path) -> list[zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = _base_name(member)
        if member.is_dir() or "__MACOSX" in member.filename or not _is_checkpoint_file(name):
            continue
        if name in found:
            raise ValueError(f"{file}: holds two checkpoints ({found[name].filename} and {member.filename}); unpack it")
        if member.flag_bits & 1:
            raise ValueError(f"{file}: {member.filename} is encrypted")
        if member.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):  # other methods allocate memory without a limit
            raise ValueError(f"{file}: {member.filename} is packed by method {member.compress_type}; deflate is read")
        found[name] = member
    if not found:
        raise FileNotFoundError(f"{file}: holds no checkpoint; looked for weights and config.json")
    size, packed = sum(member.file_size for member in found.values()), file.stat().st_size
    if size > max(_ALWAYS_ALLOWED_BYTES, _MAX_GROWTH * packed):
        raise ValueError(f"{file}: {packed} bytes that would unpack to {size}; at most {_MAX_GROWTH} times is unpacked")
    return list(found.values())


def _base_name(member: zipfile.ZipInfo) -> str:
    return member.filename.replace("\\", "/").rpartition("/")[2]


def _is_checkpoint_file(name: str) -> bool:
    plain = len(name) < 200 and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is not None
    known = name in _OTHER_FILES or any(file_format.owns(name) for file_format in FILE_FORMATS)
    return plain and (known or re.fullmatch(r".*\.(index|data-\d{5}-of-\d{5})", name) is not None)
