"""Makes a store of tokens: the settings, the tokenizer, and the folder that appears when it is complete."""

import contextlib
import dataclasses
import fcntl
import functools
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from flaxbert.files import atomic_folder, read_json, require_absent
from flaxbert.tokenizer import WordPieceTokenizer
from train.data.corpus.pool import Progress, tokenise
from train.data.corpus.reader import TextReader
from train.data.corpus.store import TOKENIZER, StoreWriter
from train.data.corpus.tokens import SentenceTokenizer, id_dtype

_PROGRESS, _LOCK = "progress.json", "lock"


@dataclasses.dataclass(frozen=True)
class Preparation:
    """Turns text into a store of tokens to pretrain on. Started again after an interruption it goes on."""

    text: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="TEXT [TEXT ...]")]
    """Files (.txt, .jsonl, .parquet, each also .gz, .bz2, .xz or .zst), folders of them, datasets:NAME or pydoc:. In
    plain text a blank line ends a document."""
    output: Path
    """The folder to make."""
    tokenizer: Path | None = None
    """A folder or vocab.txt; without it a vocabulary is learnt from the text."""
    vocab_size: int = 30522
    """Of a vocabulary that is learnt."""
    lowercase: bool = True
    """Whether a learnt tokenizer folds case and takes accents away."""
    chinese_characters: bool = True
    """Whether a learnt tokenizer takes each Chinese character for a word."""
    lines: Literal["paragraphs", "sentences"] = "paragraphs"
    """What a line holds: paragraphs are cut into sentences."""
    words: Path | None = None
    """A list of words, one a line, of a language that writes none apart: neighbouring characters that form one are
    masked together where whole words are."""
    column: str = "text"
    """Of records, the one that holds the text."""
    split: str = "train"
    """Of data sets."""
    workers: int = os.cpu_count() or 1
    """Processes that tokenise. What comes out does not depend on it."""

    def __post_init__(self):
        if not self.text:
            raise ValueError("no text was given; name a file, a folder, datasets:NAME or pydoc:")
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}; it must be at least 1")

    @property
    def record(self) -> dict[str, Any]:
        """What the store depends on, as JSON has it."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["output"], fields["workers"]
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
        return {**plain, "text": list(self.text)}


def main(arguments: list[str]) -> int:
    """Prepares a store; 0, 2 for a mistake of the caller's, 130 where it was interrupted."""
    try:
        settings = tyro.cli(Preparation, args=arguments, prog="python -m train.data.prepare")
        started = time.perf_counter()
        counts = prepare(settings)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    seconds = time.perf_counter() - started
    print(
        f"{settings.output}: {counts['documents']:,} documents, {counts['sentences']:,} sentences, "
        f"{counts['tokens']:,} tokens ({counts['unknown'] / counts['tokens']:.2%} unknown) in {seconds:.1f} s"
    )
    return 0


def prepare(settings: Preparation) -> dict[str, int]:
    """Makes the store, and returns its counts.

    It is made beside its place, as NAME.preparing, where an interrupted one is found again; the text must then still
    begin with what was tokenised.

    Raises:
        FileExistsError: the store is there already.
        FileNotFoundError, ValueError: what is wrong with the text, the tokenizer, or an interrupted preparation.
    """
    require_absent(settings.output)
    reader = TextReader(settings.text, column=settings.column, split=settings.split)
    words = _words(settings.words)
    given = None if settings.tokenizer is None else WordPieceTokenizer.load(settings.tokenizer)
    aside = settings.output.with_name(f"{settings.output.name}.preparing")
    aside.mkdir(parents=True, exist_ok=True)
    with _alone(aside):
        progress = _noted(aside, settings)
        tokenizer = _tokenizer(aside, settings, given, reader)
        dtype = id_dtype(tokenizer.vocab_size)
        how: dict[str, Any] = {"split": settings.lines == "paragraphs", "words": words}
        make = functools.partial(SentenceTokenizer, tokenizer.backend.to_str(), **how)
        with StoreWriter(aside, dtype=dtype, word_starts=bool(words), saved=progress.counts) as writer:
            tokenise(reader, make, writer, progress, workers=settings.workers)
            if not writer.counts["tokens"]:
                shutil.rmtree(aside)
                raise ValueError(f"{', '.join(settings.text)}: holds no text")
            writer.finish(tokenizer, settings.record)
        for name in (_PROGRESS, _LOCK):
            (aside / name).unlink(missing_ok=True)
        os.rename(aside, settings.output)
    return writer.counts


def _words(file: Path | None) -> tuple[str, ...]:
    if file is None:
        return ()
    # Lists for segmentation often have a frequency beside each word.
    lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    words = tuple(sorted({line[0] for line in lines if line and len(line[0]) > 1}))
    if not words:
        raise ValueError(f"{file}: holds no word of two characters or more")
    return words


def _tokenizer(
    aside: Path, settings: Preparation, given: WordPieceTokenizer | None, reader: TextReader
) -> WordPieceTokenizer:
    """The tokenizer given, or one learnt from the text, kept with the store; an interrupted preparation has it."""
    folder = aside / TOKENIZER
    if folder.is_dir():
        return WordPieceTokenizer.load(folder)
    if given is None:
        print(f"learning a vocabulary of {settings.vocab_size:,} tokens", file=sys.stderr)
        given = WordPieceTokenizer.train(
            reader,
            vocab_size=settings.vocab_size,
            lowercase=settings.lowercase,
            chinese_characters=settings.chinese_characters,
        )
    with atomic_folder(folder) as made:
        given.save(made, max_length=512)
    return given


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two that prepare the same store at once would write into each other's files."""
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another process is preparing this store") from None
        yield


def _noted(folder: Path, settings: Preparation) -> Progress:
    file, ours = folder / _PROGRESS, settings.record
    if not file.is_file():
        return Progress(file, ours)
    noted = read_json(file)
    theirs = noted.pop("settings")
    if differing := [name for name in ours if ours[name] != theirs.get(name)]:
        shown = "; ".join(f"{name}: {theirs.get(name)!r} -> {ours[name]!r}" for name in differing)
        raise ValueError(
            f"{folder} holds an interrupted preparation with other settings ({shown}); delete it, or choose another "
            "--output"
        )
    return Progress(file, ours, **noted)
