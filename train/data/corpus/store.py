"""Tokens of a corpus with random access: which sentences they form, and which documents those.

A store is a folder:

    store.json       what it is: format and version, counts, the vocabulary's digest, how it was made, files' digests
    tokens.npy       uint16 (uint32 for vocabularies of more than 65,536) [N], ids of all sentences one after another
    sentences.npy    int64 [S + 1], where each sentence begins in the tokens; the last entry is N
    documents.npy    int64 [D + 1], with which sentence each document begins; the last entry is S
    word_starts.npy  bool [N], whether a token begins a word; only where words were given by a list
    tokenizer/       vocab.txt, tokenizer.json, tokenizer_config.json

The .npy files are NumPy's format 1.0, and are mapped into memory, not read.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from flaxbert.files import atomic_write, read_json
from flaxbert.tokenizer import WordPieceTokenizer
from train.data.corpus.tokens import TokenChunk

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
    """A corpus as tokens.

    Attributes:
        tokens: ids [N].
        sentences: [S + 1], where each begins in the tokens.
        documents: [D + 1], the sentence with which each begins.
        word_starts: [N] where words were given by a list; else None: a word goes on with tokens that begin with ##.
        tokenizer: what made the ids.
    """

    tokens: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray
    word_starts: np.ndarray | None
    tokenizer: WordPieceTokenizer

    @property
    def document_count(self) -> int:
        """How many documents it holds."""
        return len(self.documents) - 1

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the tokens and of where sentences and documents begin."""
        digest = hashlib.sha256()
        for array in (self.tokens, self.sentences, self.documents):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def of_documents(self, numbers: np.ndarray) -> list[np.ndarray]:
        """The tokens of each of these documents."""
        starts = self.document_starts
        return [self.tokens[starts[number] : starts[number + 1]] for number in numbers]

    @functools.cached_property
    def document_starts(self) -> np.ndarray:
        """[D + 1], where each document begins in the tokens."""
        return self.sentences[self.documents]

    @classmethod
    def of(cls, parts: Iterable[TokenChunk], tokenizer: WordPieceTokenizer) -> "TokenStore":
        """In memory, of pieces in order."""
        whole = list(parts)
        sentences = _starts([part.lengths for part in whole])
        before, ends = 0, [np.zeros(1, np.int64)]
        for part in whole:
            ends.append(part.ends + before)
            before += len(part.lengths)
        documents = np.unique(np.concatenate(ends))  # of documents without a token nothing is left
        starts = [part.word_starts for part in whole if part.word_starts is not None]
        tokens = np.concatenate([part.ids for part in whole]) if whole else np.zeros(0, np.uint16)
        return cls(tokens, sentences, documents, np.concatenate(starts) if starts else None, tokenizer)

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> "TokenStore":
        """Maps a store's files into memory.

        Args:
            folder: the store.
            verify: compare the files' SHA-256 with the record, which reads them once. Without it only what the files
                say of themselves is compared.

        Raises:
            FileNotFoundError: no store there.
            ValueError: not a store, one of another version, or a damaged one; says which file.
        """
        if not (folder / RECORD).is_file():
            raise FileNotFoundError(f"{folder}: no {RECORD} there; python -m train.data.prepare makes a store of text")
        record = read_json(folder / RECORD)
        if not isinstance(record, dict) or record.get("format") != FORMAT or not isinstance(record.get("files"), dict):
            raise ValueError(f"{folder / RECORD}: not the record of a store of tokens")
        if record.get("version") != VERSION:
            raise ValueError(f"{folder}: version {record.get('version')!r} of the format; this reads {VERSION}")
        arrays = {n: _mapped(folder, n, record["files"], verify) for n in _DTYPES if f"{n}.npy" in record["files"]}
        if lacking := [name for name in list(_DTYPES)[:3] if name not in arrays]:
            raise ValueError(f"{folder / RECORD}: names no {', '.join(lacking)}")
        tokenizer = WordPieceTokenizer.load(folder / TOKENIZER)
        if tokenizer.vocabulary_digest != record.get("vocabulary_sha256"):
            raise ValueError(f"{folder / TOKENIZER}: not the tokenizer that the store was made with")
        store = cls(arrays["tokens"], arrays["sentences"], arrays["documents"], arrays.get("word_starts"), tokenizer)
        store._check(folder, ids=verify)
        return store

    def _check(self, folder: Path, *, ids: bool) -> None:
        for name, starts, end in (
            ("sentences", self.sentences, len(self.tokens)),
            ("documents", self.documents, len(self.sentences) - 1),
        ):
            if not len(starts) or starts[0] != 0 or starts[-1] != end or not (starts[1:] > starts[:-1]).all():
                raise ValueError(f"{folder / name}.npy: not ascending from 0 to {end}")
        if self.word_starts is not None and len(self.word_starts) != len(self.tokens):
            raise ValueError(f"{folder}/word_starts.npy: {len(self.word_starts)} for {len(self.tokens)} tokens")
        if ids and len(self.tokens) and self.tokens.max() >= self.tokenizer.vocab_size:
            raise ValueError(f"{folder}/tokens.npy: an id beyond the vocabulary's {self.tokenizer.vocab_size}")


def _starts(lengths: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))]).astype(np.int64)


