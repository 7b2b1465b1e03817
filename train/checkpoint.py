"""Checkpoints of a run by orbax: step, parameters and optimizer state, written together or not at all.

The position in the data needs no storage: batch `i` is a pure function of the seed and `i`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from flaxbert.weights.formats.orbax_params import damaged_file
from flaxbert.weights.names import shape_differences
from train.step import TrainState

_ITEM = "default"  # orbax's name for the only item of a checkpoint


class Checkpoints:
    """Checkpoints in a folder: the newest `keep`, and if `scored` also the one with the highest score."""

    def __init__(self, folder: Path, *, keep: int, scored: bool = False):
        """Open or make the folder; half-written checkpoints of a killed run are deleted."""
        self._folder, self._scored = folder.absolute(), scored  # orbax refuses relative paths
        best = BestN(get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False)
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        handler = ocp.StandardCheckpointHandler()
        registry.add(_ITEM, ocp.args.StandardSave, handler)
        registry.add(_ITEM, ocp.args.StandardRestore, handler)
        self._manager = ocp.CheckpointManager(
            self._folder,
            handler_registry=registry,
            options=ocp.CheckpointManagerOptions(
                best_fn=_rank if scored else None,
                preservation_policy=AnyPreservationPolicy([LatestN(keep), *([best] if scored else [])]),
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The newest step, or None without checkpoints."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step with the highest score, the first of equal ones; None if no checkpoint has a score."""
        step = self._manager.best_step() if self._scored else None
        metrics = None if step is None else self._manager.metrics(step)
        return None if metrics is None or metrics["score"] is None else step

    def save(self, state: TrainState, step: int, *, score: float | None = None) -> None:
        """Copy the state to the host and write it in the background; errors of the previous write are raised here."""
        if step != self.latest:
            # Metrics are given even without a score, because orbax warns of a checkpoint that has none.
            metrics = {"score": score, "step": step} if self._scored else None
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)

    def restore(self, shapes: TrainState, shardings: TrainState, *, step: int | None = None) -> TrainState:
        """Return the state of `step` (None: the newest) with the given shardings.

        Raises:
            ValueError: there is no checkpoint, or it is of another model; lists each parameter that differs.
        """
        step = self.latest if step is None else step
        if step is None:
            raise ValueError(f"{self._folder}: holds no checkpoint; choose the folder of a run that has written one")
        self._check_fits(step, shapes)
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
        )
        try:
            restored: Any = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        except Exception as error:
            raise self._unreadable(step, error) from error
        return restored

    def wait(self) -> None:
        """Wait until everything is written to disk."""
        self._manager.wait_until_finished()

    def _check_fits(self, step: int, shapes: TrainState) -> None:
        # Checked before orbax starts to read, because an error during the read leaves background tasks behind.
        try:
            stored: Any = self._manager.metadata(step).item_metadata
            stored["params"]
        except Exception as error:
            raise self._unreadable(step, error) from error
        differing = shape_differences(stored["params"], shapes.params)
        if differing:
            raise ValueError(
                f"{self._folder / str(step)}: the checkpoint does not fit this model; choose another --run.folder, or "
                "delete it:\n" + "\n".join(differing)
            )

    def _unreadable(self, step: int, error: BaseException) -> ValueError:
        """Return an error that names the damaged file of a checkpoint, which orbax's own does at most in a cause."""
        folder = self._folder / str(step)
        while (cause := error.__cause__ or error.__context__) is not None:
            error = cause
        why = f"{type(error).__name__}: {error}".splitlines()[0].partition(" [tensorstore_spec")[0][:500]
        return ValueError(
            f"{damaged_file(folder, why)}: damaged or missing ({why}); delete the folder {folder} to go on from an "
            "earlier checkpoint, or from the start"
        )


def _rank(metrics: Mapping[str, Any]) -> Any:
    """Sort key: the first of equal scores is the best; checkpoints without a score come last."""
    score = metrics["score"]
    return score is not None, score or 0.0, -metrics["step"]
