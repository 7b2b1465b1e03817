"""The mean of several checkpoints of one model, a tensor in memory at a time."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flaxbert import companions
from flaxbert.conversion.checkpoint import LoadedModel
from flaxbert.files import atomic_folder, require_absent
from flaxbert.weights import folder
from flaxbert.weights.checkpoint_files import ORBAX
from flaxbert.weights.formats.orbax_params import orbax_steps
from flaxbert.weights.tensors import LazyTensor


@dataclasses.dataclass(frozen=True)
class _Mean:
    """The mean of tensors of one shape, in the type of the first."""

    tensors: Sequence[LazyTensor]

    @property
    def dtype(self) -> np.dtype:
        return self.tensors[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensors[0].shape

    @property
    def supports_row_reads(self) -> bool:
        return all(tensor.supports_row_reads for tensor in self.tensors)

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        total = self.tensors[0].read(rows).astype(np.float64)
        for tensor in self.tensors[1:]:
            total += tensor.read(rows)
        return (total / len(self.tensors)).astype(self.dtype)


def average(paths: Sequence[str | Path], target: str | Path, *, last: int | None = None) -> list[Path]:
    """Writes a Hugging Face folder with the mean of checkpoints (Polyak and Juditsky 1992, over saved steps).

    Sums are taken in float64. Config and tokenizer are the first checkpoint's. The folder appears when it is complete.

    Args:
        paths: two or more of what `from_pretrained` reads, of one class and of the same sizes.
        target: the folder to write; it must not be there yet.
        last: take the last so many checkpoints of a training run instead, whose folder is then the only path.

    Returns:
        the checkpoints that were averaged.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: what is wrong; checkpoints that are not of one model.
    """
    target = Path(target)
    require_absent(target)
    found = _newest(paths, last) if last is not None else [Path(path) for path in paths]
    if len(found) < 2:
        raise ValueError(f"{len(found)} checkpoint given; an average takes two or more, or a run's folder and last=N")
    checkpoints = [LoadedModel.open(path) for path in found]
    model, first = checkpoints[0].fit()
    fitted = [first, *(checkpoint.fit(type(model).__name__)[1] for checkpoint in checkpoints[1:])]
    for path, one in zip(found, fitted, strict=True):
        lacking = sorted(first.tensors.keys() - one.tensors.keys())
        if lacking:
            raise ValueError(
                f"{path}: lacks {', '.join(lacking[:5])}, which {found[0]} has; average one model's checkpoints"
            )
    for checkpoint in checkpoints:
        checkpoint.source.verify_checksums()
    tensors = {name: _Mean([one.tensors[name] for one in fitted]) for name in first.tensors}
    with atomic_folder(target) as aside:
        in_order = any(checkpoint.source.format == ORBAX for checkpoint in checkpoints)
        folder.write(aside, model, tensors, in_order=in_order)
        companions.carry(checkpoints[0].source.config_folder, aside, sentences=type(model).__name__ == "BertModel")
        companions.complete(aside, max_length=model.config.max_position_embeddings)
    return found


def _newest(paths: Sequence[str | Path], last: int) -> list[Path]:
    if len(paths) != 1 or last < 2:
        raise ValueError(
            f"last={last} and {len(paths)} paths; it takes the folder of one run, and at least 2 checkpoints"
        )
    steps = orbax_steps(Path(paths[0]))
    if len(steps) < last:
        raise ValueError(f"{paths[0]}: holds {len(steps)} checkpoints ({list(steps)}), asked for the last {last}")
    return list(steps.values())[-last:]
