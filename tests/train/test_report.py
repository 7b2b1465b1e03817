"""The reports of a training run, through real files, streams and terminals."""

import io
import json
import math
import os
import re
import struct
import subprocess
import sys
import threading
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from train.report import Reporter
from train.summary import write_summary

ROOT = Path(__file__).parents[2]


def report_step(reporter, step, *, speed=4210.4, mfu=0.312, eta_seconds=72.4, **metrics):
    metrics = metrics or {"loss": 6.12341, "learning_rate": 3e-5, "gradient_norm": 1.2345}
    reporter.progress(step, metrics, tokens_per_second=speed, mfu=mfu, eta_seconds=eta_seconds)


def records(folder):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (folder / "metrics.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def events(folder):
    """Every event of every file, oldest file first: TFRecord frames of length, checksum, bytes, checksum."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        data, position = path.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            found.append(event_pb2.Event.FromString(data[position + 12 : position + 12 + length]))
            position += 16 + length
    return found


def scalars(folder):
    return {(value.tag, event.step): value.simple_value for event in events(folder) for value in event.summary.value}


def screen(data):
    """The lines that a terminal shows after `data`: carriage return, line feed, cursor up, erase line."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[^\x1b]", data):
        if token == "\r":
            column = 0
        elif token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token.endswith("A") and token[0] == "\x1b":
            row -= int(token[2:-1] or 1)
        elif token == "\x1b[2K":
            lines[row] = ""
        elif token[0] != "\x1b":
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + 1 :]
            column += 1
    return [line.rstrip() for line in lines]


class Terminal:
    """A pseudo terminal: `stream` to write to, and what arrived at its other end."""

    def __init__(self):
        self._master, slave = os.openpty()
        self.stream = os.fdopen(slave, "w", encoding="utf-8")
        self._parts = []
        # A terminal that nobody reads blocks its writer after a few kilobytes.
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        while True:
            try:
                part = os.read(self._master, 4096)
            except OSError:  # Linux says so when the last writer has closed.
                return
            if not part:
                return
            self._parts.append(part)

    def finish(self):
        self.stream.close()
        self._reader.join()
        os.close(self._master)
        return b"".join(self._parts).decode()


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def test_plain_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with Reporter(tmp_path, 200, stream=stream) as reporter:
        reporter.message("compiled\nin 3.1 s")
        report_step(reporter, 40)
        reporter.advance(41)
        report_step(reporter, 60, mfu=None, eta_seconds=93784, loss=math.nan)
        report_step(reporter, 80, eta_seconds=math.inf, loss=1)
        reporter.evaluation(80, "dev", {"loss": 1.25, "accuracy": 0.81})
    assert stream.getvalue().split("\n") == [
        "compiled in 3.1 s",
        "step    40/200  loss 6.1234  lr 3.00e-05  grad-norm 1.23  4,210 tok/s  MFU 31.2%  ETA 0:01:12",
        "step    60/200  loss nan  4,210 tok/s  ETA 1 day, 2:03:04",
        "step    80/200  loss 1.0000  4,210 tok/s  MFU 31.2%  ETA ?",
        "step    80/200  eval dev  loss 1.2500  accuracy 0.8100",
        "",
    ]


def test_steps_of_a_long_run_stay_aligned(tmp_path):
    stream = io.StringIO()
    with Reporter(tmp_path, 1_000_000, stream=stream) as reporter:
        reporter.evaluation(40, "dev", {"loss": 1.25})
    assert stream.getvalue() == "step      40/1000000  eval dev  loss 1.2500\n"


