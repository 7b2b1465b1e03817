"""A training run, from the settings to the summary. Read it from top to bottom."""

import contextlib
import dataclasses
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import optax

from flaxbert import PreTrainedModel, save_pretrained
from flaxbert.encoder_decoder import AnyModel
from flaxbert.families import architecture_of
from flaxbert.layers import Params
from flaxbert.weights.folder import copy_other_files
from train import run_folder
from train.checkpoint.store import Checkpoints
from train.compilation import compilation_cache, compile_time
from train.config import Config
from train.digest import TreeDigest
from train.distributed import Placement
from train.evaluate import DEV, Evaluation, Evaluator
from train.ledger import Ledger
from train.multihost.hosts import HostGroup
from train.multihost.joining import check_shared_folder, join_hosts
from train.optim import make_optimizer
from train.preemption import Preemption
from train.report import Reporter
from train.sandwich import Sandwiches, make_sandwiches
from train.state_check import StateCheck, check_deterministic
from train.step import TrainState, create_state, state_shapes, state_shardings
from train.summary import write_summary
from train.tasks.task import Task
from train.teacher import Teacher, load_teacher
from train.training_loop import TrainingLoop


@dataclasses.dataclass(frozen=True)
class Setup:
    """The mesh, task, model and optimizer of a run, without its state."""

    config: Config
    placement: Placement
    task: Task
    model: AnyModel
    optimizer: optax.GradientTransformation
    state_shapes: TrainState
    state_shardings: TrainState
    total_steps: int
    inputs: dict[str, str]  # digests of what was read
    teacher: Teacher | None
    sandwiches: Sandwiches | None
    is_first_host: bool  # it writes the files that are not divided among hosts


def run(config: Config, preemption: Preemption | None = None) -> Path:
    """Train, evaluate, export the model and write the summary; return the run's folder.

    Raises:
        FileNotFoundError, ValueError: the settings, data or weights are wrong, or a host did not come; nothing has been
            written then.
        FloatingPointError: too many losses or gradients in a row were not finite.
    """
    folder, preemption = config.run.folder, preemption or Preemption()
    with join_hosts(config.hosts) as host_group, preemption.of_hosts(host_group):
        check_hosts(config, host_group)
        setup, pretrained = make_setup(config, host_group)
        if setup.is_first_host:
            run_folder.make_folder(folder)
        check_shared_folder(folder, host_group)
        with (
            run_folder.locked(folder, first_host=setup.is_first_host),
            compilation_cache(folder / "compiled" if config.run.compilation_cache else None),
            compile_time() as compiling,
            Checkpoints(
                folder / "checkpoints",
                keep=config.run.keep,
                keep_every=config.run.keep_every,
                scored=config.run.best is not None,
                host_group=host_group,
            ) as checkpoints,
            preemption.saving(checkpoints.wait_and_describe),
        ):
            # Again, because another run may have used the folder before it was locked.
            run_folder.check_folder(config)
            run_folder.check_inputs(folder, setup.inputs)
            first_step = checkpoints.latest or 0
            if first_step:
                checkpoint = folder / "checkpoints" / str(first_step)
                run_folder.check_checkpoint(config, checkpoint, checkpoints.facts(first_step))
            host_group.check_same("checkpoints in the folder of the run", {"the newest": first_step})
            state = restore_or_create(setup, checkpoints, pretrained)
            ledger = Ledger(
                folder,
                every=config.run.ledger_every,
                step=first_step,
                parameters=TreeDigest(state.params).text,
                host_group=host_group,
            )
            if setup.is_first_host:
                run_folder.remove_temporary_files(folder)
                run_folder.write_files(config, setup.task, setup.model, setup.inputs)
            with Reporter(
                folder,
                setup.total_steps,
                start_step=first_step,
                scalar_names=dict(pair.split("=", 1) for pair in config.run.scalar_names),
                primary=setup.is_first_host,
            ) as reporter:
                reporter.message(run_folder.opening(config, setup.task, setup.placement, first_step=first_step))
                started = time.perf_counter()
                evaluator = Evaluator(
                    setup.task, setup.model, setup.placement, reporter, best=config.run.best, preemption=preemption
                )
                training = TrainingLoop(
                    setup,
                    state,
                    first_step,
                    evaluator,
                    checkpoints,
                    ledger,
                    StateCheck(config.run.verify_every, host_group=host_group),
                    reporter,
                    preemption,
                )
                training.run()
                state, step = restore_best(setup, training.state, training.step, checkpoints, reporter)
                results = evaluator.evaluate(state.params, step, setup.task.evaluations)
                seconds = time.perf_counter() - started
                checkpoints.wait()
                export(setup, state.params, results, reporter)
                if setup.is_first_host:
                    summarise(
                        setup,
                        state.params,
                        reporter,
                        step=step,
                        seconds=seconds,
                        compile_seconds=compiling.seconds,
                        checks=training.state_check.facts,
                    )
    return folder


