"""Speed of `flaxbert predict embed` (texts/s) beside sentence-transformers, on one device and on real texts.

    python -m train.benchmark.embedding FOLDER TEXTS [--dtype bfloat16]

TEXTS has one text a line. The vectors of all implementations are compared first, then they take turns. Each one's
tokenizer is included. On a GPU with flash attention, sentence-transformers joins all texts of a batch without padding.
"""

import contextlib
import dataclasses
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from flaxbert.pipelines import SentenceEmbeddingPipeline

_SMALLEST_COSINE = {"float32": 0.9999, "bfloat16": 0.995}  # of the vectors of one text by two implementations
Embed = Callable[[Sequence[str]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class EmbeddingBenchmark:
    """Time embeddings of texts beside sentence-transformers."""

    folder: tyro.conf.Positional[Path]
    """Model folder that both load; of sentence-transformers, or any encoder, whose vectors are then means."""
    texts: tyro.conf.Positional[Path]
    """File with one text a line."""
    count: int = 2000
    """Texts of a turn, from the beginning of the file."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation."""
    batch_sizes: tuple[int, ...] = (32, 128)
    """Sequences of a batch; the first one is the default of both."""
    rounds: int = 3
    """Turns of each implementation."""


def main(arguments: list[str]) -> int:
    """Measure and print a table; return 0, or 2 for an error of the user."""
    settings = tyro.cli(EmbeddingBenchmark, args=arguments, prog="python -m train.benchmark.embedding")
    try:
        texts = [line for line in settings.texts.read_text(encoding="utf-8").splitlines() if line.strip()]
        texts = texts[: settings.count]
        implementations = {name: embed for size in settings.batch_sizes for name, embed in _both(settings, size)}
        tokens = _check(implementations, texts, settings)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"error: {error}; pip install -e '.[benchmark]'", file=sys.stderr)
        return 2
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    for _ in range(settings.rounds):
        for name, embed in implementations.items():
            start = time.perf_counter()
            embed(texts)
            seconds[name].append(time.perf_counter() - start)
    print(f"{jax.devices()[0].device_kind}, {len(texts)} texts, {tokens / len(texts):.1f} tokens on average")
    print("| implementation | texts/s (lowest to highest) | tokens/s without padding |\n| --- | --- | --- |")
    for name, own in seconds.items():
        speeds = [len(texts) / one for one in (statistics.median(own), max(own), min(own))]
        spread = f"{speeds[0]:,.1f} ({speeds[1]:,.1f} to {speeds[2]:,.1f})"
        print(f"| {name} | {spread} | {tokens / statistics.median(own):,.0f} |")
    return 0


def _both(settings: EmbeddingBenchmark, size: int) -> list[tuple[str, Embed]]:
    """Return both implementations with batches of this size, each with its name."""
    dtype = jnp.dtype(settings.dtype)
    pipeline = SentenceEmbeddingPipeline.from_pretrained(settings.folder, dtype=dtype, batch_size=size)
    peer, name = _sentence_transformer(settings)

    def theirs(texts: Sequence[str]) -> np.ndarray:
        vectors = peer.encode(list(texts), batch_size=size, show_progress_bar=False, convert_to_tensor=True)
        return vectors.float().cpu().numpy()

    return [(f"flaxbert, {size} a batch", pipeline), (f"{name}, {size} a batch", theirs)]


def _sentence_transformer(settings: EmbeddingBenchmark) -> tuple[Any, str]:
    """Return sentence-transformers' model and its name, with flash attention where it can be used."""
    with contextlib.redirect_stdout(sys.stderr):
        import sentence_transformers
        import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    attention, reason = "sdpa", ""
    if device == "cpu":
        reason = "no GPU"
    elif settings.dtype == "float32":
        reason = "float32"
    elif importlib.util.find_spec("flash_attn") is None and importlib.util.find_spec("kernels") is None:
        reason = "neither flash_attn nor kernels is installed"
    else:
        attention = "flash_attention_2"
    if reason:
        print(f"flash attention without padding is left out: {reason}", file=sys.stderr)
    arguments = {"attn_implementation": attention, "dtype": getattr(torch, settings.dtype)}
    model = sentence_transformers.SentenceTransformer(str(settings.folder), device=device, model_kwargs=arguments)
    return model, f"sentence-transformers, {attention}"


def _check(implementations: dict[str, Embed], texts: Sequence[str], settings: EmbeddingBenchmark) -> int:
    """Embed all texts once by each implementation, which compiles, and compare; return the number of tokens.

    Raises:
        ValueError: the vectors of a text differ.
    """
    found = {name: embed(texts) for name, embed in implementations.items()}
    name, first = next(iter(found.items()))
    for other, vectors in found.items():
        lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(vectors, axis=1)
        cosine = float(np.min(np.sum(first * vectors, axis=1) / lengths))
        if not cosine >= _SMALLEST_COSINE[settings.dtype]:
            raise ValueError(f"the vectors of {name} and {other} differ: the smallest cosine of a text is {cosine:.5f}")
    pipeline: Any = implementations[name]
    encodings = pipeline.tokenizer.encode(texts, [None] * len(texts), max_length=pipeline.max_length or 512)
    return sum(len(encoding.ids) for encoding in encodings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
