"""Lines of raw text with the ends of documents: from files, folders, data sets and Python's own documentation."""

import ast
import bz2
import collections
import dataclasses
import gzip
import io
import itertools
import lzma
import re
import sysconfig
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from flaxbert.files import require_downloaded
from flaxbert.text.messages import encoding_problem, quote_names, text_cell
from flaxbert.text.tables import TableRow, parse_json_row
from train.data.bad_rows import SKIP_REMEDY, BadRow, BadRows
from train.data.sources import DATASET_PREFIX, arrow_rows, dataset_texts

PYDOC = "pydoc:"
"""The source that needs no file: the documentation inside every CPython."""
END = ""
"""The line after the last line of a document."""

_RECORDS = (".jsonl", ".json")
_TABLE = ".parquet"
_EXTENSIONS = (".txt", *_RECORDS, _TABLE)
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_DOCUMENT_TAG = re.compile("<doc( .*)?>|</doc>")


@dataclasses.dataclass
class TextReader:
    """An iterable of the lines of all documents without blanks around them, with `END` after each document.

    A source is a file, a folder (its files with a known extension, by name), "datasets:NAME[:CONFIG]" or "pydoc:". In
    .jsonl and .parquet files and data sets a record is a document; in other files documents are separated by blank
    lines, or stand between the tags <doc> and </doc> (wikiextractor). A file without a known extension whose first line
    is a JSON object holds one a line. Files may be compressed (.gz, .bz2, .xz, .zst). No line and no document is empty.
    Iteration raises a ValueError with the file and line for a file that cannot be read. Bad rows are lines that are not
    text, and records without one.
    """

    sources: Sequence[str]
    column: str = "text"
    split: str = "train"
    bad_rows: BadRows = BadRows.ERROR
    flags: str = "--task."  # before the names of flags in messages
    skipped: list[BadRow] = dataclasses.field(default_factory=list, init=False)  # by the last iteration

    def __post_init__(self):
        self._files = {s: _find_files(s) for s in self.sources if s != PYDOC and not s.startswith(DATASET_PREFIX)}
        self._bytes = sum(file.stat().st_size for files in self._files.values() for file in files)
        self._read, self._stream = 0, None

    @property
    def fraction(self) -> float | None:
        """The fraction of the files' bytes that has been read; None if there are no files."""
        here = 0 if self._stream is None else self._stream.tell()
        return (self._read + here) / self._bytes if self._bytes else None

    def __iter__(self) -> Iterator[str]:
        self._read = 0
        self.skipped.clear()
        for source in self.sources:
            if source == PYDOC:
                yield from _record_lines(python_documentation())
            elif source.startswith(DATASET_PREFIX):
                yield from _record_lines(self._valid_texts(dataset_texts(source, self.split, self.column)))
            else:
                for file in self._files[source]:
                    with file.open("rb") as self._stream:
                        yield from self._file_lines(file, self._stream)
                    self._read, self._stream = self._read + file.stat().st_size, None

    def _file_lines(self, file: Path, raw: BinaryIO) -> Iterator[str]:
        require_downloaded(file)
        extension = _content_extension(file)
        try:
            stream = _decompress(file, raw)
            if extension == _TABLE:
                yield from _record_lines(self._valid_texts(_parquet_rows(file, stream, self.column)))
                return
            numbered = _numbered_lines(stream)
            first, numbered = _peek(numbered)
            if extension in _RECORDS or _is_record(first):
                yield from _record_lines(self._valid_texts(_json_rows(file, numbered)))
                return
            lines = self._valid_lines(file, numbered)
            if first.startswith("<mediawiki"):
                raise ValueError(f"{file}: a dump of MediaWiki; extract its text first, with wikiextractor")
            yield from _lines_between_tags(lines) if _DOCUMENT_TAG.fullmatch(first.strip()) else _plain_lines(lines)
        except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            if file.suffix.lower() in _COMPRESSED:
                raise ValueError(f"{file}: cannot be unpacked ({error}); is it whole?") from error
            raise

    def _valid_lines(self, file: Path, numbered: Iterable[tuple[int, str]]) -> Iterator[str]:
        for number, line in numbered:
            if ("\0" in line or not line.isascii()) and (problem := encoding_problem(line)):
                self._skip(BadRow(f"{file}:{number}", problem))
            else:
                yield line

    def _valid_texts(self, rows: Iterable[TableRow]) -> Iterator[str]:
        for row in rows:
            try:
                text = text_cell(row.require_cells(), self.column)
            except ValueError as error:
                self._skip(BadRow(row.source, str(error)))
            else:
                yield text

    def _skip(self, row: BadRow) -> None:
        if self.bad_rows is BadRows.ERROR:
            skip = SKIP_REMEDY.replace("--task.", self.flags)
            raise ValueError(f"{row}. Correct or remove this row, name another column, {skip}")
        self.skipped.append(row)


