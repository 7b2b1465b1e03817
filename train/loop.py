"""A training run from settings to summary; reads straight down."""

import json
import time
from pathlib import Path

import jax

from flaxbert import PreTrainedModel, save_pretrained
from flaxbert.files import atomic_write
from train.checkpoint import Checkpoints
from train.compilation import compilation_cache, compile_time
from train.config import Config
from train.distributed import Placement
from train.multihost.host_group import HostGroup
from train.multihost.hosts import join_hosts, make_shared_folder
from train.optim import make_optimizer
from train.report import Reporter
from train.step import Params, compile_step, create_state, state_shapes, state_shardings
from train.summary import write_summary
from train.tasks.start import TOKENIZER_FOLDER
from train.tasks.task import Task
from train.trainer import Trainer, check_best

RECORD = "run.json"


def run(config: Config) -> Path:
    """Trains, evaluates, exports and summarises; returns the run's folder.

    Raises:
        FileNotFoundError, ValueError: what is wrong with the settings, data or weights, or which host did not come;
            before anything is written.
    """
    with join_hosts(config.hosts) as host_group:
        if jax.process_count() != len(host_group.names):
            raise ValueError(
                f"jax sees {jax.process_count()} processes, and this one was not told to join them: give --hosts.detect"
            )
        host_group.check_same("settings", config.common_to_hosts | {"the version of jax": jax.__version__})
        return _run(config, host_group)


def _run(config: Config, host_group: HostGroup) -> Path:
    # Everything that can be wrong is found here, before the folder is touched.
    placement = Placement.of(config.mesh)
    placement.check_rows(
        "batch_size", config.run.batch_size, gradient_accumulation_steps=config.run.gradient_accumulation_steps
    )
    placement.check_rows("evaluation_batch_size", config.run.evaluation_batch_size or config.run.batch_size)
    _check_record(config)
    task: Task = config.task.prepare(config, host_shard=placement.host_shard, host_group=host_group)
    check_best(config, task)
    model, pretrained = _model(config, task, placement)
    total_steps = config.run.total_steps(task.steps_per_epoch)
    optimizer = make_optimizer(config.optim, total_steps)
    state_shapes(model, optimizer)  # finds frozen paths that the model lacks
    host_group.check_same("data", _digest(task))  # all have read what was in the folder
    writes = host_group.index == 0

    # Where the state comes from: the run's own checkpoint, else a pretrained folder, else fresh weights.
    folder = config.run.folder
    make_shared_folder(folder, host_group)
    with (
        compilation_cache(folder / "compiled" if config.run.compilation_cache else None),
        compile_time() as compiling,
        Checkpoints(folder / "checkpoints", keep=config.run.keep, scored=config.run.best is not None) as checkpoints,
    ):
        shardings = state_shardings(model, optimizer, placement)
        first_step = checkpoints.latest or 0
        host_group.check_same("checkpoints in the folder of the run", {"the newest": first_step})
        if first_step:
            state = checkpoints.restore(state_shapes(model, optimizer), shardings)
        else:
            state = create_state(model, optimizer, shardings, seed=config.run.seed, params=pretrained)
        if writes:
            _describe(config, task, model)

        with Reporter(folder, total_steps, start_step=first_step, primary=writes) as reporter:
            reporter.message(_opening(config, task, total_steps, first_step, placement))
            started = time.perf_counter()
            trainer = Trainer(config, task, model, placement, reporter, checkpoints, total_steps)
            parts = config.run.gradient_accumulation_steps
            step = compile_step(trainer.loss, optimizer, placement, shardings, gradient_accumulation_steps=parts)
            state, number = trainer.train(state, step, first_step)
            if checkpoints.best not in (None, number):
                number = checkpoints.best
                reporter.message(f"step {number} had the best {config.run.best} on dev: the model is that one")
                checkpoints.wait()
                state = checkpoints.restore(state_shapes(model, optimizer), shardings, step=number)
            results = trainer.evaluate(state.params, number, names=tuple(task.evaluations))
            seconds = time.perf_counter() - started
            checkpoints.wait()

            # The model as transformers reads it, then what the task has to show.
            save_pretrained(folder / "model", model, state.params)
            if writes:
                task.tokenizer.save(folder / "model", max_length=task.config.max_sequence_length)
            reporter.message(f"model: {folder / 'model'} (transformers loads this folder)")
            for line in task.write_predictions(model, state.params, folder, results):
                reporter.message(line)
            facts = _facts(config, task, state.params, total_steps, seconds, compiling.seconds)
            if writes:
                summary = write_summary(folder, title=f"{folder.name}: {type(config.task).__name__}", facts=facts)
                reporter.message(f"summary: {summary}")
    return folder


