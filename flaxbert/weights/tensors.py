"""Lazy tensors: the common interface to tensors in files of every format, and wrappers around them."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

_PART_BYTES = 2**22  # larger buffers are requested from and returned to the operating system each time


@runtime_checkable
class LazyTensor(Protocol):
    """A tensor whose values are read on demand."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        ...

    @property
    def supports_row_reads(self) -> bool:
        """True if reading some rows does not read the whole tensor (for a checksum or a transposition)."""
        ...

    def read(self, rows: slice = ...) -> np.ndarray:
        """Read the tensor, or consecutive rows (indices of the first axis).

        Raises:
            ValueError: the file is damaged.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """Name, type and shape of a tensor."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def require_match(self, tensor: LazyTensor) -> None:
        """Raise ValueError if a tensor to be written has another type or shape."""
        if tensor.dtype != self.dtype or tensor.shape != self.shape:
            raise ValueError(f"{self.name!r} is {tensor.dtype}{list(tensor.shape)}, announced as {self}")

    def flat_range(self, rows: slice) -> tuple[slice, tuple[int, ...]]:
        """Return the range of flat indices that consecutive rows cover, and the shape of these rows."""
        if not self.shape:
            return slice(0, 1), ()
        first, last, _ = rows.indices(self.shape[0])
        shape = (max(0, last - first), *self.shape[1:])
        width = math.prod(self.shape[1:])
        return slice(first * width, (first + shape[0]) * width), shape


@dataclasses.dataclass(frozen=True)
class FileTensor(TensorSpec):
    """A tensor whose bytes lie uncompressed and in row-major order in a file.

    Attributes:
        file: the file.
        offset: the position of the first byte.
    """

    supports_row_reads = True

    file: Path
    offset: int

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """Read the tensor, or consecutive rows.

        Raises:
            ValueError: the file ends within the tensor.
        """
        flat, shape = self.flat_range(rows)
        count = (flat.stop - flat.start) * self.dtype.itemsize
        content = np.fromfile(self.file, np.uint8, count, offset=self.offset + flat.start * self.dtype.itemsize)
        if len(content) < count:
            raise ValueError(f"{self.file}: ends within {self.name!r}")
        return content.view(self.dtype).reshape(shape)


@dataclasses.dataclass(frozen=True)
class TransposedTensor:
    """A matrix with its axes exchanged."""

    supports_row_reads = False

    tensor: LazyTensor

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns after the exchange."""
        return self.tensor.shape[::-1]

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """Read the whole tensor and return the transposed matrix, or some of its rows."""
        return self.tensor.read().T[rows]


@dataclasses.dataclass(frozen=True)
class _Wrapper:
    tensor: LazyTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the wrapped tensor."""
        return self.tensor.shape

    @property
    def supports_row_reads(self) -> bool:
        """True if the wrapped tensor supports row reads."""
        return self.tensor.supports_row_reads


@dataclasses.dataclass(frozen=True)
class CastTensor(_Wrapper):
    """A tensor converted to another floating-point type.

    Attributes:
        name: the name used in error messages.
        dtype: the type to convert to.
    """

    name: str
    dtype: np.dtype

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """Read the tensor, or some rows, with values rounded to nearest.

        Raises:
            ValueError: a finite value is beyond the range of the type.
        """
        values = self.tensor.read(rows)
        with np.errstate(over="ignore"):  # reported below, with the name
            rounded = values.astype(self.dtype)
        if self.dtype.itemsize < values.dtype.itemsize and np.any(np.isfinite(values) & ~np.isfinite(rounded)):
            raise ValueError(f"{self.name} has numbers beyond the range of {self.dtype}; choose bfloat16 or float32")
        return rounded


@dataclasses.dataclass(frozen=True)
class ObservedTensor(_Wrapper):
    """A tensor that reports the number of bytes of each read, for a progress bar.

    Attributes:
        on_read: called with the number of bytes after each read.
    """

    on_read: Callable[[int], None]

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        return self.tensor.dtype

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """Read the tensor, or some rows, and report the number of bytes."""
        values = self.tensor.read(rows)
        self.on_read(values.nbytes)
        return values


def tensors_equal(one: LazyTensor, other: LazyTensor) -> bool:
    """Compare shapes and values (NaN equals NaN), a few megabytes at a time where row reads are supported."""
    if one.shape != other.shape:
        return False
    return all(np.array_equal(one.read(rows), other.read(rows), equal_nan=True) for rows in row_slices(one, other))


def row_slices(*tensors: LazyTensor) -> list[slice]:
    """Divide the rows of tensors of equal shape into parts of at most 4 MiB (or one row).

    The whole tensor is one part unless all tensors support row reads.
    """
    shape, width = tensors[0].shape, max(tensor.dtype.itemsize for tensor in tensors)
    if not shape or not all(tensor.supports_row_reads for tensor in tensors):
        return [slice(None)]
    rows = max(1, _PART_BYTES // max(1, math.prod(shape[1:]) * width))
    return [slice(start, start + rows) for start in range(0, shape[0], rows)]


def tensor_bytes(tensor: LazyTensor) -> Iterator[memoryview]:
    """Yield the bytes of a tensor in row-major order, a few megabytes at a time where row reads are supported."""
    for rows in row_slices(tensor):
        yield np.ascontiguousarray(tensor.read(rows)).reshape(-1).view(np.uint8).data
