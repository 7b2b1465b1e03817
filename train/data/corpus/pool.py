"""Tokenisation of text into a store by several processes, with a progress bar, resumable after an interruption."""

import collections
import contextlib
import dataclasses
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import google_crc32c
import rich.console
import rich.progress

from flaxbert.files import atomic_write
from train.data.corpus.reader import TextReader
from train.data.corpus.store import StoreWriter
from train.data.corpus.tokens import SentenceTokenizer, TokenChunk, start_worker, text_chunks, tokenise_in_worker

_SAVE_INTERVAL = 32  # chunks
_CHUNKS_AHEAD = 4  # chunks a process that wait to be tokenised
_PRINT_INTERVAL = 10.0  # seconds between lines if there is no terminal for a bar


@dataclasses.dataclass
class PreparationProgress:
    """The progress of a preparation, saved in a file from which it resumes.

    Attributes:
        file: the file.
        settings: the settings of the preparation.
        pieces: chunks of the text that are in the store.
        crc32c: of the characters of these chunks.
        counts: what `StoreWriter.save` returned; None before the first save.
    """

    file: Path
    settings: Mapping[str, object]
    pieces: int = 0
    crc32c: int = 0
    counts: dict[str, int] | None = None

    def save(self, writer: StoreWriter) -> None:
        """Sync the store to disk, then record its state."""
        self.counts = writer.save()
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "file"}
        with atomic_write(self.file) as temporary:
            temporary.write_text(json.dumps(fields), encoding="utf-8")


def tokenise(
    reader: TextReader,
    make: Callable[[], SentenceTokenizer],
    writer: StoreWriter,
    progress: PreparationProgress,
    *,
    workers: int,
) -> None:
    """Tokenise the text that is not yet in the store.

    Args:
        reader: the text.
        make: makes the tokenizer, in every process.
        writer: the store.
        progress: the state of the store, saved now and then.
        workers: the number of processes.

    Raises:
        ValueError: the text does not begin with the content of the store, or a process has died.
    """
    text = text_chunks(iter(reader))
    _skip(text, progress)
    with _pool(make, workers) as pool, _progress_display(reader, writer) as update:
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


def _skip(text: Iterator[str], progress: PreparationProgress) -> None:
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
def _pool(make: Callable[[], SentenceTokenizer], workers: int) -> Iterator[ProcessPoolExecutor]:
    # Not forked: threads of other libraries may hold locks.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(make,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _progress_display(reader: TextReader, writer: StoreWriter) -> Iterator[Callable[[], None]]:
    """Return a function that updates a bar on a terminal, or prints a line now and then."""
    console = rich.console.Console(stderr=True)
    started, before = time.perf_counter(), writer.counts["tokens"]
    last = started

    def state() -> str:
        speed = (writer.counts["tokens"] - before) / max(time.perf_counter() - started, 1e-9)
        return f"{writer.counts['documents']:,} documents  {writer.counts['tokens']:,} tokens  {speed:,.0f} tokens/s"

    if not (console.is_terminal and console.is_interactive):

        def print_line() -> None:
            nonlocal last
            if time.perf_counter() - last >= _PRINT_INTERVAL:
                last = time.perf_counter()
                share = "" if reader.fraction is None else f"{reader.fraction:4.0%}  "
                print(share + state(), file=sys.stderr)

        yield print_line
        return
    columns = [rich.progress.BarColumn(), rich.progress.TaskProgressColumn(), "{task.fields[state]}"]
    with rich.progress.Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None if reader.fraction is None else 1.0, state="")
        yield lambda: bar.update(task, completed=reader.fraction or 0.0, state=state())
