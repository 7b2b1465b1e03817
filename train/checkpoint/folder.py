"""Folder of a run's checkpoints: which are there, which are intact, which are kept.

It holds `12`, a complete checkpoint of step 12; `12.partial`, one that is being written; `12.deleted`, one that is
being deleted; and `12.damaged`, one that was set aside. The first is made by renaming the second, and a checkpoint is
renamed before it is deleted: a killed run leaves no checkpoint of which a part is gone.
"""

import logging
import math
import os
import re
import shutil
import time
from pathlib import Path
from typing import TypeAlias

from flaxbert.files import read_json
from train.checkpoint.manifest import find_damage, is_unverifiable, read_manifest
from train.multihost.hosts import HostGroup

_log = logging.getLogger(__name__)

Scores: TypeAlias = dict[int, float | None]
"""Scores of checkpoints by step, higher is better; None: the model was not evaluated, or its score is not finite."""

_LEFTOVER = re.compile(r"\d+(\.partial|\.deleted|\.orbax-checkpoint-tmp.*)")  # the last one is of former versions
_DAMAGED = re.compile(r"\d+\.damaged(-\d+)?")
_FORMER_SCORES = "metrics/metrics"  # file of a former version's checkpoint


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the complete checkpoints in ascending order; they may be damaged."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isascii() and path.name.isdecimal())


def damaged_names(folder: Path) -> list[str]:
    """Return the names of the checkpoints that were set aside."""
    return sorted(path.name for path in folder.iterdir() if _DAMAGED.fullmatch(path.name))


def best_step(scores: Scores) -> int | None:
    """Return the step with the highest score, the first of equal ones; None if no checkpoint has a score."""
    known = {step: score for step, score in scores.items() if score is not None}
    return max(known, key=lambda step: (known[step], -step)) if known else None


class CheckpointFolder:
    """Folder of a run's checkpoints, which all hosts of a run see and host 0 changes."""

    def __init__(self, path: Path, *, host_group: HostGroup):
        """Open or make the folder, and delete what a killed run left half-written or half-deleted."""
        self.path, self._host_group = path.absolute(), host_group
        host_group.share(self._prepare)

    def _prepare(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        for path in self.path.iterdir():
            if _LEFTOVER.fullmatch(path.name):
                remove(path)

    def scores(self) -> Scores:
        """Return the scores of all checkpoints; set aside those without a readable manifest."""
        pairs: list[tuple[int, float | None]] = self._host_group.share(self._read_scores)
        return {step: score for step, score in pairs}

    def _read_scores(self) -> list[tuple[int, float | None]]:
        pairs = []
        for step in checkpoint_steps(self.path):
            try:
                pairs.append((step, _score(self.path / str(step))))
            except PermissionError:
                raise
            except (OSError, ValueError) as error:
                self._set_aside(step, str(error))
        return pairs

    def verify(self, step: int) -> bool:
        """Return whether a checkpoint is intact; otherwise set it aside. The hosts share the work."""
        folder, group = self.path / str(step), self._host_group
        found = group.exchange(find_damage(folder, index=group.index, count=len(group.names)))
        problem = next((problem for problem in found if problem is not None), None)
        if problem is not None:
            group.share(lambda: self._set_aside(step, problem))
        elif group.index == 0 and is_unverifiable(folder):
            _log.warning("%s: not verified, because a former version wrote it without digests", folder)
        return problem is None

    def _set_aside(self, step: int, problem: str) -> None:
        aside, number = self.path / f"{step}.damaged", 1
        while os.path.lexists(aside):
            number += 1
            aside = self.path / f"{step}.damaged-{number}"
        os.rename(self.path / str(step), aside)
        _log.warning("warning: the checkpoint of step %d is damaged, and set aside as %s: %s", step, aside, problem)

    def check_not_all_damaged(self) -> None:
        """Raise ValueError if checkpoints were set aside and none is left: the run would start from the beginning."""
        damaged = damaged_names(self.path)
        if damaged and not checkpoint_steps(self.path):
            raise ValueError(
                f"{self.path}: no checkpoint is left that is not damaged ({', '.join(damaged)}); put back a copy of "
                "one, choose another --run.folder, or delete this folder to start from the beginning"
            )

    def delete_old(self, scores: Scores, *, keep: int, keep_every: int | None) -> None:
        """Delete all checkpoints but the newest `keep`, the best, and those of every `keep_every`th step."""
        steps = checkpoint_steps(self.path)
        kept = {*steps[-keep:], best_step(scores)}
        for step in steps:
            if step not in kept and (keep_every is None or step % keep_every):
                deleted = self.path / f"{step}.deleted"
                os.rename(self.path / str(step), deleted)
                remove(deleted)


def describe(folder: Path) -> tuple[str, bool]:
    """Verify a checkpoint; return its state in words, and whether it is intact."""
    try:
        problem = find_damage(folder)
    except PermissionError as error:
        problem = f"{error.filename}: cannot be read ({error.strerror})"
    if problem is not None:
        return f"damaged: {problem}", False
    return ("not verified: written by a former version, without digests" if is_unverifiable(folder) else "intact"), True


def remove(folder: Path) -> None:
    """Delete a folder as far as possible; what is left is deleted at the next start of the run."""
    for seconds in (0, 0.1, 1):  # threads of orbax may still write for a while after a failure
        time.sleep(seconds)
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            break


def remove_remains(folder: Path) -> None:
    """Delete a folder that threads of orbax may make again for a second after a write into it has failed."""
    for _ in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def _score(folder: Path) -> float | None:
    """Return the score of a checkpoint.

    Raises:
        OSError, ValueError: it has no readable manifest.
    """
    if not is_unverifiable(folder):
        score = read_manifest(folder).get("score")
    else:
        former = folder / _FORMER_SCORES
        metrics = read_json(former) if former.is_file() else {}
        score = metrics.get("score") if isinstance(metrics, dict) else None
    return score if isinstance(score, int | float) and math.isfinite(score) else None
