"""The subcommand predict: run a model on texts from the arguments, a file or standard input."""

import collections
import dataclasses
import io
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flaxbert.cli.adaptive_flags import AdaptiveFlags
from flaxbert.cli.generation_flags import SETTINGS_FLAGS, GenerationFlags, settings_options
from flaxbert.cli.prediction_tasks import PAIR_TASKS, TASKS, AnyPipeline, PredictionTask
from flaxbert.cli.printed_text import escape_control_characters, json_text
from flaxbert.cli.text_inputs import InputShape, TextInput, count_inputs, file_inputs, line_inputs, usable_texts
from flaxbert.conversion.origin import resolve_checkpoint_path
from flaxbert.files import atomic_write
from flaxbert.pipelines import Aggregation, Pipeline, Pooling, SequenceToSequencePipeline, TextGenerationPipeline
from flaxbert.text.tables import without_blank_end
from flaxbert.weights.checkpoint import open_checkpoint
from flaxbert.weights.load import is_encoder_decoder

_VECTORS = ".npy"
_OTHER_TABLES = (".csv", ".tsv", ".npz", ".parquet", ".xlsx")


@dataclasses.dataclass(frozen=True)
class _Prediction:
    """The texts of an input, and the result of the pipeline."""

    texts: tuple[str, ...]
    result: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict(GenerationFlags, AdaptiveFlags):
    """Run a model on texts: fill masks, classify, judge the next sentence, choose, tag, answer, embed, generate.

    Texts come from the arguments, from --file, or from standard input with one input per line. Tabs separate the texts
    of an input: a pair, a question and its context, a prompt and its choices. For next-sentence, answer and choose,
    arguments without tabs are the texts of one input. Texts longer than --max-length are truncated; tag and answer
    split them into windows of this length instead, and generate refuses them.
    """

    task: tyro.conf.Positional[
        Literal["fill-mask", "classify", "next-sentence", "choose", "tag", "answer", "embed", "generate"]
    ]
    """Task to run; the model must have the head of this task."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts, if they come neither from --file nor from standard input."""
    model: str
    """A folder, a file, a zip from Google, or a model name on the Hugging Face hub."""
    file: Path | None = None
    """A .txt with one input per line, or a file for training: .tsv, .csv, .jsonl, .json, SQuAD's, CoNLL's."""
    columns: tuple[str, ...] = ()
    """Columns of the texts, in order: names, or numbers from 0 without a header; by default those with usual names."""
    output: Path | None = None
    """Write the results as JSON lines to this file, which appears when it is complete; embed also writes .npy."""
    json: bool = False
    """Print the results as JSON lines."""
    top_k: int | None = None
    """fill-mask, classify, answer: number of results; generate, with --do-sample: number of tokens to draw among."""
    targets: tuple[str, ...] = ()
    """fill-mask: words to choose from; by default the whole vocabulary."""
    pooling: Annotated[Pooling | None, tyro.conf.EnumChoicesFromValues] = None
    """embed: function from token vectors to a text's vector; by default the one in the folder, or mean."""
    normalize: bool = False
    """embed: scale vectors to length 1, even if the folder does not ask for it."""
    aggregation: Annotated[Aggregation | None, tyro.conf.EnumChoicesFromValues] = None
    """tag: rule for the tag of a word of several pieces; by default first."""
    null_threshold: float | None = None
    """answer: give no answer if "no answer" scores better by more than this; by default as in training, or never."""
    max_answer: int | None = None
    """answer: maximum number of tokens of an answer; by default as in training, or 30."""
    max_query: int | None = None
    """answer: maximum number of tokens of a question, further ones are cut off; by default as in training, or 64."""
    context_first: bool | None = None
    """answer: put the context before the question; by default as in training."""
    n_best: int | None = None
    """answer: starts and ends of a window to pair, and candidates to rank; by default as in training, or 20."""
    step: int | None = None
    """answer: tokens from one start of a window to the next (Google's doc_stride); by default as in training."""
    overlap: int | None = None
    """tag, answer: tokens that neighbouring windows share (Hugging Face's stride); by default a quarter of a window."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Compute dtype."""
    batch_size: int = 32
    """Sequences per batch."""
    max_length: int | None = None
    """Maximum number of tokens of a sequence; by default as in training (answer, embed), or the number of positions."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""

    def run(self) -> int:
        """Predict and print or write the results."""
        task = TASKS[self.task]
        options = self._pipeline_options(task)
        read_inputs = self._input_reader(task.shape)
        # Arguments and regular files are all checked before the model is loaded.
        count = count_inputs(read_inputs()) if self.texts or (self.file and self.file.is_file()) else None
        with resolve_checkpoint_path(self.model, revision=self.revision) as folder:
            if self.task in PAIR_TASKS and is_encoder_decoder(open_checkpoint(folder).config_folder):
                task = PAIR_TASKS[self.task]
            pipeline = task.pipeline.from_pretrained(folder, dtype=self.dtype, **options)
            if self.stream:
                return _print_streams(pipeline, usable_texts(read_inputs()))
            predictions = _predict(pipeline, task, usable_texts(read_inputs()))
            with self._progress_bar() as progress:
                predictions = progress.track(predictions, total=count, description="predicting")
                if self.output is not None:
                    print(f"{self.output}: {_write(self.output, task, predictions)} answers")
                    return 0
                for prediction in predictions:
                    print(self._format(task, prediction), flush=True)
        return 0

    def _pipeline_options(self, task: PredictionTask) -> dict[str, object]:
        """Return the attributes of the pipeline that were given; raise a ValueError for flags that contradict."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
        own = _task_flags(task)
        wrong = [name for name in given if name not in own and any(name in _task_flags(t) for t in TASKS.values())]
        if wrong:
            flags = [[f"--{name.replace('_', '-')}" for name in names] for names in (wrong, own)]
            raise ValueError(
                f"{self.task} has no {', '.join(flags[0])}; its own flags: {', '.join(flags[1]) or 'none'}"
            )
        if self.texts and self.file:
            raise ValueError(f"{len(self.texts)} texts and the file {self.file}: give one of them")
        if self.columns and not self.file:
            raise ValueError("columns are those of a file; name it with --file")
        if self.output is not None:
            self._check_output(self.output)
        if not self.texts and not self.file and sys.stdin is None:
            raise ValueError("no texts: give them as arguments, with --file, or on standard input")
        if self.stream and (self.json or self.output is not None):
            raise ValueError("--stream prints plain text; give it without --json and --output")
        options = {name: given[name] for name in (*own, "batch_size", "max_length") if name in given}
        options |= self.adaptive_arguments()
        options.pop("stream", None)
        if self.task == "generate":
            options = settings_options(options)
        if self.texts:
            options["batch_size"] = min(self.batch_size, len(self.texts))
        elif self.file is None and sys.stdin.isatty():  # a person types the texts and waits for each result
            options |= {"batch_size": 1, "read_ahead": 1}
        return options

    def _format(self, task: PredictionTask, prediction: _Prediction) -> str:
        """Return an input and its result as a line of JSON, or as text for a terminal."""
        if self.json:
            return json_text(_json_values(task, prediction), encoding=sys.stdout.encoding)
        lines = task.result_lines(prediction.texts, prediction.result)
        return "\n".join(escape_control_characters(line, lines=False) for line in lines)

    def _check_output(self, output: Path) -> None:
        """Raise an error where the results could not be written, or would replace the inputs."""
        if output.suffix == _VECTORS and self.task != "embed":
            raise ValueError(f"{output}: only embed writes {_VECTORS}; {self.task} writes JSON lines, a .jsonl")
        if output.name == "-":
            raise ValueError("output is '-'; leave --output out, and the results are printed")
        if output.suffix.lower() in _OTHER_TABLES:
            raise ValueError(f"{output}: results are written as JSON lines, or as {_VECTORS} by embed; name a .jsonl")
        if output.is_dir() or not output.parent.is_dir():
            problem = "is a folder" if output.is_dir() else f"the folder {output.parent} does not exist"
            raise ValueError(f"{output}: {problem}; give --output a file in an existing folder")
        if self.file is not None and output.exists() and self.file.exists() and output.samefile(self.file):
            raise ValueError(f"{output}: the file of the texts; give --output another one")

    def _input_reader(self, shape: InputShape) -> Callable[[], Iterator[TextInput]]:
        """Return a function that reads the inputs from their start."""
        if self.texts:
            one_input = shape.minimum > 1 and not any("\t" in text for text in self.texts)
            lines = ["\t".join(self.texts)] if one_input else self.texts
            return lambda: line_inputs(lines, "argument", shape)
        file = self.file
        if file is None:
            if isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")
            return lambda: line_inputs(without_blank_end(sys.stdin), "standard input", shape)
        if not file.exists():
            hint = "; without --file, standard input is read" if file.name == "-" else ""
            raise FileNotFoundError(f"{file}: no such file{hint}")
        return lambda: file_inputs(file, shape, self.columns)

    def _progress_bar(self) -> Progress:
        """Return a progress bar on standard error, shown if that is a terminal which the results leave free."""
        console = Console(stderr=True)
        regular_file = self.file is not None and self.file.is_file()
        visible = regular_file and (self.output is not None or not sys.stdout.isatty()) and console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        return Progress(*columns, console=console, transient=True, redirect_stdout=False, disable=not visible)


