import chex
import jax
import jax.numpy as jnp
import numpy as np

from flaxbert import BertConfig, BertForMaskedLM, losses
from flaxbert.sharding import make_mesh
from tests.trees import initial
from train.distributed import Placement
from train.optim import Optim, make_optimizer
from train.step import compile_step, create_state, state_shapes, state_shardings

CONFIG = BertConfig(
    vocab_size=61,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=16,
)
MODEL = BertForMaskedLM(CONFIG)
SEED = np.uint32(0)


def batch(seed):
    generator = np.random.default_rng(seed)
    ids = generator.integers(5, 61, size=(16, 12)).astype(np.int32)
    mask = (np.arange(12)[None] < generator.integers(3, 13, size=16)[:, None]).astype(np.int32)
    # Rows with very different numbers of labels: a mean of per-device means would differ from the global mean.
    labels = np.where(generator.random((16, 12)) < np.linspace(0.05, 0.9, 16)[:, None], ids, -100).astype(np.int32)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loss_function(params, batch, key):
    out = MODEL.apply(
        {"params": params},
        batch["input_ids"],
        attention_mask=batch["attention_mask"],
        deterministic=key is None,
        rngs=None if key is None else {"dropout": key},
    )
    return losses.masked_lm(out.logits, batch["labels"])


def poisonable(params, batch, key):
    """The loss, to which each row adds a multiple of a parameter."""
    loss = loss_function(params, {name: batch[name] for name in batch if name != "poison"}, key)
    return losses.Loss(loss.sum + jnp.sum(batch["poison"]) * jnp.sum(params["predictions"]["bias"]), loss.weight)


def begun(counted=loss_function):
    """A fresh state on all devices; the step, dropout on; where the state is to live, and all else.

    All tests have the same optimizer: they share a compiled step.
    """
    placement = Placement(make_mesh())
    optimizer = make_optimizer(Optim(learning_rate=1e-3), 20)
    shardings = state_shardings(MODEL, optimizer, placement)
    state = create_state(MODEL, optimizer, shardings, seed=0)
    return state, compile_step(counted, optimizer, placement, shardings), shardings, placement


def trained(steps, counted=loss_function):
    """The state after some steps; the step, and where the state is to live."""
    state, step, shardings, placement = begun(counted)
    for i in range(steps):
        state, _ = step(state, placement.batch(batch(i)), SEED)
    return state, step, shardings


def test_twenty_steps_compile_once():
    # Counts how often the loss is traced; jit's own cache shows that it is not retraced either.
    counted = chex.assert_max_traces(loss_function, n=1)
    try:
        state, step, _ = trained(20, counted)
    finally:
        chex.clear_trace_counter()
    assert step._cache_size() == 1
    assert int(state.step) == 20


def test_state_is_float32_and_whole_on_every_device_of_a_mesh_that_divides_rows_alone():
    state, *_ = trained(1)  # test_meshes.py looks at the other meshes
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == len(jax.devices()) == 8
        assert leaf.dtype == (np.int32 if leaf.ndim == 0 else np.float32)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, state_shapes(MODEL, make_optimizer(Optim(), 1)))


def test_gradients_are_float32_under_bfloat16():
    model = MODEL.clone(dtype=jax.numpy.bfloat16)
    params = initial(model, batch(0)["input_ids"])

    def loss(params):
        return losses.masked_lm(model.apply({"params": params}, batch(0)["input_ids"]).logits, batch(0)["labels"]).mean

    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
        assert leaf.dtype == np.float32


def test_the_old_state_is_donated():
    state, step, _, placement = begun()
    old = jax.tree.leaves(state.params)
    step(state, placement.batch(batch(0)), SEED)
    assert all(leaf.is_deleted() for leaf in old)


def test_fresh_state_is_the_models_own_initialisation():
    placement = Placement(make_mesh())
    optimizer = make_optimizer(Optim(), 2)
    state = create_state(MODEL, optimizer, state_shardings(MODEL, optimizer, placement), seed=7)
    drawn = jax.jit(MODEL.init)(jax.random.key(7), np.zeros((1, 1), np.int32))
    chex.assert_trees_all_close(state.params, drawn["params"])


def test_dropout_differs_from_step_to_step_and_seed_to_seed_and_not_from_run_to_run():
    fresh, step, _, placement = begun()

    def loss(number, seed):
        state = jax.tree.map(jnp.copy, fresh).replace(step=jax.device_put(np.int32(number), placement.replicated))
        return float(step(state, placement.batch(batch(0)), np.uint32(seed))[1]["loss"])

    def history(seed):
        return [loss(number, seed) for number in range(3)]  # of the same parameters

    first = history(0)
    assert len(set(first)) == 3
    assert not set(history(2**32 - 1)) & set(first)
    assert history(0) == first
    assert step._cache_size() == 1  # the program is the same for every seed


def test_an_update_from_one_row_that_is_not_finite_is_skipped_on_all_devices():
    placement = Placement(make_mesh(fsdp=4))
    optimizer = make_optimizer(Optim(learning_rate=1e-3, warmup=0.0), 20)
    shardings = state_shardings(MODEL, optimizer, placement)
    step = compile_step(poisonable, optimizer, placement, shardings, gradient_accumulation_steps=2)
    state = create_state(MODEL, optimizer, shardings, seed=0)
    for number, poison in enumerate((0.0, np.nan, 3e38, 0.0)):
        before = bits_of_shards(state)
        row = np.where(np.arange(16) == 11, poison, 0.0).astype(np.float32)
        state, metrics = step(state, placement.batch(batch(number) | {"poison": row}), SEED)
        assert np.isfinite(metrics["loss"]) == np.isfinite(poison)
        assert np.isfinite(metrics["gradient_norm"]) == (poison == 0.0)
        after = bits_of_shards(state)
        assert after.keys() == before.keys()
        changed = {path for path, device in after if after[path, device] != before[path, device]}
        assert changed == {".step"} if poison else len(changed) == len(jax.tree.leaves(state))
    assert int(state.step) == 4


def bits_of_shards(state):
    return {
        (jax.tree_util.keystr(path), shard.device.id): np.asarray(shard.data).tobytes()
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        for shard in leaf.addressable_shards
    }
