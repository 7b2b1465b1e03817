"""Inspect a checkpoint: its tensors, its class and the report of loading it, without reading a tensor."""

import dataclasses
import math
from collections import Counter
from pathlib import Path

from flaxbert.config import BertConfig
from flaxbert.conversion.model_checkpoint import ModelCheckpoint
from flaxbert.families import BERT, config_to_dict, read_config
from flaxbert.weights.checkpoint import open_checkpoint
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
    config, report = _read_config(checkpoint.config_folder)
    if config is None:
        head = infer_architecture(BERT, checkpoint.tensors).name
    else:
        found = ModelCheckpoint(checkpoint, config)
        head, report = found.class_name, _loading_error(found)
    matching = None
    if checksums:
        try:
            matching = checkpoint.verify_checksums() or None
        except ValueError as error:
            matching, report = False, f"{report}\n{error}" if report else str(error)
    return Inspection(
        path=str(checkpoint.file),
        format=checkpoint.format,
        head=head,
        config=None if config is None else config_to_dict(config),
        tensors={name: (tensor.dtype.name, list(tensor.shape)) for name, tensor in sorted(checkpoint.tensors.items())},
        parameters=sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values()),
        dtypes=dict(Counter(tensor.dtype.name for tensor in checkpoint.tensors.values())),
        left_out=sorted(checkpoint.skipped_names),
        report=report,
        checksums=matching,
    )


def _read_config(folder: Path) -> tuple[BertConfig | None, str | None]:
    """Return the configuration, or None and the error."""
    try:
        return read_config(folder), None
    except (FileNotFoundError, ValueError) as error:
        return None, str(error)


def _loading_error(checkpoint: ModelCheckpoint) -> str | None:
    try:
        model = checkpoint.model(checkpoint.class_name)
        match(checkpoint.checkpoint, model, leave_out_heads=bool(checkpoint.config.unused.get("architectures")))
    except ValueError as error:
        return str(error)
    return None
