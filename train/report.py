"""Progress of a training run: a bar or plain lines on the terminal, metrics.jsonl, TensorBoard."""

import contextlib
import datetime
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import rich.console
import rich.progress
import rich.table

from flaxbert.files import atomic_write
from train.summary import METRICS_FILE, read_record

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

_FORMATS = {
    "learning_rate": "lr {:.2e}",
    "gradient_norm": "grad-norm {:.3g}",
    "tokens_per_second": "{:,.0f} tok/s",
    "mfu": "MFU {:.1%}",
}
_SHOWN_ROWS = 16


class Reporter:
    """Show a run on a terminal and record it in metrics.jsonl and tensorboard/ of its folder.

    A terminal gets a progress bar with evaluations and messages above it; other streams get one line per report.

    Attributes:
        skipped_updates: updates that were skipped so far, those before the run was resumed included.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        *,
        start_step: int = 0,
        scalar_names: Mapping[str, str] | None = None,
        primary: bool = True,
        stream: TextIO | None = None,
    ):
        """Open the files of the run's folder and start the bar.

        Args:
            folder: of the run.
            total_steps: optimizer steps of the whole run.
            start_step: if not 0, continue the record and drop its lines after this step; 0 starts a new record.
            scalar_names: names in TensorBoard by the usual ones (kind/metric, or eval/set/metric), which others keep.
            primary: False shows and writes nothing; for all hosts except the first.
            stream: None: standard output.

        Raises:
            ValueError: the record to continue is damaged before its last line.
        """
        self._primary, self._total_steps, self._opened = primary, total_steps, contextlib.ExitStack()
        self._scalar_names, self._tags = scalar_names or {}, set[str]()
        self.skipped_updates = 0
        if not primary:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._stream = sys.stdout if stream is None else stream
        # If something fails before pop_all, all files are closed and the bar is stopped.
        with contextlib.ExitStack() as stack:
            self._lines = stack.enter_context(_open_record(folder / METRICS_FILE, start_step))
            if start_step:
                self.skipped_updates = sum(line["kind"] == "skipped" for line in read_record(folder / METRICS_FILE))
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

    def progress(
        self,
        step: int,
        metrics: Mapping[str, float],
        *,
        tokens_per_second: float,
        mfu: float | None,
        eta_seconds: float,
    ) -> None:
        """Report training.

        Args:
            step: optimizer steps done.
            metrics: loss, learning_rate, gradient_norm, ...
            tokens_per_second: over all devices, without padding.
            mfu: model FLOPs utilisation, 0 to 1; None if the devices' peak is unknown.
            eta_seconds: time until the last step.

        Raises:
            TypeError: a metric has the name of another field of the record (step, time, mfu, ...).
        """
        if not self._primary:
            return
        utilisation = {} if mfu is None else {"mfu": mfu}
        metrics = dict(**metrics, tokens_per_second=tokens_per_second, **utilisation)
        self._record("train", step, dict(**metrics, eta_seconds=eta_seconds))
        finite = math.isfinite(eta_seconds)
        eta = f"ETA {datetime.timedelta(seconds=max(0, round(eta_seconds)))}" if finite else "ETA ?"
        if self._bar is None:
            self._show("  ".join([_step_text(step, self._total_steps), *_metric_texts(metrics), eta]))
        else:
            brief = {name: metrics[name] for name in ("loss", "tokens_per_second") if name in metrics}
            self._bar.update(self._task, completed=step, shown="  ".join([*_metric_texts(brief), eta]))

    def evaluation(self, step: int, name: str, metrics: Mapping[str, float]) -> None:
        """Report the evaluation of a set, for example "dev".

        Raises:
            TypeError: a metric has the name of another field of the record.
        """
        if not self._primary:
            return
        self._record(f"eval/{name}", step, metrics, name=name)
        self._show("  ".join([_step_text(step, self._total_steps), f"eval {name}", *_metric_texts(metrics)]))

    def skipped(self, step: int, metrics: Mapping[str, float], *, batch: str, rows: Sequence[int] | None) -> None:
        """Report an update that was not applied: its metrics, its batch, and the data set's rows in it if known."""
        if not self._primary:
            return
        self.skipped_updates += 1
        self._record("skipped", step, metrics, rows=rows)
        values = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in metrics.items())
        text = f"{_step_text(step, self._total_steps)}  update skipped: {values}; {batch}"
        self._show(text + (f", rows {_shortened(rows)} of the training data" if rows else ""))

    def message(self, text: str) -> None:
        """Show a line, for example "resumed from step 40", without recording it."""
        if self._primary:
            self._show(" ".join(text.splitlines()))

    def advance(self, step: int) -> None:
        """Move the bar to `step`; cheap enough to call at every step."""
        if self._primary and self._bar is not None:
            self._bar.update(self._task, completed=step)

    def close(self) -> None:
        """Close the files; further calls do nothing. Warn of `scalar_names` that name no curve."""
        recorded = {tag.rpartition("/")[0] for tag in self._tags}
        for name in sorted(self._scalar_names.keys() - self._tags):
            if name.rpartition("/")[0] in recorded:  # else nothing of this set was reported
                self._show(f"warning: scalar_names has {name!r}, which is none of {', '.join(sorted(self._tags))}")
        self._tags.clear()
        self._opened.close()

    def _show(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.out(line, highlight=False)
        else:
            try:
                print(line, file=self._stream, flush=True)
            except BrokenPipeError:
                # The reader, for example `head`, has gone. The run goes on: its folder holds all that it reports.
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def _record(self, tag: str, step: int, metrics: Mapping[str, float], **fields: str | Sequence[int] | None) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        # Strict JSON has no NaN or infinity; most readers reject the tokens that Python writes.
        strict = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = dict(kind=tag.split("/")[0], step=int(step), **fields, **strict, time=time.time())
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._lines.flush()
        tags = [f"{tag}/{name}" for name in values]
        self._tags.update(tags)
        scalars = [
            {"tag": self._scalar_names.get(tag, tag), "simple_value": value}
            for tag, value in zip(tags, values.values(), strict=True)
        ]
        _append_event(self._events, step, summary={"value": scalars})


def _shortened(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:_SHOWN_ROWS])) + (", ..." if len(rows) > _SHOWN_ROWS else "")


