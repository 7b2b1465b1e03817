"""Pretraining examples that create_pretraining_data.py of google-research/bert has written, without TensorFlow.

A TFRecord file is a sequence of records: the length (8 bytes), its CRC, the data, its CRC. The data here is a
tf.train.Example, a protocol buffer that maps names to lists of whole numbers or floats.
"""

import dataclasses
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from flaxbert.losses import IGNORE
from flaxbert.weights.formats.tensorflow_encoding import Message, masked_crc32c, read_packed_varints
from train.data.host_shard import WHOLE_BATCH, HostShard

_HEADER, _FOOTER = struct.Struct("<QI"), struct.Struct("<I")
_MOST = 2**24  # bytes of a record; those of 512 tokens have 10,000
_FEATURES = ("input_ids", "input_mask", "segment_ids", "masked_lm_positions", "masked_lm_ids", "masked_lm_weights")
_LABEL = "next_sentence_labels"


@dataclasses.dataclass(frozen=True)
class RecordFiles:
    """Where the records of some files are.

    Attributes:
        files: in order.
        places: [N, 3], of each record the number of its file, where its data begins, and how long it is.
    """

    files: Sequence[Path]
    places: np.ndarray

    @classmethod
    def find(cls, path: Path) -> "RecordFiles":
        """The records of a file, or of a folder's files with "tfrecord" in their names; reads lengths only.

        Raises:
            FileNotFoundError: no such file, or none in the folder.
            ValueError: a file that does not consist of records; says which, and at which byte.
        """
        files = sorted(path.rglob("*tfrecord*")) if path.is_dir() else [path]
        files = [file for file in files if file.is_file()]
        if not files:
            raise FileNotFoundError(f"{path}: no such file, and no folder with *tfrecord* files")
        places = [(n, *place) for n, file in enumerate(files) for place in _places(file)]
        if not places:
            raise ValueError(f"{path}: holds no records")
        return cls(files, np.array(places, np.int64))

    def __len__(self) -> int:
        return len(self.places)

    def example(self, number: int) -> dict[str, np.ndarray]:
        """The features of a record.

        Raises:
            ValueError: a damaged record, or one that is no pretraining example; says which.
        """
        file_number, start, length = self.places[number].tolist()
        file = self.files[file_number]
        with file.open("rb") as stream:
            stream.seek(start)
            data = stream.read(length + _FOOTER.size)
        where = f"{file}: the record at byte {start - _HEADER.size}"
        if len(data) < length + _FOOTER.size or masked_crc32c(data[:length]) != _FOOTER.unpack(data[length:])[0]:
            raise ValueError(f"{where} is damaged (its CRC differs)")
        try:
            found = _features(memoryview(data)[:length])
        except ValueError as error:
            raise ValueError(f"{where} is no tf.train.Example ({error})") from None
        if lacking := [name for name in (*_FEATURES, _LABEL) if name not in found]:
            raise ValueError(f"{where} lacks {', '.join(lacking)}; found {', '.join(sorted(found)) or 'nothing'}")
        return found


@dataclasses.dataclass
class RecordBatches:
    """Batches of records by number, in another order every epoch; or once, in their own order, without a seed.

    Attributes:
        records: all there are.
        chosen: numbers of those to take.
        size: rows of a batch.
        length: tokens of a row.
        predictions: predicted positions of a row.
        vocab_size: of the model.
        seed: of the order; None for that of the files.
        host_shard: of the rows of a batch, those that are built.
    """

    records: RecordFiles
    chosen: np.ndarray
    size: int
    length: int
    predictions: int
    vocab_size: int
    seed: int | None
    host_shard: HostShard = WHOLE_BATCH

    def __post_init__(self):
        self._last_order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return -(-len(self.chosen) // self.size)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for index in range(len(self)):
            rows = index * self.size + self.host_shard.rows(self.size)
            yield self._batch([int(self.chosen[row]) if row < len(self.chosen) else None for row in rows])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Batch `index`; its rows may be of two epochs."""
        count = len(self.chosen)
        rows = index * self.size + self.host_shard.rows(self.size)
        return self._batch([int(self._order(epoch)[row]) for epoch, row in zip(*np.divmod(rows, count), strict=True)])

    def _order(self, epoch: int) -> np.ndarray:
        # The next batch almost always wants it again. Read and set at once: threads ask for batches side by side.
        last = self._last_order
        if last is None or last[0] != epoch:
            assert self.seed is not None
            last = int(epoch), np.random.default_rng([self.seed, int(epoch)]).permutation(self.chosen)
            self._last_order = last
        return last[1]

    def _batch(self, numbers: Sequence[int | None]) -> dict[str, np.ndarray]:
        rows = [None if number is None else self._row(number) for number in numbers]
        filling = {name: np.zeros_like(values) for name, values in next(row for row in rows if row).items()}
        for name in ("masked_lm_labels", "next_sentence_labels"):
            filling[name] = np.full_like(filling[name], IGNORE)
        return {name: np.stack([(row or filling)[name] for row in rows]) for name in filling}

    def _row(self, number: int) -> dict[str, np.ndarray]:
        found = self.records.example(number)
        sizes = {name: len(found[name]) for name in (*_FEATURES, _LABEL)}
        wanted: dict[str, int] = {name: self.length for name in _FEATURES[:3]}
        wanted |= {name: self.predictions for name in _FEATURES[3:]} | {_LABEL: 1}
        if wrong := [name for name in wanted if sizes[name] != wanted[name]]:
            told = ", ".join(f"{name} has {sizes[name]} entries instead of {wanted[name]}" for name in wrong)
            raise ValueError(f"{self._where(number)}: {told}; set max_length and max_predictions to those of the files")
        bounds: dict[str, int] = {"input_ids": self.vocab_size, "masked_lm_ids": self.vocab_size}
        bounds |= {"masked_lm_positions": self.length, "segment_ids": 2, "input_mask": 2, _LABEL: 2}
        for name, bound in bounds.items():
            if found[name].dtype != np.int64 or found[name].min() < 0 or found[name].max() >= bound:
                raise ValueError(f"{self._where(number)}: {name} is not of whole numbers from 0 to {bound - 1}")
        labels = np.where(found["masked_lm_weights"] > 0, found["masked_lm_ids"], IGNORE)
        return {
            "input_ids": found["input_ids"].astype(np.int32),
            "attention_mask": found["input_mask"].astype(np.int32),
            "token_type_ids": found["segment_ids"].astype(np.int32),
            "masked_lm_positions": found["masked_lm_positions"].astype(np.int32),
            "masked_lm_labels": labels.astype(np.int32),
            "next_sentence_labels": found[_LABEL][0].astype(np.int32),
        }

    def _where(self, number: int) -> str:
        file, start, _ = self.records.places[number].tolist()
        return f"{self.records.files[file]}: the record at byte {start - _HEADER.size}"


def _places(file: Path) -> Iterator[tuple[int, int]]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        place = 0
        while place < size:
            length = _length(file, stream, place)
            start = place + _HEADER.size
            place = start + length + _FOOTER.size
            if place > size:
                raise ValueError(f"{file}: ends within the record at byte {start - _HEADER.size}; is it whole?")
            stream.seek(place)
            yield start, length


def _length(file: Path, stream: BinaryIO, place: int) -> int:
    header = stream.read(_HEADER.size)
    if len(header) == _HEADER.size:
        length, crc = _HEADER.unpack(header)
        if crc == masked_crc32c(header[:8]) and length <= _MOST:
            return length
    raise ValueError(f"{file}: no record at byte {place}; not an (uncompressed) TFRecord file, or a damaged one")


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
