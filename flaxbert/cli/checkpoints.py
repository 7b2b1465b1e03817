"""Subcommands that read and write checkpoints: convert, inspect, verify, average, export."""

import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

from flaxbert.cli.adaptive_flags import AdaptiveFlags
from flaxbert.cli.printed_text import escape_control_characters, json_text
from flaxbert.conversion.average import average
from flaxbert.conversion.convert import convert
from flaxbert.conversion.inspect import Inspection, inspect
from flaxbert.conversion.origin import resolve_checkpoint_path
from flaxbert.conversion.output import Conversion, ReportProgress
from flaxbert.conversion.shape_changes import ShapeChanges, parse_heads, parse_layers
from flaxbert.conversion.verify import Verification, verify
from flaxbert.families import ARCHITECTURES

_MIN_BYTES_FOR_BAR = 2**26  # writing less is done before anyone could read the bar
_MAX_NAMES = 20
_SIZE_UNITS = {None: 1, "K": 10**3, "M": 10**6, "G": 10**9}

if TYPE_CHECKING:
    Head = str
else:
    Head = Literal[tuple(ARCHITECTURES)]


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert a checkpoint of any format to a folder that transformers, sentence-transformers and flaxbert load."""

    src: tyro.conf.Positional[str]
    """A folder, a file, a zip from Google, or a model name on the Hugging Face hub."""
    dst: tyro.conf.Positional[str]
    """Folder to create; it must not exist, and appears when it is complete."""
    head: Head | None = None
    """Target class. Parameters missing from SRC are newly initialised; weights of other heads are dropped."""
    format: Literal["safetensors", "pytorch", "flax", "orbax"] = "safetensors"
    """Format to write. flax: files of the Flax classes of transformers 4. orbax: an Orbax checkpoint of the params."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Dtype of the weights; by default every tensor keeps its own, bit for bit."""
    max_shard_size: str | None = None
    """Maximum size of a weights file: 5GB, 200MB, or a number of bytes. Larger checkpoints are split into several."""
    hidden_act: str | None = None
    """Activation for config.json; "gelu" keeps the name in Google's config, whose code computes the tanh form."""
    prune_heads: str | None = None
    """Attention heads to remove, by layer: 0:1,2;3:0 removes heads 1 and 2 of layer 0 and head 0 of layer 3."""
    keep_layers: str | None = None
    """Layers to keep, in ascending order, like 0,2,4; the others are dropped. Numbers are those of SRC."""
    resize_vocab: int | None = None
    """Number of vocabulary entries; the last ones are cut, or new ones are drawn around the mean of the old ones."""
    pad_to_multiple_of: int | None = None
    """Round the number of vocabulary entries up to a multiple of this."""
    verify: bool = False
    """Read the written checkpoint and compare it with SRC before DST appears."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> int:
        """Convert and print a summary."""
        changes = ShapeChanges(
            prune_heads={} if self.prune_heads is None else parse_heads(self.prune_heads),
            keep_layers=None if self.keep_layers is None else parse_layers(self.keep_layers),
            vocab_size=self.resize_vocab,
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        with resolve_checkpoint_path(self.src, revision=self.revision) as path, _progress_bar() as progress:
            conversion = convert(
                path,
                self.dst,
                head=self.head,
                format=self.format,
                dtype=self.dtype,
                max_shard_size=None if self.max_shard_size is None else parse_size(self.max_shard_size),
                hidden_act=self.hidden_act,
                changes=changes,
                verify=self.verify,
                progress=progress,
            )
        if self.json:
            _print_json(dataclasses.asdict(conversion))
        else:
            _print_conversion(self.dst, conversion)
        return 0


@dataclasses.dataclass(frozen=True)
class Inspect:
    """List the tensors and the config of a checkpoint, and try to load it. Exit code 1: it does not load as it is."""

    src: tyro.conf.Positional[str]
    """A folder, a file, a zip from Google, or a model name on the Hugging Face hub."""
    checksums: bool = True
    """Compare the files with SHA256SUMS if the folder has one."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> int:
        """Inspect and print the result."""
        with resolve_checkpoint_path(self.src, revision=self.revision) as path:
            inspection = inspect(path, checksums=self.checksums)
        # A zip is unpacked into a folder that is gone now.
        inspection = dataclasses.replace(inspection, path=inspection.path.replace(str(path), self.src))
        if self.json:
            _print_json(dataclasses.asdict(inspection))
        else:
            _print_inspection(inspection)
        return 0 if inspection.loads else 1


