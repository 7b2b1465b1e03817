"""Weights between this library's parameter tree and files.

`names` is the table of names. `source` finds out what lies at a path: a Hugging Face folder (`folder`, of `safetensors`
files) or a TensorFlow 1 checkpoint (`tf1`, in the format of `tensor_bundle`). `load` fits its tensors to a model.
"""

from flaxbert.weights.folder import save
from flaxbert.weights.load import load

__all__ = ["load", "save"]
