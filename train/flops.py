"""Arithmetic of a train step, and the peak of the devices it runs on: what MFU is made of."""

import jax

from flaxbert.config import BertConfig
from train.chips import CHIPS

# Dense bfloat16 peak of GPUs, FLOP/s, from the maker's data sheets; by the start of jax's device_kind.
_GPUS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def train_flops(config: BertConfig, *, tokens: int, squares: int, predictions: int, pooled: int = 0) -> float:
    """Multiply-adds (as two operations) of forward and backward over real tokens; backward is twice forward.

    Args:
        config: the model's sizes.
        tokens: positions that are not padding.
        squares: the sum of squared sequence lengths (attention).
        predictions: positions scored against the vocabulary; 0 for a classifier, whose head is negligible.
        pooled: sequences of which the last block computes the first position only; 0 where it computes them all.
    """
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    # Of one block: keys and values; query, output, feed-forward; scores and contexts.
    source, position, pair = 4 * width * width, 4 * width * width + 4 * width * inner, 4 * width
    blocks = layers * (source * tokens + position * tokens + pair * squares)
    if pooled:
        blocks -= position * (tokens - pooled) + pair * (squares - tokens)
    head = 2 * (width * width + width * config.vocab_size) * predictions
    return 3.0 * (blocks + head)


def peak_flops() -> float | None:
    """Of all devices together, None where the kind is not in the tables (any CPU)."""
    peak = device_peak(jax.devices()[0].device_kind)
    return None if peak is None else peak * jax.device_count()


def device_peak(kind: str) -> float | None:
    """Of one device of a kind that JAX names so."""
    tpus = [chip.peak_flops / chip.devices for chip in CHIPS if kind in chip.kinds]
    gpus = [peak for name, peak in _GPUS.items() if kind.startswith(name)]
    return next(iter(tpus + gpus), None)