@dataclasses.dataclass(frozen=True)
class Verify:
    """Compare tensors, config and outputs of two checkpoints of any formats. Exit code 1: they differ."""

    a: tyro.conf.Positional[str]
    """A folder, a file, a zip from Google, or a model name on the Hugging Face hub."""
    b: tyro.conf.Positional[str]
    """The checkpoint to compare with."""
    tolerance: float = 0.0
    """Largest allowed absolute difference between two numbers, in tensors and in outputs."""
    outputs: bool = True
    """Run both models on random input and compare the outputs."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> int:
        """Compare and print the differences."""
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance is {self.tolerance}; it must be at least 0")
        with resolve_checkpoint_path(self.a) as a, resolve_checkpoint_path(self.b) as b:
            verification = verify(a, b, outputs=self.outputs)
        same = verification.same(self.tolerance)
        if self.json:
            _print_json({**dataclasses.asdict(verification), "same": same})
        else:
            _print_verification(verification, same)
        return 0 if same else 1


@dataclasses.dataclass(frozen=True)
class Average:
    """Average the weights of several checkpoints of one model into a folder that transformers loads."""

    src: tyro.conf.Positional[tuple[str, ...]]
    """Two or more checkpoints; or the folder of one training run, with --last."""
    output: str
    """Folder to create; it must not exist, and appears when it is complete."""
    last: int | None = None
    """Average this number of the run's newest checkpoints."""
    json: bool = False
    """Print the result as JSON."""

    def run(self) -> int:
        """Average and print the checkpoints that were used."""
        with contextlib.ExitStack() as stack:
            sources = [stack.enter_context(resolve_checkpoint_path(src)) for src in self.src]
            averaged = average(sources, self.output, last=self.last)
        given = dict(zip(map(str, sources), self.src, strict=True))  # a zip is unpacked into a folder that is gone now
        if self.json:
            _print_json({"averaged": [given.get(str(path), str(path)) for path in averaged], "output": self.output})
        else:
            print(f"{self.output}: the mean of {', '.join(given.get(str(path), str(path)) for path in averaged)}")
        return 0


