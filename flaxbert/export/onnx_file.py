"""Models as ONNX files, which onnxruntime runs.

Written straight from the parameters: tracing converters lag behind jax, and the one that is kept up (jax2onnx)
cannot be installed beside the orbax of this library. A BERT is few enough operations to write down.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxbert.export.folder import Exported, Run, checked_length, require, versions, written
from flaxbert.files import require_absent
from flaxbert.pretrained import from_pretrained

GRAPH = "model.onnx"


def export_onnx(source: str | Path, target: str | Path, *, length: int | None = None) -> Exported:
    """Writes a model folder as an ONNX graph in float32, weights inside; its inputs are int64.

    Arguments and errors are those of `export_stablehlo`, and what `onnx_graph.graph` says that it cannot write.
    """
    for name in ("onnx", "onnxruntime"):
        require(name, "onnx")
    from flaxbert.export import onnx_graph

    require_absent(Path(target))
    model, params = from_pretrained(source)
    graph = onnx_graph.graph(model, jax.device_get(params), length=checked_length(model, length))
    described = {
        "inputs": onnx_graph.described(graph.graph.input),
        "outputs": onnx_graph.described(graph.graph.output),
        "platforms": ("onnxruntime",),
        "versions": versions("flaxbert", "onnx", "onnxruntime") | {"opset": str(graph.opset_import[0].version)},
    }

    def write(folder: Path) -> Run:
        (folder / GRAPH).write_bytes(graph.SerializeToString())
        return _loaded(folder / GRAPH)

    return written(Path(target), "onnx", model, params, described, write, length)


def _loaded(file: Path) -> Run:
    """The graph in onnxruntime, on the CPU: inputs in their order to outputs by name."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names, outputs = ([value.name for value in values] for values in (session.get_inputs(), session.get_outputs()))

    def run(*inputs: np.ndarray) -> dict[str, Any]:
        given = {name: np.asarray(value, np.int64) for name, value in zip(names, inputs, strict=True)}
        return dict(zip(outputs, session.run(outputs, given), strict=True))

    return run
