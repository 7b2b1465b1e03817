"""Speed of the preparation of a text (tokens/s) and of the assembly of training batches, on this machine.

    python -m train.benchmark.text prepare TEXT --tokenizer vocab.txt
    python -m train.benchmark.text batches STORE

The first alternates between a whole preparation of the text and the tokenizers library alone, which gets the same
sentences, already read and split, and as many threads. The second makes training batches in one thread.
"""

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from train.data.pretraining.datasets import ExampleOptions
from train.data.pretraining.preparation import Preparation, prepare_store
from train.data.pretraining.reader import TextReader
from train.data.pretraining.store import TokenStore
from train.data.pretraining.store_batches import TrainBatches
from train.data.pretraining.tokens import split_sentences

_BATCH = 5000  # sentences of one call of the library


def main(arguments: list[str]) -> int:
    """Measure one of the two and print the speeds; return 0, or 2 for an error of the user."""
    parser = argparse.ArgumentParser(prog="python -m train.benchmark.text", description=__doc__, allow_abbrev=False)
    kinds = parser.add_subparsers(dest="kind", required=True)
    first = kinds.add_parser("prepare", help="text to tokens")
    first.add_argument("text", nargs="+")
    first.add_argument("--tokenizer", type=Path, required=True)
    first.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    second = kinds.add_parser("batches", help="tokens to batches")
    second.add_argument("store", type=Path)
    second.add_argument("--seconds", type=float, default=3.0)
    for kind in (first, second):
        kind.add_argument("--rounds", type=int, default=3)
    own = parser.parse_args(arguments)
    try:
        lines = _prepare(own) if own.kind == "prepare" else _batches(own)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


def _prepare(own: argparse.Namespace) -> list[str]:
    from flaxbert.tokenizer import WordPieceTokenizer

    os.environ |= {"RAYON_NUM_THREADS": str(own.workers), "TOKENIZERS_PARALLELISM": "true"}
    backend = WordPieceTokenizer.load(own.tokenizer).backend
    sentences = [sentence for line in TextReader(own.text) if line for sentence in split_sentences(line)]

    def library() -> float:
        count, start = 0, time.perf_counter()
        for start_index in range(0, len(sentences), _BATCH):
            batch = sentences[start_index : start_index + _BATCH]
            count += sum(map(len, backend.encode_batch_fast(batch, add_special_tokens=False)))
        return count / (time.perf_counter() - start)

    def preparation() -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            out = Path(folder) / "store"
            summary = prepare_store(Preparation(tuple(own.text), out, tokenizer=own.tokenizer, workers=own.workers))
            return summary["tokens"] / (time.perf_counter() - start)

    ours, theirs = [], []
    for _ in range(own.rounds):
        ours.append(preparation())
        theirs.append(library())
    return [
        _line(f"prepare, {own.workers} processes", ours),
        _line(f"tokenizers alone, {own.workers} threads", theirs),
        f"the library alone is {statistics.median(theirs) / statistics.median(ours):.2f} times as fast",
    ]


def _batches(own: argparse.Namespace) -> list[str]:
    store = TokenStore.open(own.store)
    documents = np.arange(store.document_count)
    lines = []
    for length, row_length in ((128, None), (128, 512), (512, None), (512, 512)):
        options = ExampleOptions(max_length=length, row_length=row_length)
        batches = TrainBatches(
            store,
            documents,
            build_examples=options.example_builder(store, documents),
            build_rows=options.row_builder(store),
            size=64,
            seed=0,
        )
        mask = "attention_mask" if row_length is None else "segment_ids"
        numbers, speeds = itertools.count(), []
        for _ in range(own.rounds):
            count, start = 0, time.perf_counter()
            while time.perf_counter() - start < own.seconds:
                count += int(np.count_nonzero(batches[next(numbers)][mask]))
            speeds.append(count / (time.perf_counter() - start))
        alone = f"rows of one pair of up to {length}"
        lines.append(_line(alone if row_length is None else f"pairs of {length} in rows of {row_length}", speeds))
    return lines


def _line(name: str, speeds: list[float]) -> str:
    return f"{name}: {statistics.median(speeds):,.0f} tokens/s ({min(speeds):,.0f} to {max(speeds):,.0f})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
