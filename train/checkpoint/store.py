"""Checkpoints of a run: writing in the background, verifying and restoring.

The position in the data needs no storage: batch `i` is a pure function of the seed and `i`.
"""

import json
import math
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.future import Future

from flaxbert.files import JsonObject, JsonValue, sync
from train.checkpoint.arrays import (
    ARRAYS_FOLDER,
    WRITE_TIMEOUT,
    CheckpointArrays,
    copy_on_cpu,
    reason_of,
    wait_for_all,
)
from train.checkpoint.folder import CheckpointFolder, Scores, best_step, remove, remove_remains
from train.checkpoint.manifest import (
    FileDigests,
    change_manifest,
    digest_files,
    is_unverifiable,
    read_manifest,
    write_manifest,
)
from train.multihost.hosts import SINGLE_HOST, HostGroup
from train.step import TrainState


class Checkpoints:
    """Checkpoints in a folder, each verified before it is used."""

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        keep_every: int | None = None,
        scored: bool = False,
        host_group: HostGroup = SINGLE_HOST,
    ):
        """Open or make the folder, and verify the checkpoints from which a run goes on.

        Damaged ones are renamed to STEP.damaged, with a warning that names the file.

        Args:
            folder: of the checkpoints of a run.
            keep: number of the newest checkpoints that are kept.
            keep_every: keep those of steps that are multiples of this, too.
            scored: keep the one with the highest score, too.
            host_group: the hosts of the run, all of which call the same methods.

        Raises:
            ValueError: all checkpoints are damaged.
            PermissionError: a checkpoint must not be read.
        """
        self._host_group, self._is_first, self._scored = host_group, host_group.index == 0, scored
        self._keep, self._keep_every = keep, keep_every
        self._arrays = CheckpointArrays()
        self._barrier = ocp.multihost.get_barrier_sync_fn()
        self._writer: threading.Thread | None = None
        self._error: OSError | None = None
        self._failed: list[Path] = []
        self._files = CheckpointFolder(folder, host_group=host_group)
        self._verified: set[int] = set()
        self._scores: Scores = self._files.scores()  # of all checkpoints, and of the one that is being written
        while not all(self._verify(step) for step in (self.latest, self.best) if step is not None):
            self._scores = self._files.scores()
        self._files.check_not_all_damaged()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, exception_type: type[BaseException] | None, *_: object) -> None:
        try:
            self.wait()
        except OSError:
            if exception_type is None:
                raise
        finally:
            self._arrays.close()
            for partial in self._failed:
                remove_remains(partial)

    @property
    def latest(self) -> int | None:
        """The newest step, or None without checkpoints."""
        return max(self._scores, default=None)

    @property
    def best(self) -> int | None:
        """The step with the highest score, the first of equal ones; None if no checkpoint has a score."""
        return best_step(self._scores) if self._scored else None

    def intact_best(self) -> int | None:
        """Wait for the writer and verify the best checkpoint; return its step, or that of the next best intact one."""
        self.wait()
        self._scores = self._files.scores()
        while (step := self.best) is not None and not self._verify(step):
            self._scores = self._files.scores()
        return step

    def save(
        self, state: TrainState, step: int, *, score: float | None = None, facts: Mapping[str, JsonValue] | None = None
    ) -> None:
        """Copy the state to the host and write it in the background.

        Args:
            state: to write; its memory may be donated as soon as this returns.
            step: of the state; if it is the newest, nothing is written.
            score: chooses the best checkpoint, higher is better; one that is not finite counts as None.
            facts: further content of the manifest.

        Raises:
            OSError: the folder cannot be written, or the previous write has failed.
        """
        if step == self.latest:
            return
        self.wait()
        score = score if score is not None and math.isfinite(score) else None
        partial, copied = self._partial(step), copy_on_cpu(state)
        try:
            self._host_group.share(lambda: (partial / ARRAYS_FOLDER).mkdir(parents=True))
            writes = self._arrays.start_writing(partial, copied)
        except Exception as error:
            raise self._write_error(step, error) from None
        facts = {"step": step, "score": score, **(facts or {})}
        self._writer = threading.Thread(target=self._write, args=(step, writes, facts), name="checkpoint")
        self._scores[step] = score
        self._writer.start()

    @property
    def is_writing(self) -> bool:
        """True while a checkpoint is being written in the background."""
        return self._writer is not None and self._writer.is_alive()

    def facts(self, step: int) -> JsonObject:
        """Return the manifest of a checkpoint; empty for one that a former version wrote."""
        folder = self._files.path / str(step)
        return self._host_group.share(lambda: {} if is_unverifiable(folder) else read_manifest(folder))

    def add_score(self, step: int, score: float | None, *, metrics: Mapping[str, JsonValue]) -> None:
        """Add the score and the metrics of an evaluation that came after the save."""
        self._scores[step] = score = score if score is not None and math.isfinite(score) else None
        facts = {"score": score, "metrics": metrics}
        self._host_group.share(lambda: change_manifest(self._files.path / str(step), facts))

    def check(self) -> None:
        """Raise OSError if the write in the background has failed, or if none can succeed; cheap."""
        if not self.is_writing:
            self.wait()
        if not self._is_first:
            return
        folder = self._files.path
        if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
            raise OSError(
                f"{folder}: no longer writable; give back the access, and start the run again: it goes on from its "
                "last checkpoint"
            )
        steps = list(self._scores)  # the writer deletes old ones
        had_some = len(steps) > self.is_writing
        # A folder that was deleted while a checkpoint is written is there again, without the others.
        if not folder.is_dir() or (had_some and not any((folder / str(step)).is_dir() for step in reversed(steps))):
            raise OSError(
                f"{folder}: the checkpoints are gone; put them back and start the run again, or start from the "
                "beginning with another --run.folder"
            )

    def wait(self) -> None:
        """Wait until everything is written to disk; raise OSError if it cannot be."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._error is not None:
            error, self._error = self._error, None
            del self._scores[max(self._scores)]
            raise error

    def wait_and_describe(self) -> str:
        """Wait as `wait` does, and return a sentence on what is saved."""
        self.wait()
        return f"step {self.latest} is saved" if self.latest else "no step was done yet, and nothing is saved"

    def restore(self, shapes: TrainState, shardings: TrainState, *, step: int | None = None) -> TrainState:
        """Return the state of `step` (None: the newest) with the given shardings.

        Raises:
            ValueError: there is no checkpoint, or it is damaged, or of another model; lists each parameter that
                differs.
        """
        self.wait()
        folder, step = self._files.path, self.latest if step is None else step
        if step is None:
            raise ValueError(f"{folder}: holds no checkpoint; choose the folder of a run that has written one")
        if not self._verify(step):
            raise ValueError(f"{folder / str(step)}: damaged; start again to go on from an earlier checkpoint")
        return self._arrays.restore(folder / str(step), shapes, shardings)

    def _partial(self, step: int) -> Path:
        return self._files.path / f"{step}.partial"

    def _verify(self, step: int) -> bool:
        if step not in self._verified and self._files.verify(step):
            self._verified.add(step)
        return step in self._verified

    # -- writing, in a thread ----------------------------------------------------------------------------

    def _write(self, step: int, writes: Sequence[Future], facts: Mapping[str, JsonValue]) -> None:
        partial, final = self._partial(step), self._files.path / str(step)
        try:
            wait_for_all(writes)
            self._write_own_digests(partial)
            self._wait_for_hosts(f"arrays of step {step}")
            if self._is_first:
                self._arrays.finish_writing(partial)
                write_manifest(partial, facts, known=_collect_digests(partial))
                os.rename(partial, final)
                sync(final.parent)
                self._files.delete_old(self._scores, keep=self._keep, keep_every=self._keep_every)
            self._wait_for_hosts(f"manifest of step {step}")
        except Exception as error:
            self._error = self._write_error(step, error)

    def _write_own_digests(self, partial: Path) -> None:
        """Digest the files that this host wrote, so that host 0 need not read those of all."""
        own = f"{ARRAYS_FOLDER}/ocdbt.process_{jax.process_index()}"
        if len(self._host_group.names) > 1 and (partial / own).is_dir():
            digests = digest_files(partial, own)
            (partial / f"digests-{self._host_group.index}").write_text(json.dumps(digests), encoding="utf-8")

    def _wait_for_hosts(self, name: str) -> None:
        self._barrier(key=f"{self._files.path}: {name}", timeout_ms=round(WRITE_TIMEOUT * 1000))

    def _write_error(self, step: int, error: BaseException) -> OSError:
        """Delete what was written, and return an error for the user."""
        if self._is_first:
            remove(self._partial(step))
            self._failed.append(self._partial(step))
        return OSError(
            f"{self._files.path}: the checkpoint of step {step} cannot be written: {reason_of(error)}; "
            "make room or give back the access, and start the run again: it goes on from its last checkpoint"
        )


def _collect_digests(partial: Path) -> FileDigests:
    """Return the digests that all hosts have written into a folder, and delete those files."""
    digests: FileDigests = {}
    for file in partial.glob("digests-*"):
        digests |= json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
    return digests
