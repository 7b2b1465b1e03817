"""Text to a store by several processes, with a bar, and notes from which an interrupted preparation goes on."""

import collections
import contextlib
import dataclasses
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import google_crc32c
import rich.console
import rich.progress

from flaxbert.files import atomic_write
from train.data.corpus.reader import TextReader
from train.data.corpus.store import StoreWriter
from train.data.corpus.tokens import SentenceTokenizer, TokenChunk, start_worker, text_chunks, tokenise_in_worker

_NOTED_EVERY = 32  # chunks of text
_AHEAD = 4  # pieces for each process that wait for their turn
_SHOWN_EVERY = 10.0  # seconds, where there is no terminal for a bar


@dataclasses.dataclass
class Progress:
    """How far a preparation has come, as it is noted in a file.

    Attributes:
        file: where.
        settings: of the preparation.
        pieces: of the text that are in the store.
        crc32c: of their characters.
        counts: what `StoreWriter.save` returned then; None before the first note.
    """

    file: Path
    settings: dict[str, Any]
    pieces: int = 0
    crc32c: int = 0
    counts: dict[str, int] | None = None

    def note(self, writer: StoreWriter) -> None:
        """Puts what was written on the disk, then says so."""
        self.counts = writer.save()
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "file"}
        with atomic_write(self.file) as aside:
            aside.write_text(json.dumps(fields), encoding="utf-8")


def tokenise(
    reader: TextReader,
    make: Callable[[], SentenceTokenizer],
    writer: StoreWriter,
    progress: Progress,
    *,
    workers: int,
) -> None:
    """All of the text that `progress` says is not in the store yet.

    Args:
        reader: of the text.
        make: makes the tokenizer, in every process.
        writer: of the store.
        progress: how far it has come, noted now and then.
        workers: processes.

    Raises:
        ValueError: the text does not begin with what is in the store; or a process ended, for want of memory perhaps.
    """
    text = text_chunks(iter(reader))
    _skip(text, progress)
    with _pool(make, workers) as pool, _shown(reader, writer) as show:
        try:
            for piece, tokens in _tokenised(pool, text, _AHEAD * workers):
                writer.add(tokens)
                progress.pieces += 1
                progress.crc32c = google_crc32c.extend(progress.crc32c, piece.encode())
                if progress.pieces % _NOTED_EVERY == 0:
                    progress.note(writer)
                show()
        except BrokenProcessPool:
            raise ValueError(
                "a process that tokenised has ended (killed, or out of memory?); the same command goes on from here"
            ) from None


def _skip(text: Iterator[str], progress: Progress) -> None:
    crc = 0
    for number in range(progress.pieces):
        piece = next(text, None)
        if piece is None:
            raise ValueError(f"{progress.file}: {progress.pieces} pieces were noted, the text has only {number} now")
        crc = google_crc32c.extend(crc, piece.encode())
    if crc != progress.crc32c:
        raise ValueError(
            f"the text has changed since the preparation that {progress.file.parent} holds was interrupted; "
            "delete that folder to begin again"
        )


def _tokenised(pool: ProcessPoolExecutor, text: Iterable[str], ahead: int) -> Iterator[tuple[str, TokenChunk]]:
    """Pieces with their tokens, in order; a few more than are waited for are under way."""
    waiting: collections.deque[tuple[str, Future[TokenChunk]]] = collections.deque()
    for piece in text:
        waiting.append((piece, pool.submit(tokenise_in_worker, piece)))
        if len(waiting) > ahead:
            first, tokens = waiting.popleft()
            yield first, tokens.result()
    for piece, tokens in waiting:
        yield piece, tokens.result()


@contextlib.contextmanager
def _pool(make: Callable[[], SentenceTokenizer], workers: int) -> Iterator[ProcessPoolExecutor]:
    # Not forked: other libraries' threads may hold locks.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=start_worker, initargs=(make,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _shown(reader: TextReader, writer: StoreWriter) -> Iterator[Any]:
    """Gives what shows how far it has come: a bar on a terminal, else a line now and then."""
    console = rich.console.Console(stderr=True)
    started, before = time.perf_counter(), writer.counts["tokens"]
    last = started

    def state() -> str:
        speed = (writer.counts["tokens"] - before) / max(time.perf_counter() - started, 1e-9)
        return f"{writer.counts['documents']:,} documents  {writer.counts['tokens']:,} tokens  {speed:,.0f} tokens/s"

    if not (console.is_terminal and console.is_interactive):

        def line() -> None:
            nonlocal last
            if time.perf_counter() - last >= _SHOWN_EVERY:
                last = time.perf_counter()
                share = "" if reader.fraction is None else f"{reader.fraction:4.0%}  "
                print(share + state(), file=sys.stderr)

        yield line
        return
    columns = [rich.progress.BarColumn(), rich.progress.TaskProgressColumn(), "{task.fields[state]}"]
    with rich.progress.Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None if reader.fraction is None else 1.0, state="")
        yield lambda: bar.update(task, completed=reader.fraction or 0.0, state=state())
