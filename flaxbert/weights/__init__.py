"""Weights between this library's parameter tree and files.

`names` is the table of names. `source` finds out what lies at a path, and gives its tensors under those names: a
Hugging Face folder (`layout`: safetensors, pytorch_model.bin, flax_model.msgpack), a TensorFlow 1 checkpoint (`tf1`, in
the format of `tensor_bundle`), parameters that orbax wrote (`orbax_params`). `load` fits them to a model; `folder`
writes them. `sums` are the checksums beside them.
"""

from flaxbert.weights.folder import save
from flaxbert.weights.load import load

__all__ = ["load", "save"]