def _task_flags(task: PredictionTask) -> list[str]:
    """Return the names of the flags that the task's pipeline has and others may lack."""
    names = {field.name for field in dataclasses.fields(task.pipeline)}
    shared = {field.name for field in dataclasses.fields(Pipeline)}
    if task.pipeline is TextGenerationPipeline:
        names |= {*SETTINGS_FLAGS, "stream"}
    return [field.name for field in dataclasses.fields(Predict) if field.name in names - shared]


def _predict(
    pipeline: AnyPipeline,
    task: PredictionTask,
    inputs: Iterable[tuple[str, ...]],
) -> Iterator[_Prediction]:
    pending: collections.deque[tuple[str, ...]] = collections.deque()

    def items() -> Iterator[object]:
        for texts in inputs:
            pending.append(texts)
            yield task.pipeline_input(texts)

    for result in pipeline.stream(items()):
        yield _Prediction(pending.popleft(), result)


def _print_streams(pipeline: AnyPipeline, inputs: Iterable[tuple[str, ...]]) -> int:
    """Print each text and its continuation, or the text that is written for it, while that is generated."""
    assert isinstance(pipeline, TextGenerationPipeline)
    between = "\n  " if isinstance(pipeline, SequenceToSequencePipeline) else ""
    for (text,) in inputs:
        for piece in itertools.chain([text, between], pipeline.stream_text(text)):
            print(escape_control_characters(piece), end="", flush=True)
        print()
    return 0


