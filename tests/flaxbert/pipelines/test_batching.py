"""Batches of few shapes, and results in the order of the sequences."""

import itertools

import numpy as np
import pytest

from flaxbert.pipelines import batching
from flaxbert.pipelines.batching import InputSequence

LENGTHS = (4, 6, 8)


def rows_of(lengths):
    return [
        InputSequence([10 + i] * n, [i % 2] * n, {"number": np.array([i, n], np.int16)}) for i, n in enumerate(lengths)
    ]


def test_length_buckets():
    assert batching.length_buckets(512) == (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    assert batching.length_buckets(100) == (16, 24, 32, 48, 64, 96, 100)
    assert (
        batching.length_buckets(16) == (16,)
        and batching.length_buckets(9) == (9,)
        and batching.length_buckets(24) == (16, 24)
    )


def test_results_keep_the_order_of_the_sequences_and_shapes_are_few():
    lengths = np.random.default_rng(0).integers(1, 9, 50).tolist()
    shapes = []

    def compute(batch):
        shapes.append(batch["input_ids"].shape)
        assert batch["number"].dtype == np.int16
        real = batch["attention_mask"]
        assert (batch["input_ids"][real == 0] == 3).all() and (batch["token_type_ids"][real == 0] == 0).all()
        sums = (batch["input_ids"] * real).sum(axis=1), batch["token_type_ids"].sum(axis=1)
        return {"sums": np.stack(sums, axis=1), "number": batch["number"]}

    found = batching.run_in_batches(rows_of(lengths), compute, batch_size=8, lengths=LENGTHS, pad_id=3)
    for i, (length, outputs) in enumerate(zip(lengths, found, strict=True)):
        assert outputs["sums"].tolist() == [(10 + i) * length, i % 2 * length]
        assert outputs["number"].tolist() == [i, length]
    assert len(shapes) == 7 and {size for size, _ in shapes} == {8} and {t for _, t in shapes} <= set(LENGTHS)
    assert [t for _, t in shapes] == sorted(t for _, t in shapes)  # rows of similar length share a batch
    assert batching.run_in_batches([], compute, batch_size=8, lengths=LENGTHS, pad_id=3) == []


def test_chunked_reads_only_the_chunk_that_is_asked_for():
    source = itertools.count()
    windows = batching.chunked(source, 3)
    assert next(windows) == [0, 1, 2] and next(source) == 3
    assert list(batching.chunked("abcde", 2)) == [["a", "b"], ["c", "d"], ["e"]]


def test_a_sequence_longer_than_all_lengths_is_refused():
    with pytest.raises(StopIteration):
        batching.pad_batch(rows_of([9]), 2, LENGTHS, 0)
