"""Pretraining examples that create_pretraining_data.py of google-research/bert has written, without TensorFlow.

A TFRecord file is a sequence of records: the length (8 bytes), its CRC, the data, its CRC. The data here is a
tf.train.Example, a protocol buffer that maps names to lists of whole numbers or floats.
"""

import dataclasses
import hashlib
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from flaxbert.files import require_downloaded
from flaxbert.losses import IGNORE
from flaxbert.text.messages import raise_problems
from flaxbert.tokenizer import WordPieceTokenizer
from flaxbert.weights.formats.tensorflow_encoding import Message, masked_crc32c, read_packed_varints
from train.data.bad_rows import BadRow, BadRows
from train.data.pretraining.datasets import BatchPlan, ExampleOptions, PretrainingData, split_documents
from train.distributed import WHOLE_BATCH, HostBatch, HostShard

_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")
_MAX_RECORD_BYTES = 2**24  # records of 512 tokens have 10,000
_TOKEN_FEATURES = ("input_ids", "input_mask", "segment_ids")
_PREDICTION_FEATURES = ("masked_lm_positions", "masked_lm_ids", "masked_lm_weights")
_LABEL = "next_sentence_labels"
_FEATURES = (*_TOKEN_FEATURES, *_PREDICTION_FEATURES, _LABEL)


@dataclasses.dataclass(frozen=True)
class RecordFiles:
    """The records of some files."""

    files: Sequence[Path]
    locations: np.ndarray  # of each record the index of its file, and offset and length of its data in bytes [N, 3]
    digest: str  # SHA-256 of the checksums of all records

    @classmethod
    def find(cls, path: Path) -> "RecordFiles":
        """Return the records of a file, or of a folder's files with "tfrecord" in their names; reads only lengths.

        Raises:
            FileNotFoundError: there is no such file, or none in the folder.
            ValueError: a file does not consist of records; the message has the file and byte.
        """
        files = sorted(path.rglob("*tfrecord*")) if path.is_dir() else [path]
        files = [file for file in files if file.is_file()]
        if not files:
            raise FileNotFoundError(f"{path}: no such file, and no folder with *tfrecord* files")
        locations, digest = [], hashlib.sha256()
        for number, file in enumerate(files):
            for start, length, crc in _record_ranges(file):
                locations.append((number, start, length))
                digest.update(crc)
        if not locations:
            raise ValueError(f"{path}: holds no records")
        return cls(files, np.array(locations, np.int64), digest.hexdigest())

    def __len__(self) -> int:
        return len(self.locations)

    def name(self, number: int) -> str:
        """Return the file and offset of a record, for messages."""
        file, start, _ = self.locations[number].tolist()
        return f"{self.files[file]}: the record at byte {start - _HEADER.size}"

    def example(self, number: int) -> dict[str, np.ndarray]:
        """Read the features of a record.

        Raises:
            ValueError: the record is damaged, or not a pretraining example.
        """
        file_number, start, length = self.locations[number].tolist()
        with self.files[file_number].open("rb") as stream:
            stream.seek(start)
            data = stream.read(length + _FOOTER.size)
        name = self.name(number)
        if len(data) < length + _FOOTER.size or masked_crc32c(data[:length]) != _FOOTER.unpack(data[length:])[0]:
            raise ValueError(f"{name} is damaged (its CRC differs)")
        try:
            features = _features(memoryview(data)[:length])
        except ValueError as error:
            raise ValueError(f"{name} is no tf.train.Example ({error})") from None
        if missing := [feature for feature in _FEATURES if feature not in features]:
            found = ", ".join(sorted(features)) or "nothing"
            raise ValueError(f"{name} lacks {', '.join(missing)}; found {found}")
        return features


