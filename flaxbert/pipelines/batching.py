"""Run token sequences of different lengths through one compiled function, in batches of few shapes."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

ModelBatch = dict[str, np.ndarray]
T = TypeVar("T")

_SHORTEST = 16


@dataclasses.dataclass(frozen=True)
class InputSequence:
    """Tokens of one sequence of a batch.

    Attributes:
        ids: token ids.
        types: token types.
        extra: further arrays by name; their shapes are the same for all sequences of a pipeline.
    """

    ids: Sequence[int]
    types: Sequence[int]
    extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def length_buckets(longest: int) -> tuple[int, ...]:
    """Return the lengths to which batches are padded: 16, 24, 32, 48, ... below `longest`, then `longest`.

    They are the powers of two and the numbers halfway between. A sequence of 16 tokens or more is padded by at most
    half, and up to 512 positions need 11 compiled programs.
    """
    powers = itertools.takewhile(lambda power: power < longest, (_SHORTEST << i for i in itertools.count()))
    lengths = [length for power in powers for length in (power, power * 3 // 2)]
    return (*(length for length in lengths if length < longest), longest)


def chunked(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items, the last one shorter; read no item before its list is asked for."""
    source = iter(items)
    while chunk := list(itertools.islice(source, size)):
        yield chunk


def run_in_batches(
    sequences: Sequence[InputSequence],
    compute: Callable[[ModelBatch], Any],
    *,
    batch_size: int,
    lengths: Sequence[int],
    pad_id: int,
) -> list[Any]:
    """Return the outputs of `compute` for each sequence, in the order of the sequences.

    Sequences of similar length share a batch. Every batch has `batch_size` rows, filled up with padding, and one of the
    `lengths`, so a jitted `compute` is compiled at most once per length.

    Args:
        sequences: none longer than the last of `lengths`.
        compute: takes input_ids, attention_mask and token_type_ids [B, T] and the stacked `extra` arrays by name;
            returns a tree of arrays [B, ...].
        batch_size: B.
        lengths: allowed values of T, ascending.
        pad_id: id of [PAD].

    Returns:
        the tree of each sequence, with NumPy arrays [...].
    """
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index].ids))
    batches = list(chunked(order, batch_size))
    # All batches are dispatched before the first result is fetched, so that the device does not wait for the host.
    dispatched = [
        compute(pad_batch([sequences[index] for index in batch], batch_size, lengths, pad_id)) for batch in batches
    ]
    results: list[Any] = [None] * len(sequences)
    for batch, outputs in zip(batches, jax.device_get(dispatched), strict=True):
        for row, index in enumerate(batch):
            results[index] = jax.tree.map(lambda array, row=row: array[row], outputs)
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
