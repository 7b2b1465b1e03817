"""Inspect a checkpoint: its tensors, its class and the report of loading it.

No tensor is read, but those of an encoder-decoder, which is loaded.
"""

import dataclasses
import math
from collections import Counter
from pathlib import Path

from flaxbert.conversion.model_checkpoint import ModelCheckpoint
from flaxbert.encoder_decoder import EncoderDecoderModel
from flaxbert.families import BERT, config_to_dict, read_config, read_keys
from flaxbert.files import JsonObject
from flaxbert.weights.checkpoint import Checkpoint, open_checkpoint
from flaxbert.weights.load import ENCODER_DECODER
from flaxbert.weights.match import infer_architecture, match


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The contents of a checkpoint.

    Attributes:
        path: the file that lists the tensors.
        head: the class of the tensors: named by config.json, or else inferred from their names.
        config: the content of its config as this library reads it; None where that fails.
        tensors: type and shape by Hugging Face's name.
        parameters: the count of numbers.
        dtypes: the count of tensors of each type.
        left_out: names of an optimizer's variables.
        report: the error that `from_pretrained` of that class would raise; None where it would load.
        checksums: True if the files match SHA256SUMS; None if there are no sums, or they were not compared.
    """

    path: str
    format: str
    head: str
    config: dict[str, object] | None
    tensors: dict[str, tuple[str, list[int]]]
    parameters: int
    dtypes: dict[str, int]
    left_out: list[str]
    report: str | None
    checksums: bool | None

    @property
    def loads(self) -> bool:
        """True where `from_pretrained` would load it without an error."""
        return self.report is None and self.checksums is not False


def inspect(path: str | Path, *, checksums: bool = True) -> Inspection:
    """Inspect a checkpoint that `from_pretrained` reads; with `checksums`, compare its files with SHA256SUMS.

    Raises:
        FileNotFoundError, ValueError: no weights are there, or a file cannot be read.
    """
    checkpoint = open_checkpoint(Path(path))
    head, config, report = _inspect_model(Path(path), checkpoint)
    matching = None
    if checksums:
        try:
            matching = checkpoint.verify_checksums() or None
        except ValueError as error:
            known = "" if report in (None, str(error)) else f"{report}\n"
            matching, report = False, f"{known}{error}"
    return Inspection(
        path=str(checkpoint.file),
        format=checkpoint.format,
        head=head,
        config=config,
        tensors={name: (tensor.dtype.name, list(tensor.shape)) for name, tensor in sorted(checkpoint.tensors.items())},
        parameters=sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values()),
        dtypes=dict(Counter(tensor.dtype.name for tensor in checkpoint.tensors.values())),
        left_out=sorted(checkpoint.skipped_names),
        report=report,
        checksums=matching,
    )


def _inspect_model(path: Path, checkpoint: Checkpoint) -> tuple[str, JsonObject | None, str | None]:
    """Return `head`, `config` and `report`."""
    try:
        keys = read_keys(checkpoint.config_folder)
        if keys.get("model_type") == ENCODER_DECODER:
            return EncoderDecoderModel.__name__, keys, _encoder_decoder_error(path)
        config = read_config(checkpoint.config_folder)
    except (FileNotFoundError, ValueError) as error:
        return infer_architecture(BERT, checkpoint.tensors).name, None, str(error)
    found = ModelCheckpoint(checkpoint, config)
    return found.class_name, config_to_dict(config), _loading_error(found)


def _encoder_decoder_error(path: Path) -> str | None:
    try:
        EncoderDecoderModel.from_pretrained(path)  # which has no check that reads no tensor
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return None


def _loading_error(checkpoint: ModelCheckpoint) -> str | None:
    try:
        model = checkpoint.model(checkpoint.class_name)
        match(checkpoint.checkpoint, model, leave_out_heads=bool(checkpoint.config.unused.get("architectures")))
    except ValueError as error:
        return str(error)
    return None
