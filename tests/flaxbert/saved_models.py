"""Small models in folders, and what such folders hold, for the tests of conversions."""

import jax
import numpy as np

import flaxbert
from flaxbert.families import BERT
from flaxbert.weights.checkpoint import open_checkpoint

# Those of transformers.
BERT_CLASSES = sorted(known.name for known in BERT.architectures if known.is_in_transformers)
CONFIG = flaxbert.BertConfig(
    vocab_size=61,
    hidden_size=15,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=17,
    max_position_embeddings=13,
    type_vocab_size=3,
    id2label=("a", "b", "c"),
)


def folder_of(name, folder, dtype=np.float32, config=CONFIG, **arguments):
    """A saved model with random weights."""
    model = flaxbert.ARCHITECTURES[name](config.replace(is_decoder=name == "BertLMHeadModel"))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0.1, 0.3, leaf.shape).astype(np.float32), model.parameter_shapes())
    flaxbert.save_pretrained(folder, model, params, dtype=dtype, **arguments)
    return folder


def tensors_of(path):
    return {name: tensor.read() for name, tensor in open_checkpoint(path).tensors.items()}


def assert_bit_equal(left, right):
    left, right = ({k: (v.dtype, v.shape, v.tobytes()) for k, v in side.items()} for side in (left, right))
    assert left.keys() == right.keys()
    assert {name for name in left if left[name] != right[name]} == set()


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
