"""Google's files of pretraining examples, written here with protobuf's own code and tensorboardX's digests."""

import dataclasses
import struct

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tensorboardX.record_writer import masked_crc32c

from flaxbert.losses import IGNORE
from tests.train import corpora
from tests.train.tasks.test_pretraining import SIZES
from train.config import Config, Model, Run
from train.data.bad_rows import BadRows
from train.data.pretraining.records import RecordBatches, RecordFiles
from train.distributed import HostShard
from train.loop import run
from train.optim import Optim
from train.tasks.pretraining import Pretraining

LENGTH, PREDICTIONS = 16, 4


def example_class():
    """tf.train.Example, as tensorflow/core/example/*.proto describe it."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tf", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto

    def message(name, *fields):
        made = file.message_type.add(name=name)
        for number, (field, kind, label, type_name) in enumerate(fields, 1):
            made.field.add(name=field, number=number, type=kind, label=label, type_name=type_name)
        return made

    one, many = kinds.LABEL_OPTIONAL, kinds.LABEL_REPEATED
    message("BytesList", ("value", kinds.TYPE_BYTES, many, None))
    message("FloatList", ("value", kinds.TYPE_FLOAT, many, None))
    message("Int64List", ("value", kinds.TYPE_INT64, many, None))
    lists = [(n, kinds.TYPE_MESSAGE, one, f".tf.{t}List") for n, t in (("b", "Bytes"), ("f", "Float"), ("i", "Int64"))]
    message("Feature", *lists)
    features = message("Features", ("feature", kinds.TYPE_MESSAGE, many, ".tf.Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=one)
    entry.field.add(name="value", number=2, type=kinds.TYPE_MESSAGE, label=one, type_name=".tf.Feature")
    entry.options.map_entry = True
    message("Example", ("features", kinds.TYPE_MESSAGE, one, ".tf.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))


EXAMPLE = example_class()


def values(number, **changes):
    """The features of an example; a third of them have one prediction less."""
    chance = np.random.default_rng(number)
    count = PREDICTIONS - (number % 3 == 0)
    ids = chance.integers(5, 205, LENGTH)
    padding = np.arange(LENGTH) >= 12
    positions = np.sort(chance.choice(12, count, replace=False))
    found = {
        "input_ids": np.where(padding, 0, ids),
        "input_mask": 1 - padding.astype(int),
        "segment_ids": np.where(padding, 0, np.arange(LENGTH) > 6),
        "masked_lm_positions": np.pad(positions, (0, PREDICTIONS - count)),
        "masked_lm_ids": np.pad(chance.integers(5, 205, count), (0, PREDICTIONS - count)),
        "masked_lm_weights": np.pad(np.ones(count, np.float32), (0, PREDICTIONS - count)),
        "next_sentence_labels": np.array([number % 2]),
    }
    return found | changes


def write(path, several):
    examples = []
    for features in several:
        example = EXAMPLE()
        for name, given in features.items():
            feature = example.features.feature[name]
            kind = feature.f if np.asarray(given).dtype == np.float32 else feature.i
            kind.value.extend(np.asarray(given).tolist())
        examples.append(example.SerializeToString())
    return record(path, *examples)


def record(path, *several):
    """A file of these records, framed with tensorboardX's CRC."""
    framed = b""
    for data in several:
        length = struct.pack("<Q", len(data))
        framed += length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
    path.write_bytes(framed)
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "a.tfrecord", map(values, range(10)))
    write(tmp_path / "data" / "b.tfrecord-00001", map(values, range(10, 17)))
    return tmp_path / "data"


def batches(folder, *, chosen=None, seed=None, size=4, **how):
    records = RecordFiles.find(folder)
    chosen = np.arange(len(records)) if chosen is None else chosen
    return RecordBatches(
        records, chosen, size=size, length=LENGTH, predictions=PREDICTIONS, vocab_size=205, seed=seed, **how
    )


