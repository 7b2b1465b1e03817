"""Files in the folder of a run that name its settings and model, and the first line that the run prints."""

import json

import jax

from flaxbert import PreTrainedModel
from flaxbert.files import atomic_write
from train.config import Config
from train.distributed import Placement
from train.tasks.task import TOKENIZER_FOLDER, Task

RUN_FILE = "run.json"


def check_folder(config: Config) -> None:
    """Check that the folder does not hold a run with other settings.

    Raises:
        ValueError: it does; the message lists the settings that differ.
    """
    file = config.run.folder / RUN_FILE
    differences = config.differences(file.read_text()) if file.is_file() else []
    if differences:
        raise ValueError(
            f"{config.run.folder} holds a run with other settings; choose another --run.folder, or delete it:\n  "
            + "\n  ".join(differences)
        )


def write_files(config: Config, task: Task, model: PreTrainedModel) -> None:
    """Write the tokenizer, config.json and run.json into the run's folder; an existing tokenizer stays."""
    folder = config.run.folder
    if not (folder / TOKENIZER_FOLDER).is_dir():
        task.tokenizer.save(folder / TOKENIZER_FOLDER, max_length=task.config.max_sequence_length)
    # With the tokenizer and config.json `flaxbert convert` can read the folder while it is still training.
    with atomic_write(folder / "config.json") as aside:
        described = model.config.to_dict(architecture=task.architecture.__name__)
        aside.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n")
    with atomic_write(folder / RUN_FILE) as aside:
        aside.write_text(config.to_json())


def data_digest(task: Task) -> dict[str, str | float | int]:
    """Return values that are equal on hosts that have read the same data."""
    return {
        **task.facts,
        "steps of an epoch": task.steps_per_epoch,
        "SHA-256 of the vocabulary": task.tokenizer.vocabulary_digest,
    }


def opening(config: Config, task: Task, placement: Placement, *, first_step: int) -> str:
    """Return the first line that a run prints: task, devices, data, and where the state comes from."""
    shape = " x ".join(f"{name} {size}" for name, size in placement.mesh.shape.items() if size > 1)
    devices = f"{placement.mesh.size} {jax.devices()[0].device_kind} device(s)" + (f" ({shape})" if shape else "")
    if jax.process_count() > 1:
        devices += f" of {jax.process_count()} hosts"
    about = ", ".join(f"{name} {value}" for name, value in task.facts.items())
    start = f"resumed from step {first_step}" if first_step else f"from {config.model.pretrained or 'fresh weights'}"
    steps = config.run.total_steps(task.steps_per_epoch)
    return f"{type(config.task).__name__} on {devices}: {about}; {steps} steps, {start}"
