"""Which rows of a batch a process builds: those that its own devices take."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class RowPart:
    """Some of the equal parts into which the rows of every batch are divided, one after another.

    What a batch holds never depends on it: parts put together are the batch that one process would have built.
    """

    numbers: tuple[int, ...] = (0,)
    """Of the parts that are built, ascending."""
    count: int = 1
    """Parts of a batch."""

    def __post_init__(self):
        if not self.numbers or list(self.numbers) != sorted(set(self.numbers) & set(range(self.count))):
            raise ValueError(f"numbers is {self.numbers}; must be one or more of 0 to {self.count - 1}, ascending")

    @property
    def fraction(self) -> float:
        """The share of a batch's rows that is built."""
        return len(self.numbers) / self.count

    def rows(self, size: int) -> np.ndarray:
        """Numbers of the rows to build, ascending, of a batch that has `size`.

        Raises:
            ValueError: the batch does not divide into the parts.
        """
        each, rest = divmod(size, self.count)
        if rest:
            raise ValueError(f"a batch of {size} rows does not divide into {self.count} parts")
        return np.concatenate([np.arange(number * each, (number + 1) * each) for number in self.numbers])

    def place(self, row: int, size: int) -> int:
        """Where row `row` of a batch of `size` stands among those that are built; the first of a part."""
        each = size // self.count
        return self.numbers.index(row // each) * each


WHOLE = RowPart()
