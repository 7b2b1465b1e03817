"""Export models as programs that run without this library: StableHLO through `jax.export`, ONNX through `torch.onnx`.

An export folder holds the program, a description of its inputs and outputs (export.json), and the tokenizer files.
"""

from flaxbert.export.exported_model import ArraySpec, ExportedModel
from flaxbert.export.onnx_model import export_onnx
from flaxbert.export.stablehlo import export_stablehlo, load_stablehlo

__all__ = ["ArraySpec", "ExportedModel", "export_onnx", "export_stablehlo", "load_stablehlo"]

_RENAMED = {"Exported": "ExportedModel", "load": "load_stablehlo"}


def __getattr__(name: str) -> object:
    if name in _RENAMED:
        # ImportError, because `from ... import` would hide the message of an AttributeError.
        raise ImportError(f"flaxbert.export.{name} is now flaxbert.export.{_RENAMED[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
