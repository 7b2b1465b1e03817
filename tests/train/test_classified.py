import itertools

import numpy as np
import pytest

from train.data.classified import EvaluationBatches, Examples, TrainBatches, bucket_lengths


@pytest.fixture
def examples():
    lengths = np.random.default_rng(0).integers(3, 60, size=103)
    return Examples(
        ids=[np.full(length, i, np.int32) for i, length in enumerate(lengths)],
        types=[np.ones(length, np.int32) for length in lengths],
        labels=np.arange(103, dtype=np.int32) % 7,
    )


def train_batches(examples, seed=0, epochs=1):
    return TrainBatches(
        examples, size=8, pad_id=999, max_length=64, seed=seed, total_steps=lambda per_epoch: epochs * per_epoch
    )


def rows_of(batch):
    """The example number of each row that counts (ids are the example's number)."""
    return batch["input_ids"][:, 0][batch["weight"] == 1].tolist()


def test_every_example_once_an_epoch(examples):
    batches = train_batches(examples)
    assert batches.per_epoch == 13
    for epoch in range(3):
        seen = [row for i in range(13) for row in rows_of(batches[epoch * 13 + i])]
        assert sorted(seen) == list(range(103))


def test_a_batch_depends_on_seed_and_number_alone(examples):
    forwards = [train_batches(examples)[i] for i in range(26)]
    batches = train_batches(examples)
    for i in reversed(range(26)):
        for name, value in batches[i].items():
            np.testing.assert_array_equal(value, forwards[i][name])
    assert [rows_of(b) for b in forwards[:13]] != [rows_of(b) for b in forwards[13:]]
    assert rows_of(train_batches(examples, seed=1)[0]) != rows_of(forwards[0])


def test_padding_and_labels(examples):
    for i in range(13):
        batch = train_batches(examples)[i]
        for row, number in enumerate(rows_of(batch)):
            count = len(examples.ids[number])
            assert batch["attention_mask"][row].sum() == count
            assert (batch["input_ids"][row, count:] == 999).all()
            assert batch["token_type_ids"][row].sum() == count
            assert batch["labels"][row] == number % 7
        filling = batch["weight"] == 0
        assert (batch["labels"][filling] == -100).all() and (batch["attention_mask"][filling] == 0).all()


def test_a_long_run_trims_its_batches_to_few_lengths(examples):
    batches = train_batches(examples, epochs=1000)
    shapes = [batches[i]["input_ids"].shape for i in range(13 * 5)]  # every epoch fits the lengths of the first
    assert {rows for rows, _ in shapes} == {8}
    assert {length for _, length in shapes} <= set(batches.lengths) and len(batches.lengths) > 3
    real, padded = 5 * examples.lengths.sum(), sum(rows * length for rows, length in shapes)
    # Rows of a batch are alike in length; in random batches more than 40 % would be padding here.
    assert real / padded > 0.75


def test_a_short_run_compiles_once(examples):
    assert train_batches(examples).lengths == (60,)


def test_evaluation_sees_every_example_once_and_says_which(examples):
    batches = EvaluationBatches(examples, size=10, pad_id=0, max_length=64)
    assert len(batches) == 11
    seen = []
    for numbers, batch in zip(batches.rows, batches, strict=True):
        assert rows_of(batch) == numbers.tolist()
        seen.extend(numbers.tolist())
    assert sorted(seen) == list(range(103))


@pytest.mark.parametrize("compiling", [0.5, 4.0, 20.0, 1000.0])
def test_bucket_lengths_cost_least(compiling):
    longest = np.random.default_rng(3).choice([5, 6, 9, 10, 17, 30, 31, 38, 44, 51], size=60)

    def cost(lengths):
        padded = [min(length for length in lengths if length >= n) for n in longest]
        return compiling * len(lengths) + sum(padded) - longest.sum()

    multiples = range(8, 52, 4)
    every = [(*some, 52) for count in range(9) for some in itertools.combinations(multiples, count)]
    chosen = bucket_lengths(longest, 100, compiling=compiling)
    assert chosen == tuple(sorted(chosen)) and set(chosen) <= {*multiples, 52}
    assert cost(chosen) == min(map(cost, every))


def test_no_length_goes_beyond_the_largest_allowed():
    assert bucket_lengths(np.array([3, 9, 49]), 50, compiling=0.1) == (4, 12, 50)
