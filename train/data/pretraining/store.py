"""A token store: the tokens of a corpus with random access to its sentences and documents.

A store is a folder:

    store.json       format and version, counts, digest of the vocabulary, settings of the preparation, files' digests
    tokens.npy       uint16 (uint32 for vocabularies of more than 65,536) [N], ids of all sentences one after another
    sentences.npy    int64 [S + 1], the first token of each sentence; the last entry is N
    documents.npy    int64 [D + 1], the first sentence of each document; the last entry is S
    word_starts.npy  bool [N], whether a token begins a word; only if a list of words was given
    tokenizer/       vocab.txt, tokenizer.json, tokenizer_config.json
    bad_rows.jsonl   lines and records that were skipped; only if some were

The .npy files have NumPy's format 1.0, and are mapped into memory, not read.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from flaxbert.files import atomic_write, file_sha256, read_json
from flaxbert.tokenizer import WordPieceTokenizer
from train.data.bad_rows import BadRow, write_bad_rows
from train.data.pretraining.tokens import TokenChunk

FORMAT = "flaxbert tokens"
VERSION = 1
RECORD = "store.json"
TOKENIZER = "tokenizer"
_DTYPES = {
    "tokens": (np.dtype(np.uint16), np.dtype(np.uint32)),
    "sentences": (np.dtype(np.int64),),
    "documents": (np.dtype(np.int64),),
    "word_starts": (np.dtype(bool),),
}


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """A corpus as tokens."""

    tokens: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray
    word_starts: np.ndarray | None  # whether a token begins a word [N]; None if ## marks those that do not
    tokenizer: WordPieceTokenizer
    bad_rows: tuple[BadRow, ...] = ()  # skipped when the text was tokenized, if it was not read from a folder

    @property
    def document_count(self) -> int:
        """The number of documents, D."""
        return len(self.documents) - 1

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the arrays tokens, sentences and documents, and word_starts if there are any."""
        digest = hashlib.sha256()
        for array in (self.tokens, self.sentences, self.documents, self.word_starts):
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def of_documents(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Return the tokens of each of these documents."""
        starts = self.document_starts
        return [self.tokens[starts[number] : starts[number + 1]] for number in numbers]

    @functools.cached_property
    def document_starts(self) -> np.ndarray:
        """The first token of each document, and N [D + 1]."""
        return self.sentences[self.documents]

    @classmethod
    def of(cls, chunks: Iterable[TokenChunk], tokenizer: WordPieceTokenizer) -> "TokenStore":
        """Return a store in memory, given its chunks in order."""
        chunks = list(chunks)
        sentences = _starts([chunk.lengths for chunk in chunks])
        before, ends = 0, [np.zeros(1, np.int64)]
        for chunk in chunks:
            ends.append(chunk.ends + before)
            before += len(chunk.lengths)
        documents = np.unique(np.concatenate(ends))  # drops documents without a token
        starts = [chunk.word_starts for chunk in chunks if chunk.word_starts is not None]
        tokens = np.concatenate([chunk.ids for chunk in chunks]) if chunks else np.zeros(0, np.uint16)
        return cls(tokens, sentences, documents, np.concatenate(starts) if starts else None, tokenizer)

    @classmethod
    def open(cls, folder: Path) -> "TokenStore":
        """Map the files of a store into memory, and compare them with the record.

        Raises:
            FileNotFoundError: there is no store.
            ValueError: a file is damaged, or of another version.
        """
        if not (folder / RECORD).is_file():
            raise FileNotFoundError(f"{folder}: no {RECORD} there; python -m train.data.prepare makes a store")
        record = read_json(folder / RECORD)
        if not isinstance(record, dict) or record.get("format") != FORMAT or not isinstance(record.get("files"), dict):
            raise ValueError(f"{folder / RECORD}: not the record of a token store")
        if record.get("version") != VERSION:
            raise ValueError(f"{folder}: version {record.get('version')!r} of the format; this reads {VERSION}")
        arrays = {n: _map_array(folder, n, record["files"]) for n in _DTYPES if f"{n}.npy" in record["files"]}
        if missing := [name for name in list(_DTYPES)[:3] if name not in arrays]:
            raise ValueError(f"{folder / RECORD}: names no {', '.join(missing)}")
        tokenizer = WordPieceTokenizer.load(folder / TOKENIZER)
        if tokenizer.vocabulary_digest != record.get("vocabulary_sha256"):
            raise ValueError(f"{folder / TOKENIZER}: not the tokenizer that the store was made with")
        store = cls(arrays["tokens"], arrays["sentences"], arrays["documents"], arrays.get("word_starts"), tokenizer)
        store._check(folder)
        return store

    def _check(self, folder: Path) -> None:
        for name, starts, end in (
            ("sentences", self.sentences, len(self.tokens)),
            ("documents", self.documents, len(self.sentences) - 1),
        ):
            if not len(starts) or starts[0] != 0 or starts[-1] != end or not (starts[1:] > starts[:-1]).all():
                raise ValueError(f"{folder / name}.npy: not ascending from 0 to {end}")
        if self.word_starts is not None and len(self.word_starts) != len(self.tokens):
            raise ValueError(f"{folder}/word_starts.npy: {len(self.word_starts)} for {len(self.tokens)} tokens")
        if len(self.tokens) and self.tokens.max() >= self.tokenizer.vocab_size:
            raise ValueError(f"{folder}/tokens.npy: an id beyond the vocabulary's {self.tokenizer.vocab_size}")


def _starts(lengths: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))]).astype(np.int64)


def _map_array(folder: Path, name: str, files: Mapping[str, object]) -> np.ndarray:
    file, recorded = folder / f"{name}.npy", files[f"{name}.npy"]
    if not isinstance(recorded, dict):
        raise ValueError(f"{folder / RECORD}: {name}.npy is {recorded!r:.40}, expected bytes and sha256")
    if not file.is_file():
        raise ValueError(f"{file}: is missing")
    if file.stat().st_size != recorded.get("bytes"):
        raise ValueError(f"{file}: {file.stat().st_size} bytes, {recorded.get('bytes')} when it was made")
    if file_sha256(file) != recorded.get("sha256"):
        raise ValueError(f"{file}: is damaged (its SHA-256 is not that of {RECORD}); prepare the store again")
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file}: not an array ({error})") from None
    if array.ndim != 1 or array.dtype not in _DTYPES[name]:
        allowed = " or ".join(map(str, _DTYPES[name]))
        raise ValueError(f"{file}: {array.dtype}{list(array.shape)}; expected one axis of {allowed}")
    return np.asarray(array)  # slices of a memmap cost several times as much


class StoreWriter:
    """A writer of a store, chunk by chunk, that can resume after an interruption.

    The counts that `save` returned describe the files up to then, whatever was written after it.
    """

    def __init__(self, folder: Path, *, dtype: np.dtype, word_starts: bool, saved: Mapping[str, int] | None = None):
        """Open the files; `saved` is the result of `save` to resume from, None to begin."""
        self._folder = folder
        self._dtypes = {"tokens": np.dtype(dtype), "sentences": np.dtype(np.int64), "documents": np.dtype(np.int64)}
        if word_starts:
            self._dtypes["word_starts"] = np.dtype(bool)
        self.counts = dict(saved or {"tokens": 0, "sentences": 0, "documents": 0, "in_document": 0, "unknown": 0})
        self._opened = contextlib.ExitStack()
        self._streams: dict[str, BinaryIO] = {
            name: self._opened.enter_context(self._open_array(name, resume=saved is not None)) for name in self._dtypes
        }

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        with self._explain_errors():  # closing writes what is buffered
            self._opened.close()

    def add(self, chunk: TokenChunk) -> None:
        """Write the next chunk."""
        counts = self.counts
        size = len(chunk.lengths)
        # A document begins with the first sentence after an end; documents without a sentence are dropped.
        first = [] if counts["in_document"] or not size else [0]
        begins = np.unique([*first, *chunk.ends[chunk.ends < size].tolist()]).astype(np.int64)
        self._write("tokens", chunk.ids)
        self._write("sentences", counts["tokens"] + _starts([chunk.lengths])[:-1])
        self._write("documents", counts["sentences"] + begins)
        if chunk.word_starts is not None:
            self._write("word_starts", chunk.word_starts)
        if len(chunk.ends) and chunk.ends[-1] == size:
            counts["in_document"] = 0
        elif size:
            counts["in_document"] = 1
        counts["tokens"] += len(chunk.ids)
        counts["sentences"] += size
        counts["documents"] += len(begins)
        counts["unknown"] += chunk.unknown

    def save(self) -> dict[str, int]:
        """Sync the files to disk, and return the counts from which a later `StoreWriter` resumes."""
        with self._explain_errors():
            for stream in self._streams.values():
                stream.flush()
                os.fsync(stream.fileno())
        return dict(self.counts)

    def finish(
        self, tokenizer: WordPieceTokenizer, settings: Mapping[str, object], bad_rows: Sequence[BadRow] = ()
    ) -> None:
        """Complete the arrays and write the record, and the bad rows that were skipped."""
        write_bad_rows(self._folder, {"text": bad_rows})
        self._write("sentences", np.array([self.counts["tokens"]]))
        self._write("documents", np.array([self.counts["sentences"]]))
        sizes = {**self.counts, "word_starts": self.counts["tokens"]}
        files = {}
        for name, stream in self._streams.items():
            count = sizes[name] + (name in ("sentences", "documents"))
            stream.seek(0)
            stream.write(_header(self._dtypes[name], count))
        self.save()
        for name in self._dtypes:
            file = self._folder / f"{name}.npy"
            files[file.name] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        record = {
            "format": FORMAT,
            "version": VERSION,
            **{name: self.counts[name] for name in ("documents", "sentences", "tokens")},
            "unknown_tokens": self.counts["unknown"],
            **({"bad_rows": len(bad_rows)} if bad_rows else {}),
            "vocabulary_sha256": tokenizer.vocabulary_digest,
            "made": settings,
            "files": files,
        }
        with atomic_write(self._folder / RECORD) as aside:
            aside.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _write(self, name: str, values: np.ndarray) -> None:
        with self._explain_errors():
            self._streams[name].write(np.ascontiguousarray(values, self._dtypes[name]).tobytes())

    @contextlib.contextmanager
    def _explain_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(f"{self._folder}: {error.strerror}; make room, then resume with the same command") from error

    def _open_array(self, name: str, *, resume: bool) -> BinaryIO:
        file, dtype = self._folder / f"{name}.npy", self._dtypes[name]
        header = _header(dtype, 0)
        if not resume:
            stream = file.open("w+b")
            stream.write(header)
            return stream
        entries = self.counts["tokens" if name == "word_starts" else name]
        size = len(header) + entries * dtype.itemsize
        if not file.is_file() or file.stat().st_size < size:
            raise ValueError(f"{file}: holds less than was recorded; delete the folder and start again")
        stream = file.open("r+b")
        stream.truncate(size)
        stream.seek(size)
        return stream


def _header(dtype: np.dtype, count: int) -> bytes:
    """Return the header of a .npy file; NumPy pads it so that it has the same length for every count."""
    stream = io.BytesIO()
    description = {"descr": dtype.str, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(stream, description)
    return stream.getvalue()
