"""State of every optimizer on eight devices: sharded when created, updated, restored from checkpoints."""

import chex
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from flaxbert import BertConfig, BertForMaskedLM
from flaxbert.losses import Loss
from flaxbert.sharding import AxisRules, make_mesh
from train.checkpoint.store import Checkpoints
from train.distributed import Placement
from train.optim import Optim, make_optimizer
from train.optim.algorithms import Adafactor, AdamW, BertAdam, Lamb
from train.step import compile_step, create_state, state_shapes, state_shardings

MODEL = BertForMaskedLM(
    BertConfig(
        vocab_size=24,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        hidden_act="xielu",  # with parameters of one number a layer
    )
)
# The feed-forward and the vocabulary split over all devices, as no batch is.
RULES = AxisRules(vocab="data", mlp="data")
SEED = np.uint32(0)
BATCH = {"target": np.linspace(-1, 1, 8, dtype=np.float32)}

settings = pytest.mark.parametrize(
    "settings",
    [
        Optim(algorithm=AdamW()),
        pytest.param(Optim(algorithm=BertAdam()), marks=pytest.mark.slow),
        pytest.param(Optim(algorithm=Lamb(), layer_decay=0.9), marks=pytest.mark.slow),
        pytest.param(Optim(algorithm=Adafactor(scale_parameter=True, beta1=0.9)), marks=pytest.mark.slow),
        Optim(algorithm=Adafactor(), frozen=("bert/embeddings",)),
    ],
    ids=lambda settings: type(settings.algorithm).__name__,
)


def loss_function(params, batch, key):
    """How far all parameters are from the batch's mean and from a wave; no model, so that it compiles quickly."""
    mean = batch["target"].mean()
    waves = [np.sin(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape) for leaf in jax.tree.leaves(params)]
    apart = [((leaf - wave - mean) ** 2).sum() for leaf, wave in zip(jax.tree.leaves(params), waves, strict=True)]
    return Loss(sum(apart[1:], apart[0]), np.ones((), np.float32))


def stepped(settings, devices, steps=3):
    placement = Placement(make_mesh(devices), RULES)
    optimizer = make_optimizer(settings, steps)
    shardings = state_shardings(MODEL, optimizer, placement)
    generator = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: generator.normal(size=x.shape).astype(np.float32), MODEL.parameter_shapes())
    state = create_state(MODEL, optimizer, shardings, seed=0, params=drawn)
    step = compile_step(loss_function, optimizer, placement, shardings)
    for _ in range(steps):
        state, _ = step(state, placement.batch(BATCH), SEED)
    return state, shardings, optimizer


@settings
def test_eight_devices_train_as_one(settings, tmp_path):
    state, shardings, optimizer = stepped(settings, jax.devices())
    jax.tree.map(lambda leaf, sharding: chex.assert_equal(leaf.sharding, sharding), state, shardings)
    single, _, _ = stepped(settings, jax.devices()[:1])
    chex.assert_trees_all_close(state.params, jax.device_get(single.params), rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(state.opt_state, jax.device_get(single.opt_state), rtol=1e-5, atol=1e-7)

    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(state, 3)
        checkpoints.wait()
        restored = checkpoints.restore(state_shapes(MODEL, optimizer), shardings)
    chex.assert_trees_all_equal(restored, state)
    jax.tree.map(lambda leaf, sharding: chex.assert_equal(leaf.sharding, sharding), restored, shardings)


# Arrays of the parameter's own shape that a kernel (or embedding) and a bias have: Adafactor's average, and the second
# moment of what has no rows and columns.
COUNTS = [(AdamW(), 2, 2), (BertAdam(), 2, 2), (Lamb(), 2, 2), (Adafactor(beta1=0.9), 1, 2), (Adafactor(), 0, 1)]


@pytest.mark.parametrize(("rule", "of_kernels", "of_biases"), COUNTS)
def test_moments_live_with_their_parameters_and_all_else_everywhere(rule, of_kernels, of_biases):
    split = {
        "bert/layers/up/kernel": PartitionSpec(None, None, "data"),
        "bert/layers/up/bias": PartitionSpec(None, "data"),
        "bert/layers/down/kernel": PartitionSpec(None, "data", None),
        "bert/embeddings/word/embedding": PartitionSpec("data", None),
        "predictions/bias": PartitionSpec("data"),
    }
    found = {name: [] for name in split}
    placement = Placement(make_mesh(), RULES)
    shardings = state_shardings(MODEL, make_optimizer(Optim(algorithm=rule), 3), placement)
    for path, sharding in jax.tree_util.tree_flatten_with_path(shardings.opt_state)[0]:
        if "data" in sharding.spec:
            written = jax.tree_util.keystr(path, simple=True, separator="/")
            found[next(name for name in split if written.endswith(name))].append(sharding.spec)
    for name, spec in split.items():
        assert found[name] == [spec] * (of_biases if name.endswith("bias") else of_kernels), name
