"""PyTorch's files of weights (pytorch_model.bin): a state dict that torch.save wrote.

Such a file is a zip archive whose members are stored as they are: ROOT/data.pkl, a pickle of the dict, and
ROOT/data/KEY, the bytes of each storage that its tensors are views of. Before PyTorch 1.6 it was five pickles (a magic
number, a version, the machine, the dict, the keys of the storages) and then the storages, each behind its length in
eight bytes.

A pickle is a program. torch.load(weights_only=True) runs no foreign code, but a few bytes can still have it allocate or
compute without end. So it only gets to see files whose pickles were followed here before and do nothing but describe
tensors, and whose storages are as long as the pickle says.
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
from typing import IO, Any

import ml_dtypes
import numpy as np

from flaxbert.weights.checksums import HashingFileWriter
from flaxbert.weights.formats.torch_pickle import STORAGES, follow
from flaxbert.weights.tensors import LazyTensor, TensorSpec, row_slices

_OLDEST = "2.10"
_MAX_PICKLE = 4 * 2**20  # bytes; also of a zip file's directory. A BERT's is some tens of kilobytes
_ALIGNED = 64
_OLD_FORMAT = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickle of the magic number
# What struct, zipfile and pickletools raise, and lists and dicts of a pickle that is none, where bytes are damaged.
_ERRORS = (
    ValueError,
    LookupError,
    ArithmeticError,
    EOFError,
    OSError,
    RuntimeError,  # also NotImplementedError
    struct.error,
    zipfile.BadZipFile,
)


@dataclasses.dataclass(frozen=True, eq=False)
class TorchTensor:
    """A tensor of a file that torch has opened: of a zip file it is only mapped, of the old format in memory."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    tensor: Any  # a torch.Tensor

    @property
    def supports_row_reads(self) -> bool:
        """Rows lie one after the other."""
        return True

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """The tensor, or consecutive rows of it (of its first axis); a view where that is possible."""
        part = (self.tensor[rows] if self.shape else self.tensor).detach().resolve_neg()
        if self.dtype != ml_dtypes.bfloat16:
            return part.numpy()
        import torch

        return part.view(torch.int16).numpy().view(self.dtype)  # numpy has no such type of its own


def open_torch_bin(file: Path) -> dict[str, TorchTensor]:
    """The tensors of a file by name; those of a zip file are not read yet, but compared with its checksums.

    Raises:
        FileNotFoundError: no such file.
        ValueError: in what the file is not a state dict of dense tensors; torch is missing, or one that is not safe.
    """
    size = file.stat().st_size
    torch = _torch(file)
    try:
        with file.open("rb") as opened, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pickletools has Python decode escapes, which warns of those it lacks
            zipped = opened.read(4) == b"PK\3\4"  # as torch tells them apart
            (_check_zip if zipped else _check_old)(opened, size)
        return _tensors(_loaded(torch, file, zipped), torch, 2 * size)  # tied weights are there twice
    except _ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:300]
        raise ValueError(f"{file}: not a readable PyTorch file: {reason}") from None


def _loaded(torch: Any, file: Path, zipped: bool) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # almost any; some advise to load once more, with the code that the file brings along
        advice = "weights_only" in str(error) or "Weights only" in str(error)
        raise ValueError("torch refuses it" if advice else str(error)) from None


def _torch(file: Path) -> Any:
    try:
        import torch
    except ImportError:
        found = "there is none"
    else:
        if torch.__version__ >= _OLDEST:
            return torch
        found = f"this is {torch.__version__}"
    raise ValueError(
        f"{file}: PyTorch's files need torch 2.10 or newer, and {found}; pip install 'flaxbert[torch]'. Files can make "
        f"older versions run code (CVE-2025-32434) or damage memory (CVE-2026-24747) in spite of weights_only"
    )


def _tensors(content: Any, torch: Any, room: int) -> dict[str, TorchTensor]:
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, no dict of tensors")
    found = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise ValueError(
                f"{str(name)[:80]!r} is a {type(tensor).__name__}, no tensor; "
                f"a checkpoint of a training run holds the state dict as one of its entries: save that by itself"
            )
        dtype = np.dtype(ml_dtypes.bfloat16 if tensor.dtype is torch.bfloat16 else str(tensor.dtype)[len("torch.") :])
        room -= tensor.numel() * dtype.itemsize
        if room < 0:
            raise ValueError("its tensors take more than twice the size of the file")
        found[name] = TorchTensor(name, dtype, tuple(tensor.shape), tensor)
    return found


def write_torch_bin(file: Path, specs: Sequence[TensorSpec], tensors: Iterable[LazyTensor]) -> str:
    """Writes a file from its tensors, each in turn and in the order of `specs`; the SHA-256 of it in hex.

    torch.save wants all tensors at once. So they are written into a file without a name first, beside `file`, and
    mapped from there; what the tensors hold is on the disk twice for a while, but in memory never.

    Raises:
        ValueError: tensors are not what was announced, or of a type that is not read; torch is missing or not safe.
    """
    torch = _torch(file)
    with tempfile.TemporaryFile(dir=file.parent) as aside:
        offsets = []
        for spec, tensor in zip(specs, tensors, strict=True):
            if tensor.dtype != spec.dtype or tensor.shape != spec.shape or spec.dtype not in STORAGES.values():
                raise ValueError(f"{spec.name!r} is {tensor.dtype}{list(tensor.shape)}, announced as {spec}")
            aside.seek(-aside.tell() % _ALIGNED, 1)
            offsets.append(aside.tell())
            for part in row_slices(tensor):
                aside.write(np.ascontiguousarray(tensor.read(part)).reshape(-1).view(np.uint8).data)
        aside.truncate(aside.tell() + 1)  # nothing at all cannot be mapped
        mapped = mmap.mmap(aside.fileno(), 0, access=mmap.ACCESS_COPY)
        state = {spec.name: _mapped(torch, mapped, offset, spec) for offset, spec in zip(offsets, specs, strict=True)}
        with HashingFileWriter(file) as digested:
            saving = _Saving(digested)
            try:
                torch.save(state, saving)
            except RuntimeError:  # of the archive that is not complete
                raise saving.error or ValueError(f"{file}: torch cannot write it") from None
            return digested.hexdigest()