def check_hosts(config: Config, host_group: HostGroup) -> None:
    """Check that all hosts have joined, with the same settings and version of jax.

    Raises:
        ValueError: they have not.
    """
    if jax.process_count() != len(host_group.names):
        raise ValueError(
            f"jax sees {jax.process_count()} processes, but this process did not join them; give --hosts.detect"
        )
    host_group.check_same("settings", config.common_to_hosts | {"the version of jax": jax.__version__})


def make_setup(config: Config, host_group: HostGroup) -> tuple[Setup, Params | None]:
    """Make the mesh, read the data, load the model and make the optimizer; write nothing.

    Returns:
        the setup, and the pretrained parameters if the config names a pretrained model.

    Raises:
        FileNotFoundError, ValueError: the settings, data or weights are wrong, or differ between hosts.
    """
    # Mesh
    settings, placement = config.run, Placement.of(config.mesh)
    accumulation = settings.gradient_accumulation_steps
    placement.check_rows("batch_size", settings.batch_size, gradient_accumulation_steps=accumulation)
    placement.check_rows("evaluation_batch_size", settings.evaluation_batch_size or settings.batch_size)

    check_deterministic(settings.verify_every)

    # Data
    run_folder.check_folder(config)
    task: Task = config.task.prepare(config, host_shard=placement.host_shard, host_group=host_group)
    inputs = run_folder.input_digests(config, task)
    run_folder.check_inputs(settings.folder, inputs)
    _check_best(config, task)

    # Model
    model, pretrained = make_model(config, task, placement)
    # An error now, and not at the export, whose warnings are enough.
    with tempfile.TemporaryDirectory() as folder, _without_warnings():
        copy_pretrained_files(model, Path(folder))

    # Optimizer
    total_steps = settings.total_steps(task.steps_per_epoch)
    optimizer = make_optimizer(config.optim, total_steps)
    setup = Setup(
        config,
        placement,
        task,
        model,
        optimizer,
        state_shapes=state_shapes(model, optimizer),  # raises for frozen paths that the model does not have
        state_shardings=state_shardings(model, optimizer, placement),
        total_steps=total_steps,
        inputs=inputs,
        teacher=load_teacher(config, task, model, placement),
        sandwiches=make_sandwiches(config, task, model),
        is_first_host=host_group.index == 0,
    )
    host_group.check_same("data", {**task.facts, "steps of an epoch": task.steps_per_epoch, **inputs})
    return setup, pretrained


def make_model(config: Config, task: Task, placement: Placement) -> tuple[AnyModel, Params | None]:
    """Return the model, and its pretrained parameters on the mesh if the config names a folder with some."""
    if config.model.pretrained is not None:
        return task.load_model(config.model.pretrained, config, placement)
    model = task.architecture(task.config, rules=placement.rules, **config.model.attributes)
    placement.check_model(model)
    return model, None