def test_records_come_back(folder):
    found = list(batches(folder))
    assert len(found) == 5
    rows = {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}
    for number in range(17):
        wanted = values(number)
        names = {"input_ids": "input_ids", "attention_mask": "input_mask", "token_type_ids": "segment_ids"}
        for ours, theirs in {**names, "masked_lm_positions": "masked_lm_positions"}.items():
            np.testing.assert_array_equal(rows[ours][number], wanted[theirs])
        labels = np.where(wanted["masked_lm_weights"] > 0, wanted["masked_lm_ids"], IGNORE)
        np.testing.assert_array_equal(rows["masked_lm_labels"][number], labels)
        assert rows["next_sentence_labels"][number] == number % 2
    filling = {name: rows[name][17:] for name in rows}
    assert (filling["masked_lm_labels"] == IGNORE).all() and (filling["next_sentence_labels"] == IGNORE).all()
    assert not filling["attention_mask"].any()


def test_a_digest_tells_records_from_others(tmp_path):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, middle in zip(paths, (b"x" * 2**21, b"x" * 2**20 + b"y" + b"x" * (2**20 - 1), b"x" * 2**21), strict=True):
        record(path, b"first" * 2**19, middle, b"last" * 2**19)
    first, other, same = (RecordFiles.find(path).digest for path in paths)
    assert first == same != other


def test_every_epoch_has_its_order_and_all_records(folder):
    endless = batches(folder, seed=1, size=17)

    def keys(batch):
        return [row.tobytes() for row in batch["input_ids"]]

    first, second = keys(endless[0]), keys(endless[1])
    assert sorted(first) == sorted(second) == sorted(keys(batches(folder, seed=2, size=17)[0])) and first != second
    assert keys(batches(folder, seed=1, size=17)[1]) == second
    parts = [batches(folder, seed=1, size=4, host_shard=HostShard((n,), 2))[3] for n in (0, 1)]
    whole = batches(folder, seed=1, size=4)[3]
    for name in whole:
        np.testing.assert_array_equal(whole[name], np.concatenate([part[name] for part in parts]))


def test_damaged_records_are_skipped_and_listed(config, folder):
    file = sorted(folder.iterdir())[0]
    content = file.read_bytes()
    file.write_bytes(content[:20] + bytes([content[20] ^ 1]) + content[21:])
    try:
        task = dataclasses.replace(config.task, bad_rows=BadRows.SKIP).prepare(config)
    finally:
        file.write_bytes(content)
    assert task.facts["examples"] == "11 to train on, 5 held out" and task.facts["text bad rows skipped"] == 1
    (bad,) = task.bad_rows["text"]
    assert (bad.source, bad.reason) == (f"{file}: the record at byte 0", "is damaged (its CRC differs)")


def test_numbers_one_by_one_and_large_ones(tmp_path):
    """Writers may leave numbers unpacked."""
    entries = b""
    for name, given in values(0).items():
        if given.dtype == np.float32:
            body = b"".join(b"\x0d" + struct.pack("<f", value) for value in given)
            feature = b"\x12" + bytes([len(body)]) + body
        else:
            body = b"".join(b"\x08" + varint(int(value)) for value in given)
            feature = b"\x1a" + varint(len(body)) + body
        key = name.encode()
        entry = b"\x0a" + bytes([len(key)]) + key + b"\x12" + varint(len(feature)) + feature
        entries += b"\x0a" + varint(len(entry)) + entry
    record(tmp_path / "one.tfrecord", b"\x0a" + varint(len(entries)) + entries)
    (found,) = batches(tmp_path / "one.tfrecord", size=1)
    np.testing.assert_array_equal(found["input_ids"][0], values(0)["input_ids"])
    write(tmp_path / "large.tfrecord", [values(0, huge=np.array([2**62, 0, 300, -1]))])
    assert RecordFiles.find(tmp_path / "large.tfrecord").example(0)["huge"].tolist() == [2**62, 0, 300, -1]


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


