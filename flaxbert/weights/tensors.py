"""What a tensor of a file is to the rest of this package, whatever the format; and the same tensor in other forms."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

_PART = 2**22  # bytes; larger ones are taken from and given back to the system each time


@runtime_checkable
class LazyTensor(Protocol):
    """A tensor in a file, whatever the format: what it is, and how to read it."""

    @property
    def dtype(self) -> np.dtype:
        """Of its numbers."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes."""
        ...

    @property
    def supports_row_reads(self) -> bool:
        """Whether reading some rows costs no more than these: no checksum or transposition asks for all of it."""
        ...

    def read(self, rows: slice = ...) -> np.ndarray:
        """The tensor, or consecutive rows of it (of its first axis).

        Raises:
            ValueError: the file is damaged.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """What a tensor is."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class FileTensor(TensorSpec):
    """A tensor that lies in a file."""

    file: Path
    offset: int

    @property
    def supports_row_reads(self) -> bool:
        """Rows lie one after the other."""
        return True

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """The tensor, or consecutive rows of it (of its first axis).

        Raises:
            ValueError: the file ends within the tensor.
        """
        start, count, shape = 0, self.size, self.shape
        if self.shape:
            first, stop, _ = rows.indices(self.shape[0])
            row = math.prod(self.shape[1:]) * self.dtype.itemsize
            shape = (max(0, stop - first), *self.shape[1:])
            start, count = first * row, shape[0] * row
        content = np.fromfile(self.file, np.uint8, count, offset=self.offset + start)
        if len(content) < count:
            raise ValueError(f"{self.file}: ends within {self.name!r}")
        return content.view(self.dtype).reshape(shape)


@dataclasses.dataclass(frozen=True)
class ArrayTensor:
    """An array as a tensor."""

    array: np.ndarray

    @property
    def dtype(self) -> np.dtype:
        """Of its numbers."""
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes."""
        return self.array.shape

    @property
    def supports_row_reads(self) -> bool:
        """Rows lie one after the other."""
        return True

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """Some of its rows."""
        return self.array[rows] if self.array.ndim else self.array


@dataclasses.dataclass(frozen=True)
class TransposedTensor:
    """A matrix with its axes exchanged."""

    tensor: LazyTensor

    @property
    def dtype(self) -> np.dtype:
        """Of its numbers."""
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        return self.tensor.shape[::-1]

    @property
    def supports_row_reads(self) -> bool:
        """All of it is read for some rows."""
        return False

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """Some of its rows, for which all of the tensor is read."""
        return self.tensor.read().T[rows]


@dataclasses.dataclass(frozen=True)
class _Alike:
    """What another tensor's shape and rows are those of."""

    tensor: LazyTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes."""
        return self.tensor.shape

    @property
    def supports_row_reads(self) -> bool:
        """As the tensor it is made of."""
        return self.tensor.supports_row_reads


@dataclasses.dataclass(frozen=True)
class CastTensor(_Alike):
    """A tensor in another floating-point type."""

    name: str
    dtype: np.dtype

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """Some of its rows, rounded to the nearest.

        Raises:
            ValueError: a number is beyond the range of the type.
        """
        numbers = self.tensor.read(rows)
        with np.errstate(over="ignore"):  # looked for below, with a name to it
            rounded = numbers.astype(self.dtype)
        if self.dtype.itemsize < numbers.dtype.itemsize and np.any(np.isfinite(numbers) & ~np.isfinite(rounded)):
            raise ValueError(f"{self.name} has numbers beyond the range of {self.dtype}; choose bfloat16 or float32")
        return rounded


@dataclasses.dataclass(frozen=True)
class ObservedTensor(_Alike):
    """A tensor that tells how many bytes of it were read, each time."""

    told: Callable[[int], None]

    @property
    def dtype(self) -> np.dtype:
        """Of its numbers."""
        return self.tensor.dtype

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """Some of its rows."""
        numbers = self.tensor.read(rows)
        self.told(numbers.nbytes)
        return numbers


def tensors_equal(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether two tensors hold the same numbers, or none (NaN) in the same places; in parts, where that is possible."""
    if one.shape != other.shape:
        return False
    return all(np.array_equal(one.read(part), other.read(part), equal_nan=True) for part in row_slices(one, other))


def row_slices(*tensors: LazyTensor) -> list[slice]:
    """The rows of tensors of one shape, in parts of some megabytes; all at once unless all are `supports_row_reads`."""
    shape, width = tensors[0].shape, max(tensor.dtype.itemsize for tensor in tensors)
    if not shape or not all(tensor.supports_row_reads for tensor in tensors):
        return [slice(None)]
    rows = max(1, _PART // max(1, math.prod(shape[1:]) * width))
    return [slice(start, start + rows) for start in range(0, shape[0], rows)]
