"""PyTorch weights files (pytorch_model.bin): a state dict written by torch.save.

Since PyTorch 1.6 such a file is a zip archive of uncompressed members: ROOT/data.pkl, a pickle of the dict, and
ROOT/data/KEY, the bytes of each storage that the tensors are views of. Older files hold five pickles (magic number,
version, machine, dict, keys of the storages), then the storages, each preceded by its length in eight bytes.

A pickle is a program. torch.load(weights_only=True) runs no foreign code, but a few bytes can still make it allocate
or compute without end. Therefore torch opens a file only after `scan_pickle` has found nothing but descriptions of
tensors in it, and after the sizes of the storages have been compared with the file.
"""

import dataclasses
import io
import math
import mmap
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING

import ml_dtypes
import numpy as np

from flaxbert.files import require_downloaded
from flaxbert.weights.formats.torch_pickle import STORAGES, scan_pickle
from flaxbert.weights.tensors import LazyTensor, TensorSpec, tensor_bytes

if TYPE_CHECKING:
    import torch

_OLDEST_TORCH = "2.10"
_MAX_PICKLE_BYTES = 4 * 2**20  # also the limit of a zip file's directory; a BERT's takes tens of kilobytes
_ALIGNMENT = 64
# The pickled magic number, in pickle's protocols 2 and 3.
_OLD_FORMATS = tuple(bytes([0x80, protocol]) + b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." for protocol in (2, 3))
# Raised for damaged bytes by struct, zipfile, pickletools, and by operations on an unexpected list or dict.
_ERRORS = (
    ValueError,
    LookupError,
    ArithmeticError,
    EOFError,
    OSError,
    RuntimeError,  # includes NotImplementedError
    struct.error,
    zipfile.BadZipFile,
)


@dataclasses.dataclass(frozen=True, eq=False)
class TorchTensor(TensorSpec):
    """A torch.Tensor of an opened file: memory-mapped from a zip file, in memory from the older format."""

    supports_row_reads = True

    tensor: "torch.Tensor"

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """Return the tensor, or consecutive rows; a view of the mapped file where that is possible."""
        part = (self.tensor[rows] if self.shape else self.tensor).detach().resolve_neg()
        if self.dtype != ml_dtypes.bfloat16:
            return part.numpy()
        import torch

        return part.view(torch.int16).numpy().view(self.dtype)  # torch cannot convert bfloat16 to numpy


def open_torch_bin(file: Path) -> dict[str, TorchTensor]:
    """Return the tensors of a file by name. Those of a zip file are compared with its CRCs, but not yet in memory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a state dict of dense tensors, or torch is missing or too old to be safe.
    """
    size = file.stat().st_size
    require_downloaded(file)
    torch = _import_torch(file)
    try:
        with file.open("rb") as opened, warnings.catch_warnings():
            # pickletools makes Python decode escapes, which warns of unknown ones; torch warns of protocol 3.
            warnings.simplefilter("ignore")
            is_zip = opened.read(4) == b"PK\3\4"  # torch's own criterion
            if is_zip:
                _check_zip(opened, size)
            else:
                _check_old_format(opened, size)
            content = _load(torch, file, is_zip)
        return _tensors(content, torch, 2 * size)  # tied weights occur twice
    except _ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:300]
        raise ValueError(f"{file}: not a readable PyTorch file: {reason}") from None


def _load(torch: ModuleType, file: Path, is_zip: bool) -> object:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # of many types
        unsafe_advice = "weights_only" in str(error) or "Weights only" in str(error)  # to run code from the file
        raise ValueError("torch refuses it" if unsafe_advice else str(error)) from None


def _import_torch(file: Path) -> ModuleType:
    try:
        import torch
    except ImportError:
        installed = "torch is not installed"
    else:
        if torch.__version__ >= _OLDEST_TORCH:
            return torch
        installed = f"this is {torch.__version__}"
    raise ValueError(
        f"{file}: PyTorch files need torch 2.10 or newer, and {installed}; pip install 'flaxbert[torch]'. Files can "
        f"make older versions run code (CVE-2025-32434) or corrupt memory (CVE-2026-24747) in spite of weights_only"
    )


def _tensors(content: object, torch: ModuleType, max_bytes: int) -> dict[str, TorchTensor]:
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a dict of tensors")
    tensors = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise ValueError(
                f"{str(name)[:80]!r} is a {type(tensor).__name__}, not a tensor; "
                f"a checkpoint of a training run holds the state dict as one of its entries: save that entry alone"
            )
        dtype = np.dtype(ml_dtypes.bfloat16 if tensor.dtype is torch.bfloat16 else str(tensor.dtype)[len("torch.") :])
        max_bytes -= tensor.numel() * dtype.itemsize
        if max_bytes < 0:
            raise ValueError("its tensors take more than twice the size of the file")
        tensors[name] = TorchTensor(name, dtype, tuple(tensor.shape), tensor)
    return tensors


