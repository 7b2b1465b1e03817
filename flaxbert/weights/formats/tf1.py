"""Google's TensorFlow 1 checkpoints of BERT under Hugging Face's names and in PyTorch's layout.

TensorFlow 1 (google-research/bert)                       Hugging Face
bert/embeddings/word_embeddings [V, D]                    bert.embeddings.word_embeddings.weight
bert/encoder/layer_N/attention/self/query/kernel [D, D]   bert.encoder.layer.N.attention.self.query.weight, transposed
.../LayerNorm/gamma, beta                                 .../LayerNorm.weight, bias
cls/predictions/output_bias [V]                           cls.predictions.bias
cls/seq_relationship/output_weights [2, D]                cls.seq_relationship.weight
output_weights [N, D] (run_classifier.py)                 classifier.weight
cls/squad/output_weights [2, D] (run_squad.py)            qa_outputs.weight
"""

import re
from pathlib import Path

from flaxbert.weights.formats.tensor_bundle import read_bundle_index
from flaxbert.weights.tensors import LazyTensor, TransposedTensor

# Variables of the optimizers of google-research/bert (Adam) and of NVIDIA's BERT (LAMB, loss scaling), and the names
# that TensorFlow gives to an optimizer's slots: VARIABLE/OPTIMIZER, VARIABLE/OPTIMIZER_1.
_NOT_WEIGHTS = re.compile(
    r"(.*/)?(adam_[mv]|lamb_[mv])(_\d+)?|.*/(Adam|AdamWeightDecayOptimizer)(_\d+)?|(.*/)?beta[12]_power|"
    r"global_step|.*(loss_scale|good_steps).*"
)
_HEADS = {
    "cls/predictions/output_bias": "cls.predictions.bias",
    "cls/seq_relationship/output_weights": "cls.seq_relationship.weight",
    "cls/seq_relationship/output_bias": "cls.seq_relationship.bias",
    "cls/squad/output_weights": "qa_outputs.weight",
    "cls/squad/output_bias": "qa_outputs.bias",
    "output_weights": "classifier.weight",
    "output_bias": "classifier.bias",
}
_ENDINGS = {"kernel": "weight", "gamma": "weight", "beta": "bias", "bias": "bias"}


def open_tf1(prefix: Path) -> tuple[dict[str, LazyTensor], list[str]]:
    """Return the weights of the checkpoint PREFIX by Hugging Face's names, unread, and the names of other variables.

    Unknown names stay as they are, so that the loader reports them.

    Raises:
        FileNotFoundError: the index or a data file is missing.
        ValueError: a file is damaged, or the checkpoint is one of TensorFlow 2.
    """
    variables = read_bundle_index(prefix)
    if any(name.endswith("/.ATTRIBUTES/VARIABLE_VALUE") for name in variables):
        raise ValueError(
            f"{prefix}: a TensorFlow 2 checkpoint (objects instead of names), which is not supported; "
            "TensorFlow 1 checkpoints of google-research/bert are. Export it to safetensors first"
        )
    skipped: list[str] = []
    tensors: dict[str, LazyTensor] = {}
    for name, variable in variables.items():
        if _NOT_WEIGHTS.fullmatch(name):
            skipped.append(name)
            continue
        renamed = from_tf1_name(name)
        if renamed in tensors:
            raise ValueError(f"{prefix}.index: {name!r} and another variable are both {renamed!r}")
        kernel = name.endswith("/kernel") and len(variable.shape) == 2
        tensors[renamed] = TransposedTensor(variable) if kernel else variable
    return tensors, skipped


def from_tf1_name(name: str) -> str:
    """Convert a variable's name to Hugging Face's."""
    if name in _HEADS:
        return _HEADS[name]
    if name.endswith("_embeddings"):
        return name.replace("/", ".") + ".weight"
    path, _, ending = name.rpartition("/")
    if not path or ending not in _ENDINGS:
        return name
    return f"{re.sub(r'/layer_(?=[0-9])', '/layer/', path).replace('/', '.')}.{_ENDINGS[ending]}"
