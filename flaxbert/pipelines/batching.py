"""Run token sequences of different lengths through one compiled function, in batches of few shapes."""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

ModelBatch = dict[str, np.ndarray]
T = TypeVar("T")

_SHORTEST_BUCKET = 16


@dataclasses.dataclass(frozen=True)
class InputSequence:
    """Token ids and types of one sequence; the arrays of `extra` have the same shapes in all sequences."""

    ids: Sequence[int] | np.ndarray
    types: Sequence[int] | np.ndarray
    extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def length_buckets(longest: int) -> tuple[int, ...]:
    """Return the lengths to which batches are padded: 16, 24, 32, 48, ... below `longest`, then `longest`.

    They are the powers of two and the numbers halfway between. A sequence of 16 tokens or more is padded by at most
    half, and up to 512 positions need 11 compiled programs.
    """
    powers = itertools.takewhile(lambda power: power < longest, (_SHORTEST_BUCKET << i for i in itertools.count()))
    lengths = [length for power in powers for length in (power, power * 3 // 2)]
    return (*(length for length in lengths if length < longest), longest)


def chunked(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items, the last one shorter; read no item before its list is asked for."""
    source = iter(items)
    while chunk := list(itertools.islice(source, size)):
        yield chunk


def run_in_batches(
    sequences: Sequence[InputSequence],
    compute: Callable[[ModelBatch], PyTree],
    *,
    batch_size: int,
    lengths: Sequence[int],
    pad_id: int,
) -> list[PyTree]:
    """Return for each sequence, in order, its tree of the arrays that `compute` returns, without the batch axis.

    Sequences of similar length share a batch. Every batch has `batch_size` rows, filled up with padding, and one of the
    `lengths`, so a jitted `compute` is compiled at most once per length.
    """
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index].ids))
    batches = list(chunked(order, batch_size))
    # A batch is dispatched before the results of the one before are fetched, so that the device does not wait for the
    # host. A CPU would compute both at once, which takes the memory of both.
    ahead = 0 if jax.default_backend() == "cpu" else 1
    results: list[PyTree] = [None] * len(sequences)
    dispatched: collections.deque[PyTree] = collections.deque()

    def fetch(batch: Sequence[int]) -> None:
        outputs = jax.device_get(dispatched.popleft())
        for row, index in enumerate(batch):
            # A copy, because a view would keep the padding in memory.
            results[index] = jax.tree.map(lambda array, row=row: array[row].copy(), outputs)

    for number, batch in enumerate(batches):
        dispatched.append(compute(pad_batch([sequences[index] for index in batch], batch_size, lengths, pad_id)))
        if number >= ahead:
            fetch(batches[number - ahead])
    for batch in batches[-len(dispatched) :] if dispatched else ():
        fetch(batch)
    return results


def pad_batch(sequences: Sequence[InputSequence], batch_size: int, lengths: Sequence[int], pad_id: int) -> ModelBatch:
    """Return arrays [B, T] with one sequence per row; T is the first of `lengths` that holds the longest sequence."""
    longest = max(len(sequence.ids) for sequence in sequences)
    shape = batch_size, next(length for length in lengths if length >= longest)
    batch: ModelBatch = {
        "input_ids": np.full(shape, pad_id, np.int32),
        "attention_mask": np.zeros(shape, np.int32),
        "token_type_ids": np.zeros(shape, np.int32),
    }
    for name, array in sequences[0].extra.items():
        batch[name] = np.zeros((batch_size, *array.shape), array.dtype)
    for row, sequence in enumerate(sequences):
        length = len(sequence.ids)
        batch["input_ids"][row, :length] = sequence.ids
        batch["attention_mask"][row, :length] = 1
        batch["token_type_ids"][row, :length] = sequence.types
        for name, array in sequence.extra.items():
            batch[name][row] = array
    return batch