def write_torch_bin(file: Path, specs: Sequence[TensorSpec], tensors: Iterable[LazyTensor]) -> None:
    """Write a file while one tensor at a time is in memory.

    torch.save needs all tensors at once. Therefore they are first written to a temporary file beside `file` and mapped
    from there: the disk holds them twice for a while, the memory never.

    Raises:
        ValueError: a tensor does not match its spec or is of a type that is not read; torch is missing or too old.
        OSError: the disk is full or fails.
    """
    torch = _import_torch(file)
    with tempfile.TemporaryFile(dir=file.parent) as temporary:
        offsets = []
        for spec, tensor in zip(specs, tensors, strict=True):
            spec.require_match(tensor)
            if spec.dtype not in STORAGES.values():
                raise ValueError(f"{spec.name!r} is of type {spec.dtype}, which PyTorch files of weights do not hold")
            temporary.seek(-temporary.tell() % _ALIGNMENT, io.SEEK_CUR)
            offsets.append(temporary.tell())
            for part in tensor_bytes(tensor):
                temporary.write(part)
        temporary.truncate(temporary.tell() + 1)  # an empty file cannot be mapped
        mapped = mmap.mmap(temporary.fileno(), 0, access=mmap.ACCESS_COPY)
        state = {spec.name: _map(torch, mapped, offset, spec) for offset, spec in zip(offsets, specs, strict=True)}
        with file.open("wb") as opened:
            try:
                torch.save(state, opened)
            except RuntimeError as error:  # torch finds its archive incomplete after a failed write
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def _map(torch: ModuleType, mapped: mmap.mmap, offset: int, spec: TensorSpec) -> "torch.Tensor":
    """Return the tensor at an offset, with a storage of its own."""
    dtype = getattr(torch, spec.dtype.name)
    if not spec.size:
        return torch.empty(spec.shape, dtype=dtype)
    return torch.frombuffer(mapped, dtype=dtype, count=math.prod(spec.shape), offset=offset).reshape(spec.shape)


# -- checks before torch opens a file --------------------------------------------------------------------


def _check_zip(opened: IO[bytes], size: int) -> None:
    """Refuse archives that torch.save does not write, and members that do not match their CRC."""
    _check_directory(opened, size)
    with zipfile.ZipFile(opened) as archive:
        members = sorted(archive.infolist(), key=lambda member: member.header_offset)
        if len({member.filename.casefold() for member in members}) < len(members):  # torch's own reader ignores case
            raise ValueError("two members of the archive have the same name")
        starts = {}
        for member, following in zip(members, [*members[1:], None], strict=True):
            end = following.header_offset if following else archive.start_dir
            starts[member.filename] = _member_start(opened, member, end)
        if any(member.CRC for member in members):  # torch.serialization.set_crc32_options(False) writes zeros
            for member in members:
                with archive.open(member) as content:
                    while content.read(2**20):
                        pass  # zipfile compares the CRC at the end
        root = archive.namelist()[0].partition("/")[0] if members else ""  # torch's own rule
        sizes = {member.filename: member.file_size for member in members}
        if f"{root}/data.pkl" not in sizes or f"{root}/constants.pkl" in sizes:
            raise ValueError("the archive holds no state dict (is it a TorchScript archive?)")
    pickle_size = sizes[f"{root}/data.pkl"]
    if pickle_size > _MAX_PICKLE_BYTES:
        raise ValueError(f"a pickle of {pickle_size} bytes; at most {_MAX_PICKLE_BYTES} are read")
    opened.seek(starts[f"{root}/data.pkl"])
    for storage in scan_pickle(io.BytesIO(opened.read(pickle_size))).storages.values():
        member_size = sizes.get(f"{root}/data/{storage.key}")
        if member_size is None or member_size < storage.size:
            raise ValueError(
                f"storage {storage.key!r} has {storage.size} bytes, its member in the archive {member_size}"
            )


def _check_directory(opened: IO[bytes], size: int) -> None:
    """Refuse archives with a comment or a gap, in which readers of zip files may find different directories."""
    opened.seek(max(0, size - 98))
    end = opened.read().rjust(98, b"\0")
    length, start = struct.unpack("<II", end[-10:-2])
    trailer = 22
    if end[-42:-38] == b"PK\6\7":
        length, start, trailer = *struct.unpack("<QQ", end[-58:-42]), 98
        if end[:4] != b"PK\6\6" or struct.unpack("<Q", end[-34:-26])[0] != size - 98:
            raise ValueError("the end of the archive is damaged")
    if end[-22:-18] != b"PK\5\6":
        raise ValueError("it does not end as a zip archive does; the file may be cut short")
    if start + length + trailer != size or length > _MAX_PICKLE_BYTES:
        raise ValueError(
            f"a directory of {length} bytes at byte {start} of {size}; at most {_MAX_PICKLE_BYTES} are read"
        )


def _member_start(opened: IO[bytes], member: zipfile.ZipInfo, end: int) -> int:
    """Return the position of a member's bytes, which must be uncompressed and lie before `end`."""
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 or member.compress_size != member.file_size:
        raise ValueError(f"{member.filename!r} is compressed or encrypted, which torch.save never does")
    opened.seek(member.header_offset)
    header = opened.read(30)
    start = member.header_offset + len(header) + sum(struct.unpack("<HH", header[26:30]))
    if start + member.file_size > end:
        raise ValueError(f"{member.filename!r} of {member.file_size} bytes at byte {start} overlaps byte {end}")
    return start


def _check_old_format(opened: IO[bytes], size: int) -> None:
    """Refuse files of the format before PyTorch 1.6 unless the storages fill the rest of the file exactly."""
    opened.seek(0)
    content = opened.read(_MAX_PICKLE_BYTES)
    if not content.startswith(_OLD_FORMATS):
        raise ValueError(f"it begins with {content[:8]!r}, as neither of PyTorch's formats does")
    stream = io.BytesIO(content)
    stream.seek(len(_OLD_FORMATS[0]))
    _version, _machine, state, keys = (scan_pickle(stream) for _ in range(4))
    if keys.strings != list(dict.fromkeys(keys.strings)) or set(keys.strings) != state.storages.keys():
        raise ValueError("the storages that it lists are not those of its tensors")
    end = stream.tell() + sum(8 + storage.size for storage in state.storages.values())
    if end != size:
        raise ValueError(f"its tensors end at byte {end}, the file at {size}")
