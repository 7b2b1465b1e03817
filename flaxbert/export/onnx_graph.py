"""BERT as an ONNX graph, from its parameters. Values have the axes of `encoder.py`.

Imported only where onnx is installed.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from flaxbert.base import PreTrainedModel
from flaxbert.config import BertConfig
from flaxbert.export.onnx_heads import HEADS
from flaxbert.export.onnx_writer import ACTIVATIONS, Writer

_OPSET = 17  # the first with LayerNormalization
_IR_VERSION = 8  # that of opset 17: older runtimes refuse what they need not
_LARGEST = 2**31 - 2**20  # bytes of a protobuf
_LOWEST = float(np.finfo(np.float32).min)


def graph(model: PreTrainedModel, params: Any, *, length: int | None) -> onnx.ModelProto:
    """The model with int64 inputs [B, T] ([B, C, T] of multiple choice) and float32 outputs under their names.

    Raises:
        ValueError: an activation without ONNX operations, causal attention, or more than the 2 GB of a .onnx.
    """
    config, name = model.config, type(model).__name__
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(f"hidden_act is {config.hidden_act!r}; in ONNX: {', '.join(ACTIVATIONS)}. Use stablehlo")
    if config.is_decoder:
        raise ValueError("is_decoder is true; causal attention is not written as ONNX. Use stablehlo")
    size = sum(leaf.nbytes for leaf in _leaves(params))
    if size > _LARGEST:
        raise ValueError(f"the weights are {size:,} bytes; a .onnx holds less than 2 GB. Use stablehlo")
    axes: list[Any] = ["B", "C", "T"] if model.takes_choices else ["B", "T"]
    axes[-1] = length or "T"
    write = Writer()
    given = ["input_ids", "attention_mask", "token_type_ids"]
    flat = given
    if model.takes_choices:
        tail = write("Slice", write("Shape", given[0]), write.whole(2), write.whole(3))
        rows = write("Concat", write.whole(-1), tail, axis=0)
        flat = [write("Reshape", each, rows) for each in given]
    bert = params.get("bert", params)
    outputs = HEADS[name](write, _encoder(write, bert, config, *flat), params, config, axes)
    made = helper.make_model(
        helper.make_graph(
            write.nodes,
            name,
            [helper.make_tensor_value_info(each, TensorProto.INT64, axes) for each in given],
            [helper.make_tensor_value_info(each, TensorProto.FLOAT, shape) for each, shape in outputs.items()],
            write.constants,
        ),
        producer_name="flaxbert",
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    onnx.checker.check_model(made)
    return made


def _encoder(write: Writer, bert: Any, config: BertConfig, ids: str, mask: str, types: str) -> dict[str, str]:
    """The last states [B, T, D], and the word table of the tied decoder."""
    tables = {
        name: write.constant(bert["embeddings"][name]["embedding"]) for name in ("word", "position", "token_type")
    }
    length = write("Slice", write("Shape", ids), write.whole(1), write.whole(2))
    positions = write("Slice", tables["position"], write.whole(0), length)
    summed = write("Add", write("Gather", tables["word"], ids), write("Gather", tables["token_type"], types))
    x = write.norm(write("Add", summed, positions), bert["embeddings"]["norm"], config)
    masked = write("Cast", write("Equal", mask, write.whole(0)), to=TensorProto.FLOAT)
    bias = write("Mul", write("Unsqueeze", masked, write.whole(1, 2)), write.constant(_LOWEST))
    for layer in range(config.num_hidden_layers):
        x = _block(write, x, bias, _layer(bert["layers"], layer), config)
    return {"states": x, "word": tables["word"]}


def _block(write: Writer, x: str, bias: str, params: Any, config: BertConfig) -> str:
    attended = write("Add", _attention(write, x, bias, params["attention"], config), x)
    x = write.norm(attended, params["attention_norm"], config)
    up = ACTIVATIONS[config.hidden_act](write, write.linear(x, params["up"], config.hidden_size))
    down = write.linear(up, params["down"], config.intermediate_size)
    return write.norm(write("Add", down, x), params["output_norm"], config)


def _attention(write: Writer, x: str, bias: str, params: Any, config: BertConfig) -> str:
    width, apart = config.hidden_size, write.whole(0, 0, config.num_attention_heads, config.head_size)

    def heads(name: str, order: tuple[int, ...]) -> str:
        return write("Transpose", write("Reshape", write.linear(x, params[name], width), apart), perm=order)

    query, key, value = heads("query", (0, 2, 1, 3)), heads("key", (0, 2, 3, 1)), heads("value", (0, 2, 1, 3))
    scores = write("Mul", write("MatMul", query, key), write.constant(1 / math.sqrt(config.head_size)))
    weights = write("Softmax", write("Add", scores, bias), axis=-1)
    context = write("Transpose", write("MatMul", weights, value), perm=(0, 2, 1, 3))
    return write.linear(write("Reshape", context, write.whole(0, 0, width)), params["output"], width)


def _layer(stacked: Any, layer: int) -> Any:
    """The parameters of one layer, of those with a leading axis of layers."""
    if isinstance(stacked, dict):
        return {name: _layer(value, layer) for name, value in stacked.items()}
    return np.asarray(stacked)[layer]


def _leaves(tree: Any) -> Iterable[np.ndarray]:
    return (
        (leaf for value in tree.values() for leaf in _leaves(value)) if isinstance(tree, dict) else [np.asarray(tree)]
    )


def described(values: Iterable[onnx.ValueInfoProto]) -> dict[str, tuple[str, tuple[int | str, ...]]]:
    """Dtype and shape by name."""
    found = {}
    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
        found[value.name] = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name, shape
    return found
