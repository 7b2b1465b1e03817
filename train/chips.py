"""What the makers and others document about each TPU chip."""

import dataclasses

_SPEC = "Google Cloud's TPU documentation; links: How to Scale Your Model (Austin et al., 2025), TPU specs"
# For chips of which no document gives the clock: the one at which peak = clock x operations a cycle of the matrix
# units, with twice the operations of two units of 256x256 a core on v6e and tpu7x; fewer would let the compiler's
# cycles of a large product exceed the peak. At these clocks its cost of such a product comes to 70 to 93% of the peak,
# on every chip, and that of a stream through HBM to 72 to 81% of the bandwidth.
_INFERRED = "inferred: the peak over the operations a cycle of the matrix units"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip; figures of a JAX device are these over `devices`."""

    name: str
    kinds: tuple[str, ...]
    """How versions of JAX name a device of it."""
    devices: int
    """JAX devices on one chip (two cores of a v4 or v5p chip are one device, those of a tpu7x chip are two)."""
    cores: int
    clock: float
    """Hz of a core."""
    peak_flops: float
    """Dense bfloat16, FLOP/s."""
    hbm_bytes: float
    hbm_bandwidth: float
    """Bytes/s."""
    link_bandwidth: float
    """Bytes/s one way of one link between chips."""
    links: int
    """Of one chip, two along every dimension of the torus."""
    pod: int
    """The most chips of a slice."""
    ring: int
    """A dimension of a slice closes into a ring where its size is a multiple of this."""
    source: str
    clock_source: str

    @property
    def vector_operations(self) -> float:
        """Of the vector units, 32-bit operations/s: 8 x 128 places of four each, in each core."""
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
