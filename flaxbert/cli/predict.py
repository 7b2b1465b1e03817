"""The subcommand predict: run a model on texts from the arguments, a file or standard input."""

import collections
import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from flaxbert.conversion.origin import resolve_checkpoint_path
from flaxbert.files import atomic_write

if TYPE_CHECKING:  # imports the tokenizers library, which no other subcommand needs
    from flaxbert.cli.prediction_tasks import PredictionTask
    from flaxbert.pipelines import Pipeline

_VECTORS = ".npy"


@dataclasses.dataclass(frozen=True)
class _TextSource:
    """The texts of each input, and the number of inputs if it is known before they are read."""

    inputs: Iterator[tuple[str, ...]]
    count: int | None


@dataclasses.dataclass(frozen=True)
class _Prediction:
    """The texts of an input, and the result of the pipeline."""

    texts: tuple[str, ...]
    result: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict:
    """Run a model on texts: fill masks, classify, judge the next sentence, choose, tag, answer, embed.

    Texts come from the arguments, from --file, or from standard input with one input per line. Tabs separate the texts
    of an input: a pair, a question and its context, a prompt and its choices. For next-sentence, answer and choose,
    arguments without tabs are the texts of one input. Texts longer than --max-length are truncated; tag and answer
    split them into windows of this length instead.
    """

    task: tyro.conf.Positional[Literal["fill-mask", "classify", "next-sentence", "choose", "tag", "answer", "embed"]]
    """Task to run; the model must have the head of this task."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts, if they come neither from --file nor from standard input."""
    model: str
    """A folder, a zip from Google, or a model name on the Hugging Face hub."""
    file: Path | None = None
    """A .txt with one input per line, a .tsv or .csv with a header, or a .jsonl with one object per line."""
    columns: tuple[str, ...] = ()
    """Columns of the table that hold the texts, in order; by default the columns with usual names."""
    output: Path | None = None
    """Write the results as JSON lines to this file, which appears when it is complete; embed also writes .npy."""
    json: bool = False
    """Print the results as JSON lines."""
    top_k: int | None = None
    """fill-mask, classify, answer: number of results for each mask, text or question."""
    targets: tuple[str, ...] = ()
    """fill-mask: words to choose from; by default the whole vocabulary."""
    pooling: Literal["mean", "cls", "max"] | None = None
    """embed: function from token vectors to a text's vector; by default the one in the folder, or mean."""
    normalize: bool = False
    """embed: scale vectors to length 1, even if the folder does not ask for it."""
    aggregation: Literal["simple", "first", "average", "max"] | None = None
    """tag: rule for the tag of a word of several pieces; by default first."""
    null_threshold: float | None = None
    """answer: give no answer if "no answer" scores better by more than this; by default there is always an answer."""
    max_answer: int | None = None
    """answer: maximum number of tokens of an answer; by default 30."""
    max_query: int | None = None
    """answer: maximum number of tokens of a question, further ones are cut off; by default 64."""
    n_best: int | None = None
    """answer: number of starts and ends of a window to pair, and of candidates to rank; by default 20."""
    step: int | None = None
    """answer: tokens from the start of a window to the start of the next one (Google's doc_stride)."""
    overlap: int | None = None
    """tag, answer: tokens that neighbouring windows share (Hugging Face's stride); by default a quarter of a window."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Compute dtype."""
    batch_size: int = 32
    """Sequences per batch."""
    max_length: int | None = None
    """Maximum number of tokens of a sequence; by default the model's number of positions."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""

    def run(self) -> int:
        """Predict and print or write the results."""
        from flaxbert.cli.prediction_tasks import PREDICTION_TASKS

        task = PREDICTION_TASKS[self.task]
        self._check_flags(task)
        source = self._open_texts(task)
        show_bar = self.file is not None and (self.output is not None or not sys.stdout.isatty())
        with resolve_checkpoint_path(self.model, revision=self.revision) as folder:
            pipeline = task.pipeline.from_pretrained(folder, dtype=self.dtype, **self._pipeline_options())
            with _progress_bar(source.count if show_bar else None) as advance:
                predictions = _predict(pipeline, task, source.inputs, advance)
                if self.output is not None:
                    print(f"{self.output}: {_write(self.output, task, predictions)} answers")
                else:
                    self._print(task, predictions)
        return 0

    def _check_flags(self, task: "PredictionTask") -> None:
        from flaxbert.cli.prediction_tasks import TASK_OPTIONS

        given = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        wrong = [name for name in given if name in TASK_OPTIONS and name not in task.options]
        if wrong:
            allowed = ", ".join(task.options) or "neither"
            raise ValueError(f"{self.task} has no {', '.join(wrong)}; it has {allowed}")
        if self.texts and self.file:
            raise ValueError(f"{len(self.texts)} texts and the file {self.file}: give one of them")
        if self.columns and not self.file:
            raise ValueError("columns are those of a file; name it with --file")
        if self.output is not None and self.output.suffix == _VECTORS and self.task != "embed":
            raise ValueError(f"{self.output}: only embed writes {_VECTORS}; {self.task} writes JSON lines, a .jsonl")

    def _open_texts(self, task: "PredictionTask") -> _TextSource:
        """Return the inputs; those of the arguments and of a regular file are all checked first."""
        from flaxbert.cli.text_inputs import count_inputs, file_inputs, line_inputs, usable_texts

        shape = task.shape
        if self.texts:
            one_input = shape.minimum > 1 and not any("\t" in text for text in self.texts)
            lines = ["\t".join(self.texts)] if one_input else self.texts
            count = count_inputs(line_inputs(lines, "argument", shape))
            return _TextSource(usable_texts(line_inputs(lines, "argument", shape)), count)
        if self.file is None:
            if isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
            return _TextSource(usable_texts(line_inputs(sys.stdin, "standard input", shape)), None)
        if not self.file.exists():
            raise FileNotFoundError(f"{self.file}: no such file")
        count = count_inputs(file_inputs(self.file, shape, self.columns)) if self.file.is_file() else None
        return _TextSource(usable_texts(file_inputs(self.file, shape, self.columns)), count)

    def _pipeline_options(self) -> dict[str, Any]:
        """Return the attributes of the pipeline that were given."""
        from flaxbert.pipelines import Aggregation, Pooling

        options: dict[str, Any] = {
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "top_k": self.top_k,
            "targets": self.targets or None,
            "pooling": None if self.pooling is None else Pooling(self.pooling),
            "normalize": self.normalize or None,
            "aggregation": None if self.aggregation is None else Aggregation(self.aggregation),
            "null_threshold": self.null_threshold,
            "max_answer": self.max_answer,
            "max_query": self.max_query,
            "n_best": self.n_best,
            "step": self.step,
            "overlap": self.overlap,
        }
        if self.texts:
            options["batch_size"] = min(self.batch_size, len(self.texts))
        elif self.file is None and sys.stdin.isatty():  # a person types the texts and waits for each result
            options |= {"batch_size": 1, "read_ahead": 1}
        return {name: value for name, value in options.items() if value is not None}

    def _print(self, task: "PredictionTask", predictions: Iterable[_Prediction]) -> None:
        for prediction in predictions:
            if self.json:
                print(_json_line(task, prediction), flush=True)
            else:
                print(task.format_result(prediction.texts, prediction.result), flush=True)


def _predict(
    pipeline: "Pipeline[Any, Any]",
    task: "PredictionTask",
    inputs: Iterable[tuple[str, ...]],
    advance: Callable[[], None],
) -> Iterator[_Prediction]:
    pending: collections.deque[tuple[str, ...]] = collections.deque()

    def items() -> Iterator[Any]:
        for texts in inputs:
            pending.append(texts)
            yield task.pipeline_input(texts)

    for result in pipeline.stream(items()):
        yield _Prediction(pending.popleft(), result)
        advance()


def _write(output: Path, task: "PredictionTask", predictions: Iterable[_Prediction]) -> int:
    """Write all results to a file; return their number."""
    count = 0
    with atomic_write(output) as temporary:
        if output.suffix == _VECTORS:
            return _write_vectors(temporary, (prediction.result for prediction in predictions))
        with temporary.open("w", encoding="utf-8", newline="\n") as lines:
            for prediction in predictions:
                lines.write(_json_line(task, prediction) + "\n")
                count += 1
    return count


def _json_line(task: "PredictionTask", prediction: _Prediction) -> str:
    texts: str | Sequence[str] = prediction.texts
    if len(texts) == 1:
        texts = texts[0]
    return json.dumps({"input": texts, **task.result_json(prediction.result)})


def _write_vectors(file: Path, vectors: Iterable[Any]) -> int:
    """Write vectors [D] one by one as the rows of a .npy file; return their number."""
    import numpy as np

    count, width = 0, 0
    with file.open("wb") as out:

        def write_header() -> None:
            header = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
            np.lib.format.write_array_header_1_0(out, header)

        write_header()  # NumPy pads it so that the final number of rows will fit
        start = out.tell()
        for vector in vectors:
            if not count:
                width = len(vector)
            out.write(vector.astype("<f4").tobytes())
            count += 1
        out.seek(0)
        write_header()
        assert out.tell() == start
    return count


@contextlib.contextmanager
def _progress_bar(total: int | None) -> Iterator[Callable[[], None]]:
    """Show a progress bar on standard error, if it is a terminal and the number of inputs is known."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = ("predicting", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    visible = total is not None and console.is_terminal
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, disable=not visible) as progress:
        bar = progress.add_task("predicting", total=total)
        yield lambda: progress.advance(bar)
