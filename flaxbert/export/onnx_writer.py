"""The nodes of an ONNX graph, as they are added: layers and activations in operations of opset 17.

Imported only where onnx is installed.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from flaxbert.config import BertConfig


class Writer:
    """Nodes and constants as they are added; values are known by their names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, operation: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """Adds a node; the name of its value."""
        name = name or f"{operation}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, inputs, [name], **attributes))
        return name

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """Adds an array."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def whole(self, *values: int) -> str:
        """Adds whole numbers, of shapes and axes."""
        return self.constant(values, np.int64)

    def linear(self, x: str, params: Any, inputs: int) -> str:
        """x times a kernel plus its bias; the first axes of the kernel, `inputs` long together, are summed over."""
        kernel, bias = np.asarray(params["kernel"]), np.asarray(params["bias"])
        product = self("MatMul", x, self.constant(kernel.reshape(inputs, -1)))
        return self("Add", product, self.constant(bias.reshape(-1)))

    def norm(self, x: str, params: Any, config: BertConfig) -> str:
        """Layer normalisation over the last axis."""
        scale, bias = self.constant(params["scale"]), self.constant(params["bias"])
        return self("LayerNormalization", x, scale, bias, axis=-1, epsilon=config.layer_norm_eps)


def _gelu(write: Writer, x: str) -> str:
    erf = write("Erf", write("Mul", x, write.constant(math.sqrt(0.5))))
    return write("Mul", write("Mul", x, write.constant(0.5)), write("Add", erf, write.constant(1)))


def _gelu_tanh(write: Writer, x: str) -> str:
    cube = write("Mul", write("Mul", write("Mul", x, x), x), write.constant(0.044715))
    tanh = write("Tanh", write("Mul", write("Add", x, cube), write.constant(math.sqrt(2 / math.pi))))
    return write("Mul", write("Mul", x, write.constant(0.5)), write("Add", tanh, write.constant(1)))


# By the names of `BertConfig.hidden_act`; the others have no user who would miss them.
ACTIVATIONS: dict[str, Callable[[Writer, str], str]] = {
    "gelu": _gelu,
    "gelu_python": _gelu,
    "gelu_accurate": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": lambda write, x: write("Relu", x),
    "silu": lambda write, x: write("Mul", x, write("Sigmoid", x)),
    "swish": lambda write, x: write("Mul", x, write("Sigmoid", x)),
    "tanh": lambda write, x: write("Tanh", x),
}
