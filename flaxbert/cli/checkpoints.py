"""The words that read and write checkpoints: convert, inspect, verify, average."""

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from flaxbert.conversion.average import average
from flaxbert.conversion.convert import ReportProgress, convert
from flaxbert.conversion.inspect import Inspection, inspect
from flaxbert.conversion.origin import resolve_checkpoint_path
from flaxbert.conversion.verify import Verification, verify
from flaxbert.families import ARCHITECTURES
from flaxbert.files import escape_control_characters

_BAR_FROM = 2**26  # bytes; less is done before one could read it
if TYPE_CHECKING:
    Head = str
else:
    Head = Literal[tuple(ARCHITECTURES)]


@dataclasses.dataclass(frozen=True)
class Convert:
    """Any checkpoint, as a folder that transformers, sentence-transformers and this library load."""

    src: tyro.conf.Positional[str]
    """A folder, a file, Google's zip, or a name on the Hugging Face hub."""
    dst: tyro.conf.Positional[str]
    """The folder to write; it must not be there yet, and appears when it is complete."""
    head: Head | None = None
    """The class of the result; parameters missing from SRC are newly initialised, other heads are dropped."""
    format: Literal["safetensors", "pytorch", "flax", "orbax"] = "safetensors"
    """What to write: Hugging Face's files (flax: of transformers 4's Flax classes), or parameters for orbax."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Of the numbers; without it they stay as they are, bit for bit."""
    max_shard_size: str | None = None
    """Of a file: 5GB, 200MB, or a number of bytes; more are written as several files."""
    hidden_act: str | None = None
    """Replaces the activation: "gelu" keeps what Google's config says instead of the tanh form that its code means."""
    verify: bool = False
    """Read what was written and compare it, before it appears."""
    revision: str | None = None
    """Of a model on the hub: a branch, tag or commit."""
    json: bool = False
    """Print what was done as JSON."""

    def run(self) -> int:
        """Converts."""
        with resolve_checkpoint_path(self.src, revision=self.revision) as path, _bar() as progress:
            done = convert(
                path,
                self.dst,
                head=self.head,
                format=self.format,
                dtype=self.dtype,
                max_shard_size=None if self.max_shard_size is None else parse_size(self.max_shard_size),
                hidden_act=self.hidden_act,
                verify=self.verify,
                progress=progress,
            )
        if self.json:
            _print_json(done)
            return 0
        print(f"{self.dst}: {done.head}, {done.written} from {done.read}")
        print(f"  {done.tensors} tensors, {done.bytes:,} bytes; with {', '.join(done.files)}")
        _list("newly initialised", done.drawn)
        _list("left out", done.left_out)
        return 0


@dataclasses.dataclass(frozen=True)
class Inspect:
    """What a checkpoint holds, and what loading it would say. Exit code 1: it would not load as it is."""

    src: tyro.conf.Positional[str]
    """A folder, a file, Google's zip, or a name on the Hugging Face hub."""
    checksums: bool = True
    """Compare the files with SHA256SUMS where there is one."""
    revision: str | None = None
    """Of a model on the hub: a branch, tag or commit."""
    json: bool = False
    """Print it as JSON."""

    def run(self) -> int:
        """Inspects."""
        with resolve_checkpoint_path(self.src, revision=self.revision) as path:
            found = inspect(path, checksums=self.checksums)
        if self.json:
            _print_json(found)
        else:
            _print_inspection(found)
        return 0 if found.loads else 1


@dataclasses.dataclass(frozen=True)
class Verify:
    """Whether two checkpoints of any formats are the same model. Exit code 1: they differ."""

    a: tyro.conf.Positional[str]
    """A folder, a file, Google's zip, or a name on the Hugging Face hub."""
    b: tyro.conf.Positional[str]
    """Likewise."""
    tolerance: float = 0.0
    """How far apart two numbers may be, of tensors and of outputs on random input."""
    outputs: bool = True
    """Run both models on random input too."""
    json: bool = False
    """Print it as JSON."""

    def run(self) -> int:
        """Verifies."""
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance is {self.tolerance}; it must be at least 0")
        with resolve_checkpoint_path(self.a) as a, resolve_checkpoint_path(self.b) as b:
            found = verify(a, b, outputs=self.outputs)
        same = found.same(self.tolerance)
        if self.json:
            _print_json(found, same=same)
        else:
            _print_verification(found, same)
        return 0 if same else 1


