"""Arithmetic of the matrix products in a compiled program."""

import math
import re

import numpy as np

from train.aot.hlo import Computation, Instruction

PRODUCTS = ("dot", "convolution")


def product_flops(computation: Computation, instruction: Instruction) -> float:
    """Operations of a `dot` or `convolution`, a multiply-add as two.

    On a TPU every matrix product is a convolution; axes that are batched or joined become windows with padding,
    whose empty positions are not counted.
    """
    left, right = (computation.by_name[name].shapes[0].dims for name in instruction.operands[:2])
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        dims = [int(n) for n in contracted[1].split(",") if n] if contracted else []
        return 2.0 * instruction.shapes[0].elements * math.prod(left[n] for n in dims)
    return _convolution(left, right, instruction)


def _convolution(left: tuple[int, ...], right: tuple[int, ...], instruction: Instruction) -> float:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        raise ValueError(f"{instruction.name} names no dim_labels")
    source, kernel, result = labels.groups()
    out = instruction.shapes[0].dims
    flops = 2.0 * out[result.index("b")] * out[result.index("f")] * right[kernel.index("i")]
    for place, mark in enumerate(sorted(c for c in result if c.isdigit())):
        flops *= _positions(
            size=left[source.index(mark)],
            window=right[kernel.index(mark)],
            steps=out[result.index(mark)],
            settings=_window(instruction.attributes, place),
        )
    return flops


def _window(attributes: str, place: int) -> tuple[int, int, int, int]:
    """Stride, padding before, dilation of the left and of the right side along one axis of the window."""
    found = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(field.split("=") for field in found[1].split()) if found else {}

    def at(name: str, default: str) -> str:
        return fields[name].split("x")[place] if name in fields else default

    pad = at("pad", "0_0").split("_")[0]
    return int(at("stride", "1")), int(pad), int(at("lhs_dilate", "1")), int(at("rhs_dilate", "1"))


def _positions(*, size: int, window: int, steps: int, settings: tuple[int, int, int, int]) -> int:
    """Pairs (output, tap of the window) that meet an entry of the left side, not padding or a gap between entries."""
    stride, before, spread, reach = settings
    places = stride * np.arange(steps)[:, None] + reach * np.arange(window) - before
    return int(np.sum((places >= 0) & (places <= (size - 1) * spread) & (places % spread == 0)))