@dataclasses.dataclass
class RecordBatches:
    """Batches of records by number, endless and in another order every epoch; iterated, each record once."""

    records: RecordFiles
    chosen: np.ndarray  # the numbers of the records to use
    _: dataclasses.KW_ONLY
    size: int
    length: int  # tokens of a row, T
    predictions: int  # predicted positions of a row, M
    vocab_size: int
    seed: int | None  # the seed of the order; None if batches are only iterated, in the order of `chosen`
    host_shard: HostShard = WHOLE_BATCH

    def __post_init__(self):
        self._last_order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return -(-len(self.chosen) // self.size)

    def __iter__(self) -> Iterator[HostBatch]:
        for index in range(len(self)):
            rows = index * self.size + self.host_shard.rows(self.size)
            yield self._batch([int(self.chosen[row]) if row < len(self.chosen) else None for row in rows])

    def __getitem__(self, index: int) -> HostBatch:
        """Return batch `index`; its rows may be of two epochs."""
        count = len(self.chosen)
        rows = index * self.size + self.host_shard.rows(self.size)
        return self._batch([int(self._order(epoch)[row]) for epoch, row in zip(*np.divmod(rows, count), strict=True)])

    def _order(self, epoch: int) -> np.ndarray:
        # The next batch is almost always of the same epoch. Read and set at once: several threads ask for batches.
        last = self._last_order
        if last is None or last[0] != epoch:
            assert self.seed is not None
            last = int(epoch), np.random.default_rng([self.seed, int(epoch)]).permutation(self.chosen)
            self._last_order = last
        return last[1]

    def _batch(self, numbers: Sequence[int | None]) -> HostBatch:
        """Return the rows of these records; None is a row of padding."""
        rows = [None if number is None else self._row(number) for number in numbers]
        padding = {name: np.zeros_like(values) for name, values in next(row for row in rows if row).items()}
        for name in ("masked_lm_labels", "next_sentence_labels"):
            padding[name] = np.full_like(padding[name], IGNORE)
        return {name: np.stack([(row or padding)[name] for row in rows]) for name in padding}

    def bad_records(self) -> dict[int, BadRow]:
        """Read all chosen records, and return those that cannot be used by their numbers."""
        bad = {}
        for number in self.chosen.tolist():
            try:
                self._row(number)
            except ValueError as error:
                source = self.records.name(number)
                bad[number] = BadRow(source, str(error).removeprefix(source).lstrip(": "))
        return bad

    def _row(self, number: int) -> HostBatch:
        features = self.records.example(number)
        self._check(number, features)
        labels = np.where(features["masked_lm_weights"] > 0, features["masked_lm_ids"], IGNORE)
        return {
            "input_ids": features["input_ids"].astype(np.int32),
            "attention_mask": features["input_mask"].astype(np.int32),
            "token_type_ids": features["segment_ids"].astype(np.int32),
            "masked_lm_positions": features["masked_lm_positions"].astype(np.int32),
            "masked_lm_labels": labels.astype(np.int32),
            "next_sentence_labels": features[_LABEL][0].astype(np.int32),
        }

    def _check(self, number: int, features: HostBatch) -> None:
        """Raise a ValueError if a record's features have the wrong sizes or values out of range."""
        sizes = {name: self.length for name in _TOKEN_FEATURES}
        sizes |= {name: self.predictions for name in _PREDICTION_FEATURES}
        sizes[_LABEL] = 1
        wrong = [
            f"{name} has {len(features[name])} entries instead of {size}"
            for name, size in sizes.items()
            if len(features[name]) != size
        ]
        if wrong:
            raise ValueError(
                f"{self.records.name(number)}: {', '.join(wrong)}; set max_length and max_predictions to those of the "
                "files"
            )
        bounds = {"input_ids": self.vocab_size, "masked_lm_ids": self.vocab_size, "masked_lm_positions": self.length}
        for name, bound in {**bounds, "segment_ids": 2, "input_mask": 2, _LABEL: 2}.items():
            values = features[name]
            if values.dtype != np.int64 or values.min() < 0 or values.max() >= bound:
                raise ValueError(f"{self.records.name(number)}: {name} is not of whole numbers from 0 to {bound - 1}")


def record_data(
    path: Path,
    tokenizer: WordPieceTokenizer,
    options: ExampleOptions,
    plan: BatchPlan,
    *,
    bad_rows: BadRows = BadRows.ERROR,
) -> PretrainingData:
    """Return the data of a TFRecord file, or a folder of them, as create_pretraining_data.py made them with `options`.

    Pairs have a row each, with their masks. All records are read at once if bad ones are to be skipped; otherwise a
    bad one is an error when a batch needs it.
    """
    records = RecordFiles.find(path)
    # The files have `max_predictions` slots, whether needed or not.
    predictions = options.max_predictions or options.row_shape.predictions

    def record_batches(chosen: np.ndarray, rows: int, seed: int | None) -> RecordBatches:
        return RecordBatches(
            records,
            chosen,
            size=rows,
            length=options.max_length,
            predictions=predictions,
            vocab_size=tokenizer.vocab_size,
            seed=seed,
            host_shard=plan.host_shard,
        )

    numbers, skipped = np.arange(len(records)), dict[int, BadRow]()
    if bad_rows is BadRows.SKIP:
        skipped = record_batches(numbers, plan.size, None).bad_records()
        if len(skipped) == len(records):
            raise_problems(list(map(str, skipped.values())), len(records), "None is left.")
        numbers = np.setdiff1d(numbers, list(skipped))
    train, held_out = (numbers[chosen] for chosen in split_documents(len(numbers), options, plan.seed))
    train_batches = record_batches(train, plan.size, plan.seed)
    held_out_batches = record_batches(held_out, plan.evaluation_size, None)
    labels = np.concatenate([batch["masked_lm_labels"].reshape(-1) for batch in held_out_batches])
    return PretrainingData(
        tokenizer=tokenizer,
        train=train_batches,
        steps_per_epoch=len(train_batches),
        held_out=held_out_batches,
        held_out_counts=np.bincount(labels[labels != IGNORE], minlength=tokenizer.vocab_size),
        digest=records.digest,
        bad_rows=tuple(skipped.values()),
        facts={"examples": f"{len(train):,} to train on, {len(held_out):,} held out"},
    )


def _record_ranges(file: Path) -> Iterator[tuple[int, int, bytes]]:
    """Return (offset of the data, its length, its checksum as stored) of each record in a file."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        position = 0
        while position < size:
            length = _read_length(file, stream, position)
            start = position + _HEADER.size
            position = start + length + _FOOTER.size
            if position > size:
                raise ValueError(f"{file}: ends within the record at byte {start - _HEADER.size}; is it whole?")
            stream.seek(start + length)
            yield start, length, stream.read(_FOOTER.size)


def _read_length(file: Path, stream: BinaryIO, position: int) -> int:
    header = stream.read(_HEADER.size)
    if len(header) == _HEADER.size:
        length, crc = _HEADER.unpack(header)
        if crc == masked_crc32c(header[:8]) and length <= _MAX_RECORD_BYTES:
            return length
    require_downloaded(file)
    raise ValueError(f"{file}: no record at byte {position}; not an (uncompressed) TFRecord file, or a damaged one")


def _features(data: memoryview) -> dict[str, np.ndarray]:
    """Return the features of a tf.train.Example: features = 1, a map feature = 1 from key = 1 to value = 2."""
    features = {}
    for feature_map in Message(data).messages(1):
        for entry in feature_map.messages(1):
            name = b"".join(entry.strings(1)).decode()
            for feature in entry.messages(2):
                features[name] = _feature_values(feature)
    return features


def _feature_values(feature: Message) -> np.ndarray:
    """Return the numbers of a tf.train.Feature: float_list = 2 or int64_list = 3; bytes_list = 1 is not read."""
    for float_list in feature.messages(2):
        return np.frombuffer(float_list.packed(1), "<f4")
    for int_list in feature.messages(3):
        return read_packed_varints(int_list.packed(1))
    return np.zeros(0, np.int64)
