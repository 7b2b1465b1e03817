"""An array as a lazy tensor, for the tests of writers."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ArrayTensor:
    """An array in memory with the interface of tensors in files."""

    supports_row_reads = True

    array: np.ndarray

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self.array.shape

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """Return the array, or some of its rows."""
        return self.array[rows] if self.array.ndim else self.array
