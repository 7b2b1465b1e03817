"""What a tensor of a file is to the rest of this package, whatever the format; and the same tensor in other forms."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Tensor(Protocol):
    """A tensor in a file, whatever the format: what it is, and how to read it."""

    @property
    def dtype(self) -> np.dtype:
        """Of its numbers."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes."""
        ...

    def read(self, rows: slice = ...) -> np.ndarray:
        """The tensor, or consecutive rows of it (of its first axis).

        Raises:
            ValueError: the file is damaged.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Transposed:
    """A matrix with its axes exchanged."""

    tensor: Tensor

    @property
    def dtype(self) -> np.dtype:
        """Of its numbers."""
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        return self.tensor.shape[::-1]

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """Some of its rows, for which all of the tensor is read."""
        return self.tensor.read().T[rows]


@dataclasses.dataclass(frozen=True)
class Cast:
    """A tensor in another floating-point type."""

    name: str
    tensor: Tensor
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its axes."""
        return self.tensor.shape

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


def equal(one: Tensor, other: Tensor, rows: int = 4096) -> bool:
    """Whether two tensors hold the same numbers; some rows of each are in memory at a time."""
    if one.shape != other.shape:
        return False
    return all(np.array_equal(one.read(part), other.read(part)) for part in parts(one, rows))


def parts(tensor: Tensor, rows: int = 4096) -> list[slice]:
    """The tensor's rows, some at a time."""
    return [slice(start, start + rows) for start in range(0, tensor.shape[0] if tensor.shape else 1, rows)]