def _make_bar(stream: TextIO) -> rich.progress.Progress | None:
    console = rich.console.Console(file=stream)
    # rich by itself would draw into a file if FORCE_COLOR is set, and show nothing on a dumb terminal.
    if not (stream.isatty() and console.is_terminal and console.is_interactive):
        return None
    # With a ratio, a narrow terminal shortens the bar and not the numbers.
    bar = rich.progress.BarColumn(bar_width=None, table_column=rich.table.Column(ratio=1))
    columns = ["{task.description}", bar, rich.progress.MofNCompleteColumn(), "{task.fields[shown]}"]
    # Output of other libraries is shown above the bar; stderr that goes to a file stays there.
    to_stdout = stream is sys.stdout
    redirect = {"redirect_stdout": to_stdout, "redirect_stderr": to_stdout and sys.stderr.isatty()}
    return rich.progress.Progress(*columns, console=console, expand=True, **redirect)


def _open_record(path: Path, start_step: int) -> TextIO:
    if not start_step or not path.exists():
        return path.open("w", encoding="utf-8")
    kept = [line for line in read_record(path) if line["step"] <= start_step]
    with atomic_write(path) as aside:
        aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return path.open("a", encoding="utf-8")


def _open_events(folder: Path, start_step: int) -> "EventsWriter":
    # SummaryWriter writes events in a thread: a killed run loses the last minutes, and if the thread dies (disk full),
    # training waits for ever on its queue. EventsWriter, which it uses, has neither problem.
    from tensorboardX.event_file_writer import EventsWriter

    (folder / "tensorboard").mkdir(exist_ok=True)
    # File names contain whole seconds: without the suffix, a quick restart would overwrite the previous file.
    events = EventsWriter(str(folder / "tensorboard" / "events"), f".{time.time_ns()}")
    # A START event hides events of earlier files from that step on.
    _append_event(events, start_step + 1 if start_step else 0, session_log={"status": "START"})
    return events


def _append_event(events: "EventsWriter", step: int, **content: object) -> None:
    from tensorboardX.proto import event_pb2

    event: Any = event_pb2
    events.write_event(event.Event(wall_time=time.time(), step=int(step), **content))
    events.flush()


def _step_text(step: int, total: int) -> str:
    return f"step {step:>{max(5, len(str(total)))}}/{total}"


def _metric_texts(metrics: Mapping[str, float]) -> list[str]:
    return [_FORMATS.get(name, f"{name} {{:.4f}}").format(float(value)) for name, value in metrics.items()]
