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
import glob
import re
from pathlib import Path

import ml_dtypes
import numpy as np

from flaxbert.files import path_inside, require_downloaded
from flaxbert.weights.formats.tensorflow_encoding import Message, masked_crc32c, read_table
from flaxbert.weights.tensors import FileTensor, LazyTensor, transposed

_MAX_INDEX_BYTES = 256 * 2**20  # a BERT's takes tens of kilobytes
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
        return _variables(prefix, read_table(index.read_bytes()))
    except ValueError as error:
        for file in (index, *index.parent.glob(f"{glob.escape(prefix.name)}.data-*")):
            require_downloaded(file)
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