def restore_or_create(setup: Setup, checkpoints: Checkpoints, pretrained: Params | None) -> TrainState:
    """Return the state to train from."""
    # The run's own newest checkpoint comes first, then pretrained parameters, then a new initialisation.
    if checkpoints.latest:
        return checkpoints.restore(setup.state_shapes, setup.state_shardings)
    seed = setup.config.run.seed
    return create_state(setup.model, setup.optimizer, setup.state_shardings, seed=seed, params=pretrained)


def restore_best(
    setup: Setup, state: TrainState, step: int, checkpoints: Checkpoints, reporter: Reporter
) -> tuple[TrainState, int]:
    """Return the state with the best evaluation and its step, if the settings ask for it; else the given ones."""
    metric = setup.config.run.best
    if metric is None:
        return state, step
    best = checkpoints.intact_best()
    if best is None:
        reporter.message(f"warning: no evaluation on dev had a finite {metric}: the last model is exported")
    if best in (None, step):
        return state, step
    reporter.message(f"step {best} had the best {metric} on dev: its model is exported")
    return checkpoints.restore(setup.state_shapes, setup.state_shardings, step=best), best


def export(setup: Setup, params: Params, results: Mapping[str, Evaluation], reporter: Reporter) -> None:
    """Save the model as a folder that transformers loads, and write the predictions of the task."""
    folder, task = setup.config.run.folder, setup.task
    for name, (model, own_params) in task.models(setup.model, params, results).items():
        target = folder / name
        save_pretrained(target, dataclasses.replace(model, origin=None), own_params)
        if setup.is_first_host:
            task.tokenizer.save(target, max_length=task.config.max_sequence_length)
            try:
                copy_pretrained_files(model, target)
            except (OSError, ValueError) as error:  # the folder has changed since `make_setup`
                reporter.message(f"warning: not all files of {model.origin} are copied into {target}: {error}")
        own = isinstance(model, PreTrainedModel) and not architecture_of(model).is_in_transformers
        reporter.message(f"{name}: {target} (transformers loads {'its encoder' if own else 'this folder'})")
    for line in task.write_predictions(setup.model, params, folder, results):
        reporter.message(line)


def copy_pretrained_files(model: AnyModel, target: Path) -> None:
    """Copy the files of the pretrained model's folder except weights, config and tokenizer.

    Raises:
        OSError, ValueError: a file cannot be read, or is a link out of its folder.
    """
    if model.origin is not None:
        copy_other_files(model.origin, target, model, tokenizer=False)


def summarise(
    setup: Setup,
    params: Params,
    reporter: Reporter,
    *,
    step: int,
    seconds: float,
    compile_seconds: float,
    checks: Mapping[str, str],
) -> None:
    """Write summary.md and the picture of the loss.

    `step` is that of the exported parameters; `seconds` are those of training and evaluation; `checks` are facts.
    """
    folder, task = setup.config.run.folder, setup.task
    facts = {
        "model": f"{type(setup.model).__name__}, {sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters",
        "start": str(setup.config.model.pretrained or "fresh weights"),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "steps": step,
        "batch size": setup.config.run.batch_size,
        "seconds of training and evaluation": round(seconds, 1),
        "seconds of compiling": round(compile_seconds, 1),
        **({"skipped updates": reporter.skipped_updates} if reporter.skipped_updates else {}),
        **checks,
        **task.facts,
    }
    title = f"{folder.name}: {type(setup.config.task).__name__}"
    reporter.message(f"summary: {write_summary(folder, title=title, facts=facts)}")


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    logger = logging.getLogger("flaxbert")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _check_best(config: Config, task: Task) -> None:
    best = config.run.best
    if best is not None and DEV not in task.evaluations:
        raise ValueError(f"best is {best!r}, a metric of the dev set, but there is no dev set: give --task.dev")
    if best is not None and not task.has_labels(DEV):
        raise ValueError(f"best is {best!r}, but the dev set has no labels: give another --task.dev or --run.best None")
    if best is not None and best not in task.metric_names:
        raise ValueError(f"best is {best!r}; give one of the metrics of this task: {', '.join(task.metric_names)}")
