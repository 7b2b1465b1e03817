"""Weights between this library's parameter tree and files.

`names` is the table of names. `checkpoint_files` detects the format at a path and lists its tensors under those names;
each format has a module in `formats`. `file_format` describes the formats of Hugging Face folders. `load` matches the
tensors to a model; `folder` writes them. `checksums` reads and writes SHA256SUMS.
"""

from flaxbert.weights.folder import save
from flaxbert.weights.load import load

__all__ = ["load", "save"]
