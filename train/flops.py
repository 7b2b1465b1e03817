"""Arithmetic of a train step, and the peak of the devices it runs on: what MFU is made of."""

import jax

from flaxbert.config import BertConfig

# Dense bfloat16 peak, FLOP/s a device, from the makers' data sheets; by the start of jax's device_kind.
_PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
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
    """Of all devices together, None where the kind is not in the table (any CPU)."""
    kind = jax.devices()[0].device_kind
    found = [peak for name, peak in _PEAKS.items() if kind.startswith(name)]
    return found[0] * jax.device_count() if found else None
