"""What a checkpoint holds and what loading it would say, without reading a tensor."""

import dataclasses
import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

from flaxbert import config_json
from flaxbert.config import BertConfig
from flaxbert.conversion.checkpoint import LoadedModel, architecture_of
from flaxbert.heads import ARCHITECTURES
from flaxbert.weights.checkpoint_files import open_checkpoint
from flaxbert.weights.load import fit

_log = logging.getLogger("flaxbert")


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        path: what was looked at: the file that lists the tensors.
        format: what it is.
        head: the class that takes the tensors; of config.json, or else told by their names.
        config: the content of its config as this library reads it; None where that cannot be.
        tensors: type and shape by Hugging Face's name.
        parameters: how many numbers these are.
        dtypes: how many tensors of each type.
        left_out: what is no weight: an optimizer's variables.
        report: what `from_pretrained` of that class would say; None where it would load without a word.
        checksums: whether the files match the SHA256SUMS beside them; None where there are none, or nobody asked.
    """

    path: str
    format: str
    head: str
    config: dict[str, Any] | None
    tensors: dict[str, tuple[str, list[int]]]
    parameters: int
    dtypes: dict[str, int]
    left_out: list[str]
    report: str | None
    checksums: bool | None

    @property
    def loads(self) -> bool:
        """Whether `from_pretrained` would load it without a word."""
        return self.report is None and self.checksums is not False


def inspect(path: str | Path, *, checksums: bool = True) -> Inspection:
    """Looks at a checkpoint.

    Args:
        path: what `from_pretrained` reads.
        checksums: read the files to compare them with SHA256SUMS, where there is one.

    Raises:
        FileNotFoundError, ValueError: no weights there, or a file that cannot be read.
    """
    found = open_checkpoint(Path(path))
    config, report = _config(found.config_folder)
    head = architecture_of(found.tensors)
    if config is not None:
        checkpoint = LoadedModel(found, config)
        head = checkpoint.named or head
        report = _report(checkpoint, head)
    matching = None
    if checksums:
        try:
            matching = found.verify_checksums() or None
        except ValueError as error:
            matching, report = False, f"{report}\n{error}" if report else str(error)
    return Inspection(
        path=str(found.file),
        format=found.format,
        head=head,
        config=None if config is None else config_json.to_dict(config),
        tensors={name: (tensor.dtype.name, list(tensor.shape)) for name, tensor in sorted(found.tensors.items())},
        parameters=sum(math.prod(tensor.shape) for tensor in found.tensors.values()),
        dtypes=dict(Counter(tensor.dtype.name for tensor in found.tensors.values())),
        left_out=sorted(found.skipped_names),
        report=report,
        checksums=matching,
    )


def _config(home: Path) -> tuple[BertConfig | None, str | None]:
    try:
        return BertConfig.from_pretrained(home), None
    except (FileNotFoundError, ValueError) as error:
        return None, str(error)


def _report(checkpoint: LoadedModel, head: str) -> str | None:
    try:
        model = checkpoint.model(head) if head == "BertModel" else ARCHITECTURES[head](checkpoint.config)
        fit(checkpoint.source, model)
    except ValueError as error:
        return str(error)
    return None