def _write(output: Path, task: PredictionTask, predictions: Iterable[_Prediction]) -> int:
    """Write all results to a file; return their number."""
    count = 0
    with atomic_write(output) as temporary:
        if output.suffix == _VECTORS:
            return _write_vectors(temporary, (prediction.result for prediction in predictions))
        with temporary.open("w", encoding="utf-8", newline="\n") as lines:
            for prediction in predictions:
                lines.write(json_text(_json_values(task, prediction)) + "\n")
                count += 1
    return count


def _json_values(task: PredictionTask, prediction: _Prediction) -> dict[str, object]:
    texts = prediction.texts
    return {"input": texts[0] if len(texts) == 1 else texts, **task.result_json(prediction.result)}


def _write_vectors(file: Path, vectors: Iterable[np.ndarray]) -> int:
    """Write vectors [D] one by one as the rows of a .npy file; return their number."""
    count, width = 0, 0
    with file.open("wb") as out:
        # NumPy pads the header so that the final number of rows will fit.
        np.lib.format.write_array_header_1_0(out, _vectors_header(count, width))
        for vector in vectors:
            count, width = count + 1, len(vector)
            out.write(vector.astype("<f4").tobytes())
        out.seek(0)
        np.lib.format.write_array_header_1_0(out, _vectors_header(count, width))
    return count


def _vectors_header(count: int, width: int) -> dict[str, object]:
    return {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
