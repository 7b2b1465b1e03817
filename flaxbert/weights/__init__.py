"""Weights between this library's parameter tree and files.

`names` is the table of names, `folder` Hugging Face's folders, `safetensors` their files; `load` fits them to a model.
"""

from flaxbert.weights.folder import save
from flaxbert.weights.load import load

__all__ = ["load", "save"]
