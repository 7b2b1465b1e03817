"""A small pretraining model, recorded gradients, and its tensors one by one as Hugging Face lays them out."""

import functools

import jax
import numpy as np
import optax

from flaxbert import BertConfig, BertForPreTraining
from flaxbert.families import BERT
from flaxbert.weights import names
from tests.trees import initial
from train.optim import make_optimizer

MODEL = BertForPreTraining(
    BertConfig(
        vocab_size=37,
        hidden_size=12,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=11,
    )
)
STEPS = 50


@functools.cache
def start():
    """Fresh parameters."""
    return initial(MODEL)


@functools.cache
def gradients():
    """One tree a step: of a scale of its own for every tensor, most words unseen, global norms on both sides of 1."""
    generator = np.random.default_rng(0)
    scales = jax.tree.map(lambda x: 10.0 ** generator.uniform(-3, -1), start())

    def step():
        noise = jax.tree.map(lambda x, scale: scale * generator.normal(size=x.shape), start(), scales)
        noise["bert"]["embeddings"]["word"]["embedding"] *= generator.random((37, 1)) < 0.2
        common = generator.lognormal(sigma=0.5)
        return jax.tree.map(lambda x: (common * x).astype(np.float32), noise)

    return [step() for _ in range(STEPS)]


def unstacked(tree):
    """The tensors of a tree of parameters by their Hugging Face names, one for each layer, linear weights [out, in]."""
    found = {}
    for entry in names.name_mappings(BERT, start()):
        leaf = np.asarray(names.leaf_at(tree, entry.path))
        found[entry.name] = entry.to_file_layout(leaf if entry.layer is None else leaf[entry.layer])
    return found


def decays(name):
    """Whether Hugging Face's and Google's rule applies weight decay to a tensor."""
    return not name.endswith("bias") and "LayerNorm" not in name


def trained(settings, params=None, recorded=None):
    """The parameters after an update for each of the recorded gradients."""
    recorded = gradients() if recorded is None else recorded
    optimizer = make_optimizer(settings, len(recorded))
    params = start() if params is None else params
    state = optimizer.init(params)

    @jax.jit
    def update(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in recorded:
        params, state = update(params, state, gradient)
    return jax.device_get(params)


def clipped(limit):
    """The recorded gradients, unstacked, in float64, scaled down to a global norm of `limit`."""
    for gradient in gradients():
        tensors = {name: np.float64(x) for name, x in unstacked(gradient).items()}
        norm = np.sqrt(sum(np.sum(x**2) for x in tensors.values()))
        yield {name: x * min(1.0, limit / norm) for name, x in tensors.items()}


def relative_differences(tree, reference):
    """For each tensor the largest absolute difference over the largest absolute value of the reference."""
    return {
        name: np.max(np.abs(tensor - reference[name])) / np.max(np.abs(reference[name]))
        for name, tensor in unstacked(tree).items()
    }
