"""The loop over train steps: reports, evaluations, checkpoints, and the end on request or without improvement."""

import dataclasses
import functools
import json
from typing import TYPE_CHECKING

import numpy as np

from train.checkpoint.store import Checkpoints
from train.compilation import Precompiled
from train.config import Run
from train.digest import TreeDigest
from train.distributed import HostBatch, prefetch
from train.evaluate import DEV, Evaluator
from train.ledger import DigestedBatches, Ledger
from train.preemption import Preemption
from train.report import Reporter
from train.state_check import StateCheck
from train.step import TrainState, compile_step
from train.step_log import StepLog, TooManySkipped, describe_parameters

if TYPE_CHECKING:
    from train.loop import Setup


@dataclasses.dataclass
class TrainingLoop:
    """The train steps of a run.

    Attributes:
        state: after step `step`, which at the beginning is 0 or the step of a checkpoint.
    """

    setup: "Setup"
    state: TrainState
    step: int
    evaluator: Evaluator
    checkpoints: Checkpoints
    ledger: Ledger
    state_check: StateCheck
    reporter: Reporter
    preemption: Preemption

    def __post_init__(self):
        setup, run = self.setup, self.setup.config.run
        teacher, sandwiches = setup.teacher, setup.sandwiches
        self._fixed = () if teacher is None else (teacher.params,)
        losses = [functools.partial(setup.task.loss, setup.model) if teacher is None else teacher.loss]
        self._train_steps = [
            Precompiled(
                compile_step(
                    loss,
                    setup.optimizer,
                    setup.placement,
                    setup.state_shardings,
                    gradient_accumulation_steps=run.gradient_accumulation_steps,
                    fixed=() if teacher is None else (setup.placement.parameters(teacher.model),),
                )
            )
            for loss in (losses if sandwiches is None else sandwiches.losses)
        ]
        self._log = StepLog(
            setup.config,
            setup.task,
            self.reporter,
            setup.total_steps,
            loss_terms=(teacher or sandwiches or setup.task).loss_terms,
            fraction=setup.placement.host_shard.fraction,
            skipped=self.reporter.skipped_updates,
        )
        self._postponed = False  # a checkpoint, because the update was skipped

    def run(self) -> None:
        """Train to the last step, or until evaluations no longer improve; the last state is in a checkpoint then.

        Raises:
            FloatingPointError: too many updates in a row were skipped.
        """
        run, total_steps = self.setup.config.run, self.setup.total_steps
        host_shard = self.setup.placement.host_shard
        batches = DigestedBatches(self.setup.task.train, host_shard, is_first_host=self.setup.is_first_host)
        with self.preemption.saving(self._save_on_request):
            try:
                self._repeat_evaluation()
                for host_batch, batch_digest in prefetch(batches, self.step, total_steps):
                    self.checkpoints.check()
                    if _out_of_patience(run, self.step, self.checkpoints):
                        self.reporter.message(
                            f"stops at step {self.step}: no better {run.best} on dev since step {self.checkpoints.best}"
                        )
                        break
                    self._train(host_batch, batch_digest)
                    if self.step < total_steps:
                        self._evaluate_and_save()
                self._log.flush()
            except TooManySkipped as error:
                latest = self.checkpoints.latest
                resumes = f"The last checkpoint is of step {latest}" if latest else "There is no checkpoint yet"
                raise FloatingPointError(f"{error}. {describe_parameters(self.state.params)} {resumes}") from None
            if self.step != self.checkpoints.latest:
                self._save(self.evaluator.evaluate_dev(self.state.params, self.step) if run.best else None)

    def _train(self, host_batch: HostBatch, batch_digest: int) -> None:
        batch = self.setup.placement.batch(host_batch)
        sandwiches = self.setup.sandwiches
        train_step = self._train_steps[0 if sandwiches is None else sandwiches.index(self.step)]
        arguments = self.state, batch, np.uint32(self.setup.config.run.seed), *self._fixed
        train_step.compile_for(batch, *arguments)
        with self.preemption.launching():
            self._log.before_step()
            self.state, metrics = self.state_check.run(train_step, self.step + 1, *arguments)
            self.step += 1
            self._log.add(self.step, metrics, self.setup.task.token_counts(host_batch))
            self.ledger.add(batch_digest)
            if self.ledger.is_due(self.step):
                self._write_ledger()

    def _evaluate_and_save(self) -> None:
        run, step = self.setup.config.run, self.step
        evaluates = _is_due(step, run.evaluate_every)
        saves = _is_due(step, run.checkpoint_every) or self._postponed
        if not (evaluates or saves):
            return
        with self.preemption.launching():  # all hosts or none read the log, also on request
            self._log.flush()
        with self._log.paused():
            score = self.evaluator.evaluate_dev(self.state.params, step) if evaluates else None
            # Not after a skipped update: its cause may be damaged parameters, and older checkpoints are kept.
            self._postponed = saves and self._log.skipped_in_row > 0
            if (saves or score is not None) and not self._log.skipped_in_row:
                self._save(score)

    def _repeat_evaluation(self) -> None:
        """Evaluate the step from which the run goes on, if a signal has interrupted its evaluation."""
        is_due = 0 < self.step < self.setup.total_steps and _is_due(self.step, self.setup.config.run.evaluate_every)
        if not is_due or DEV not in self.setup.task.evaluations:
            return
        if DEV not in self.checkpoints.facts(self.step).get("metrics", {DEV}):
            score = self.evaluator.evaluate_dev(self.state.params, self.step)
            self.checkpoints.add_score(self.step, score, metrics=self.evaluator.metrics(self.step))

    def _save(self, score: float | None) -> None:
        with self.preemption.launching():
            self._write(score)

    def _write(self, score: float | None) -> None:
        """Save the state, the position in the data, the settings and the metrics known at this step."""
        self.state_check.check(self.state, self.step)
        self._write_ledger()  # first, because a checkpoint without its line is refused
        epoch, batch = divmod(self.step, self.setup.task.steps_per_epoch)
        facts = {
            "epoch": epoch,
            "batch": batch,
            "metrics": self.evaluator.metrics(self.step),
            "config": json.loads(self.setup.config.to_json()),
            "inputs": self.setup.inputs,
        }
        self.checkpoints.save(self.state, self.step, score=score, facts=facts)

    def _write_ledger(self) -> None:
        self.ledger.write(self.step, lambda: TreeDigest(self.state.params).text)

    def _save_on_request(self) -> str:
        """Save the state in the thread of the preemption, and return what to print."""
        self._log.flush()
        if self.step and self.step != self.checkpoints.latest:
            self._write(self.evaluator.score(self.step))
        return self.checkpoints.wait_and_describe()


def _out_of_patience(settings: Run, step: int, checkpoints: Checkpoints) -> bool:
    """Return whether the last `patience` evaluations were worse than the best; depends on checkpoints alone."""
    every = settings.evaluate_every
    if settings.patience is None or every is None or step % every:
        return False  # the answer changes with evaluations only, and the best score is read from disk
    best = checkpoints.best
    return best is not None and (step - best) // every >= settings.patience


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
