"""Raw text line by line, with where documents end: from files, folders, data sets and Python's own documentation."""

import ast
import bz2
import collections
import dataclasses
import gzip
import io
import json
import lzma
import sysconfig
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from flaxbert.text.messages import encoding_problem, quote_names
from train.data.sources import dataset_texts

PYDOC = "pydoc:"
"""The source that needs no file: the documentation inside every CPython."""
HUB = "datasets:"
END = ""
"""What follows the last line of a document."""

_RECORDS = (".jsonl", ".json")
_TABLE = ".parquet"
_ENDINGS = (".txt", *_RECORDS, _TABLE)
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


@dataclasses.dataclass
class TextReader:
    """The lines of all documents, without blanks around them, `END` after each document; no line and no document empty.

    Iterating raises ValueError for a file that cannot be read as what it should be, with its name and the line.

    Attributes:
        sources: each a file, a folder (its files with a known ending, by name), "datasets:NAME[:CONFIG]" or "pydoc:".
            In .jsonl and .parquet files and data sets a record is a document; in any other file documents are
            separated by blank lines. Files may be compressed (.gz, .bz2, .xz, .zst).
        column: of records, the one that holds the text.
        split: of data sets.

    Raises:
        FileNotFoundError: no such file, or a folder without any.
    """

    sources: Sequence[str]
    column: str = "text"
    split: str = "train"

    def __post_init__(self):
        self._files = {s: _files(s) for s in self.sources if s != PYDOC and not s.startswith(HUB)}
        self._bytes = sum(file.stat().st_size for files in self._files.values() for file in files)
        self._read, self._stream = 0, None

    @property
    def fraction(self) -> float | None:
        """How much of the files has been read, 0 to 1; None without files."""
        here = 0 if self._stream is None else self._stream.tell()
        return (self._read + here) / self._bytes if self._bytes else None

    def __iter__(self) -> Iterator[str]:
        self._read = 0
        for source in self.sources:
            if source == PYDOC:
                yield from _of_records(python_documentation())
            elif source.startswith(HUB):
                yield from _of_records(dataset_texts(source.removeprefix(HUB), self.split, self.column))
            else:
                for file in self._files[source]:
                    with file.open("rb") as self._stream:
                        yield from _file_lines(file, self._stream, self.column)
                    self._read, self._stream = self._read + file.stat().st_size, None


def _files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: no such file or folder; give a text file, a folder of them, {HUB}NAME or {PYDOC}"
        )
    files = sorted(file for file in path.rglob("*") if _kind(file) in _ENDINGS and file.is_file())
    if not files:
        raise FileNotFoundError(f"{path}: the folder holds no {', '.join(_ENDINGS)} file, compressed or not")
    return files


def _kind(file: Path) -> str:
    """The ending that says what a file holds, below that of its compression."""
    name = Path(file.stem) if file.suffix.lower() in _COMPRESSED else file
    return name.suffix.lower()


def _file_lines(file: Path, raw: BinaryIO, column: str) -> Iterator[str]:
    kind = _kind(file)
    try:
        stream = _unpacked(file, raw)
        if kind in _RECORDS:
            yield from _of_records(_json_texts(file, stream, column))
        elif kind == _TABLE:
            yield from _of_records(_table_texts(file, stream, column))
        else:
            yield from _of_plain_text(_decoded(file, stream))
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if file.suffix.lower() in _COMPRESSED:
            raise ValueError(f"{file}: cannot be unpacked ({error}); is it whole?") from error
        raise


def _unpacked(file: Path, raw: BinaryIO) -> BinaryIO:
    ending = file.suffix.lower()
    if ending == ".zst":
        import pyarrow  # heavy, and of use to few; Python has zstd from 3.14 on

        unpacked: Any = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
        return io.BufferedReader(unpacked, 2**20)
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    return openers[ending](raw, "rb") if ending in openers else raw


def _decoded(file: Path, stream: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        try:
            text = line.decode()
        except UnicodeDecodeError:
            text = line.decode(errors="surrogateescape")
        if "\0" in text or not text.isascii():
            _refuse_unreadable(f"{file}:{number}", text)
        yield text.removeprefix("\ufeff") if number == 1 else text


def _of_plain_text(lines: Iterable[str]) -> Iterator[str]:
    inside = False
    for line in lines:
        stripped = line.strip()
        if stripped or inside:
            yield stripped  # of several blank lines the first is END
        inside = bool(stripped)
    if inside:
        yield END


def _of_records(texts: Iterable[str | None]) -> Iterator[str]:
    for text in texts:
        lines = [line.strip() for line in (text or "").split("\n")]
        if any(lines):
            yield from filter(None, lines)
            yield END


def _json_texts(file: Path, stream: Iterable[bytes], column: str) -> Iterator[str | None]:
    for number, line in enumerate(_decoded(file, stream), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}:{number}: not a JSON object ({error})") from None
        if not isinstance(record, dict) or column not in record:
            found = quote_names(record) if isinstance(record, dict) else repr(record)[:40]
            raise ValueError(f"{file}:{number}: no column {column!r}; found {found}: name another column")
        yield _text(f"{file}:{number}", column, record[column])


def _table_texts(file: Path, stream: BinaryIO, column: str) -> Iterator[str | None]:
    import pyarrow
    import pyarrow.parquet

    # A table is read from its end; what is compressed as a whole must be unpacked for that.
    whole = pyarrow.BufferReader(stream.read()) if file.suffix.lower() in _COMPRESSED else file
    try:
        with pyarrow.parquet.ParquetFile(whole) as table:
            if column not in table.schema_arrow.names:
                raise ValueError(
                    f"no column {column!r}; found {quote_names(table.schema_arrow.names)}: name another column"
                )
            batches = table.iter_batches(batch_size=1024, columns=[column])
            values = (value for batch in batches for value in batch.column(0).to_pylist())
            for row, value in enumerate(values, 1):
                yield _text(f"{file}, row {row}", column, value)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise ValueError(str(error) if str(error).startswith(str(file)) else f"{file}: {error}") from error


def _text(where: str, column: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where}: {column!r} is {value!r:.40}, expected a string")
    _refuse_unreadable(f"{where}: {column!r}", value or "")
    return value


def _refuse_unreadable(where: str, text: str) -> None:
    if problem := encoding_problem(text):
        raise ValueError(f"{where}: {problem}")


def python_documentation() -> Iterator[str]:
    """The language reference's topics and the docstrings of the standard library, in a fixed order."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(library.rglob("*.py")):
        # Tests and installed packages differ from one Python to the next; the library itself hardly.
        if {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3"} & set(file.parts):
            continue
        yield from _docstrings(file)


def _docstrings(file: Path) -> Iterator[str]:
    """The file's docstrings by parsing, never by importing; files of other encodings or syntax are left out."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= 80:  # shorter ones hold no sentence worth a context
                yield text


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """A tree's nodes breadth first, as `ast.walk`; not those of expressions, which are most and define nothing."""
    nodes = collections.deque([tree])
    while nodes:
        node = nodes.popleft()
        yield node
        nodes.extend(
            child
            for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case)
        )
