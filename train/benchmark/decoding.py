"""Speed of text generation beside PyTorch's `transformers`, and beside decoding without a cache, on one device.

    python -m train.benchmark.decoding --sizes mini base --rows 1 16 --length 256

All implementations continue the same random prompts with the same random parameters, without an end token; their tokens
are compared first. They take turns, and the table has medians. "no cache" computes the whole sequence anew for each
token, at its present length rounded up to a multiple of 32.
"""

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import flaxbert
from flaxbert.generation import GenerationSettings, generate, prepare_for_generation, stream
from flaxbert.layers import Params
from train.environment import restart_with_malloc_settings

_ROUNDING = 32  # columns; each length is a program of its own


@dataclasses.dataclass(frozen=True)
class DecodingBenchmark:
    """Time greedy or beam search."""

    sizes: tuple[Literal["tiny", "mini", "small", "medium", "base", "large"], ...] = ("mini",)
    """Model sizes, by the names of Turc et al. (2019) and Devlin et al. (2018)."""
    rows: tuple[int, ...] = (1, 16)
    """Prompts of a batch."""
    prompt: int = 16
    """Tokens of a prompt."""
    length: int = 256
    """Tokens of a sequence, with the prompt."""
    num_beams: int = 1
    """Beams of each prompt; 1 is greedy search."""
    peers: tuple[Literal["torch", "no cache"], ...] = ("torch", "no cache")
    """Implementations to compare with."""
    rounds: int = 3
    """Turns of each implementation."""


Tokens = Callable[[], np.ndarray]


def main(arguments: list[str]) -> int:
    """Measure and print a table; return 0, or 1 if the tokens differ."""
    settings = tyro.cli(DecodingBenchmark, args=arguments, prog="python -m train.benchmark.decoding")
    print("| model | prompts | | seconds | tokens/s | slower | first token |\n| --- " + "| --- " * 6 + "|")
    for size in settings.sizes:
        for rows in settings.rows:
            if not _measure(size, rows, settings):
                return 1
    return 0


def _measure(size: str, rows: int, settings: DecodingBenchmark) -> bool:
    """Print a row of the table for each implementation; return False if their tokens differ."""
    config = getattr(flaxbert.BertConfig, size)(is_decoder=True)
    model, params = flaxbert.BertLMHeadModel(config), _random_parameters(flaxbert.BertLMHeadModel(config))
    ids = np.random.default_rng(1).integers(1, config.vocab_size, (rows, settings.prompt))
    options = GenerationSettings(max_new_tokens=settings.length - settings.prompt, num_beams=settings.num_beams)
    ready = prepare_for_generation(model, params)
    implementations: dict[str, Tokens] = {
        "flaxbert": lambda: np.asarray(generate(*ready, ids, settings=options).sequences)
    }
    if "torch" in settings.peers:
        implementations["torch"] = _torch_generate(model, params, ids, options)
    if "no cache" in settings.peers and settings.num_beams == 1:
        implementations["no cache"] = lambda: _generate_without_cache(model, params, ids, settings.length)
    tokens = {name: run() for name, run in implementations.items()}  # compiles, too
    different = [name for name, found in tokens.items() if not np.array_equal(found, tokens["flaxbert"])]
    if different:
        print(f"error: {size}, {rows} prompts: the tokens of {different[0]} are others", file=sys.stderr)
        return False
    times: dict[str, list[float]] = {name: [] for name in implementations}
    first: list[float] = []
    for _ in range(settings.rounds):
        for name, run in implementations.items():
            times[name].append(_seconds(run))
        if settings.num_beams == 1:
            first.append(_seconds(lambda: next(stream(*ready, ids, settings=options))))
    own = statistics.median(times["flaxbert"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        speed = f"{rows * options.new_tokens / median:,.0f}"
        wait = f"{1e3 * statistics.median(first):.0f} ms" if first and name == "flaxbert" else ""
        print(f"| {size} | {rows} | {name} | {median:.2f} | {speed} | {median / own:.2f} | {wait} |", flush=True)
    return True


def _seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _random_parameters(model: flaxbert.BertLMHeadModel) -> Params:
    """Return parameters that are large enough for the tokens not to be nearly equal in score."""
    rng = np.random.default_rng(0)

    def leaf(path: jax.tree_util.KeyPath, shape: jax.ShapeDtypeStruct) -> jax.Array:
        mean, deviation = (1.0, 0.0) if path[-1].key == "scale" else (0.0, 0.05)
        return jnp.asarray(rng.normal(mean, deviation, shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, model.parameter_shapes())


def _generate_without_cache(
    model: flaxbert.BertLMHeadModel, params: Params, ids: np.ndarray, length: int
) -> np.ndarray:
    """Return greedy continuations, computing the whole sequence for each token."""
    tokens = np.zeros((len(ids), length), np.int32)
    tokens[:, : ids.shape[1]] = ids
    for column in range(ids.shape[1], length):
        columns = min(-(-column // _ROUNDING) * _ROUNDING, length)
        tokens[:, column] = _next_token(model, params, tokens[:, :columns], np.int32(column - 1))
    return tokens


@jax.jit(static_argnums=0)
def _next_token(model: flaxbert.BertLMHeadModel, params: Params, tokens: jax.Array, last: jax.Array) -> jax.Array:
    positions = jnp.broadcast_to(last, (len(tokens), 1))
    output: Any = model.apply({"params": params}, tokens, logit_positions=positions)
    return jnp.argmax(output.logits[:, 0], axis=1)


def _torch_generate(
    model: flaxbert.BertLMHeadModel, params: Params, ids: np.ndarray, options: GenerationSettings
) -> Tokens:
    """Return the function that generates with the same parameters by transformers."""
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        flaxbert.save_pretrained(folder, model, params)
        reference: Any = transformers.BertLMHeadModel.from_pretrained(folder).eval()
    mask = torch.ones(ids.shape, dtype=torch.long)

    def run() -> np.ndarray:
        with torch.inference_mode():
            limits = {"max_new_tokens": options.new_tokens, "num_beams": options.num_beams}
            return reference.generate(torch.tensor(ids), attention_mask=mask, **limits).numpy()

    return run


if __name__ == "__main__":
    restart_with_malloc_settings()
    sys.exit(main(sys.argv[1:]))