@dataclasses.dataclass(frozen=True)
class Export(AdaptiveFlags):
    """Export a model as a program that runs without flaxbert: StableHLO for XLA, or an ONNX graph.

    The written program is loaded again and run; the largest difference from the model is printed. Layers and tokens can
    be left out of StableHLO alone; tokens need --length.
    """

    src: tyro.conf.Positional[str]
    """A folder, a file, a zip from Google, or a model name on the Hugging Face hub."""
    dst: tyro.conf.Positional[Path]
    """Folder to create; it must not exist, and appears when it is complete."""
    format: Literal["stablehlo", "onnx"] = "stablehlo"
    """stablehlo runs wherever jax runs (cpu, cuda, tpu); onnx runs in ONNX Runtime and needs the extra [onnx]."""
    length: int | None = None
    """Number of tokens of all inputs, for runtimes without dynamic shapes; by default inputs have any length."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Compute dtype; onnx supports float32 only."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""

    def run(self) -> int:
        """Export and print the inputs and outputs of the program."""
        from flaxbert.export import export_onnx, export_stablehlo

        adaptive = self.adaptive_arguments()
        with resolve_checkpoint_path(self.src, revision=self.revision) as folder:
            if self.format == "stablehlo":
                exported = export_stablehlo(folder, self.dst, length=self.length, dtype=self.dtype, **adaptive)
            elif adaptive:
                raise ValueError("--layer-config, --length-config and --always-keep-cls-token need --format stablehlo")
            elif self.dtype != "float32":
                raise ValueError(f"dtype is {self.dtype}; onnx supports float32 only")
            else:
                exported = export_onnx(folder, self.dst, length=self.length)
        print(f"{self.dst}: {exported.architecture} as {exported.format}, {', '.join(exported.files)}")
        for name, spec in exported.inputs.items():
            print(f"  input {name}: {spec.dtype} [{', '.join(map(str, spec.shape))}]")
        for name, spec in exported.outputs.items():
            print(f"  output {name}: {spec.dtype} [{', '.join(map(str, spec.shape))}]")
        print(f"  platforms: {', '.join(exported.platforms)}")
        print(f"  readable by: {exported.readable_by}")
        print(f"  loaded again: outputs differ from the model's by at most {exported.parity:.3g} on random input")
        return 0


def parse_size(text: str) -> int:
    """Return the bytes of "5GB", "200 MB" or "1000000"; units are powers of ten, as in transformers.

    Raises:
        ValueError: the text is not a size.
    """
    match = re.fullmatch(r"([0-9]{1,15})\s*(?:([KMG])B?)?", text.strip().upper())
    if match is None or int(match[1]) == 0:
        raise ValueError(f"max_shard_size is {text!r}; write it like 5GB, 200MB or 1000000")
    return int(match[1]) * _SIZE_UNITS[match[2]]


@contextlib.contextmanager
def _progress_bar() -> Iterator[ReportProgress]:
    """Show a progress bar on standard error if enough bytes are written."""
    columns = ("writing", BarColumn(), DownloadColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task("writing")

    with contextlib.ExitStack() as stack:

        def report(done: int, total: int) -> None:
            if total >= _MIN_BYTES_FOR_BAR:
                if not progress.live.is_started:
                    stack.enter_context(progress)
                progress.update(task, completed=done, total=total)

        yield report


def _print_json(values: Mapping[str, object]) -> None:
    print(json_text(values, encoding=sys.stdout.encoding, indent=2))


def _print_conversion(target: str, conversion: Conversion) -> None:
    print(f"{target}: {conversion.head}, {conversion.written} from {conversion.read}")
    print(f"  {conversion.tensors} tensors, {conversion.bytes:,} bytes; with {', '.join(conversion.files)}")
    if conversion.vocab_size is not None:
        print(f"  the vocabulary has {conversion.vocab_size:,} entries")
    _print_names("newly initialised", conversion.newly_initialised)
    _print_names("left out", conversion.left_out)


def _print_inspection(inspection: Inspection) -> None:
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in sorted(inspection.dtypes.items()))
    print(f"{inspection.path}: {inspection.format}, {inspection.head}")
    print(f"  {inspection.parameters:,} numbers in {len(inspection.tensors)} tensors ({dtypes})")
    for name, (dtype, shape) in inspection.tensors.items():
        print(f"  {escape_control_characters(name, lines=False):60} {dtype:9} {shape}")
    _print_names("no weights, left out", inspection.left_out)
    for key, value in (inspection.config or {}).items():
        print(escape_control_characters(f"  {key}: {json.dumps(value, ensure_ascii=False)}"))
    checksums = {True: "match", False: "DIFFER", None: "none"}[inspection.checksums]
    print(f"  checksums: {checksums}")
    print(escape_control_characters(f"  loading: {inspection.report or 'ok'}"))


def _print_verification(verification: Verification, same: bool) -> None:
    _print_names("only in A", verification.only_a)
    _print_names("only in B", verification.only_b)
    _print_differences("shape", verification.shapes)
    _print_differences("config", verification.config)
    _print_differences("largest difference", verification.differing)
    outputs = "not compared" if verification.outputs is None else f"{verification.outputs:.3g} apart"
    print(
        f"  {verification.compared} tensors, at most {verification.tensors:.3g} apart; "
        f"outputs on random input {outputs}"
    )
    print("same" if same else "different")


def _print_differences(title: str, differences: Mapping[str, object]) -> None:
    for name, value in differences.items():
        print(escape_control_characters(f"  {title} {name}: {value}", lines=False))


def _print_names(title: str, names: Sequence[str]) -> None:
    if not names:
        return
    shown = list(names[:_MAX_NAMES])
    if len(names) > _MAX_NAMES:
        shown.append("...")
    print(escape_control_characters(f"  {len(names)} {title}: {', '.join(shown)}", lines=False))
