"""Batches in order, made ahead of time in background threads by grain."""

from collections.abc import Iterator

import grain

from train.tasks.task import HostBatch, TrainSet


def iterate(train_set: TrainSet, start: int, stop: int, *, threads: int = 2, ahead: int = 8) -> Iterator[HostBatch]:
    """Batches `start` to `stop - 1`; the order does not depend on the number of threads.

    A batch is a pure function of its number, so a run resumes at step n by starting at n: nothing is skipped over.
    """
    numbers = grain.MapDataset.range(start, stop)
    return iter(numbers.map(train_set.__getitem__).to_iter_dataset(grain.ReadOptions(threads, ahead)))
