"""Convert any checkpoint that can be read to any format that can be written, with one tensor in memory at a time."""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from flaxbert.config import BertConfig
from flaxbert.conversion.model_checkpoint import ModelCheckpoint
from flaxbert.conversion.shape_changes import ShapeChanges, change_family, require_room_for_tokenizer
from flaxbert.families import (
    ARCHITECTURES,
    FAMILIES,
    HeadKind,
    architecture_name,
    architecture_of,
    family_of,
    family_of_config_class,
    read_config,
    read_model_type,
)
from flaxbert.families.family import ParameterPath
from flaxbert.files import (
    CHECKSUMS_FILE,
    atomic_folder,
    atomic_write,
    format_checksums,
    path_inside,
    read_json,
    require_absent,
)
from flaxbert.models import PreTrainedModel
from flaxbert.tokenizer_files import copy_tokenizer_files
from flaxbert.weights.checkpoint import FILE_FORMATS, FLAX, ORBAX, Checkpoint, FileFormat, open_checkpoint
from flaxbert.weights.folder import (
    DTYPES,
    WriteOptions,
    config_text,
    copy_other_files,
    write_folder,
    write_model_folder,
)
from flaxbert.weights.formats.orbax_params import write_orbax_params
from flaxbert.weights.load import ENCODER_DECODER, initialise
from flaxbert.weights.match import MatchedTensors, match
from flaxbert.weights.names import ParameterTensor
from flaxbert.weights.sentence_transformers import copy_files_of_other_tokenizers, copy_sentence_transformers_files
from flaxbert.weights.tensors import FiniteCheck, LazyTensor, cast, observed, tensors_equal

FORMATS = (*(known.name for known in FILE_FORMATS), ORBAX)

_log = logging.getLogger("flaxbert")

