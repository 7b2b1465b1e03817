"""Load and save weights of every format.

`checkpoint_files` detects the format at a path and lists its tensors under Hugging Face's names; each format has a
module in `formats`, and `file_format` describes those of Hugging Face folders. `names` maps these names to paths in the
params dict. `load` matches the tensors to a model and reads them onto devices; `folder` writes a model folder.
`checksums` writes and verifies SHA256SUMS.
"""

from flaxbert.weights.folder import save
from flaxbert.weights.load import load

__all__ = ["load", "save"]
