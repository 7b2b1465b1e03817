"""Files in the folder of a run that name its settings, its inputs and its model, and the lock of the folder."""

import contextlib
import datetime
import fcntl
import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax

from flaxbert.encoder_decoder import AnyModel, EncoderDecoderModel
from flaxbert.families import architecture_of
from flaxbert.files import JsonValue, atomic_folder, atomic_write, file_sha256, remove_leftovers
from flaxbert.tokenizer_files import TOKENIZER_FILES, tokenizer_folder
from flaxbert.tokenizer_settings import read_object
from flaxbert.weights.checkpoint import Checkpoint, open_checkpoint
from flaxbert.weights.encoder_decoder import config_values
from flaxbert.weights.sentence_transformers import transformer_folder
from train.config import Config
from train.data.bad_rows import write_bad_rows
from train.distributed import Placement
from train.tasks.task import MODEL_FOLDER, TOKENIZER_FOLDER, Task

_log = logging.getLogger(__name__)

RUN_FILE = "run.json"
INPUTS_FILE = "inputs.json"
LOCK_FILE = "lock"
_CONFIG = " config.json"  # end of the name of a digest


def check_folder(config: Config) -> None:
    """Check that the folder can be written, and does not hold a run with other settings; write nothing.

    Raises:
        ValueError: it cannot, or it does; the message lists the settings that differ.
    """
    folder = config.run.folder
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    except OSError as error:
        raise _unusable(folder, error.strerror) from None
    for used in (existing, *(folder / name for name in ("checkpoints", "tensorboard", MODEL_FOLDER))):
        if used.exists() and not used.is_dir():
            raise _unusable(folder, f"{used} is a file")
        if used.exists() and not os.access(used, os.W_OK | os.X_OK):
            raise _unusable(folder, f"{used} is not writable")
    file = folder / RUN_FILE
    by_content = (folder / INPUTS_FILE).is_file()
    differences = config.differences(_stored_json(file), inputs_by_content=by_content) if file.is_file() else []
    if differences:
        raise ValueError(
            f"{folder} holds a run with other settings; choose another --run.folder, or delete it:\n  "
            + "\n  ".join([*differences, *_ways_to_go_on(folder, differences)])
        )


def check_checkpoint(config: Config, checkpoint: Path, facts: Mapping[str, JsonValue]) -> None:
    """Check that a checkpoint is one of this run, by the settings in its manifest.

    Raises:
        ValueError: names the settings that differ.
    """
    stored = facts.get("config")  # former versions have none
    differences = config.differences(json.dumps(stored), inputs_by_content=True) if stored else []
    if differences:
        raise ValueError(
            f"{checkpoint}: of a run with other settings; put back the run's own checkpoint, or choose another "
            "--run.folder:\n  " + "\n  ".join(differences)
        )


def _ways_to_go_on(folder: Path, differences: Sequence[str]) -> list[str]:
    """Return what to do where the number of steps is all that differs, which the schedule of the rate depends on."""
    if not all(difference.startswith(("run.steps: ", "run.epochs: ")) for difference in differences):
        return []
    model = folder / MODEL_FOLDER
    if (model / "config.json").is_file():
        return [
            "the schedule depends on the number of steps, and the run is finished: to train its model further, give "
            f"--run.folder NEW --model.pretrained {model}"
        ]
    former = dict(difference.split(" -> ")[0].split(": ") for difference in differences)
    flags = " ".join(f"--{name} {value}" for name, value in former.items() if value != "None")
    return [f"the schedule depends on the number of steps, and the run is not finished: to finish it, give {flags}"]


def _stored_json(file: Path) -> str:
    """Return the text of a file of the run's folder that holds a JSON object.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        read_object(file)
    except ValueError as error:
        raise ValueError(f"{error}; choose another --run.folder, or delete {file.parent}") from None
    return file.read_text(encoding="utf-8")


def make_folder(folder: Path) -> None:
    """Make the folder.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error.strerror) from None


def _unusable(folder: Path, why: str | None) -> ValueError:
    return ValueError(f"run.folder is {str(folder)[:300]}, which cannot be used: {why}; choose another --run.folder")


@contextlib.contextmanager
def locked(folder: Path, *, first_host: bool) -> Iterator[None]:
    """Context in which no other run uses the folder; the system ends the lock together with the process.

    Raises:
        ValueError: another run uses it; the message names its process.
    """
    if not first_host:
        yield
        return
    with (folder / LOCK_FILE).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"{folder} is in use by another run ({file.read().strip()}); wait for its end, or choose another "
                "--run.folder"
            ) from None
        except OSError as error:  # a network file system without locks
            _log.warning("%s: cannot be locked (%s); start no second run in this folder", folder, error.strerror)
        file.truncate(0)
        started = datetime.datetime.now().isoformat(" ", "seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, started {started}\n")
        file.flush()
        yield


