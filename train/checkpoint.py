"""Checkpoints of a run: parameters, optimizer state and step as one atomic unit, by orbax.

The position in the data is the step itself: batch `i` is a pure function of the seed and `i`.
"""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from flaxbert.weights.names import shape_differences
from train.step import TrainState


class Checkpoints:
    """The checkpoints in a folder: the newest `keep`, and where they are `scored` the one with the highest score."""

    def __init__(self, folder: Path, *, keep: int, scored: bool = False):
        """Opens or makes the folder (absolute: orbax insists)."""
        self._folder, self._scored = folder.absolute(), scored
        best = BestN(get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                best_fn=_rank if scored else None,
                preservation_policy=AnyPreservationPolicy([LatestN(keep), *([best] if scored else [])]),
                cleanup_tmp_directories=True,  # what a killed run left half-written
                enable_async_checkpointing=True,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The newest step, None where there is no checkpoint yet."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step with the highest score, of equal ones the first; None where none has a score."""
        step = self._manager.best_step() if self._scored else None
        metrics: Any = None if step is None else self._manager.metrics(step)
        return None if metrics is None or metrics["score"] is None else step

    def save(self, state: TrainState, step: int, *, score: float | None = None) -> None:
        """Copies the state to the host and writes it in the background; an earlier failure surfaces here."""
        if step != self.latest:
            # Without a score, too: orbax warns on the terminal of a checkpoint that has no metrics.
            metrics = {"score": score, "step": step} if self._scored else None
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)

    def restore(self, shapes: TrainState, shardings: TrainState, *, step: int | None = None) -> TrainState:
        """The newest state, or that of a step, placed by `shardings`.

        Raises:
            ValueError: it is the state of another model; lists each parameter that differs.
        """
        step = self.latest if step is None else step
        if step is None:
            raise ValueError(f"{self._folder}: holds no checkpoint")
        self._check_fits(step, shapes)
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
        )
        restored: Any = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        return restored

    def _check_fits(self, step: int, shapes: TrainState) -> None:
        # Before orbax starts to read: what it raises in the middle of it leaves background tasks behind.
        stored: Any = self._manager.item_metadata(step)
        differing = shape_differences(stored["params"], shapes.params)
        if differing:
            raise ValueError(
                f"{self._folder / str(step)}: the checkpoint does not fit this model; choose another --run.folder, or "
                "delete it:\n" + "\n".join(differing)
            )

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()


def _rank(metrics: Any) -> Any:
    """Of equal scores the first is the best; those without one come last."""
    score = metrics["score"]
    return score is not None, score or 0.0, -metrics["step"]