def _describe(config: Config, task: Task, model: PreTrainedModel) -> None:
    """Writes what the run is: its tokenizer, its model's sizes, its settings."""
    folder = config.run.folder
    if not (folder / TOKENIZER_FOLDER).is_dir():
        task.tokenizer.save(folder / TOKENIZER_FOLDER, max_length=task.config.max_sequence_length)
    # With these two the folder is a model of its own: `flaxbert convert` takes it while it still trains.
    with atomic_write(folder / "config.json") as aside:
        described = model.config.to_dict(architecture=task.architecture.__name__)
        aside.write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n")
    with atomic_write(folder / RECORD) as aside:
        aside.write_text(config.to_json())


def _model(config: Config, task: Task, placement: Placement) -> tuple[PreTrainedModel, Params | None]:
    """The model, and its pretrained parameters where there are any."""
    folder, how = config.model.pretrained, config.model.attributes
    model = task.architecture(task.config, **how)
    placement.check_model(model)
    if folder is None:
        return model, None
    how |= {"mesh": placement.mesh, "rules": placement.rules, "key": jax.random.key(config.run.seed)}
    return task.architecture.from_pretrained(folder, strict=False, config=task.config, **how)


def _check_record(config: Config) -> None:
    """A folder that holds a run of other settings is not continued with these."""
    record = config.run.folder / RECORD
    if record.is_file():
        differences = config.differences(record.read_text())
        if differences:
            raise ValueError(
                f"{config.run.folder} holds a run with other settings; choose another --run.folder, or delete it:\n  "
                + "\n  ".join(differences)
            )


def _digest(task: Task) -> dict[str, str | float | int]:
    """What hosts that have read the same files have in common."""
    vocabulary = task.tokenizer.vocabulary_digest
    return {**task.facts, "steps of an epoch": task.steps_per_epoch, "SHA-256 of the vocabulary": vocabulary}


def _opening(config: Config, task: Task, total_steps: int, first_step: int, placement: Placement) -> str:
    shape = " x ".join(f"{name} {size}" for name, size in placement.mesh.shape.items() if size > 1)
    devices = f"{placement.mesh.size} {jax.devices()[0].device_kind} device(s)" + (f" ({shape})" if shape else "")
    if jax.process_count() > 1:
        devices += f" of {jax.process_count()} hosts"
    about = ", ".join(f"{name} {value}" for name, value in task.facts.items())
    start = f"resumed from step {first_step}" if first_step else f"from {config.model.pretrained or 'fresh weights'}"
    return f"{type(config.task).__name__} on {devices}: {about}; {total_steps} steps, {start}"


def _facts(
    config: Config,
    task: Task,
    params: Params,
    total_steps: int,
    seconds: float,
    compiling: float,
) -> dict[str, str | float | int]:
    return {
        "model": f"{task.architecture.__name__}, {sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters",
        "start": str(config.model.pretrained or "fresh weights"),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "steps": total_steps,
        "batch size": config.run.batch_size,
        "seconds of training and evaluation": round(seconds, 1),
        "seconds of compiling": round(compiling, 1),
        **task.facts,
    }
