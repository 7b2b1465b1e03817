"""`flaxbert predict`: a task, a model folder, and texts from the arguments, a file or standard input."""

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

if TYPE_CHECKING:  # brings the tokenizers, which no other word needs
    from flaxbert.cli.prediction_tasks import PredictionTask
    from flaxbert.pipelines import Pipeline

_VECTORS = ".npy"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict:
    """What a model says of texts: words for [MASK], labels, whether a sentence follows, the best choice, a vector,
    entities, the answer to a question.

    Texts are arguments; or the rows of --file; or the lines of standard input, one a line. Of a pair, of a question
    and its context, and of a prompt and its choices, a tab stands between the texts. Without tabs, the arguments of
    next-sentence, answer and choose are the texts of one row. Texts longer than --max-length are cut; tag and answer
    read all of them, in windows of that length.
    """

    task: tyro.conf.Positional[Literal["fill-mask", "classify", "next-sentence", "choose", "tag", "answer", "embed"]]
    """What to predict; the model has to be one of that task."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """The texts, where neither a file nor standard input holds them."""
    model: str
    """A folder, Google's zip, or a name on the Hugging Face hub."""
    file: Path | None = None
    """A .txt of a row a line; a .tsv or .csv with a header; or a .jsonl of an object a line."""
    columns: tuple[str, ...] = ()
    """Of a table: those that hold the texts, in their order; found by their usual names where none are given."""
    output: Path | None = None
    """Write the answers as JSON lines to this file, which appears when it is complete; of embed also as a .npy."""
    json: bool = False
    """Print the answers as JSON lines."""
    top_k: int | None = None
    """Of fill-mask, classify and answer: how many answers for each mask, text or question."""
    targets: tuple[str, ...] = ()
    """Of fill-mask: only these words are considered."""
    pooling: Literal["mean", "cls", "max"] | None = None
    """Of embed: how the tokens' vectors become one; what the folder says where it is not given."""
    normalize: bool = False
    """Of embed: bring vectors to length 1, also where the folder does not say so."""
    aggregation: Literal["simple", "first", "average", "max"] | None = None
    """Of tag: how the pieces of a word agree on a tag; by the first one where it is not given."""
    null_threshold: float | None = None
    """Of answer: there is none where "no answer" scores better by more than this; always one where it is not given."""
    max_answer: int | None = None
    """Of answer: tokens of an answer; 30 where it is not given."""
    max_query: int | None = None
    """Of answer: tokens of a question, those beyond are cut off; 64 where it is not given."""
    n_best: int | None = None
    """Of answer: starts and ends of a window to pair, and answers to divide probability among; 20 if not given."""
    step: int | None = None
    """Of answer: tokens from the start of a window to that of the next, as Google's doc_stride."""
    overlap: int | None = None
    """Of tag and answer: tokens that a window shares with the next, as Hugging Face's stride; a quarter of a window
    where neither this nor a step is given."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the computation."""
    batch_size: int = 32
    """Rows computed at a time."""
    max_length: int | None = None
    """Tokens of a row; the model's number of positions where it is not given."""
    revision: str | None = None
    """Of a model on the hub: a branch, tag or commit."""

    def run(self) -> int:
        """Predicts."""
        from flaxbert.cli.prediction_tasks import TASKS

        task = TASKS[self.task]
        self._check(task)
        rows, count = self._rows(task)
        with resolve_checkpoint_path(self.model, revision=self.revision) as folder:
            pipeline = task.pipeline.from_pretrained(folder, dtype=self.dtype, **self._options(task))
            with _bar(count if self.file and (self.output or not sys.stdout.isatty()) else None) as advance:
                answers = _answers(pipeline, task, rows, advance)
                if self.output is not None:
                    print(f"{self.output}: {self._write(self.output, task, answers)} answers")
                else:
                    self._print(task, answers)
        return 0

    def _check(self, task: "PredictionTask") -> None:
        from flaxbert.cli.prediction_tasks import OPTIONS

        given = [field.name for field in dataclasses.fields(self) if getattr(self, field.name) != field.default]
        strange = [name for name in given if name in OPTIONS and name not in task.options]
        if strange:
            raise ValueError(f"{self.task} has no {', '.join(strange)}; it has {', '.join(task.options) or 'neither'}")
        if self.texts and self.file:
            raise ValueError(f"{len(self.texts)} texts and the file {self.file}: give one of them")
        if self.columns and not self.file:
            raise ValueError("columns are those of a file; name it with --file")
        if self.output is not None and self.output.suffix == _VECTORS and self.task != "embed":
            raise ValueError(f"{self.output}: only embed writes {_VECTORS}; {self.task} writes JSON lines, a .jsonl")

    def _rows(self, task: "PredictionTask") -> tuple[Iterator[tuple[str, ...]], int | None]:
        """The texts of each row, and how many rows there are where that is known; a file is checked as a whole."""
        from flaxbert.cli.text_inputs import count_inputs, file_inputs, line_inputs, usable_texts

        shape = task.shape
        if self.texts:
            one = shape.minimum > 1 and not any("\t" in text for text in self.texts)
            lines = ["\t".join(self.texts)] if one else self.texts
            count = count_inputs(line_inputs(lines, "argument", shape))
            return usable_texts(line_inputs(lines, "argument", shape)), count
        if self.file is None:
            if isinstance(sys.stdin, io.TextIOWrapper):
                sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
            return usable_texts(line_inputs(sys.stdin, "standard input", shape)), None
        if not self.file.exists():
            raise FileNotFoundError(f"{self.file}: no such file")
        count = count_inputs(file_inputs(self.file, shape, self.columns)) if self.file.is_file() else None
        return usable_texts(file_inputs(self.file, shape, self.columns)), count

    def _options(self, task: "PredictionTask") -> dict[str, Any]:
        from flaxbert.pipelines import Aggregation, Pooling

        options: dict[str, Any] = {"batch_size": self.batch_size}
        numbers = ("max_length", "top_k", "null_threshold", "max_answer", "max_query", "n_best", "step", "overlap")
        options |= {name: value for name in numbers if (value := getattr(self, name)) is not None}
        if self.texts:
            options["batch_size"] = min(self.batch_size, len(self.texts))
        elif self.file is None and sys.stdin.isatty():  # whoever types waits for each answer
            options |= {"batch_size": 1, "read_ahead": 1}
        if self.targets:
            options["targets"] = self.targets
        if self.pooling is not None:
            options["pooling"] = Pooling(self.pooling)
        if self.normalize:
            options["normalize"] = True
        if self.aggregation is not None:
            options["aggregation"] = Aggregation(self.aggregation)
        return options

    def _print(self, task: "PredictionTask", answers: Iterable[tuple[Sequence[str], Any]]) -> None:
        from flaxbert.cli.prediction_tasks import told

        for texts, answer in answers:
            print(_line(task, texts, answer) if self.json else told(task, texts, answer), flush=True)

    def _write(self, output: Path, task: "PredictionTask", answers: Iterable[tuple[Sequence[str], Any]]) -> int:
        count = 0
        with atomic_write(output) as aside:
            if output.suffix == _VECTORS:
                return _write_vectors(aside, (answer for _, answer in answers))
            with aside.open("w", encoding="utf-8", newline="\n") as lines:
                for texts, answer in answers:
                    lines.write(_line(task, texts, answer) + "\n")
                    count += 1
        return count


