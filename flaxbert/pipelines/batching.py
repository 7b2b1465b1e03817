"""Rows of different lengths through one compiled function: few shapes, results in the order of the rows."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

Batch = dict[str, np.ndarray]
T = TypeVar("T")

_SHORTEST = 16


@dataclasses.dataclass(frozen=True)
class Row:
    """The tokens of one sequence; `more` holds further arrays, of the same shapes in every row of a pipeline."""

    ids: Sequence[int]
    types: Sequence[int]
    more: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def ladder(longest: int) -> tuple[int, ...]:
    """The lengths that batches are padded to: 16, 24, 32, 48, ..., powers of two and their middles, then `longest`.

    A row is at most half as long again as its tokens (from 16 up), and 512 positions are 11 programs to compile.
    """
    powers = itertools.takewhile(lambda power: power < longest, (_SHORTEST << i for i in itertools.count()))
    lengths = [length for power in powers for length in (power, power * 3 // 2)]
    return (*(length for length in lengths if length < longest), longest)


def windows(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter; no more than a list is read ahead."""
    source = iter(items)
    while window := list(itertools.islice(source, size)):
        yield window


def in_batches(
    rows: Sequence[Row], compute: Callable[[Batch], Any], *, size: int, lengths: Sequence[int], pad_id: int
) -> list[Any]:
    """What `compute` makes of each row, in the order of the rows.

    Rows of similar length share a batch. Every batch has `size` rows, a short one being filled up with padding, and
    one of the `lengths`, so that a jitted `compute` is compiled for as many shapes as there are lengths, at most.

    Args:
        rows: none longer than the last of `lengths`.
        compute: of {"input_ids", "attention_mask", "token_type_ids"} [size, T] and the stacked `more` of the rows, to a
            tree of arrays [size, ...].
        size: rows of a batch.
        lengths: ascending.
        pad_id: of [PAD].

    Returns:
        the tree of each row, arrays [...] of numpy.
    """
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].ids))
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    # All are sent off before the first is waited for: the device need not wait for the next to be built.
    made = [compute(padded([rows[number] for number in batch], size, lengths, pad_id)) for batch in batches]
    found: list[Any] = [None] * len(rows)
    for batch, outputs in zip(batches, jax.device_get(made), strict=True):
        for place, number in enumerate(batch):
            found[number] = jax.tree.map(lambda array, place=place: array[place], outputs)
    return found


def padded(rows: Sequence[Row], size: int, lengths: Sequence[int], pad_id: int) -> Batch:
    """The rows as arrays [size, T], T the first of `lengths` that holds the longest of them."""
    longest = max(len(row.ids) for row in rows)
    shape = size, next(length for length in lengths if length >= longest)
    batch: Batch = {
        "input_ids": np.full(shape, pad_id, np.int32),
        "attention_mask": np.zeros(shape, np.int32),
        "token_type_ids": np.zeros(shape, np.int32),
    }
    for name, array in rows[0].more.items():
        batch[name] = np.zeros((size, *array.shape), array.dtype)
    for place, row in enumerate(rows):
        length = len(row.ids)
        batch["input_ids"][place, :length] = row.ids
        batch["attention_mask"][place, :length] = 1
        batch["token_type_ids"][place, :length] = row.types
        for name, array in row.more.items():
            batch[name][place] = array
    return batch
