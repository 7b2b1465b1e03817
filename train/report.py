"""What a training run shows and records: a bar or plain lines, metrics.jsonl, TensorBoard, a summary."""

import contextlib
import dataclasses
import datetime
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import rich.console
import rich.progress
import rich.table

METRICS_FILE = "metrics.jsonl"

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


def write_summary(folder: Path, *, title: str, facts: Mapping[str, str | float | int], loss_unit: str = "nats") -> Path:
    """Writes loss.png and summary.md of the run recorded in `folder`, and returns the path of summary.md.

    `loss_unit` labels the axis. Raises FileNotFoundError without a record, ValueError where it is damaged.
    """
    lines = _read_record(folder / METRICS_FILE)
    with _aside(folder / "loss.png") as aside:
        _draw(aside, lines, title, loss_unit)
    last = {line["name"]: line for line in lines if line["kind"] == "eval"}
    fields = ("kind", "step", "name", "time")
    names = list(dict.fromkeys(key for line in last.values() for key in line if key not in fields))
    text = [f"# {title}", "", *_table(["", "value"], facts.items()), ""]
    if last:
        rows = ([name, line["step"], *(line.get(key, "") for key in names)] for name, line in last.items())
        text += ["## Last evaluation", "", *_table(["data", "step", *names], rows), ""]
    text += ["![Training loss, evaluation loss and learning rate by step](loss.png)", ""]
    with _aside(folder / "summary.md") as aside:
        aside.write_text("\n".join(text), encoding="utf-8")
    return folder / "summary.md"


def _draw(path: Path, lines: list[dict[str, Any]], title: str, loss_unit: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def series(key: str, **fields: str) -> tuple[list[int], list[float]]:
        chosen = [line for line in lines if key in line and fields.items() <= line.items()]
        # A null was not finite: drawn as NaN it leaves a gap in the curve, not a bridge over it.
        values = [math.nan if line[key] is None else line[key] for line in chosen]
        return [line["step"] for line in chosen], values

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    # A line alone does not show a run of a single report.
    curve = {"linewidth": 1.2, "marker": "o" if len(lines) < 50 else "", "markersize": 3}
    upper.plot(*series("loss", kind="train"), **curve, label="training")
    names = dict.fromkeys(line["name"] for line in lines if line["kind"] == "eval" and "loss" in line)
    for name, marker in zip(names, itertools.cycle("Ds^v"), strict=False):
        upper.plot(*series("loss", kind="eval", name=name), marker, markersize=5, label=f"evaluation: {name}")
    lower.plot(*series("learning_rate", kind="train"), **curve, color="0.35")
    upper.set_title(title, loc="left", parse_math=False)
    upper.set_ylabel(f"loss ({loss_unit})", parse_math=False)
    upper.legend(frameon=False)
    lower.set(xlabel="optimizer step", ylabel="learning rate")
    lower.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9", linewidth=0.6)
    figure.align_ylabels()
    FigureCanvasAgg(figure).print_figure(path, format="png")


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
    kept = [line for line in _read_record(path) if line["step"] <= start_step]
    with _aside(path) as aside:
        aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return path.open("a", encoding="utf-8")


def _read_record(path: Path) -> list[dict[str, Any]]:
    lines, texts = [], path.read_bytes().splitlines()
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            # A killed process leaves its last line torn; damage before that has another cause.
            if number < len(texts):
                raise ValueError(f"{path}, line {number}: {error}; mend or remove the line") from None
    return lines


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


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    aside = path.with_name(f".{path.name}.partial")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _at(step: int, total: int) -> str:
    return f"step {step:>{max(5, len(str(total)))}}/{total}"


def _shown(metrics: Mapping[str, float]) -> list[str]:
    return [_SHOWN.get(name, f"{name} {{:.4f}}").format(float(value)) for name, value in metrics.items()]


def _table(head: list[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    def cell(value: Any) -> str:
        text = "not finite" if value is None else f"{value:,.6g}" if isinstance(value, float) else str(value)
        return " ".join(text.split()).replace("|", "\\|")

    lines = ["| " + " | ".join(map(cell, row)) + " |" for row in (head, *rows)]
    return [lines[0], "|" + " --- |" * len(head), *lines[1:]]
