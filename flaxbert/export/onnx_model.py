"""Export models as ONNX files for ONNX Runtime.

`transformers` loads the saved model and `torch.onnx` traces it. The TorchScript exporter traces the eager form of
attention, because ONNX Runtime's BERT optimizer fuses the attention of this graph, but neither that of `sdpa` nor that
of the exporter based on `torch.export` (tried with torch 2.13 and ONNX Runtime 1.32).
"""

import contextlib
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from flaxbert.export.exported_model import (
    ExportedModel,
    LoadedProgram,
    array_specs,
    installed_versions,
    load_model_to_export,
    model_outputs,
    write_export,
)
from flaxbert.families import architecture_of
from flaxbert.layers import Params
from flaxbert.models import PreTrainedModel
from flaxbert.weights.folder import save_pretrained

if TYPE_CHECKING:
    import torch

GRAPH = "model.onnx"
_OPSET = 17  # the first with LayerNormalization
_MAX_BYTES = 2**31 - 2**20  # a protobuf message holds less than 2 GB
_PACKAGES = ("torch", "transformers", "onnx", "onnxruntime")
_EXAMPLE_SIZES = {"B": 2, "C": 3, "T": 5}


def export_onnx(source: str | Path, target: str | Path, *, length: int | None = None) -> ExportedModel:
    """Export a model folder as an ONNX graph in float32 with int64 inputs; the file includes the weights.

    The arguments are those of `export_stablehlo`.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: as `load_model_to_export`, for the extra [onnx]; or the model is
            causal, has pruned heads or relative positions, or leaves out layers or tokens; the weights exceed the 2 GB
            of an ONNX file, or `torch.onnx` cannot export the model.
    """
    model, params, specs = load_model_to_export(source, target, length=length, packages=_PACKAGES, extra="onnx")
    if not architecture_of(model).is_in_transformers:
        name = architecture_of(model).name
        raise ValueError(f"transformers, which makes the ONNX graph, has no {name}. Use stablehlo")
    if model.config.is_decoder:
        raise ValueError("is_decoder is true; causal attention can't be exported as ONNX. Use stablehlo")
    if model.config.pruned_heads or model.config.has_relative_positions:
        raise ValueError(
            "the model has pruned heads or relative positions, and transformers 5, which makes the ONNX graph, has "
            "neither. Use stablehlo"
        )
    if model.config.layer_config is not None or model.config.length_config is not None:
        raise ValueError(
            "the model's config.json has a layer_config or a length_config, and transformers, which makes the ONNX "
            "graph, computes all layers and tokens. Use stablehlo"
        )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if size > _MAX_BYTES:
        raise ValueError(f"the weights are {size:,} bytes; an ONNX file holds less than 2 GB. Use stablehlo")
    outputs = jax.eval_shape(lambda params, *inputs: model_outputs(model, params, *inputs), params, *specs.values())
    description = ExportedModel(
        format="onnx",
        inputs=array_specs(specs, dtype="int64"),
        outputs=array_specs(outputs),
        platforms=("onnxruntime",),
        versions=installed_versions("flaxbert", "torch", "transformers", "onnxruntime") | {"opset": str(_OPSET)},
        readable_by=f"every release of ONNX Runtime that supports opset {_OPSET}",
        architecture=architecture_of(model).name,
        max_length=length or model.config.max_sequence_length,
    )

    def write_program(folder: Path) -> LoadedProgram:
        _write_graph(folder / GRAPH, model, params, description)
        return _load_graph(folder / GRAPH)

    return write_export(Path(target), model, params, description, write_program, length=length)


def _write_graph(file: Path, model: PreTrainedModel, params: Params, description: ExportedModel) -> None:
    import torch

    class NamedOutputs(torch.nn.Module):
        """Take the inputs and return the outputs in the order of the description."""

        def __init__(self, traced: torch.nn.Module):
            super().__init__()
            self.traced = traced

        def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            outputs = self.traced(**dict(zip(description.inputs, inputs, strict=True)))
            return tuple(getattr(outputs, name) for name in description.outputs)

    arrays = {**description.inputs, **description.outputs}
    dynamic_axes = {
        name: {index: axis for index, axis in enumerate(spec.shape) if isinstance(axis, str)}
        for name, spec in arrays.items()
    }
    sizes = _EXAMPLE_SIZES | {"T": min(_EXAMPLE_SIZES["T"], model.config.max_sequence_length)}
    examples = [
        torch.ones([sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape], dtype=torch.int64)
        for spec in description.inputs.values()
    ]
    traced = NamedOutputs(_torch_model(model, params)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing, and a notice that this exporter is not the default
        try:
            torch.onnx.export(
                traced,
                tuple(examples),
                str(file),
                input_names=list(description.inputs),
                output_names=list(description.outputs),
                dynamic_axes=dynamic_axes,
                opset_version=_OPSET,
                dynamo=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise ValueError(f"torch.onnx can't export this {type(model).__name__}: {error}. Use stablehlo") from None


def _torch_model(model: PreTrainedModel, params: Params) -> "torch.nn.Module":
    """Return the `transformers` model with these parameters."""
    import transformers

    pooling = {} if getattr(model, "add_pooling_layer", True) else {"add_pooling_layer": False}
    with tempfile.TemporaryDirectory() as folder, _no_progress_bars():
        save_pretrained(folder, model, params)
        torch_class = getattr(transformers, architecture_of(model).name)
        return torch_class.from_pretrained(folder, attn_implementation="eager", **pooling)


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _load_graph(file: Path) -> LoadedProgram:
    """Load the graph into ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    outputs = [value.name for value in session.get_outputs()]
    names = [value.name for value in session.get_inputs()]

    def run(*inputs: np.ndarray) -> dict[str, Any]:
        arrays = {name: np.asarray(value, np.int64) for name, value in zip(names, inputs, strict=True)}
        return dict(zip(outputs, session.run(outputs, arrays), strict=True))

    return run
