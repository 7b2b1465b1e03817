import numpy as np
import pytest

from train.data.batches import EvaluationBatches, PackedBatches, PaddedBatches
from train.data.examples import LabelledSequences


@pytest.fixture
def examples():
    lengths = np.random.default_rng(0).integers(3, 60, size=103)
    return LabelledSequences(
        ids=[np.full(length, i, np.int32) for i, length in enumerate(lengths)],
        types=[np.ones(length, np.int32) for length in lengths],
        labels=np.arange(103, dtype=np.int32) % 7,
    )


def train_batches(examples, seed=0, epochs=1, kind=PaddedBatches, **settings):
    total_steps = lambda per_epoch: epochs * per_epoch  # noqa: E731
    return kind(examples, size=8, pad_id=999, max_length=64, seed=seed, total_steps=total_steps, **settings)


def rows_of(batch):
    """The example number of each row or slot that counts (ids are the example's number)."""
    starts = batch.get("first_positions", np.zeros((len(batch["input_ids"]), 1), int))
    first_ids = np.take_along_axis(batch["input_ids"], starts, axis=1)
    return first_ids[batch["weight"].reshape(first_ids.shape) == 1].tolist()


kinds = pytest.mark.parametrize("kind", [PaddedBatches, PackedBatches])


@kinds
def test_every_example_once_an_epoch(examples, kind):
    batches = train_batches(examples, kind=kind)
    assert batches.per_epoch == 13
    for epoch in range(3):
        seen = [row for i in range(13) for row in rows_of(batches[epoch * 13 + i])]
        assert sorted(seen) == list(range(103))


@kinds
def test_a_batch_depends_on_seed_and_number_alone(examples, kind):
    forwards = [train_batches(examples, kind=kind)[i] for i in range(26)]
    batches = train_batches(examples, kind=kind)
    for i in reversed(range(26)):
        for name, value in batches[i].items():
            np.testing.assert_array_equal(value, forwards[i][name])
    assert [rows_of(b) for b in forwards[:13]] != [rows_of(b) for b in forwards[13:]]
    assert rows_of(train_batches(examples, seed=1, kind=kind)[0]) != rows_of(forwards[0])


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


@pytest.mark.parametrize("devices", [1, 4])
def test_packed_batches_hold_each_example_whole(examples, devices):
    batches = train_batches(examples, epochs=1000, kind=PackedBatches, row_multiple=devices)
    for i in range(13):
        batch = batches[i]
        assert len(batch["input_ids"]) % devices == 0
        for row, slot in np.argwhere(batch["weight"] == 1):
            (place,) = np.nonzero(batch["segment_ids"][row] == slot + 1)
            assert place[0] == batch["first_positions"][row, slot]
            number = batch["input_ids"][row, place[0]]
            assert len(place) == examples.lengths[number]
            assert (batch["input_ids"][row, place] == number).all() and batch["token_type_ids"][row, place].all()
            assert batch["position_ids"][row, place].tolist() == list(range(len(place)))
            assert batch["labels"][row, slot] == number % 7
        empty = batch["weight"] == 0
        assert (batch["labels"][empty] == -100).all() and (batch["first_positions"][empty] == 0).all()
        assert (batch["input_ids"][batch["segment_ids"] == 0] == 999).all()


def test_packed_batches_have_few_shapes_and_little_padding(examples):
    batches = train_batches(examples, kind=PackedBatches)
    shapes = [batches[i]["input_ids"].shape for i in range(13 * 5)]
    assert len(batches.shape.row_counts) == 1 and len(set(shapes)) <= 2
    real, positions = 5 * examples.lengths.sum(), sum(rows * length for rows, length in shapes)
    assert real / positions > 0.8


def test_evaluation_sees_every_example_once_and_says_which(examples):
    batches = EvaluationBatches(examples, size=10, pad_id=0, max_length=64)
    assert len(batches) == 11
    seen = []
    for numbers, batch in zip(batches.members, batches, strict=True):
        assert rows_of(batch) == numbers.tolist()
        seen.extend(numbers.tolist())
    assert sorted(seen) == list(range(103))
    found = batches.by_example([batch["input_ids"][:, 0] for batch in batches])
    assert np.array(found).tolist() == list(range(103))
