"""Preparation of a token store from text by several processes, resumable after an interruption."""

import collections
import contextlib
import dataclasses
import fcntl
import functools
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated, Literal

import google_crc32c
import rich.console
import rich.progress
import tyro

from flaxbert.files import atomic_folder, atomic_write, read_json, require_absent, require_downloaded
from flaxbert.text.messages import raise_problems
from flaxbert.tokenizer import WordPieceTokenizer
from train.data.bad_rows import BAD_ROWS_FILE, BadRows
from train.data.pretraining.reader import TextReader
from train.data.pretraining.store import TOKENIZER, StoreWriter
from train.data.pretraining.tokens import (
    SentenceTokenizer,
    TokenChunk,
    id_dtype,
    note_lost_marks,
    start_worker,
    text_chunks,
    tokenise_in_worker,
)

_SAVE_INTERVAL = 32  # chunks
_CHUNKS_AHEAD = 4  # chunks a process that wait to be tokenised
_PRINT_INTERVAL = 10.0  # seconds between lines if there is no terminal for a bar
_PROGRESS, _LOCK = "progress.json", "lock"


@dataclasses.dataclass(frozen=True)
class Preparation:
    """Turn text into a store of tokens to pretrain on. After an interruption the same command resumes."""

    text: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT [TEXT ...]")]
    """Files (.txt, .jsonl, .parquet, each also .gz, .bz2, .xz or .zst), folders of them, datasets:NAME or pydoc:. In
    plain text a blank line ends a document."""
    output: Path
    """The folder to make."""
    tokenizer: Path | None = None
    """A folder or vocab.txt; without it a vocabulary is trained on the text."""
    vocab_size: int = 30522
    """Tokens of a trained vocabulary."""
    lowercase: bool = True
    """A trained tokenizer converts text to lower case and removes accents."""
    chinese_characters: bool = True
    """A trained tokenizer treats each Chinese character as a word."""
    lines: Literal["paragraphs", "sentences"] = "paragraphs"
    """Content of a line: paragraphs are split into sentences."""
    words: Path | None = None
    """A list of words, one a line, of a language that writes no blanks between them: neighbouring characters that form
    a word are masked together if whole words are masked."""
    column: str = "text"
    """The column of records that holds the text."""
    split: str = "train"
    """The split of data sets."""
    bad_rows: Annotated[BadRows, tyro.conf.EnumChoicesFromValues] = BadRows.ERROR
    """Treatment of lines that are not text and of records without a text: error, or skip, which lists them in the
    store."""
    workers: int = os.cpu_count() or 1
    """Processes that tokenise; the store is the same for any number of them."""

    def __post_init__(self):
        if not self.text:
            raise ValueError("no text was given; name a file, a folder, datasets:NAME or pydoc:")
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}; it must be at least 1")

    @property
    def record(self) -> dict[str, object]:
        """The settings that determine the store's content, as JSON values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["output"], fields["workers"]
        if fields.pop("bad_rows") is BadRows.SKIP:  # the record of other stores is that of former versions
            fields["bad_rows"] = BadRows.SKIP.value
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
        return {**plain, "text": list(self.text)}


def main(arguments: list[str]) -> int:
    """Prepare a store; return 0, 2 for an error in the arguments or data, or 130 after an interruption."""
    try:
        settings = tyro.cli(Preparation, args=arguments, prog="python -m train.data.prepare")
        started = time.perf_counter()
        counts = prepare_store(settings)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; resume with the same command", file=sys.stderr)
        return 130
    seconds = time.perf_counter() - started
    print(
        f"{settings.output}: {counts['documents']:,} documents, {counts['sentences']:,} sentences, "
        f"{counts['tokens']:,} tokens ({counts['unknown'] / counts['tokens']:.2%} unknown) in {seconds:.1f} s"
    )
    return 0


def prepare_store(settings: Preparation) -> dict[str, int]:
    """Make the store, and return its counts.

    It is made in the folder NAME.preparing beside its final path, from which an interrupted preparation resumes; the
    text must then still begin with what was tokenised. An existing store raises a FileExistsError.
    """
    require_absent(settings.output)
    reader = TextReader(
        settings.text, column=settings.column, split=settings.split, bad_rows=settings.bad_rows, flags="--"
    )
    words = _read_words(settings.words)
    tokenizer = None if settings.tokenizer is None else WordPieceTokenizer.load(settings.tokenizer)
    if words and tokenizer is not None and not tokenizer.has_word_pieces:
        raise ValueError(f"{settings.tokenizer}: --words needs a WordPiece tokenizer; leave --words out")
    folder = settings.output.with_name(f"{settings.output.name}.preparing")
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        progress = _load_progress(folder, settings)
        tokenizer = _store_tokenizer(folder, settings, tokenizer, reader)
        dtype = id_dtype(tokenizer.vocab_size)
        split = settings.lines == "paragraphs"
        make = functools.partial(SentenceTokenizer, tokenizer.backend.to_str(), split=split, words=words)
        with StoreWriter(folder, dtype=dtype, word_starts=bool(words), saved=progress.counts) as writer:
            text = note_lost_marks(text_chunks(iter(reader)), tokenizer.backend)
            _tokenise(reader, text, make, writer, progress, settings.workers)
            if not writer.counts["tokens"]:
                shutil.rmtree(folder)
                raise_problems(
                    list(map(str, reader.skipped)), len(reader.skipped), "No text is left. Give another one."
                )
                given = ", ".join(settings.text)
                raise ValueError(f"{given}: holds no text; give a file or folder with lines that are not blank")
            writer.finish(tokenizer, settings.record, reader.skipped)
        for name in (_PROGRESS, _LOCK):
            (folder / name).unlink(missing_ok=True)
        os.rename(folder, settings.output)
    if reader.skipped:
        print(f"{len(reader.skipped):,} bad rows skipped: {settings.output / BAD_ROWS_FILE}", file=sys.stderr)
    return writer.counts


def _read_words(file: Path | None) -> tuple[str, ...]:
    if file is None:
        return ()
    require_downloaded(file)
    # Word lists for segmentation often have a frequency after each word.
    lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    words = tuple(sorted({line[0] for line in lines if line and len(line[0]) > 1}))
    if not words:
        raise ValueError(f"{file}: holds no word of two characters or more")
    return words


def _store_tokenizer(
    folder: Path, settings: Preparation, given: WordPieceTokenizer | None, reader: TextReader
) -> WordPieceTokenizer:
    """Return the tokenizer that an interrupted preparation saved, the given one, or one learned from the text."""
    saved = folder / TOKENIZER
    if saved.is_dir():
        return WordPieceTokenizer.load(saved)
    if given is None:
        print(f"learning a vocabulary of {settings.vocab_size:,} tokens", file=sys.stderr)
        given = WordPieceTokenizer.train(
            reader,
            vocab_size=settings.vocab_size,
            lowercase=settings.lowercase,
            chinese_characters=settings.chinese_characters,
        )
    with atomic_folder(saved) as temporary:
        given.save(temporary, max_length=512)
    return given


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keep a second process from preparing the same store: they would write into each other's files."""
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another process is preparing this store") from None
        yield


