"""Lazy tensors: the common interface to tensors in files of every format, and wrappers around them."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

_log = logging.getLogger("flaxbert")

Index = TypeVar("Index")

_PART_BYTES = 2**22  # larger buffers are requested from and returned to the operating system each time


@runtime_checkable
class LazyTensor(Protocol):
    """A tensor whose values are read on demand."""

    @property
    def dtype(self) -> np.dtype:  # noqa: D102
        ...

    @property
    def shape(self) -> tuple[int, ...]:  # noqa: D102
        ...

    @property
    def supports_row_reads(self) -> bool:
        """True if reading some rows does not read the whole tensor (for a checksum or a transposition)."""
        ...

    def read(self, rows: slice = ...) -> np.ndarray:
        """Read the tensor, or consecutive rows (indices of the first axis); ValueError where the file is damaged."""
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
    """A tensor whose bytes lie uncompressed and in row-major order in a file, from `offset` on."""

    supports_row_reads = True

    file: Path
    offset: int

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """Read the tensor, or consecutive rows; ValueError where the file ends within them."""
        flat, shape = self.flat_range(rows)
        count = (flat.stop - flat.start) * self.dtype.itemsize
        content = np.fromfile(self.file, np.uint8, count, offset=self.offset + flat.start * self.dtype.itemsize)
        if len(content) < count:
            raise ValueError(f"{self.file}: ends within {self.name!r}")
        return content.view(self.dtype).reshape(shape)


@dataclasses.dataclass(frozen=True)
class ChunkedTensor(TensorSpec):
    """A tensor that a file holds as several flat pieces, each of one axis."""

    supports_row_reads = True

    chunks: tuple[FileTensor, ...]

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """Read the tensor, or consecutive rows, from the pieces that hold them."""
        flat, shape = self.flat_range(rows)
        content = np.empty(flat.stop - flat.start, self.dtype)
        chunk_start = 0
        for chunk in self.chunks:
            start, stop = max(flat.start, chunk_start), min(flat.stop, chunk_start + chunk.shape[0])
            if start < stop:
                part = chunk.read(slice(start - chunk_start, stop - chunk_start))
                content[start - flat.start : stop - flat.start] = part
            chunk_start += chunk.shape[0]
        return content.reshape(shape)


@dataclasses.dataclass(frozen=True)
class DerivedTensor:
    """A tensor that `read_rows` computes from others when it is read."""

    dtype: np.dtype
    shape: tuple[int, ...]
    read_rows: Callable[[slice], np.ndarray]
    supports_row_reads: bool = False

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """Compute the tensor, or consecutive rows."""
        return self.read_rows(rows)


def constant(value: float, dtype: np.dtype) -> DerivedTensor:
    """Return a number as a tensor without axes."""
    return DerivedTensor(dtype, (), lambda _: np.asarray(value, dtype))


def transposed(matrix: LazyTensor) -> DerivedTensor:
    """Return a matrix with its axes exchanged."""
    return DerivedTensor(matrix.dtype, matrix.shape[::-1], lambda rows: matrix.read().T[rows])


def cast(tensor: LazyTensor, dtype: np.dtype, *, name: str) -> DerivedTensor:
    """Convert to another floating-point type, rounded to nearest; reading raises ValueError beyond its range."""

    def read(rows: slice) -> np.ndarray:
        values = tensor.read(rows)
        with np.errstate(over="ignore"):  # reported below, with the name
            rounded = values.astype(dtype)
        if dtype.itemsize < values.dtype.itemsize and np.any(np.isfinite(values) & ~np.isfinite(rounded)):
            raise ValueError(f"{name} has numbers beyond the range of {dtype}; choose bfloat16 or float32")
        return rounded

    return DerivedTensor(dtype, tensor.shape, read, tensor.supports_row_reads)


def mean(tensors: Sequence[LazyTensor]) -> DerivedTensor:
    """Return the mean of tensors of one shape, summed in float64, in the type of the first."""
    first, *others = tensors

    def read(rows: slice) -> np.ndarray:
        total = first.read(rows).astype(np.float64)
        for tensor in others:
            total += tensor.read(rows)
        return (total / len(tensors)).astype(first.dtype)

    return DerivedTensor(first.dtype, first.shape, read, all(tensor.supports_row_reads for tensor in tensors))


class FiniteCheck:
    """A check of numbers as they are read, for one warning of the first tensor with NaN or infinite numbers.

    It takes 0.03 s for the float32 numbers of BERT-base, 0.2 s for bfloat16.
    """

    def __init__(self, source: Path):
        """`source` names the checkpoint in the warning."""
        self._source, self._has_warned = source, False

    def reader(self, name: str, read: Callable[[Index], np.ndarray]) -> Callable[[Index], np.ndarray]:
        """Return a function that reads as `read` does, and checks the numbers."""

        def read_and_check(index: Index) -> np.ndarray:
            values = read(index)
            is_integer = np.issubdtype(values.dtype, np.integer) or values.dtype == bool
            if not (self._has_warned or is_integer or np.isfinite(values).all()):
                self._has_warned = True
                _log.warning(
                    "%s: %s holds NaN or infinite numbers, which are kept; if training diverged, take an earlier "
                    "checkpoint",
                    self._source,
                    name,
                )
            return values

        return read_and_check

    def tensors(self, tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Return tensors that are checked when they are read."""
        return {
            name: DerivedTensor(tensor.dtype, tensor.shape, self.reader(name, tensor.read), tensor.supports_row_reads)
            for name, tensor in tensors.items()
        }


def observed(tensor: LazyTensor, on_read: Callable[[int], None]) -> DerivedTensor:
    """Call `on_read` with the number of bytes after each read, for a progress bar."""

    def read(rows: slice) -> np.ndarray:
        values = tensor.read(rows)
        on_read(values.nbytes)
        return values

    return DerivedTensor(tensor.dtype, tensor.shape, read, tensor.supports_row_reads)


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
