"""FLOPs of a train step, and the documented peaks of accelerators: together they give the MFU."""

import dataclasses

import jax

from flaxbert.config import BertConfig

_SPEC = "Google Cloud's TPU documentation; links: How to Scale Your Model (Austin et al., 2025), TPU specs"
# No document states the clock of these chips. Inferred is the clock at which peak = clock x operations per cycle of the
# matrix units. For v6e and tpu7x that is twice the operations of two 256x256 units per core; with fewer, the compiler's
# cycles of a large matrix product would exceed the peak. At these clocks the compiler's estimate of such a product is
# 70 to 93 % of the peak on every chip, and that of a stream through HBM 72 to 81 % of the bandwidth.
_INFERRED = "inferred: the peak over the operations a cycle of the matrix units"


@dataclasses.dataclass(frozen=True)
class Chip:
    """Figures of one TPU chip; those of a JAX device are these divided by `devices`."""

    name: str
    kinds: tuple[str, ...]
    """Values of `device_kind` in different versions of JAX."""
    devices: int
    """JAX devices of one chip (the two cores of a v4 or v5p chip are one device, those of a tpu7x chip are two)."""
    cores: int
    clock: float
    """Clock of a core in Hz."""
    peak_flops: float
    """Peak of dense bfloat16 in FLOP/s."""
    hbm_bytes: float
    hbm_bandwidth: float
    """Bytes/s."""
    link_bandwidth: float
    """Bytes/s in one direction of one link between chips."""
    links: int
    """Links of one chip, two along every dimension of the torus."""
    pod: int
    """Largest number of chips of a slice."""
    ring: int
    """A dimension of a slice is closed to a ring if its size is a multiple of this."""
    source: str
    clock_source: str

    @property
    def vector_operations(self) -> float:
        """Return the peak of the vector units in 32-bit operations/s: 8 x 128 lanes with four units each per core."""
        return 8 * 128 * 4 * self.cores * self.clock


V4 = Chip(
    "v4", ("TPU v4",), 1, 2, 1.05e9, 275e12, 32 * 2**30, 1.228e12, 4.5e10, 6, 4096, 4, _SPEC, "Jouppi et al., ISCA 2023"
)
_V5E, _V5P, _V6E = ("TPU v5 lite", "TPU v5e"), ("TPU v5", "TPU v5p"), ("TPU v6 lite", "TPU v6e")
V5E = Chip("v5e", _V5E, 1, 1, 1.5e9, 197e12, 16 * 2**30, 8.19e11, 4.5e10, 4, 256, 16, _SPEC, "How to Scale Your Model")
V5P = Chip("v5p", _V5P, 1, 2, 1.75e9, 459e12, 95 * 2**30, 2.765e12, 9e10, 6, 8960, 4, _SPEC, _INFERRED)
V6E = Chip("v6e", _V6E, 1, 1, 1.75e9, 918e12, 32 * 2**30, 1.638e12, 9e10, 4, 256, 16, _SPEC, _INFERRED)
TPU7X = Chip("tpu7x", ("TPU7x",), 2, 2, 2.2e9, 2307e12, 192 * 2**30, 7.38e12, 9e10, 6, 9216, 4, _SPEC, _INFERRED)

CHIPS = (V4, V5E, V5P, V6E, TPU7X)

# Dense bfloat16 peak of GPUs in FLOP/s, from NVIDIA's data sheets, by the beginning of JAX's device_kind.
_GPUS = {"NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12, "NVIDIA B200": 2250e12}


def peak_flops() -> float | None:
    """Return the bfloat16 peak of all JAX devices together in FLOP/s; None for unknown devices and CPUs."""
    peak = device_peak(jax.devices()[0].device_kind)
    return None if peak is None else peak * jax.device_count()


def device_peak(kind: str) -> float | None:
    """Return the bfloat16 peak in FLOP/s of one device with this `device_kind`; None if it is unknown."""
    tpus = [chip.peak_flops / chip.devices for chip in CHIPS if kind in chip.kinds]
    gpus = [peak for name, peak in _GPUS.items() if kind.startswith(name)]
    return next(iter(tpus + gpus), None)


def train_flops(
    config: BertConfig, *, tokens: int, squares: int, predictions: int = 0, pooled: int = 0, other_flops: float = 0.0
) -> float:
    """Return the FLOPs of forward and backward pass, a multiply-add as two; backward counts twice forward.

    Args:
        config: sizes of the model.
        tokens: positions that are not padding.
        squares: sum of the squared sequence lengths (attention).
        predictions: positions scored against the vocabulary; 0 for a classifier, whose head is negligible.
        pooled: sequences for which the last layer computes only the first position; 0 if it computes all positions.
        other_flops: added; `cross_attention_flops`, for example.
    """
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    # FLOPs of one layer per position for keys and values, per position for the other matrices, per pair of positions.
    keys_values, others, pair = 4 * width * width, 4 * width * width + 4 * width * inner, 4 * width
    stack = layers * (keys_values * tokens + others * tokens + pair * squares)
    if pooled:
        stack -= others * (tokens - pooled) + pair * (squares - tokens)
    head = 2 * config.embedding_width * (width + config.vocab_size) * predictions
    return 3.0 * (stack + head) + other_flops


def cross_attention_flops(config: BertConfig, *, tokens: int, encoder_tokens: int, pairs: int) -> float:
    """Return the FLOPs of a decoder's attention to an encoder, of forward and backward pass.

    Args:
        config: sizes of the decoder.
        tokens, encoder_tokens: positions of the decoder and of the encoder that are not padding.
        pairs: pairs of a position of the decoder and one of the encoder.
    """
    width = config.hidden_size
    return 3.0 * config.num_hidden_layers * 4 * width * (width * (tokens + encoder_tokens) + pairs)
