"""Google's TensorFlow 1 checkpoints of BERT under Hugging Face's names and in PyTorch's layout, without TensorFlow.

TensorFlow 1 (google-research/bert)                       Hugging Face
bert/embeddings/word_embeddings [V, D]                    bert.embeddings.word_embeddings.weight
bert/encoder/layer_N/attention/self/query/kernel [D, D]   bert.encoder.layer.N.attention.self.query.weight, transposed
.../LayerNorm/gamma, beta                                 .../LayerNorm.weight, bias
cls/predictions/output_bias [V]                           cls.predictions.bias
cls/seq_relationship/output_weights [2, D]                cls.seq_relationship.weight
output_weights [N, D] (run_classifier.py)                 classifier.weight
cls/squad/output_weights [2, D] (run_squad.py)            qa_outputs.weight

A checkpoint has the files PREFIX.index and PREFIX.data-?????-of-?????. The index is a sorted table in LevelDB's format:
blocks of prefix-compressed keys, each block followed by a compression byte and a CRC-32C. Its values are the protobuf
messages BundleHeaderProto (key "") and BundleEntryProto of TensorFlow's tensor_bundle.proto. The data files hold the
tensors' bytes one after the other. Every size is checked against the files before it is used, and every block and
tensor against its CRC.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np

from flaxbert.files import path_inside
from flaxbert.weights.formats.tensorflow_encoding import Message, masked_crc32c, read_varint
from flaxbert.weights.tensors import FileTensor, LazyTensor, transposed

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # after a block: compression, CRC
_MAX_INDEX_BYTES = 256 * 2**20  # a BERT's takes tens of kilobytes
_MAX_NAMES_RATIO = 32  # bytes of all names over bytes of the index, where names share prefixes; a BERT's ratio is 3
_MAX_AXES, _MAX_AXIS = 32, 2**40
# DataType of TensorFlow's types.proto.
_DTYPES = {
    1: np.dtype("<f4"),
    2: np.dtype("<f8"),
    3: np.dtype("<i4"),
    4: np.dtype("u1"),
    5: np.dtype("<i2"),
    6: np.dtype("i1"),
    9: np.dtype("<i8"),
    10: np.dtype("?"),
    14: np.dtype(ml_dtypes.bfloat16),
    19: np.dtype("<f2"),
}
# Variables of the optimizers of google-research/bert (Adam) and of NVIDIA's BERT (LAMB, loss scaling), and the names
# that TensorFlow gives to an optimizer's slots: VARIABLE/OPTIMIZER, VARIABLE/OPTIMIZER_1.
_NOT_WEIGHTS = re.compile(
    r"(.*/)?(adam_[mv]|lamb_[mv])(_\d+)?|.*/(Adam|AdamWeightDecayOptimizer)(_\d+)?|(.*/)?beta[12]_power|"
    r"global_step|.*(loss_scale|good_steps).*"
)
_HEADS = {
    "cls/predictions/output_bias": "cls.predictions.bias",
    "cls/seq_relationship/output_weights": "cls.seq_relationship.weight",
    "cls/seq_relationship/output_bias": "cls.seq_relationship.bias",
    "cls/squad/output_weights": "qa_outputs.weight",
    "cls/squad/output_bias": "qa_outputs.bias",
    "output_weights": "classifier.weight",
    "output_bias": "classifier.bias",
}
_ENDINGS = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}


def open_tf1(prefix: Path) -> tuple[dict[str, LazyTensor], list[str]]:
    """Return the weights of the checkpoint PREFIX by Hugging Face's names, unread, and the names of other variables.

    Unknown names stay as they are, so that the loader reports them.

    Raises:
        FileNotFoundError: the index or a data file is missing.
        ValueError: a file is damaged, or the checkpoint is one of TensorFlow 2.
    """
    variables = read_bundle_index(prefix)
    if any(name.endswith("/.ATTRIBUTES/VARIABLE_VALUE") for name in variables):
        raise ValueError(
            f"{prefix}: a TensorFlow 2 checkpoint (objects instead of names), which is not supported; "
            "TensorFlow 1 checkpoints of google-research/bert are. Export it to safetensors first"
        )
    skipped: list[str] = []
    tensors: dict[str, LazyTensor] = {}
    for name, variable in variables.items():
        if _NOT_WEIGHTS.fullmatch(name):
            skipped.append(name)
            continue
        renamed = from_tf1_name(name)
        if renamed in tensors:
            raise ValueError(f"{prefix}.index: {name!r} and another variable are both {renamed!r}")
        kernel = name.endswith("/kernel") and len(variable.shape) == 2
        tensors[renamed] = transposed(variable) if kernel else variable
    return tensors, skipped


def from_tf1_name(name: str) -> str:
    """Convert a variable's name to Hugging Face's."""
    if name in _HEADS:
        return _HEADS[name]
    if name.endswith("_embeddings"):
        return name.replace("/", ".") + ".weight"
    path, _, ending = name.rpartition("/")
    if not path or ending not in _ENDINGS:
        return name
    return f"{re.sub(r'/layer_(?=[0-9])', '/layer/', path).replace('/', '.')}.{_ENDINGS[ending]}"


# -- index -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BundleTensor(FileTensor):
    """A variable of a checkpoint, with the masked CRC-32C of its bytes."""

    supports_row_reads = False

    crc: int

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        """Read the whole tensor, because the CRC covers all of it, and return it or consecutive rows."""
        with self.file.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) != self.size or masked_crc32c(content) != self.crc:
            raise ValueError(
                f"{self.file}: the bytes of {self.name!r} do not match their checksum; the file is damaged"
            )
        tensor = np.frombuffer(content, self.dtype).reshape(self.shape)
        return tensor[rows] if self.shape else tensor


def read_bundle_index(prefix: Path) -> dict[str, BundleTensor]:
    """Return the variables of the checkpoint PREFIX by name, unread; variables of strings are left out.

    Raises:
        FileNotFoundError: the index or a data file is missing.
        ValueError: the index is damaged or not supported.
    """
    index = prefix.with_name(f"{prefix.name}.index")
    if not index.is_file():  # opening a named pipe would wait forever
        raise FileNotFoundError(f"{index}: no such file")
    size = index.stat().st_size
    if size > _MAX_INDEX_BYTES:
        raise ValueError(f"{index}: {size} bytes; an index of at most {_MAX_INDEX_BYTES} bytes is read")
    try:
        return _variables(prefix, _read_table(index.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{index}: not a readable TensorFlow checkpoint index ({error})") from None


def _variables(prefix: Path, records: dict[bytes, bytes]) -> dict[str, BundleTensor]:
    header = Message(records.pop(b"", b""))
    shards, big_endian = header.integer(1), header.integer(2)
    if not 1 <= shards <= 99999:
        raise ValueError(f"its header announces {shards} data files")
    if big_endian:
        raise ValueError("big-endian numbers are not supported")
    variables: dict[str, BundleTensor] = {}
    bytes_left: dict[Path, int] = {}  # of each data file, beyond the variables so far
    for key, value in records.items():
        if key.startswith(b"\0"):  # a slice of a variable, whose own entry comes later and is refused
            continue
        variable = _variable(prefix, shards, key, Message(value))
        if variable is None:
            continue
        file_size = variable.file.stat().st_size
        end = variable.offset + variable.size
        if end > file_size:
            raise ValueError(f"{variable.name!r} ends at byte {end} of {variable.file.name}, which has {file_size}")
        bytes_left[variable.file] = bytes_left.get(variable.file, file_size) - variable.size
        if bytes_left[variable.file] < 0:
            raise ValueError(f"its variables overlap: they take more bytes than {variable.file.name} has")
        variables[variable.name] = variable
    return variables


def _variable(prefix: Path, shards: int, key: bytes, entry: Message) -> BundleTensor | None:
    """Return the variable of a BundleEntryProto, or None for one of strings."""
    try:
        name = key.decode()
    except UnicodeDecodeError:
        raise ValueError(f"the name {key!r} is not UTF-8") from None
    dtype, shard = _DTYPES.get(entry.integer(1)), entry.integer(3)
    if dtype is None:
        return None
    if 7 in entry:
        raise ValueError(f"{name!r} is stored in slices (a partitioned variable), which is not supported")
    if shard >= shards:
        raise ValueError(f"{name!r} is in data file {shard} of {shards}")
    file = path_inside(prefix.parent, f"{prefix.name}.data-{shard:05d}-of-{shards:05d}")
    variable = BundleTensor(name, dtype, _shape(entry, name), file, offset=entry.integer(4), crc=entry.integer(6))
    if variable.size != entry.integer(5):
        raise ValueError(f"{name!r} of shape {list(variable.shape)} and type {dtype} has {entry.integer(5)} bytes")
    return variable


def _shape(entry: Message, name: str) -> tuple[int, ...]:
    """Return the shape from a TensorShapeProto: dimensions in field 2, the length of each in its field 1."""
    shape = []
    for message in entry.messages(2)[:1]:
        if 3 in message:
            raise ValueError(f"{name!r} has no known shape")
        shape = [dimension.integer(1) for dimension in message.messages(2)]
    if len(shape) > _MAX_AXES or any(length >= _MAX_AXIS for length in shape):
        raise ValueError(f"{name!r} has the shape {shape}")
    return tuple(shape)


# -- the table -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _BlockHandle:
    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size


def _read_table(content: bytes) -> dict[bytes, bytes]:
    """Return all keys and values; the index block at the end lists the other blocks."""
    footer = content[-_FOOTER_BYTES:]
    if len(footer) < _FOOTER_BYTES or footer[-8:] != _MAGIC:
        raise ValueError("it does not end as a table does; the file may be cut short")
    _, position = _read_handle(footer, 0)  # the block of metadata, which TensorFlow leaves empty
    index_block, _ = _read_handle(footer, position)
    records: dict[bytes, bytes] = {}
    end = name_bytes = 0
    for _, value in _read_block(content, index_block):
        block, _ = _read_handle(value, 0)
        if block.offset < end:  # blocks are written in order; one that is listed repeatedly would take forever
            raise ValueError(f"the blocks at byte {block.offset} and before it overlap")
        end = block.end
        for key, record in _read_block(content, block):
            if key in records:
                raise ValueError(f"the name {key!r} occurs twice")
            records[key] = record
            name_bytes += len(key)
            if name_bytes > _MAX_NAMES_RATIO * len(content):
                raise ValueError(f"its names take more than {_MAX_NAMES_RATIO} times its size")
    return records


def _read_handle(content: bytes, position: int) -> tuple[_BlockHandle, int]:
    """Return the block handle at a position, and the position after it."""
    offset, position = read_varint(content, position)
    size, position = read_varint(content, position)
    return _BlockHandle(offset, size), position


def _read_block(content: bytes, handle: _BlockHandle) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block. Each key shares a prefix with the one before it."""
    offset, size, end = handle.offset, handle.size, handle.end
    if size < 4 or end + _TRAILER_BYTES > len(content):
        raise ValueError(f"a block at byte {offset} of {size} bytes does not fit into {len(content)}")
    compression, crc = content[end], int.from_bytes(content[end + 1 : end + _TRAILER_BYTES], "little")
    if masked_crc32c(content[offset : end + 1]) != crc:
        raise ValueError(f"the block at byte {offset} does not match its checksum")
    if compression:
        raise ValueError("its blocks are compressed, which TensorFlow never does")
    block = content[offset:end]
    restarts = int.from_bytes(block[-4:], "little")  # positions of complete keys, for binary search
    stop = len(block) - 4 - 4 * restarts
    if stop < 0:
        raise ValueError(f"the block at byte {offset} has {restarts} restarts in {size} bytes")
    key, position = b"", 0
    while position < stop:
        shared, position = read_varint(block, position)
        unshared, position = read_varint(block, position)
        length, position = read_varint(block, position)
        if shared > len(key) or position + unshared + length > stop:
            raise ValueError(f"an entry of the block at byte {offset} runs over its end")
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + length]
        position += length