def _mapped(folder: Path, name: str, files: Mapping[str, Any], verify: bool) -> np.ndarray:
    file, said = folder / f"{name}.npy", files[f"{name}.npy"]
    if not isinstance(said, dict):
        raise ValueError(f"{folder / RECORD}: {name}.npy is {said!r:.40}, expected bytes and sha256")
    if not file.is_file():
        raise ValueError(f"{file}: is missing")
    if file.stat().st_size != said.get("bytes"):
        raise ValueError(f"{file}: {file.stat().st_size} bytes, {said.get('bytes')} when it was made")
    if verify and _digest(file) != said.get("sha256"):
        raise ValueError(f"{file}: is damaged (its SHA-256 is not that of {RECORD}); prepare the store anew")
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{file}: not an array ({error})") from None
    if array.ndim != 1 or array.dtype not in _DTYPES[name]:
        allowed = " or ".join(map(str, _DTYPES[name]))
        raise ValueError(f"{file}: {array.dtype}{list(array.shape)}; expected one axis of {allowed}")
    return np.asarray(array)  # slices of a memmap cost several times as much


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class StoreWriter:
    """Writes a store piece by piece into a folder, where it can go on after it was interrupted.

    What `save` has noted of the state of the files stands, whatever was added after it.
    """

    def __init__(self, folder: Path, *, dtype: np.dtype, word_starts: bool, saved: Mapping[str, int] | None = None):
        """Begins in a folder that is there; with what `save` returned it goes on from it.

        Raises:
            ValueError: the files hold less than `saved` says.
        """
        self._folder = folder
        self._dtypes = {"tokens": np.dtype(dtype), "sentences": np.dtype(np.int64), "documents": np.dtype(np.int64)}
        if word_starts:
            self._dtypes["word_starts"] = np.dtype(bool)
        self.counts = dict(saved or {"tokens": 0, "sentences": 0, "documents": 0, "in_document": 0, "unknown": 0})
        self._opened = contextlib.ExitStack()
        self._streams: dict[str, BinaryIO] = {
            name: self._opened.enter_context(self._continued(name, resume=saved is not None)) for name in self._dtypes
        }

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        with self._room():  # what is still to be written may find no more either
            self._opened.close()

    def add(self, part: TokenChunk) -> None:
        """The next piece."""
        counts = self.counts
        size = len(part.lengths)
        # A document begins with the first sentence after an end; of one without a sentence nothing is noted.
        first = [] if counts["in_document"] or not size else [0]
        begins = np.unique([*first, *part.ends[part.ends < size].tolist()]).astype(np.int64)
        self._write("tokens", part.ids)
        self._write("sentences", counts["tokens"] + _starts([part.lengths])[:-1])
        self._write("documents", counts["sentences"] + begins)
        if part.word_starts is not None:
            self._write("word_starts", part.word_starts)
        if len(part.ends) and part.ends[-1] == size:
            counts["in_document"] = 0
        elif size:
            counts["in_document"] = 1
        counts["tokens"] += len(part.ids)
        counts["sentences"] += size
        counts["documents"] += len(begins)
        counts["unknown"] += part.unknown

    def save(self) -> dict[str, int]:
        """Puts what was added on the disk; returns what a later `StoreWriter` goes on from."""
        with self._room():
            for stream in self._streams.values():
                stream.flush()
                os.fsync(stream.fileno())
        return dict(self.counts)

    def finish(self, tokenizer: WordPieceTokenizer, about: Mapping[str, Any]) -> None:
        """Closes the arrays and writes the record; `about` says how the store was made."""
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
            files[file.name] = {"bytes": file.stat().st_size, "sha256": _digest(file)}
        record = {
            "format": FORMAT,
            "version": VERSION,
            **{name: self.counts[name] for name in ("documents", "sentences", "tokens")},
            "unknown_tokens": self.counts["unknown"],
            "vocabulary_sha256": tokenizer.vocabulary_digest,
            "made": about,
            "files": files,
        }
        with atomic_write(self._folder / RECORD) as aside:
            aside.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def _write(self, name: str, values: np.ndarray) -> None:
        with self._room():
            self._streams[name].write(np.ascontiguousarray(values, self._dtypes[name]).tobytes())

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{self._folder}: {error.strerror}; make room, and the same command goes on from here"
            ) from error

    def _continued(self, name: str, *, resume: bool) -> BinaryIO:
        file, dtype = self._folder / f"{name}.npy", self._dtypes[name]
        header = _header(dtype, 0)
        if not resume:
            stream = file.open("w+b")
            stream.write(header)
            return stream
        entries = self.counts["tokens" if name == "word_starts" else name]
        size = len(header) + entries * dtype.itemsize
        if not file.is_file() or file.stat().st_size < size:
            raise ValueError(f"{file}: holds less than was noted; delete the folder and begin again")
        stream = file.open("r+b")
        stream.truncate(size)
        stream.seek(size)
        return stream


def _header(dtype: np.dtype, count: int) -> bytes:
    """Of a .npy file; NumPy leaves room in it for the count to grow, so it is as long for every count."""
    stream = io.BytesIO()
    about = {"descr": dtype.str, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(stream, about)
    return stream.getvalue()