ReportProgress = Callable[[int, int], None]
"""A function that is called after each tensor with the bytes written so far and in total."""


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
        read, written: the formats.
        head: the class.
        tensors, bytes: the number of tensors written, and the size of their numbers.
        newly_initialised: names of tensors that the checkpoint lacked.
        left_out: names in the checkpoint that the class does not take: buffers, aliases of tied weights, another
            head's, an optimizer's.
        files: all files written but the weights.
        vocab_size: the new number of vocabulary entries; None where no other one was asked for.
    """

    read: str
    written: str
    head: str
    tensors: int
    bytes: int
    newly_initialised: list[str]
    left_out: list[str]
    files: list[str]
    vocab_size: int | None = None


@dataclasses.dataclass(frozen=True)
class _Output:
    """The form of the folder to write; the arguments of `convert` of the same names."""

    target: Path
    format: str
    dtype: str | None
    max_shard_size: int | None
    verify: bool
    progress: ReportProgress | None

    def check(self) -> None:
        require_absent(self.target)
        if self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}; allowed: {', '.join(FORMATS)}")
        if self.dtype not in (None, *DTYPES):
            raise ValueError(f"dtype is {self.dtype!r}; allowed: {', '.join(DTYPES)}")
        if self.max_shard_size is not None and self.max_shard_size < 1:
            raise ValueError(f"max_shard_size is {self.max_shard_size}; it must be at least 1 byte")
        if self.max_shard_size is not None and self.format == ORBAX:
            raise ValueError("max_shard_size is for files of Hugging Face's; orbax divides its files itself")

    def observed(self, tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
        report, total, done = self.progress, _total_bytes(tensors), 0
        if report is None:
            return tensors

        def count(size: int) -> None:
            nonlocal done
            done = min(done + size, total)  # a tensor may have two names in the files, and is read for both
            report(done, total)

        return {name: observed(tensor, count) for name, tensor in tensors.items()}


def convert(
    path: str | Path,
    target: str | Path,
    *,
    head: str | None = None,
    format: str = "safetensors",
    dtype: str | None = None,
    max_shard_size: int | None = None,
    hidden_act: str | None = None,
    changes: ShapeChanges | None = None,
    verify: bool = False,
    key: jax.Array | None = None,
    progress: ReportProgress | None = None,
) -> Conversion:
    """Write a model folder: config.json, weights, SHA256SUMS, tokenizer files, sentence-transformers files.

    The folder appears when it is complete, or not at all. Without a `dtype` the numbers are copied bit for bit.

    Args:
        path: a checkpoint that `from_pretrained` reads.
        target: the folder to write; it must not exist.
        head: the class of the result. Tensors that the checkpoint lacks of its head are initialised from `key`, and
            another head is left out, both with a warning. By default nothing is initialised or left out: the class is
            the one that config.json names, or else the one that has these tensors. A causal language model gets
            `is_decoder`. A BERT becomes a DistilBERT of the same layers (`surgery.change_family`).
        format: "safetensors", "pytorch", "flax" (the layout of transformers 4's Flax classes) or "orbax" (parameters).
        dtype: the type of the numbers: "float32", "float16" or "bfloat16"; the checkpoint's own where None.
        max_shard_size: bytes a file; more are written as several files. Not for orbax.
        hidden_act: replaces the activation of the checkpoint's config ("gelu" keeps what Google's config says).
        changes: pruned heads, fewer layers, another vocabulary. All parameters are in memory then.
        verify: read the folder before it appears and compare it with the checkpoint.
        key: for a new head and new vectors; `jax.random.key(0)` where None.
        progress: called with the number of bytes written.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: an argument or the checkpoint is wrong.
    """
    output = _Output(Path(target), format, dtype, max_shard_size, verify, progress)
    output.check()
    checkpoint = open_checkpoint(Path(path))
    model_type = read_model_type(checkpoint.config_folder)
    if model_type not in FAMILIES:
        requests = {"head": head, "hidden_act": hidden_act} | (changes.given if changes else {})
        _require_copyable(checkpoint, model_type, format, requests)
        return _copy_unknown_model(checkpoint, model_type, output)
    config = read_config(checkpoint.config_folder)
    if hidden_act is not None:
        config = config.replace(hidden_act=hidden_act)
    config = _with_attention(config, head)
    own_head = _own_class(config, head)
    model, matched = ModelCheckpoint(checkpoint, config).match(own_head)
    checkpoint.verify_checksums()
    if head is not None and head != own_head:
        model, matched = change_family(model, matched, ARCHITECTURES[head], key)
    initialised = sorted(matched.missing)
    if changes is not None and changes.given:
        if changes.vocab_size is not None and changes.vocab_size < 1:
            require_room_for_tokenizer(checkpoint.model_folder, changes.vocab_size)
        model, matched = changes.apply(model, matched, key)
        if model.config.vocab_size < config.vocab_size:
            require_room_for_tokenizer(checkpoint.model_folder, model.config.vocab_size)
    if format == FLAX.name and (model.config.pruned_heads or model.config.has_relative_positions):
        raise ValueError(
            "format is 'flax'; the Flax classes of transformers 4 ignore pruned heads and relative positions, and "
            "would fail or compute something else: write another format"
        )
    conversion = _convert_model(checkpoint, model, matched, key, output)
    sized = changes is not None and changes.given.keys() & {"vocab_size", "pad_to_multiple_of"}
    return dataclasses.replace(
        conversion, newly_initialised=initialised, vocab_size=model.config.vocab_size if sized else None
    )


def _with_attention(config: BertConfig, head: str | None) -> BertConfig:
    """Return the configuration with `is_decoder` where the class given needs it; say so, and where it stays."""
    model_class = None if head is None else ARCHITECTURES.get(head)
    if model_class is not None and architecture_of(model_class).head is HeadKind.CAUSAL_LM:
        if not config.is_decoder:
            _log.warning("is_decoder is set to true: attention becomes causal; train the %s before it generates", head)
        return config.replace(is_decoder=True)
    if model_class is not None and config.is_decoder:
        _log.warning("is_decoder stays true: the attention of the %s is causal, each token sees those before it", head)
    return config


def _own_class(config: BertConfig, head: str | None) -> str | None:
    """Return the class to read a checkpoint as: `head`, or, of a family that takes its layers, its own one like it."""
    family, target = family_of_config_class(type(config)), ARCHITECTURES.get(head or "")
    if target is None or family.model_type not in family_of(target).takes_layers_of:
        return head
    kind = architecture_of(target).head
    return next((known.name for known in family.architectures if known.head is kind), family.base_model.name)


def _convert_model(
    checkpoint: Checkpoint, model: PreTrainedModel, matched: MatchedTensors, key: jax.Array | None, output: _Output
) -> Conversion:
    tensors = FiniteCheck(checkpoint.file).tensors(_all_tensors(model, matched, key))
    if output.dtype is not None:
        tensors = {name: cast(tensor, np.dtype(output.dtype), name=name) for name, tensor in tensors.items()}
    architecture = architecture_of(model)
    with atomic_folder(output.target) as folder:
        _write(folder, model, matched, output.observed(tensors), output, in_given_order=checkpoint.format == ORBAX)
        if output.verify:
            written = open_checkpoint(folder)
            written.verify_checksums()
            _compare(folder, tensors, match(written, model).tensors)
        files = copy_other_files(checkpoint.model_folder, folder, model, max_length=model.config.max_sequence_length)
    return Conversion(
        read=checkpoint.format,
        written=output.format,
        head=architecture.name,
        tensors=len(tensors),
        bytes=_total_bytes(tensors),
        newly_initialised=sorted(matched.missing),
        left_out=sorted([*matched.left_out, *checkpoint.skipped_names]),
        files=["config.json", CHECKSUMS_FILE, *files],
    )


def _all_tensors(model: PreTrainedModel, matched: MatchedTensors, key: jax.Array | None) -> dict[str, LazyTensor]:
    """Return all tensors of the model in the order of its table: the checkpoint's, and those initialised here."""
    initialised = initialise(matched, model, key)

    def parameter(path: ParameterPath) -> Callable[[], jax.Array]:
        return lambda: initialised[path]

    return {
        name: ParameterTensor(mapping, np.dtype(np.float32), parameter(mapping.path))
        if name in matched.missing
        else matched.tensors[name]
        for name, mapping in matched.mappings.items()
    }


