"""The mean of several checkpoints of one model, with one tensor in memory at a time."""

from collections.abc import Sequence
from pathlib import Path

from flaxbert.conversion.matching import ModelCheckpoint
from flaxbert.families import architecture_of
from flaxbert.files import atomic_folder, require_absent
from flaxbert.weights.checkpoint import ORBAX
from flaxbert.weights.folder import WriteOptions, copy_other_files, write_model_folder
from flaxbert.weights.formats.orbax_params import orbax_steps
from flaxbert.weights.tensors import mean


def average(paths: Sequence[str | Path], target: str | Path, *, last: int | None = None) -> list[Path]:
    """Write a Hugging Face folder with the mean of checkpoints (Polyak and Juditsky 1992, over saved steps).

    Config and tokenizer are those of the first checkpoint. The folder appears when it is complete.

    Return the paths of the checkpoints that were averaged.

    Args:
        paths: two or more checkpoints that `from_pretrained` reads, of one class and of the same sizes.
        target: must not exist.
        last: average this many of the newest checkpoints of one training run, whose folder is then the only path.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: a path or an argument is wrong, or the checkpoints are not of
            one model.
    """
    target = Path(target)
    require_absent(target)
    found = _newest(paths, last) if last is not None else [Path(path) for path in paths]
    if len(found) < 2:
        raise ValueError(f"{len(found)} checkpoint given; an average takes two or more, or a run's folder and last=N")
    checkpoints = [ModelCheckpoint.open(path) for path in found]
    model, first = checkpoints[0].match()
    architecture = architecture_of(model)
    matched = [first, *(checkpoint.match(architecture.name)[1] for checkpoint in checkpoints[1:])]
    for path, one in zip(found, matched, strict=True):
        missing = sorted(first.tensors.keys() - one.tensors.keys())
        if missing:
            raise ValueError(
                f"{path}: lacks {', '.join(missing[:5])}, which {found[0]} has; average one model's checkpoints"
            )
    for checkpoint in checkpoints:
        checkpoint.checkpoint.verify_checksums()
    tensors = {name: mean([one.tensors[name] for one in matched]) for name in first.tensors}
    options = WriteOptions(in_given_order=any(checkpoint.checkpoint.format == ORBAX for checkpoint in checkpoints))
    with atomic_folder(target) as folder:
        write_model_folder(folder, model, tensors, options)
        copy_other_files(
            checkpoints[0].checkpoint.model_folder, folder, model, max_length=model.config.max_sequence_length
        )
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
