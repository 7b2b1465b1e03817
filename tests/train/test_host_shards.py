"""Batches do not depend on the number of hosts that build them."""

import dataclasses
import hashlib
from collections.abc import Iterator

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.runs import SMALL
from train.config import Model
from train.distributed import WHOLE_BATCH, HostShard, MeshShape, Placement

PROCESSES = {count: [HostShard((index,), count) for index in range(count)] for count in (1, 2, 4)}


def test_rows_of_a_shard():
    assert WHOLE_BATCH.rows(6).tolist() == [0, 1, 2, 3, 4, 5] and WHOLE_BATCH.fraction == 1
    shard = HostShard((0, 2), 4)
    assert shard.rows(8).tolist() == [0, 1, 4, 5] and shard.fraction == 0.5
    assert [shard.local_index(row, 8) for row in (0, 4)] == [0, 2]
    with pytest.raises(ValueError, match="a batch of 6 rows does not divide into 4 shards"):
        shard.rows(6)


@pytest.mark.parametrize("shards", [(), (1, 0), (0, 0), (4,)])
def test_wrong_shards_are_refused(shards):
    with pytest.raises(ValueError, match="must be one or more of 0 to 3, ascending"):
        HostShard(shards, 4)


def joined(shards):
    """Concatenate the rows that several hosts have built."""
    return {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}


def digest(batches: Iterator) -> str:
    found = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            found.update(f"{name} {batch[name].dtype} {batch[name].shape}".encode() + batch[name].tobytes())
    return found.hexdigest()


def digests(prepare, count, batches=1000):
    """Return SHA-256 of the first training batches and of the evaluation sets, built by `count` hosts."""
    tasks = [prepare(shard) for shard in PROCESSES[count]]
    train = digest(joined([task.train[i] for task in tasks]) for i in range(batches))
    sets = [zip(*[task.evaluations[name] for task in tasks], strict=True) for name in sorted(tasks[0].evaluations)]
    return train, [digest(map(joined, batches)) for batches in sets]


def test_masked_lm_batches_do_not_depend_on_the_number_of_processes(masked_lm, finished):
    task = dataclasses.replace(masked_lm.task, tokenizer=finished.folder / "tokenizer")
    prepare = lambda host_shard: task.prepare(masked_lm, host_shard=host_shard)  # noqa: E731
    found = [digests(prepare, count) for count in PROCESSES]
    assert found[0] == found[1] == found[2]
    assert prepare(PROCESSES[4][3]).train[0]["input_ids"].shape == (2, 32)


@pytest.mark.parametrize("packed", [False, True])
def test_classification_batches_do_not_depend_on_the_number_of_processes(classification, packed):
    task = dataclasses.replace(classification.task, packed=packed)
    prepare = lambda host_shard: task.prepare(classification, host_shard=host_shard)  # noqa: E731
    found = [digests(prepare, count) for count in PROCESSES]
    assert found[0] == found[1] == found[2]
    # Nothing but its own rows is built.
    whole, quarter = prepare(WHOLE_BATCH).train[0], prepare(PROCESSES[4][1]).train[0]
    assert 4 * len(quarter["input_ids"]) == len(whole["input_ids"])


@pytest.mark.parametrize("shape", [MeshShape(), MeshShape(fsdp=4), MeshShape(tensor=4), MeshShape(data=2, tensor=2)])
def test_a_batch_arrives_at_the_devices_that_take_it(shape):
    placement = Placement.of(shape, jax.devices()[:4])
    assert placement.host_shard.rows(16).tolist() == list(range(16))  # of the only process
    values = np.arange(32).reshape(16, 2)
    (arrived,) = placement.batch({"x": values}).values()
    rows = NamedSharding(placement.mesh, PartitionSpec(("data", "fsdp"), None))
    assert arrived.sharding.is_equivalent_to(rows, 2)
    np.testing.assert_array_equal(arrived, values)


def test_rows_of_a_process_with_devices_here_and_there(monkeypatch):
    """Of four devices the host has 0 and 2, hence the first and the third shard of a batch."""
    placement = Placement.of(MeshShape(), jax.devices()[:4])
    vars(placement)["host_shard"] = HostShard((0, 2), 4)
    made = {}

    def record(shape, sharding, rows):
        for device, index in sharding.devices_indices_map(shape).items():
            if device.id in (0, 2):
                made[device.id] = rows(index)
        return shape

    monkeypatch.setattr(jax, "make_array_from_callback", record)
    values = np.array([0, 1, 4, 5])  # of a batch of 8
    assert placement.batch({"x": values}) == {"x": (8,)}
    assert {device: rows.tolist() for device, rows in made.items()} == {0: [0, 1], 2: [4, 5]}


def test_a_learnt_vocabulary_is_the_first_hosts(masked_lm):
    class Second:
        """A host that receives the vocabulary of the first host."""

        def share(self, make):
            return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b"]

    task = masked_lm.task.prepare(dataclasses.replace(masked_lm, model=Model(sizes=SMALL)), host_group=Second())
    assert task.tokenizer.vocab_size == 8 and task.tokenizer.lowercase
    assert task.tokenizer.tokens(task.tokenizer.piece_ids(["Abb"])[0]) == ["a", "##b", "##b"]
