"""Random numbers that are functions of keys: the same for a token wherever, whenever and beside whatever it is drawn.

SplitMix64 (Steele, Lea and Flood, 2014) in counter form: its output function applied to a key and a counter.
"""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mixed(*keys: int | np.ndarray) -> np.ndarray:
    """64 random bits for every combination of keys, which broadcast against each other.

    Keys in another order, or one more of them, give unrelated bits.
    """
    bits = np.zeros(1, np.uint64)  # an array: NumPy warns of scalars that wrap around, as these do on purpose
    for key in keys:
        bits = _mix(bits + _GOLDEN + np.asarray(key).astype(np.uint64))
    return bits


def key_of(*keys: int) -> int:
    """`mixed` for plain numbers."""
    return int(mixed(*keys)[0])


def uniform(bits: np.ndarray) -> np.ndarray:
    """Random bits as numbers, evenly between 0 (included) and 1."""
    return (bits >> np.uint64(11)) * 2.0**-53


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