def _write(
    folder: Path,
    model: PreTrainedModel,
    matched: MatchedTensors,
    tensors: Mapping[str, LazyTensor],
    output: _Output,
    *,
    in_given_order: bool,
) -> None:
    if output.format != ORBAX:
        options = WriteOptions(_file_format(output.format), output.max_shard_size, in_given_order=in_given_order)
        write_model_folder(folder, model, tensors, options)
        return
    digests = write_orbax_params(folder, matched.mappings, tensors)
    texts = {"config.json": config_text(model, tensors), CHECKSUMS_FILE: format_checksums(digests)}
    for name, text in texts.items():
        with atomic_write(folder / name) as file:
            file.write_text(text, encoding="utf-8")


def _file_format(name: str) -> FileFormat:
    return next(known for known in FILE_FORMATS if known.name == name)


def _compare(folder: Path, expected: Mapping[str, LazyTensor], written: Mapping[str, LazyTensor]) -> None:
    differing = [
        name for name, tensor in expected.items() if name not in written or not tensors_equal(tensor, written[name])
    ]
    if differing:
        raise ValueError(
            f"{folder}: {len(differing)} tensors differ from the checkpoint's after writing: {', '.join(differing[:5])}"
        )


def _total_bytes(tensors: Mapping[str, LazyTensor]) -> int:
    return sum(int(np.prod(t.shape, dtype=np.int64)) * t.dtype.itemsize for t in tensors.values())


# -- families without a class here, such as ALBERT: tensors are copied unchanged -----------------------


def _copy_unknown_model(checkpoint: Checkpoint, model_type: str, output: _Output) -> Conversion:
    checkpoint.verify_checksums()
    tensors = FiniteCheck(checkpoint.file).tensors(copied_tensors(checkpoint, output.dtype))
    with atomic_folder(output.target) as folder:
        config = _copied_config(checkpoint.config_folder, output.dtype)
        options = WriteOptions(_file_format(output.format), output.max_shard_size)
        write_folder(folder, config, output.observed(tensors), options)
        if output.verify:
            _compare(folder, tensors, open_checkpoint(folder).tensors)
        files = copy_tokenizer_files(checkpoint.config_folder, folder)
        files += copy_files_of_other_tokenizers(checkpoint.config_folder, folder)
        files += copy_sentence_transformers_files(checkpoint.model_folder, folder)
    return Conversion(
        read=checkpoint.format,
        written=output.format,
        head=architecture_name(json.loads(config)) or model_type,
        tensors=len(tensors),
        bytes=_total_bytes(tensors),
        newly_initialised=[],
        left_out=sorted(checkpoint.tensors.keys() - tensors.keys()),
        files=["config.json", CHECKSUMS_FILE, *files],
    )


def _require_copyable(checkpoint: Checkpoint, model_type: str, format: str, requests: Mapping[str, object]) -> None:
    """Raise ValueError for a request that needs a class of this library."""
    folder = checkpoint.config_folder
    for name, value in requests.items():
        if value is not None:
            raise ValueError(
                f"{folder}: {name} is {value!r}; {_no_single_class(model_type)}, only copied as it is: leave it out"
            )
    if format != checkpoint.format and {ORBAX, FLAX.name} & {format, checkpoint.format}:
        raise ValueError(
            f"{folder}: {_no_single_class(model_type)}; it cannot be converted from {checkpoint.format} to {format}"
        )
    _log.warning("%s: %s; its tensors are copied unchanged", folder, _no_single_class(model_type))


def _no_single_class(model_type: str) -> str:
    """Return the reason why a checkpoint cannot be changed."""
    if model_type == ENCODER_DECODER:
        return f"model_type is {model_type!r}, two models (in Python: flaxbert.EncoderDecoderModel)"
    return f"model_type is {model_type!r}, which has no class here"


def copied_tensors(checkpoint: Checkpoint, dtype: str | None = None) -> dict[str, LazyTensor]:
    """Return all tensors but position ids, which old files hold; floating-point ones as `dtype` where it is given."""

    def convert(name: str, tensor: LazyTensor) -> LazyTensor:
        floating = np.dtype(tensor.dtype).kind in "fV"  # V: bfloat16
        return cast(tensor, np.dtype(dtype), name=name) if dtype is not None and floating else tensor

    return {
        name: convert(name, tensor)
        for name, tensor in checkpoint.tensors.items()
        if not name.endswith("embeddings.position_ids")
    }


def _copied_config(folder: Path, dtype: str | None) -> str:
    """Return the content of config.json with its dtype replaced, and without the keys that name code to run."""
    values: Mapping[str, object] = read_json(path_inside(folder, "config.json"))
    dropped = ("auto_map", "torch_dtype", "trust_remote_code")
    kept = {key: value for key, value in values.items() if not key.startswith("_") and key not in dropped}
    if dtype is not None or "torch_dtype" in values:
        kept["dtype"] = dtype if dtype is not None else values["torch_dtype"]
    return json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