def remove_temporary_files(folder: Path) -> None:
    """Delete temporary files that a killed run left in its folder and in those of its models and its tokenizer."""
    for mark in folder.glob(".shared-*"):  # of `check_shared_folder`
        mark.unlink(missing_ok=True)
    for path in (folder, *folder.iterdir()):
        if path.is_dir() and not path.is_symlink():
            remove_leftovers(path)


def write_files(config: Config, task: Task, model: AnyModel, inputs: Mapping[str, str]) -> None:
    """Write the tokenizer, settings, inputs and bad rows into the run's folder; an existing tokenizer stays."""
    folder = config.run.folder
    if not (folder / TOKENIZER_FOLDER).is_dir():
        with atomic_folder(folder / TOKENIZER_FOLDER) as aside:
            task.tokenizer.save(aside, max_length=task.config.max_sequence_length)
    # With the tokenizer and config.json `flaxbert convert` can read the folder while it is still training.
    pair = isinstance(model, EncoderDecoderModel)
    described = config_values(model) if pair else model.config.to_dict(architecture=architecture_of(model).name)
    for name, content in (("config.json", described), (INPUTS_FILE, dict(inputs))):
        with atomic_write(folder / name) as aside:
            aside.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    write_bad_rows(folder, task.bad_rows)
    with atomic_write(folder / RUN_FILE) as aside:
        aside.write_text(config.to_json(), encoding="utf-8")


def input_digests(config: Config, task: Task) -> dict[str, str]:
    """Return the SHA-256 of all that a run reads: data, vocabulary, tokenizer files and pretrained weights, by name."""
    digests = {**task.digests, "vocabulary": task.tokenizer.vocabulary_digest}
    checkpoint = None if config.model.pretrained is None else open_checkpoint(config.model.pretrained)
    tokenizer: Path | None = getattr(config.task, "tokenizer", None)
    if tokenizer is None and checkpoint is not None:
        tokenizer = checkpoint.config_folder
    if tokenizer is not None and tokenizer.exists():
        files = [tokenizer]
        if tokenizer.is_dir():
            files = [tokenizer_folder(transformer_folder(tokenizer)) / name for name in TOKENIZER_FILES]
        digests["tokenizer"] = _digest_of([file for file in files if file.is_file()])
    if checkpoint is not None:
        digests |= _model_digests("pretrained", checkpoint)
    if config.distillation.teacher is not None:
        digests |= _model_digests("teacher's", open_checkpoint(config.distillation.teacher))
    return digests


def _model_digests(name: str, checkpoint: Checkpoint) -> dict[str, str]:
    configs = [file for file in (checkpoint.config_folder / "config.json",) if file.is_file()]
    return {f"{name} weights": _digest_of(checkpoint.files), f"{name}{_CONFIG}": _digest_of(configs)}


def check_inputs(folder: Path, inputs: Mapping[str, str]) -> None:
    """Check that a run that is resumed reads the content that it began with, wherever the files are now.

    Raises:
        ValueError: it does not; the message lists what differs.
    """
    file = folder / INPUTS_FILE
    if not file.is_file():  # a new run, or one of a former version
        return
    stored: dict[str, str] = json.loads(_stored_json(file))
    names = [name for name in sorted(stored.keys() | inputs.keys()) if stored.get(name) != inputs.get(name)]
    # The run has its own copy of the tokenizer, so the folder that it came from may be gone.
    # Former runs stored no digests of config.json.
    optional = [name for name in names if name == "tokenizer" or name.endswith(_CONFIG)]
    differing = [name for name in names if name not in optional or (name in stored and name in inputs)]
    if differing:
        shown = [f"{name}: SHA-256 {_short(stored.get(name))} -> {_short(inputs.get(name))}" for name in differing]
        raise ValueError(
            f"{folder} holds a run that began with other data; give the same content again, choose another "
            "--run.folder, or delete it:\n  " + "\n  ".join(shown)
        )


def opening(config: Config, task: Task, placement: Placement, *, first_step: int) -> str:
    """Return the first line that a run prints: task, devices, data, and where the state comes from."""
    shape = " x ".join(f"{name} {size}" for name, size in placement.mesh.shape.items() if size > 1)
    devices = f"{placement.mesh.size} {jax.devices()[0].device_kind} device(s)" + (f" ({shape})" if shape else "")
    if jax.process_count() > 1:
        devices += f" of {jax.process_count()} hosts"
    about = ", ".join(f"{name} {value}" for name, value in task.facts.items())
    epoch, batch = divmod(first_step, task.steps_per_epoch)
    resumed = f"resumed from step {first_step} (epoch {epoch + 1}, batch {batch + 1} of {task.steps_per_epoch})"
    start = resumed if first_step else f"from {config.model.pretrained or 'fresh weights'}"
    steps = config.run.total_steps(task.steps_per_epoch)
    return f"{type(config.task).__name__} on {devices}: {about}; {steps} steps, {start}"


def _digest_of(files: Sequence[Path]) -> str:
    """Return the digest of the contents of files, whatever their folder."""
    return hashlib.sha256("\n".join(map(file_sha256, files)).encode()).hexdigest()


def _short(digest: str | None) -> str:
    return "none" if digest is None else f"{digest[:12]}..."