@dataclasses.dataclass
class _Progress:
    """The progress of a preparation, saved in a file from which it resumes."""

    file: Path
    settings: Mapping[str, object]
    pieces: int = 0  # chunks of the text that are in the store
    crc32c: int = 0  # of the characters of these chunks
    counts: dict[str, int] | None = None  # what `StoreWriter.save` returned; None before the first save

    def save(self, writer: StoreWriter) -> None:
        self.counts = writer.save()
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "file"}
        with atomic_write(self.file) as temporary:
            temporary.write_text(json.dumps(fields), encoding="utf-8")


def _load_progress(folder: Path, settings: Preparation) -> _Progress:
    file, new = folder / _PROGRESS, settings.record
    if not file.is_file():
        return _Progress(file, new)
    recorded = read_json(file)
    old = recorded.pop("settings")
    if differing := [name for name in new | old if new.get(name) != old.get(name)]:
        shown = "; ".join(f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in differing)
        raise ValueError(
            f"{folder} holds an interrupted preparation with other settings ({shown}); delete it, or choose another "
            "--output"
        )
    return _Progress(file, new, **recorded)


def _tokenise(
    reader: TextReader,
    text: Iterator[str],
    make: Callable[[], SentenceTokenizer],
    writer: StoreWriter,
    progress: _Progress,
    workers: int,
) -> None:
    """Tokenise the chunks of the reader's text that are not yet in the store; each process makes its tokenizer."""
    _skip(text, progress)
    context = multiprocessing.get_context("spawn")  # not forked: threads of other libraries may hold locks
    pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(make,))
    with _progress_display(reader, writer) as update:
        try:
            for chunk, tokens in _tokenise_chunks(pool, text, _CHUNKS_AHEAD * workers):
                writer.add(tokens)
                progress.pieces += 1
                progress.crc32c = google_crc32c.extend(progress.crc32c, chunk.encode())
                if progress.pieces % _SAVE_INTERVAL == 0:
                    progress.save(writer)
                update()
        except BrokenProcessPool:
            raise ValueError(
                "a process that tokenised has ended (killed, or out of memory?); resume with the same command"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _skip(text: Iterator[str], progress: _Progress) -> None:
    """Skip the chunks that are in the store; raise a ValueError if they have changed."""
    crc = 0
    for number in range(progress.pieces):
        chunk = next(text, None)
        if chunk is None:
            raise ValueError(f"{progress.file}: the store has {progress.pieces} pieces, the text has only {number} now")
        crc = google_crc32c.extend(crc, chunk.encode())
    if crc != progress.crc32c:
        raise ValueError(
            f"the text has changed since the preparation that {progress.file.parent} holds was interrupted; "
            "delete that folder to begin again"
        )


def _tokenise_chunks(pool: ProcessPoolExecutor, text: Iterable[str], ahead: int) -> Iterator[tuple[str, TokenChunk]]:
    """Return each chunk with its tokens, in order; up to `ahead` further chunks are submitted meanwhile."""
    waiting: collections.deque[tuple[str, Future[TokenChunk]]] = collections.deque()
    for chunk in text:
        waiting.append((chunk, pool.submit(tokenise_in_worker, chunk)))
        if len(waiting) > ahead:
            first, tokens = waiting.popleft()
            yield first, tokens.result()
    for chunk, tokens in waiting:
        yield chunk, tokens.result()


@contextlib.contextmanager
def _progress_display(reader: TextReader, writer: StoreWriter) -> Iterator[Callable[[], None]]:
    """Return a function that updates a bar on a terminal, or prints a line now and then."""
    console = rich.console.Console(stderr=True)
    started, before = time.perf_counter(), writer.counts["tokens"]
    last = started

    def state() -> str:
        speed = (writer.counts["tokens"] - before) / max(time.perf_counter() - started, 1e-9)
        return f"{writer.counts['documents']:,} documents  {writer.counts['tokens']:,} tokens  {speed:,.0f} tokens/s"

    def print_line() -> None:
        nonlocal last
        if time.perf_counter() - last >= _PRINT_INTERVAL:
            last = time.perf_counter()
            share = "" if reader.fraction is None else f"{reader.fraction:4.0%}  "
            print(share + state(), file=sys.stderr)

    if not (console.is_terminal and console.is_interactive):
        yield print_line
        return
    columns = [rich.progress.BarColumn(), rich.progress.TaskProgressColumn(), "{task.fields[state]}"]
    with rich.progress.Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None if reader.fraction is None else 1.0, state="")
        yield lambda: bar.update(task, completed=reader.fraction or 0.0, state=state())