def _answers(
    pipeline: "Pipeline[Any, Any]",
    task: "PredictionTask",
    rows: Iterable[tuple[str, ...]],
    advance: Callable[[], None],
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each row with its answer."""
    waiting: collections.deque[tuple[str, ...]] = collections.deque()

    def items() -> Iterator[Any]:
        for texts in rows:
            waiting.append(texts)
            yield task.item(texts)

    for answer in pipeline.stream(items()):
        yield waiting.popleft(), answer
        advance()


def _line(task: "PredictionTask", texts: Sequence[str], answer: Any) -> str:
    return json.dumps({"input": texts[0] if len(texts) == 1 else list(texts), **task.values(answer)})


def _write_vectors(file: Path, vectors: Iterable[Any]) -> int:
    """Writes vectors [D] as the rows of a .npy as they come; how many there were."""
    import numpy as np

    count, width = 0, 0
    with file.open("wb") as out:

        def write_header() -> None:
            described = {"descr": "<f4", "fortran_order": False, "shape": (count, width)}
            np.lib.format.write_array_header_1_0(out, described)

        write_header()  # numpy leaves room in it for any number of rows
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
def _bar(total: int | None) -> Iterator[Callable[[], None]]:
    """A progress bar on standard error where there is a number of rows and a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = ("predicting", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    shown = total is not None and console.is_terminal
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, disable=not shown) as progress:
        bar = progress.add_task("predicting", total=total)
        yield lambda: progress.advance(bar)
