"""`python -m train`, which writes into files what it is doing, and what it did when a signal came.

Named by OBSERVED: FOLDER/phase-INDEX holds the phase, FOLDER/hit-INDEX the phase and the step of the first signal.
Evaluations and waits for data take 0.2 and 0.05 s more, so that signals can hit them.
"""

import contextlib
import functools
import os
import sys
import time
from pathlib import Path

from train.preemption import Preemption


class Observed(Preemption):
    """Notes the phase at the first signal."""

    def __init__(self, folder: Path, index: str):
        super().__init__()
        self._phase_file, self._hit_file = folder / f"phase-{index}", folder / f"hit-{index}"
        self._phases, self.step = ["start"], 0
        self.listen()
        self._phase_file.write_text("start")

    @contextlib.contextmanager
    def phase(self, name: str):
        self._set([*self._phases, name])
        yield
        self._set(self._phases[:-1])

    def _set(self, phases):
        self._phases = phases
        self._phase_file.write_text(phases[-1])

    def _begin(self, reason: str):
        if not self._hit_file.exists():
            self._hit_file.write_text(f"{self._phases[-1]}\n{self.step}")
        super()._begin(reason)


def observe(preemption: Observed) -> None:
    """Replace functions of the run by ones that note their phase."""
    import train.loop
    import train.training_loop as loop
    from train.checkpoint.store import Checkpoints
    from train.compilation import Precompiled
    from train.evaluate import Evaluator

    def noted(owner, name: str, phase: str, *, seconds: float = 0.0):
        function = getattr(owner, name)

        @functools.wraps(function)
        def with_phase(*arguments, **named):
            with preemption.phase(phase):
                time.sleep(seconds)
                return function(*arguments, **named)

        setattr(owner, name, with_phase)

    def compile_for(self, *arguments):
        phase = "compile evaluation" if preemption._phases[-1] == "evaluate" else "compile step"
        with preemption.phase(phase):
            compile_program(self, *arguments)

    def prefetch(*arguments):
        batches = prefetch_batches(*arguments)
        while True:
            with preemption.phase("data"):
                time.sleep(0.05)
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def step(self, *arguments):
        with preemption.phase("step"):
            take_step(self, *arguments)
            preemption.step = self.step

    compile_program, prefetch_batches, take_step = Precompiled.compile_for, loop.prefetch, loop.TrainingLoop._train
    for owner, name, function in (
        (Precompiled, "compile_for", compile_for),
        (loop, "prefetch", prefetch),
        (loop.TrainingLoop, "_train", step),
    ):
        setattr(owner, name, function)
    noted(Evaluator, "evaluate", "evaluate", seconds=0.2)
    noted(Checkpoints, "save", "save")
    noted(loop.TrainingLoop, "run", "loop")
    noted(train.loop, "make_setup", "setup")
    noted(train.loop, "export", "export")


if __name__ == "__main__":
    index = next((sys.argv[i + 1] for i, flag in enumerate(sys.argv) if flag == "--hosts.index"), "0")
    preemption = Observed(Path(os.environ["OBSERVED"]), index)
    observe(preemption)
    from train.command import run_and_exit

    run_and_exit(sys.argv[1:], preemption)