def _mapped(torch: Any, mapped: mmap.mmap, offset: int, spec: TensorSpec) -> Any:
    """The tensor that lies there, with a storage of its own."""
    dtype = getattr(torch, spec.dtype.name)
    if not spec.size:
        return torch.empty(spec.shape, dtype=dtype)
    return torch.frombuffer(mapped, dtype=dtype, count=math.prod(spec.shape), offset=offset).reshape(spec.shape)


class _Saving:
    """What torch.save writes to, which needs its buffers again as soon as they are written."""

    def __init__(self, digested: HashingFileWriter):
        self._digested = digested
        self.error: OSError | None = None  # torch raises one of its own over it

    def write(self, content: Any) -> int:
        try:
            size = self._digested.write(content)
        except OSError as error:
            self.error = self.error or error
            raise
        self._digested.wait()
        return size

    def flush(self) -> None:
        pass  # nothing is held back


# -- what torch gets to see ------------------------------------------------------------------------------


def _check_zip(opened: IO[bytes], size: int) -> None:
    """Refuses archives that torch.save does not write, and those whose bytes have changed since."""
    _check_directory(opened, size)
    with zipfile.ZipFile(opened) as archive:
        members = sorted(archive.infolist(), key=lambda member: member.header_offset)
        if len({member.filename.casefold() for member in members}) < len(members):  # torch's own reader ignores case
            raise ValueError("two members of the archive have the same name")
        starts = {}
        for member, after in zip(members, [*members[1:], None], strict=True):
            starts[member.filename] = _start(opened, member, after.header_offset if after else archive.start_dir)
        written = any(member.CRC for member in members)  # set_crc32_options(False) makes them zeros
        for member in members:
            with archive.open(member) as content:
                while written and content.read(2**20):
                    pass  # at the end it compares the checksum
        root = archive.namelist()[0].partition("/")[0] if members else ""  # as torch finds it
        sizes = {member.filename: member.file_size for member in members}
        if f"{root}/data.pkl" not in sizes or f"{root}/constants.pkl" in sizes:
            raise ValueError("the archive holds no state dict; is it one of TorchScript?")
    if sizes[f"{root}/data.pkl"] > _MAX_PICKLE:
        raise ValueError(f"a pickle of {sizes[f'{root}/data.pkl']} bytes; at most {_MAX_PICKLE} are read")
    opened.seek(starts[f"{root}/data.pkl"])
    stream = io.BytesIO(opened.read(sizes[f"{root}/data.pkl"]))
    for storage in follow(stream).storages.values():
        held = sizes.get(f"{root}/data/{storage.key}")
        if held is None or held < storage.size:
            raise ValueError(f"storage {storage.key!r} has {storage.size} bytes, its member in the archive {held}")


def _check_directory(opened: IO[bytes], size: int) -> None:
    """The directory must be where each reader of zip files looks for it: right before the end, which has no comment."""
    opened.seek(max(0, size - 98))
    end = opened.read().rjust(98, b"\0")
    length, start = struct.unpack("<II", end[-10:-2])
    trailer = 22
    if end[-42:-38] == b"PK\6\7":
        length, start, trailer = *struct.unpack("<QQ", end[-58:-42]), 98
        if end[:4] != b"PK\6\6" or struct.unpack("<Q", end[-34:-26])[0] != size - 98:
            raise ValueError("the end of the archive is damaged")
    if end[-22:-18] != b"PK\5\6":
        raise ValueError("its last bytes are not those of an archive; is it cut short?")
    if start + length + trailer != size or length > _MAX_PICKLE:
        raise ValueError(f"a directory of {length} bytes at byte {start} of {size}; at most {_MAX_PICKLE} are read")


def _start(opened: IO[bytes], member: zipfile.ZipInfo, after: int) -> int:
    """Where a member's bytes begin; they must be as in memory, and end before what comes after it begins."""
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 or member.compress_size != member.file_size:
        raise ValueError(f"{member.filename!r} is compressed or encrypted, which torch.save never does")
    opened.seek(member.header_offset)
    header = opened.read(30)
    start = member.header_offset + len(header) + sum(struct.unpack("<HH", header[26:30]))
    if start + member.file_size > after:
        raise ValueError(
            f"{member.filename!r} has {member.file_size} bytes from byte {start} on; at {after} something else begins"
        )
    return start


def _check_old(opened: IO[bytes], size: int) -> None:
    """Refuses files before PyTorch 1.6 whose storages do not fill what follows the pickles, exactly."""
    opened.seek(0)
    content = opened.read(_MAX_PICKLE)
    if not content.startswith(_OLD_FORMAT):
        raise ValueError(f"it begins with {content[:8]!r}, as neither of PyTorch's formats does")
    stream = io.BytesIO(content)
    stream.seek(len(_OLD_FORMAT))
    _version, _machine, state, keys = (follow(stream) for _ in range(4))
    if keys.texts != list(dict.fromkeys(keys.texts)) or set(keys.texts) != state.storages.keys():
        raise ValueError("the storages that it lists are not those of its tensors")
    end = stream.tell() + sum(8 + storage.size for storage in state.storages.values())
    if end != size:
        raise ValueError(f"its tensors end at byte {end}, the file at {size}")