def test_everything_is_flushed_at_once(tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(writing, "w") as stream, Reporter(tmp_path, 200, stream=stream) as reporter:
        reporter.message("hello")
        assert os.read(reading, 1000) == b"hello\n"
        report_step(reporter, 40, loss=0.5)
        assert os.read(reading, 1000).startswith(b"step    40/200")
        assert records(tmp_path)[-1]["step"] == 40
        assert scalars(tmp_path)["train/loss", 40] == 0.5
        reporter.evaluation(40, "dev", {"loss": 1.5})
        assert os.read(reading, 1000).endswith(b"loss 1.5000\n")
        assert records(tmp_path)[-1]["name"] == "dev"
        assert scalars(tmp_path)["eval/dev/loss", 40] == 1.5
    os.close(reading)


def test_the_record(tmp_path):
    with Reporter(tmp_path / "new" / "run", 200, stream=io.StringIO()) as reporter:
        report_step(reporter, 40, loss=np.float32(0.5), ratio=math.nan)
        report_step(reporter, 60, mfu=None, loss=math.inf)
        reporter.evaluation(60, "dev", {"accuracy": 0.81, "loss": -math.inf})
        reporter.message("not recorded")
    lines = records(tmp_path / "new" / "run")
    times = [line.pop("time") for line in lines]
    assert times == sorted(times) and abs(times[0] - os.path.getmtime(tmp_path / "new")) < 60
    assert lines == [
        {
            "kind": "train",
            "step": 40,
            "loss": 0.5,
            "ratio": None,
            "tokens_per_second": 4210.4,
            "mfu": 0.312,
            "eta_seconds": 72.4,
        },
        {"kind": "train", "step": 60, "loss": None, "tokens_per_second": 4210.4, "eta_seconds": 72.4},
        {"kind": "eval", "step": 60, "name": "dev", "accuracy": 0.81, "loss": None},
    ]


@pytest.mark.parametrize("name", ["kind", "step", "time", "mfu", "tokens_per_second"])
def test_a_metric_cannot_replace_a_field(tmp_path, name):
    stream = io.StringIO()
    with Reporter(tmp_path, 200, stream=stream) as reporter, pytest.raises(TypeError, match=name):
        reporter.progress(40, {"loss": 1.0, name: 1.0}, tokens_per_second=4210.4, mfu=0.312, eta_seconds=72.4)
    assert (tmp_path / "metrics.jsonl").read_text() == stream.getvalue() == ""


def run(folder, steps, *, start_step=0, offset=0.0):
    with Reporter(folder, 200, start_step=start_step, stream=io.StringIO()) as reporter:
        for step in steps:
            report_step(reporter, step, loss=step + offset)
            reporter.evaluation(step, "dev", {"loss": step + offset})


def test_resuming_drops_what_lies_after_the_step(tmp_path):
    run(tmp_path, [20, 40, 60])
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines()[:4]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 4')  # the process was killed here
    run(tmp_path, [60, 80], start_step=40, offset=0.5)
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[:4] == kept
    found = [(line["kind"], line["step"], line["loss"]) for line in records(tmp_path)]
    expected = [(20, 20), (40, 40), (60, 60.5), (80, 80.5)]
    assert found == [(kind, step, loss) for step, loss in expected for kind in ("train", "eval")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_a_failed_rewrite_leaves_the_record(tmp_path, monkeypatch):
    run(tmp_path, [20, 40])
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def fail(*paths):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        Reporter(tmp_path, 200, start_step=20, stream=io.StringIO())
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_damage_inside_the_record_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n{"kind": "tr\n{"step": 3}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2: "):
        Reporter(tmp_path, 200, start_step=3, stream=io.StringIO())


def test_resuming_without_a_record_starts_one(tmp_path):
    run(tmp_path, [60], start_step=40)
    assert [line["step"] for line in records(tmp_path)] == [60, 60]


def test_step_zero_starts_the_record_afresh(tmp_path):
    run(tmp_path, [0, 20, 40])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("damage\nthat does not matter\n")
    run(tmp_path, [20], offset=0.5)
    assert [line["loss"] for line in records(tmp_path)] == [20.5, 20.5]


def test_tensorboard_scalars(tmp_path):
    with Reporter(tmp_path, 200, stream=io.StringIO()) as reporter:
        report_step(reporter, 40, loss=0.5, learning_rate=0.25)
        reporter.evaluation(40, "dev", {"accuracy": 0.75})
        report_step(reporter, 60, mfu=None, loss=math.nan)
    found = scalars(tmp_path)
    assert math.isnan(found.pop(("train/loss", 60)))
    assert found == {
        ("train/loss", 40): 0.5,
        ("train/learning_rate", 40): 0.25,
        ("train/tokens_per_second", 40): np.float32(4210.4),
        ("train/mfu", 40): np.float32(0.312),
        ("train/eta_seconds", 40): np.float32(72.4),
        ("train/eta_seconds", 60): np.float32(72.4),
        ("eval/dev/accuracy", 40): 0.75,
        ("train/tokens_per_second", 60): np.float32(4210.4),
    }
    assert events(tmp_path)[0].file_version == "brain.Event:2"


def test_own_names_of_tensorboard_scalars(tmp_path):
    names = {"train/loss": "Train/Loss", "eval/dev/f1": "Val/F1", "eval/dev/f2": "Val/F2", "eval/test/f1": "Test/F1"}
    with Reporter(tmp_path, 200, scalar_names=names, stream=(stream := io.StringIO())) as reporter:
        report_step(reporter, 40, mfu=None, loss=0.5)
        reporter.evaluation(40, "dev", {"f1": 75.0, "exact": 50.0})
    found = scalars(tmp_path)
    assert found["Train/Loss", 40] == 0.5 and found["Val/F1", 40] == 75.0 and found["eval/dev/exact", 40] == 50.0
    assert len(found) == 5 and [line["loss"] for line in records(tmp_path)[:1]] == [0.5]
    warnings = [line for line in stream.getvalue().splitlines() if line.startswith("warning")]
    assert len(warnings) == 1 and "'eval/dev/f2', which is none of eval/dev/exact, eval/dev/f1," in warnings[0]


def test_tensorboard_forgets_what_was_dropped(tmp_path):
    # Three runs within a second or so: no file may overwrite another.
    run(tmp_path, [20, 40, 60])
    run(tmp_path, [60], start_step=40)
    run(tmp_path, [20])
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3
    starts = [
        event.step
        for event in events(tmp_path)
        if event.session_log.status == event_pb2.SessionLog.SessionStatus.Value("START")
    ]
    # TensorBoard hides earlier events from the step of a session's start on.
    assert starts == [0, 41, 0]


def test_only_the_primary_process_reports(tmp_path):
    folder, stream = tmp_path / "run", io.StringIO()
    with Reporter(folder, 200, primary=False, stream=stream) as reporter:
        report_step(reporter, 40)
        reporter.evaluation(40, "dev", {"loss": 1.0})
        reporter.message("hello")
        reporter.advance(41)
    reporter.close()
    assert stream.getvalue() == "" and not folder.exists()


def test_closing_twice(tmp_path):
    with Reporter(tmp_path, 200, stream=io.StringIO()) as reporter:
        reporter.close()
    with pytest.raises(ValueError, match="closed"):
        report_step(reporter, 40)


def test_a_terminal_shows_one_bar_below_the_lines(tmp_path, terminal):
    try:
        with Reporter(tmp_path, 200, start_step=20, stream=terminal.stream) as reporter:
            reporter.message("resumed from [bold]step[/bold] 20 :smile:")
            report_step(reporter, 40)
            reporter.evaluation(40, "dev", {"loss": 1.25, "accuracy": 0.81})
            reporter.advance(43)
    finally:
        data = terminal.finish()
    assert "\x1b[2K" in data, "nothing was ever redrawn"
    assert " 20/200" in data, "the bar did not start where the run did"
    lines = [line for line in screen(data) if line]
    assert lines[:-1] == [
        "resumed from [bold]step[/bold] 20 :smile:",
        "step    40/200  eval dev  loss 1.2500  accuracy 0.8100",
    ]
    assert all(line in data for line in lines[:-1]), "a line has control codes inside"
    pattern = r"train ━+[╸╺]?━+ +43/200 loss 6\.1234  4,210 tok/s  ETA 0:01:12"
    assert re.fullmatch(pattern, lines[-1]), lines
    assert data.rstrip().endswith("\x1b[?25h"), "the cursor stayed hidden"
    assert [line["kind"] for line in records(tmp_path)] == ["train", "eval"]


def test_the_bar_gives_way_on_a_narrow_terminal(tmp_path, terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    try:
        with Reporter(tmp_path, 1_000_000, stream=terminal.stream) as reporter:
            report_step(reporter, 412_345, speed=1_234_567.0, mfu=None, eta_seconds=93784, loss=6.1234)
    finally:
        data = terminal.finish()
    assert "412345/1000000 loss 6.1234  1,234,567 tok/s  ETA 1 day, 2:03:04" in screen(data)[0]


def test_the_bar_stops_with_an_error(tmp_path, terminal):
    before = set(threading.enumerate())
    try:
        with pytest.raises(KeyboardInterrupt), Reporter(tmp_path, 200, stream=terminal.stream):
            (drawing,) = set(threading.enumerate()) - before
            raise KeyboardInterrupt
        drawing.join(timeout=10)
        assert not drawing.is_alive()
    finally:
        data = terminal.finish()
    assert data.rstrip().endswith("\x1b[?25h"), "the cursor stayed hidden"


def test_prints_of_others_land_above_the_bar(tmp_path, terminal, monkeypatch):
    errors = io.StringIO()
    monkeypatch.setattr(sys, "stdout", terminal.stream)
    monkeypatch.setattr(sys, "stderr", errors)
    try:
        with Reporter(tmp_path, 200):
            print("a library prints")
            print("to a file", file=sys.stderr)
    finally:
        data = terminal.finish()
    lines = [line for line in screen(data) if line]
    assert lines[0] == "a library prints" and len(lines) == 2
    assert errors.getvalue() == "to a file\n"


def test_a_dumb_terminal_gets_plain_lines(tmp_path, terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    try:
        with Reporter(tmp_path, 200, stream=terminal.stream) as reporter:
            report_step(reporter, 40, loss=0.5)
    finally:
        data = terminal.finish()
    assert data == "step    40/200  loss 0.5000  4,210 tok/s  MFU 31.2%  ETA 0:01:12\r\n"


def test_importing_is_light():
    code = "import sys, train.report; print(sorted({'matplotlib', 'tensorboardX', 'torch'} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert output.stdout == "[]\n"


def trained(folder):
    with Reporter(folder, 200, stream=io.StringIO()) as reporter:
        for step in range(20, 201, 20):
            loss = math.nan if step == 100 else 9.0 - step / 50
            report_step(reporter, step, loss=loss, learning_rate=1e-4 * (1 - step / 200))
        reporter.evaluation(100, "dev", {"loss": 7.5, "accuracy": 0.5})
        reporter.evaluation(200, "dev", {"loss": 5.512345678, "accuracy": 0.8125})
        reporter.evaluation(200, "test|hard", {"loss": math.nan, "f1": 0.75})


def test_summary(tmp_path):
    trained(tmp_path)
    facts = {"parameters": 4_400_000, "hours": 1.23456789, "device": "CPU | 2\ncores", "tokens": 12345.5}
    path = write_summary(tmp_path, title="A run of $\\frac$", facts=facts)
    assert path == tmp_path / "summary.md"
    assert path.read_text().splitlines() == [
        "# A run of $\\frac$",
        "",
        "|  | value |",
        "| --- | --- |",
        "| parameters | 4400000 |",
        "| hours | 1.23457 |",
        "| device | CPU \\| 2 cores |",
        "| tokens | 12,345.5 |",
        "",
        "## Last evaluation",
        "",
        "| data | step | loss | accuracy | f1 |",
        "| --- | --- | --- | --- | --- |",
        "| dev | 200 | 5.51235 | 0.8125 |  |",
        "| test\\|hard | 200 | not finite |  | 0.75 |",
        "",
        "![Training loss, evaluation loss and learning rate by step](loss.png)",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "loss.png",
        "metrics.jsonl",
        "summary.md",
        "tensorboard",
    ]


def coloured(image, hue):
    """(row, column) of the pixels of one colour, as fractions of height and width, from left to right."""
    found = np.argwhere(np.all(np.abs(image[..., :3] * 255 - hue) < 3, axis=-1)) / image.shape[:2]
    return found[np.argsort(found[:, 1])]


def test_the_picture(tmp_path):
    trained(tmp_path)
    write_summary(tmp_path, title="A run", facts={})
    image = matplotlib.image.imread(tmp_path / "loss.png")
    assert image.shape[0] >= 600 and image.shape[1] >= 1000
    # The legend, which has the colours too, lies in the upper right corner.
    row, column = np.indices(image.shape[:2]) / np.array(image.shape[:2])[:, None, None]
    image[(row < 0.3) & (column > 0.65)] = 1.0
    loss = coloured(image, (0x1F, 0x77, 0xB4))
    assert loss[-1, 1] - loss[0, 1] > 0.8 and loss[-1, 0] - loss[0, 0] > 0.4, "the loss does not fall"
    assert np.diff(np.unique(loss[:, 1])).max() > 0.1, "no gap where the loss was not finite"
    evaluated = coloured(image, (0xFF, 0x7F, 0x0E))
    assert evaluated[-1, 1] - evaluated[0, 1] > 0.4 and evaluated[-1, 0] - evaluated[0, 0] > 0.15
    # Away from the text, whose soft edges are grey as well.
    rate = coloured(image, (89, 89, 89))
    rate = rate[(rate[:, 0] > 0.7) & (rate[:, 0] < 0.9) & (rate[:, 1] > 0.15)]
    assert rate[-1, 1] - rate[0, 1] > 0.75 and rate[-1, 0] - rate[0, 0] > 0.1, "the rate does not fall"


def test_a_run_of_one_report_is_visible(tmp_path):
    with Reporter(tmp_path, 200, stream=io.StringIO()) as reporter:
        report_step(reporter, 40)
    picture = write_summary(tmp_path, title="One", facts={}).with_name("loss.png")
    points = coloured(matplotlib.image.imread(picture), (0x1F, 0x77, 0xB4))
    # In the middle of the upper panel, away from the legend.
    assert np.sum((points[:, 1] > 0.4) & (points[:, 1] < 0.7) & (points[:, 0] > 0.2)) > 10


def test_many_reports_are_drawn_with_their_means(tmp_path):
    with Reporter(tmp_path, 200, stream=io.StringIO()) as reporter:
        for step in range(1, 201):
            report_step(reporter, step, loss=4.0 if step % 2 else 8.0, learning_rate=1e-3, gradient_norm=1.0)
    picture = write_summary(tmp_path, title="Many", facts={}).with_name("loss.png")
    means = coloured(matplotlib.image.imread(picture), (0x1F, 0x77, 0xB4))
    means = means[(means[:, 1] > 0.2) & (means[:, 1] < 0.6)]  # away from the legend
    # Those of five stay between 5.6 and 6.4, while the reports fill the panel.
    assert len(means) > 100 and means[:, 0].max() - means[:, 0].min() < 0.2


def test_a_failed_summary_leaves_the_one_before(tmp_path):
    trained(tmp_path)
    write_summary(tmp_path, title="First", facts={})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(UnicodeEncodeError):
        write_summary(tmp_path, title="First", facts={"a character that UTF-8 refuses": "\ud800"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_summary_without_evaluation_or_record(tmp_path):
    with pytest.raises(FileNotFoundError, match="metrics.jsonl"):
        write_summary(tmp_path, title="Nothing", facts={})
    with Reporter(tmp_path, 200, stream=io.StringIO()) as reporter:
        report_step(reporter, 40)
    assert "evaluation" not in write_summary(tmp_path, title="Short", facts={}).read_text().split("![")[0]


def test_a_loss_of_several_terms_has_a_panel_for_each(tmp_path):
    with Reporter(tmp_path, 100, stream=io.StringIO()) as reporter:
        for step in range(1, 101):
            terms = {"masked_lm_loss": 9.0 - step / 20, "next_sentence_loss": 0.2 + step / 200}
            metrics = {"loss": sum(terms.values()), **terms, "learning_rate": 1e-3, "gradient_norm": 1.0}
            report_step(reporter, step, **metrics)
        reporter.evaluation(100, "dev", {"masked_lm_loss": 4.0, "next_sentence_loss": 0.7})
    picture = write_summary(tmp_path, title="Pretraining", facts={}).with_name("loss.png")
    image = matplotlib.image.imread(picture)
    upper, middle = image[: image.shape[0] * 2 // 5, :], image[image.shape[0] * 2 // 5 : image.shape[0] * 4 // 5, :]
    for panel, falls in ((upper, True), (middle, False)):
        line = coloured(panel, (0x1F, 0x77, 0xB4))
        line = line[(line[:, 1] > 0.4) & (line[:, 1] < 0.6)]  # between places where the legend may be
        slope = np.polyfit(line[:, 1], line[:, 0], 1)[0]  # rows count from the top
        assert slope > 0.5 if falls else slope < -0.5
        assert len(coloured(panel, (0xFF, 0x7F, 0x0E)))  # the evaluation


def test_a_closed_pipe_does_not_end_a_run(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream, Reporter(tmp_path, total_steps=10, stream=stream) as reporter:
        reporter.message("read by none")
        reporter.evaluation(10, "dev", {"loss": 1.0})
    assert '"loss": 1.0' in (tmp_path / "metrics.jsonl").read_text()
