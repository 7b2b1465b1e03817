"""The mean of several checkpoints of one model, with one tensor in memory at a time."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from flaxbert.conversion.model_checkpoint import ModelCheckpoint
from flaxbert.families import architecture_of, carried_keys, family_of
from flaxbert.files import atomic_folder, file_sha256, path_inside, read_json, require_absent
from flaxbert.models import PreTrainedModel
from flaxbert.weights.checkpoint import ORBAX, Checkpoint
from flaxbert.weights.folder import WriteOptions, copy_other_files, write_model_folder
from flaxbert.weights.formats.orbax_params import orbax_steps
from flaxbert.weights.sentence_transformers import module_files
from flaxbert.weights.tensors import FiniteCheck, mean


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
        raise ValueError(
            f"{len(found)} checkpoint given; an average takes two or more, or a run's folder and --last N (in Python "
            "last=N)"
        )
    checkpoints = [ModelCheckpoint.open(path) for path in found]
    models, matched = zip(*(checkpoint.match() for checkpoint in checkpoints), strict=True)
    model, first = models[0], matched[0]
    for path, checkpoint, other in zip(found[1:], checkpoints[1:], models[1:], strict=True):
        differences = _setting_differences(model, other)
        differences += _file_differences(checkpoints[0].checkpoint, checkpoint.checkpoint)
        if differences:
            raise ValueError(
                f"{path} and {found[0]} are not checkpoints of one model, which an average takes; they differ in "
                + "; ".join(differences)
            )
    for checkpoint in checkpoints:
        checkpoint.checkpoint.verify_checksums()
    checked = [
        FiniteCheck(checkpoint.checkpoint.file).tensors(one.tensors)
        for checkpoint, one in zip(checkpoints, matched, strict=True)
    ]
    tensors = {name: mean([one[name] for one in checked]) for name in first.tensors}
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
            f"--last {last}: last={last} and {len(paths)} paths; it takes the folder of one run, and at least 2 "
            "checkpoints"
        )
    steps = orbax_steps(Path(paths[0]))
    if len(steps) < last:
        raise ValueError(f"{paths[0]}: holds {len(steps)} checkpoints ({list(steps)}), asked for the last {last}")
    return list(steps.values())[-last:]


# Settings that change nothing in a model that is not being trained.
_TRAINING_SETTINGS = {
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "initializer_range",
    "unused",
}


def _setting_differences(model: PreTrainedModel, other: PreTrainedModel) -> list[str]:
    """Return a text for each setting in which two models differ: class, labels, activation, keys of other programs."""
    settings = []
    for one in (model, other):
        fields = {field.name: getattr(one.config, field.name) for field in dataclasses.fields(one.config)}
        kept = family_of(one).kept_config_keys
        carried = {key: value for key, value in carried_keys(one.config.unused).items() if key not in kept}
        settings.append({"class": architecture_of(one).name, "family": family_of(one).model_type} | fields | carried)
    left, right = settings
    names = sorted((left.keys() | right.keys()) - _TRAINING_SETTINGS)
    return [
        f"{name}: {right.get(name)!r} and {left.get(name)!r}" for name in names if left.get(name) != right.get(name)
    ]


def _file_differences(one: Checkpoint, other: Checkpoint) -> list[str]:
    """Return a text for each difference of vocabularies and modules of sentence-transformers, where both have them."""
    differences = []
    left, right = _read_vocabulary(one.config_folder), _read_vocabulary(other.config_folder)
    if left and right and left != right:
        differing = next(i for i, pair in enumerate(itertools.zip_longest(right, left)) if pair[0] != pair[1])
        tokens = [vocabulary[differing] if differing < len(vocabulary) else "nothing" for vocabulary in (right, left)]
        differences.append(f"the vocabulary: token {differing} is {tokens[0]!r} and {tokens[1]!r}")
    files, others = module_files(one.model_folder), module_files(other.model_folder)
    if files and others:
        names = sorted(files.keys() | others.keys())
        differences += [f"{name} of sentence-transformers" for name in names if not _equal_files(files, others, name)]
    return differences


def _equal_files(files: Mapping[str, Path], others: Mapping[str, Path], name: str) -> bool:
    if name not in files or name not in others:
        return False
    if name.endswith(".json"):
        return read_json(files[name]) == read_json(others[name])
    return file_sha256(files[name]) == file_sha256(others[name])


def _read_vocabulary(folder: Path) -> list[str]:
    """Return the tokens by id; none where no vocabulary is found."""
    folder = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder  # of a training run
    file = path_inside(folder, "vocab.txt")
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    file = path_inside(folder, "tokenizer.json")
    values = read_json(file) if file.is_file() else {}
    tokens = values.get("model", {}).get("vocab", {}) if isinstance(values, dict) else {}
    if isinstance(tokens, list):  # of a Unigram: pairs of a token and its score
        return [str(entry) for entry in tokens]
    return sorted(tokens, key=lambda token: tokens[token])