@pytest.fixture
def config(folder, tmp_path):
    corpora.tokenizer().save(tmp_path / "words", max_length=40)
    task = Pretraining(
        f"tfrecords:{folder}",
        tokenizer=tmp_path / "words",
        max_length=LENGTH,
        max_predictions=PREDICTIONS,
        heldout=0.3,
    )
    return Config(task, Run(folder=tmp_path / "run", batch_size=8, steps=3), Model(sizes=SIZES), Optim())


@pytest.mark.slow
def test_a_run(config):
    assert "next_sentence_accuracy" in (run(config) / "summary.md").read_text()


def test_a_task_of_records(config, tmp_path):
    task = config.task
    spec, prepared = task.train_spec(config), task.prepare(config)
    assert {n: v.shape for n, v in spec.batch.items()} == {n: v.shape for n, v in prepared.train[0].items()}
    assert prepared.facts["examples"] == "12 to train on, 5 held out"
    assert len(list(prepared.evaluations["dev"])) == 1 and prepared.unigram_entropy > 0
    with pytest.raises(ValueError, match="holds no vocabulary: give the one that made it"):
        dataclasses.replace(task, tokenizer=None).prepare(
            dataclasses.replace(config, run=Run(folder=tmp_path / "other", steps=1))
        )
    with pytest.raises(ValueError, match="holds pairs of one length, one a row"):
        dataclasses.replace(task, row_length=64).prepare(config)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda data: data[:-3], "ends within the record at byte"),
        (lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:], "the record at byte 0 is damaged"),
        (lambda data: b"\x1f\x8b" + data, "no record at byte 0; not an .uncompressed. TFRecord file"),
        (lambda data: b"", "holds no records"),
        (lambda data: data + bytes(5), r"no record at byte \d+"),
    ],
)
def test_damaged_files(tmp_path, change, error):
    file = write(tmp_path / "a.tfrecord", [values(0)])
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ValueError, match=error):
        list(batches(file))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"input_ids": np.arange(17)}, "input_ids has 17 entries instead of 16; set max_length and max_predictions"),
        ({"masked_lm_ids": np.array([0])}, "masked_lm_ids has 1 entries instead of 4"),
        ({"input_ids": np.full(16, 205)}, "input_ids is not of whole numbers from 0 to 204"),
        ({"masked_lm_positions": np.full(4, 16)}, "masked_lm_positions is not of whole numbers from 0 to 15"),
        ({"segment_ids": np.full(16, -1)}, "segment_ids is not of whole numbers from 0 to 1"),
        ({"input_ids": np.zeros(16, np.float32)}, "input_ids is not of whole numbers"),
    ],
)
def test_other_examples(tmp_path, changes, error):
    file = write(tmp_path / "a.tfrecord", [values(0, **changes)])
    with pytest.raises(ValueError, match=f"the record at byte 0: {error}"):
        list(batches(file))


def test_what_is_no_example(tmp_path):
    file = write(tmp_path / "a.tfrecord", [{"image": np.array([1])}])
    with pytest.raises(ValueError, match="lacks input_ids, .*; found image"):
        list(batches(file))
    for data in (b"\xff" * 30, b"\x0a\x7f", b"\x0a\x05\x0a\x03\x12\x01\x1a", b"\x0f"):
        record(file, data)
        with pytest.raises(ValueError, match=r"is no tf\.train\.Example|lacks input_ids"):
            list(batches(file))
    with pytest.raises(FileNotFoundError, match="no such file"):
        RecordFiles.find(tmp_path / "nowhere")


def test_mutated_files_are_read_or_refused(tmp_path):
    """No damage, however placed, makes it hang, or fail with anything but a ValueError."""
    file = write(tmp_path / "a.tfrecord", [values(0)])
    good = file.read_bytes()[12:-4]
    chance = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(good)
        for place in chance.integers(len(data), size=chance.integers(1, 4)):
            data[place] = chance.integers(256)
        record(file, bytes(data))  # with digests that are right
        try:
            list(batches(file))
        except ValueError as error:
            assert "the record at byte 0" in str(error)
