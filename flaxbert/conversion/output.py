"""The folder that a conversion writes: its form, and the report of what was written."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from flaxbert.files import (
    require_absent,
)
from flaxbert.weights.checkpoint import FILE_FORMATS, ORBAX, FileFormat
from flaxbert.weights.folder import (
    DTYPES,
)
from flaxbert.weights.tensors import LazyTensor, observed, tensors_equal

FORMATS = (*(known.name for known in FILE_FORMATS), ORBAX)

ReportProgress = Callable[[int, int], None]
"""A function that is called after each tensor with the bytes written so far and in total."""


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        read, written: the formats.
        head: the class.
        tensors, bytes: the number of tensors written, and the size of their numbers.
        newly_initialised: names of tensors that the checkpoint lacked.
        left_out: names in the checkpoint that the class does not take: buffers, aliases of tied weights, another
            head's, an optimizer's.
        files: all files written but the weights.
        vocab_size: the new number of vocabulary entries; None where no other one was asked for.
    """

    read: str
    written: str
    head: str
    tensors: int
    bytes: int
    newly_initialised: list[str]
    left_out: list[str]
    files: list[str]
    vocab_size: int | None = None


@dataclasses.dataclass(frozen=True)
class Output:
    """The form of the folder to write; the arguments of `convert` of the same names."""

    target: Path
    format: str
    dtype: str | None
    max_shard_size: int | None
    verify: bool
    progress: ReportProgress | None

    def check(self) -> None:
        """Raise FileExistsError or ValueError for a form that cannot be written."""
        require_absent(self.target)
        if self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}; allowed: {', '.join(FORMATS)}")
        if self.dtype not in (None, *DTYPES):
            raise ValueError(f"dtype is {self.dtype!r}; allowed: {', '.join(DTYPES)}")
        if self.max_shard_size is not None and self.max_shard_size < 1:
            raise ValueError(f"max_shard_size is {self.max_shard_size}; it must be at least 1 byte")
        if self.max_shard_size is not None and self.format == ORBAX:
            raise ValueError("max_shard_size is for files of Hugging Face's; orbax divides its files itself")

    def observed(self, tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
        """Return tensors that report their bytes to `progress` when they are read."""
        report, total, done = self.progress, total_bytes(tensors), 0
        if report is None:
            return tensors

        def count(size: int) -> None:
            nonlocal done
            done = min(done + size, total)  # a tensor may have two names in the files, and is read for both
            report(done, total)

        return {name: observed(tensor, count) for name, tensor in tensors.items()}


def file_format(name: str) -> FileFormat:
    """Return the format of this name."""
    return next(known for known in FILE_FORMATS if known.name == name)


def compare(folder: Path, expected: Mapping[str, LazyTensor], written: Mapping[str, LazyTensor]) -> None:
    """Raise ValueError unless the tensors that were written to a folder equal those of the checkpoint."""
    differing = [
        name for name, tensor in expected.items() if name not in written or not tensors_equal(tensor, written[name])
    ]
    if differing:
        raise ValueError(
            f"{folder}: {len(differing)} tensors differ from the checkpoint's after writing: {', '.join(differing[:5])}"
        )


def total_bytes(tensors: Mapping[str, LazyTensor]) -> int:
    """Return the size of the numbers of all tensors."""
    return sum(int(np.prod(t.shape, dtype=np.int64)) * t.dtype.itemsize for t in tensors.values())
