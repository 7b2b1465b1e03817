"""Models as programs that run without this library: StableHLO by `jax.export`, and ONNX.

A folder holds the program, what goes in and out of it as export.json, and the tokenizer's files.
"""

from flaxbert.export.folder import Exported
from flaxbert.export.onnx_file import export_onnx
from flaxbert.export.stablehlo import export_stablehlo, load

__all__ = ["Exported", "export_onnx", "export_stablehlo", "load"]