@dataclasses.dataclass(frozen=True)
class Average:
    """The mean of checkpoints of one model, as a folder that transformers loads."""

    src: tyro.conf.Positional[tuple[str, ...]]
    """Two or more checkpoints; or one training run's folder, with --last."""
    output: str
    """The folder to write; it must not be there yet, and appears when it is complete."""
    last: int | None = None
    """Average this many of the run's newest checkpoints."""
    json: bool = False
    """Print what was done as JSON."""

    def run(self) -> int:
        """Averages."""
        with contextlib.ExitStack() as places:
            found = average(
                [places.enter_context(resolve_checkpoint_path(src)) for src in self.src], self.output, last=self.last
            )
        if self.json:
            print(json.dumps({"averaged": [str(path) for path in found], "output": self.output}, indent=2))
        else:
            print(f"{self.output}: the mean of {', '.join(map(str, found))}")
        return 0


def parse_size(text: str) -> int:
    """Bytes, from "5GB", "200 MB" or "1000000"; units are powers of ten, as in transformers.

    Raises:
        ValueError: not a size.
    """
    match = re.fullmatch(r"([0-9]{1,15})\s*(|K|M|G|KB|MB|GB)", text.strip().upper())
    if match is None or int(match[1]) == 0:
        raise ValueError(f"max_shard_size is {text!r}; write it like 5GB, 200MB or 1000000")
    return int(match[1]) * 1000 ** " KMG".index((match[2] or " ")[0])


@contextlib.contextmanager
def _bar() -> Iterator[ReportProgress]:
    """A progress bar on standard error, once there is enough to write."""
    columns = ("writing", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task("writing")

    with contextlib.ExitStack() as shown:

        def told(done: int, total: int) -> None:
            if total >= _BAR_FROM:
                if not progress.live.is_started:
                    shown.enter_context(progress)
                progress.update(task, completed=done, total=total)

        yield told


def _print_json(found: Any, **more: Any) -> None:
    print(json.dumps(_finite({**dataclasses.asdict(found), **more}), indent=2, allow_nan=False))


def _finite(found: Any) -> Any:
    """With "Infinity" for what JSON has no number for."""
    if isinstance(found, dict):
        return {key: _finite(value) for key, value in found.items()}
    return "Infinity" if found == math.inf else found


def _print_inspection(found: Inspection) -> None:
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in sorted(found.dtypes.items()))
    print(f"{found.path}: {found.format}, {found.head}")
    print(f"  {found.parameters:,} numbers in {len(found.tensors)} tensors ({kinds})")
    for name, (dtype, shape) in found.tensors.items():
        print(f"  {escape_control_characters(name, lines=False):60} {dtype:9} {shape}")
    _list("no weights, left out", found.left_out)
    for key, value in (found.config or {}).items():
        print(escape_control_characters(f"  {key}: {json.dumps(value, ensure_ascii=False)}"))
    print(f"  checksums: {'match' if found.checksums else 'none' if found.checksums is None else 'DIFFER'}")
    print(escape_control_characters(f"  loading: {found.report or 'without a word'}"))


def _print_verification(found: Verification, same: bool) -> None:
    _list("only in A", found.only_a)
    _list("only in B", found.only_b)
    for what, differences in (
        ("shape", found.shapes),
        ("config", found.config),
        ("largest difference", found.differing),
    ):
        for name, value in differences.items():
            print(escape_control_characters(f"  {what} {name}: {value}", lines=False))
    outputs = "not compared" if found.outputs is None else f"{found.outputs:.3g} apart"
    print(f"  {found.compared} tensors, at most {found.tensors:.3g} apart; outputs on random input {outputs}")
    print("same" if same else "different")


def _list(what: str, found: list[str]) -> None:
    if found:
        print(
            escape_control_characters(
                f"  {len(found)} {what}: {', '.join(found[:20])}{', ...' if len(found) > 20 else ''}", lines=False
            )
        )
