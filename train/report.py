"""What a training run shows and records while it goes: a bar or plain lines, metrics.jsonl, TensorBoard."""

import contextlib
import dataclasses
import datetime
import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import rich.console
import rich.progress
import rich.table

from flaxbert.files import atomic_write
from train.summary import METRICS_FILE, read_record

_SHOWN = {
    "learning_rate": "lr {:.2e}",
    "gradient_norm": "grad-norm {:.3g}",
    "tokens_per_second": "{:,.0f} tok/s",
    "mfu": "MFU {:.1%}",
}


@dataclasses.dataclass(frozen=True)
class Progress:
    """One report of training.

    `metrics` holds scalars by name (loss, learning_rate, gradient_norm, ...), `mfu` is the fraction 0..1 of
    the device's peak or None where the peak is unknown, `eta_seconds` the time to the last step.
    """

    step: int
    total_steps: int
    metrics: Mapping[str, float]
    tokens_per_second: float
    mfu: float | None
    eta_seconds: float


class Reporter:
    """Shows a run on `stream` (default stdout) and records it in metrics.jsonl and tensorboard/ of `folder`.

    A terminal gets a bar with evaluations and messages above it, anything else one plain line a report.
    `start_step` > 0 continues the record and drops what lies after that step, 0 starts it afresh. Without
    `primary` (any process but the first of a multi-host run) nothing is shown or written.
    Raises ValueError where the record to continue is damaged before its last line.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        *,
        start_step: int = 0,
        primary: bool = True,
        stream: TextIO | None = None,
    ):
        self._primary, self._total_steps, self._opened = primary, total_steps, contextlib.ExitStack()
        if not primary:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._stream = sys.stdout if stream is None else stream
        # What fails on the way to pop_all leaves no open file and no running bar.
        with contextlib.ExitStack() as stack:
            self._lines = stack.enter_context(_open_record(folder / METRICS_FILE, start_step))
            self._events = stack.enter_context(contextlib.closing(_open_events(folder, start_step)))
            self._bar = _make_bar(self._stream)
            if self._bar is not None:
                self._task = self._bar.add_task("train", total=total_steps, completed=start_step, shown="")
                stack.enter_context(self._bar)
            self._opened = stack.pop_all()

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def progress(self, progress: Progress) -> None:
        """Reports training; call it every log interval.

        Raises TypeError for a metric that is named like another field of the record (step, time, mfu, ...).
        """
        if not self._primary:
            return
        speed = {"tokens_per_second": progress.tokens_per_second}
        if progress.mfu is not None:
            speed["mfu"] = progress.mfu
        metrics = dict(**progress.metrics, **speed)
        left = progress.eta_seconds
        self._record("train", progress.step, dict(**metrics, eta_seconds=left))
        eta = f"ETA {datetime.timedelta(seconds=max(0, round(left)))}" if math.isfinite(left) else "ETA ?"
        if self._bar is None:
            self._show("  ".join([_at(progress.step, progress.total_steps), *_shown(metrics), eta]))
        else:
            brief = {name: metrics[name] for name in ("loss", "tokens_per_second") if name in metrics}
            total, shown = progress.total_steps, "  ".join([*_shown(brief), eta])
            self._bar.update(self._task, completed=progress.step, total=total, shown=shown)

    def evaluation(self, step: int, name: str, metrics: Mapping[str, float]) -> None:
        """Reports an evaluation on the data called `name`, say "dev"; raises TypeError as `progress` does."""
        if not self._primary:
            return
        self._record(f"eval/{name}", step, metrics, name=name)
        self._show("  ".join([_at(step, self._total_steps), f"eval {name}", *_shown(metrics)]))

    def message(self, text: str) -> None:
        """Shows a free line, such as "resumed from step 40", and does not record it."""
        if self._primary:
            self._show(" ".join(text.splitlines()))

    def advance(self, step: int) -> None:
        """Moves the bar to `step`; cheap enough for every step, and nothing where there is no bar."""
        if self._primary and self._bar is not None:
            self._bar.update(self._task, completed=step)

    def close(self) -> None:
        """Stops the bar and closes the files; a second call does nothing."""
        self._opened.close()

    def _show(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.out(line, highlight=False)
        else:
            print(line, file=self._stream, flush=True)

    def _record(self, tag: str, step: int, metrics: Mapping[str, float], **fields: str) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        # Strict JSON has no NaN or infinity, and most readers reject Python's spelling of them.
        strict = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = dict(kind=tag.split("/")[0], step=int(step), **fields, **strict, time=time.time())
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._lines.flush()
        scalars = [{"tag": f"{tag}/{name}", "simple_value": value} for name, value in values.items()]
        _append_event(self._events, step, summary={"value": scalars})


def _make_bar(stream: TextIO) -> rich.progress.Progress | None:
    console = rich.console.Console(file=stream)
    # rich alone would draw into a file where FORCE_COLOR is set, and show nothing on a dumb terminal.
    if not (stream.isatty() and console.is_terminal and console.is_interactive):
        return None
    # With a ratio the bar gives way on a narrow terminal, not the numbers.
    bar = rich.progress.BarColumn(bar_width=None, table_column=rich.table.Column(ratio=1))
    columns = ["{task.description}", bar, rich.progress.MofNCompleteColumn(), "{task.fields[shown]}"]
    # Other libraries' prints land above the bar; a stderr sent to a file has to stay in that file.
    out = stream is sys.stdout
    redirect = {"redirect_stdout": out, "redirect_stderr": out and sys.stderr.isatty()}
    return rich.progress.Progress(*columns, console=console, expand=True, **redirect)


def _open_record(path: Path, start_step: int) -> TextIO:
    if not start_step or not path.exists():
        return path.open("w", encoding="utf-8")
    kept = [line for line in read_record(path) if line["step"] <= start_step]
    with atomic_write(path) as aside:
        aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return path.open("a", encoding="utf-8")


def _open_events(folder: Path, start_step: int) -> Any:
    # SummaryWriter hands events to a thread: a killed run loses minutes of them, and if the thread dies
    # (a full disk) training waits for ever on its queue. The writer under it has neither fault.
    from tensorboardX.event_file_writer import EventsWriter

    (folder / "tensorboard").mkdir(exist_ok=True)
    # File names hold whole seconds: without the suffix a quick restart overwrites the file before it.
    events = EventsWriter(str(folder / "tensorboard" / "events"), f".{time.time_ns()}")
    # A session's start hides what earlier files of the folder hold from that step on.
    _append_event(events, start_step + 1 if start_step else 0, session_log={"status": "START"})
    return events


def _append_event(events: Any, step: int, **content: Any) -> None:
    from tensorboardX.proto import event_pb2

    event: Any = event_pb2
    events.write_event(event.Event(wall_time=time.time(), step=int(step), **content))
    events.flush()


def _at(step: int, total: int) -> str:
    return f"step {step:>{max(5, len(str(total)))}}/{total}"


def _shown(metrics: Mapping[str, float]) -> list[str]:
    return [_SHOWN.get(name, f"{name} {{:.4f}}").format(float(value)) for name, value in metrics.items()]