def python_documentation() -> Iterator[str]:
    """Return the topics of the language reference and the docstrings of the standard library, in a fixed order."""
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
    """Return the file's docstrings by parsing, never by importing; skip files of other encodings or syntax."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    nodes: collections.deque[ast.AST] = collections.deque([tree])
    while nodes:  # breadth first, as `ast.walk`, but without expressions, which are most nodes and define nothing
        node = nodes.popleft()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= 80:  # shorter ones hold no sentence worth a context
                yield text
        children = ast.iter_child_nodes(node)
        nodes.extend(child for child in children if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case))


def _find_files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_file():
        if _content_extension(path) in (".csv", ".tsv"):
            raise ValueError(f"{path}: a table is not read as text; give .jsonl or .parquet and the column of the text")
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: no such file or folder; give a text file, a folder of them, {DATASET_PREFIX}NAME or {PYDOC}"
        )
    files = sorted(file for file in path.rglob("*") if _holds_text(file) and file.is_file())
    if not files:
        raise FileNotFoundError(f"{path}: the folder holds no {', '.join(_EXTENSIONS)} file, compressed or not")
    return files


def _holds_text(file: Path) -> bool:
    """Return whether a file of a folder is read: by its extension, or its name, wikiextractor's wiki_00."""
    name = file.stem if file.suffix.lower() in _COMPRESSED else file.name
    return _content_extension(file) in _EXTENSIONS or re.fullmatch("wiki_[0-9]+", name) is not None


def _content_extension(file: Path) -> str:
    """Return the extension without that of a compression: .txt for a.txt.gz."""
    name = Path(file.stem) if file.suffix.lower() in _COMPRESSED else file
    return name.suffix.lower()


def _decompress(file: Path, raw: BinaryIO) -> BinaryIO:
    match file.suffix.lower():
        case ".gz":
            return cast(BinaryIO, gzip.open(raw, "rb"))
        case ".bz2":
            return cast(BinaryIO, bz2.open(raw, "rb"))
        case ".xz":
            return cast(BinaryIO, lzma.open(raw, "rb"))
        case ".zst":
            import pyarrow  # slow to import and seldom needed; Python has zstd from 3.14 on

            unpacked = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
            return io.BufferedReader(cast(io.RawIOBase, unpacked), 2**20)
        case _:
            return raw


def _numbered_lines(stream: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """Yield (number, line); bytes that are not UTF-8 become lone surrogates (see `encoding_problem`)."""
    number = 0
    for line in stream:
        try:
            text = line.decode()
        except UnicodeDecodeError:
            text = line.decode(errors="surrogateescape")
        # CR alone ends the lines of files from old Macintoshes.
        for part in text.rstrip("\r\n").split("\r") if "\r" in text else (text,):
            number += 1
            yield number, part.removeprefix("\ufeff") if number == 1 else part


def _peek(lines: Iterator[tuple[int, str]]) -> tuple[str, Iterator[tuple[int, str]]]:
    """Return the first line that is not blank ("" if all are), and all lines with their numbers."""
    taken = []
    for number, line in lines:
        taken.append((number, line))
        if line.strip():
            break
    return taken[-1][1] if taken else "", itertools.chain(taken, lines)


def _is_record(line: str) -> bool:
    return re.match(r'\s*{\s*"', line) is not None


def _lines_between_tags(lines: Iterable[str]) -> Iterator[str]:
    """Return the lines of documents between <doc> and </doc>, in which blank lines separate paragraphs."""
    inside = False
    for line in lines:
        stripped = line.strip()
        if _DOCUMENT_TAG.fullmatch(stripped):
            if inside:
                yield END
            inside = False
        elif stripped:
            yield stripped
            inside = True
    if inside:
        yield END


def _plain_lines(lines: Iterable[str]) -> Iterator[str]:
    inside = False
    for line in lines:
        stripped = line.strip()
        if stripped or inside:
            yield stripped  # the first of several blank lines is END
        inside = bool(stripped)
    if inside:
        yield END


def _record_lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from filter(None, (line.strip() for line in text.split("\n")))
        yield END


def _json_rows(file: Path, lines: Iterable[tuple[int, str]]) -> Iterator[TableRow]:
    for number, line in lines:
        if line.strip():
            yield parse_json_row(f"{file}:{number}", line)


def _parquet_rows(file: Path, stream: BinaryIO, column: str) -> Iterator[TableRow]:
    """Yield the rows of a table; those after damage in a group of rows are one problem."""
    import pyarrow
    import pyarrow.parquet

    # A table is read from its end, so a compressed one must be unpacked as a whole.
    source = pyarrow.BufferReader(stream.read()) if file.suffix.lower() in _COMPRESSED else file
    try:
        table = pyarrow.parquet.ParquetFile(source, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}: {error}") from error
    with table:
        names = table.schema_arrow.names
        if column not in names:
            raise ValueError(f"{file}: no column {column!r}; found {quote_names(names)}: name another column")
        end = 0
        for group in range(table.num_row_groups):
            row, end = end, end + table.metadata.row_group(group).num_rows
            try:
                for batch in table.iter_batches(batch_size=1024, row_groups=[group], columns=[column]):
                    yield from arrow_rows(batch.column(0), column, lambda i, row=row: f"{file}, row {row + i + 1}")
                    row += len(batch)
            except (pyarrow.ArrowException, OSError) as error:
                yield TableRow(f"{file}, rows {row + 1} to {end}", problem=f"damaged: {error}")
