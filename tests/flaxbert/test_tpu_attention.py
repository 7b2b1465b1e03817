"""The kernel's operations one by one on the CPU: what it computes. That it compiles, tests of slices show."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxbert
from flaxbert import AttentionImplementation, BertConfig, Remat, dropout, functional, sharding
from flaxbert.kernels import tpu_attention
from tests.trees import initial

KEY = jax.random.key(3)


def vectors(rows, length, width, dtype=jnp.float32):
    """Queries, keys, values, and the gradient of what comes out."""
    return [jax.random.normal(key, (rows, length, width), dtype) for key in jax.random.split(KEY, 4)]


def split(x, heads):
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def masks(rows, length):
    keys = np.arange(length)[None] < np.asarray([[length - 3 * row] for row in range(rows)])
    ids = np.arange(length)[None] * (np.arange(rows) + 1)[:, None] // length
    return {
        "none": None,
        "padding": jnp.asarray(keys)[:, None, None],
        "packed": functional.packed_mask(ids)[:, None],
        "causal": functional.causal_mask(length, length),
        "nothing": jnp.zeros((rows, 1, 1, length), bool),
    }


@functools.partial(jax.jit, static_argnums=0)
def outputs_and_gradients(attend, given):
    outputs, pull = jax.vjp(attend, *given[:3])
    return outputs, *pull(given[3])


@pytest.mark.parametrize(
    ("rows", "length", "heads", "size", "mask", "rate"),
    [
        (2, 64, 4, 64, "padding", 0.25),  # two heads a step
        (8, 128, 2, 64, "packed", 0.1),  # four rows a step
        (3, 32, 2, 16, "causal", 0.5),  # fewer lanes than a TPU stores in a row
        (1, 96, 1, 128, "none", 0.0),
        (2, 32, 3, 64, "nothing", 0.0),  # lanes that are no multiple of what it stores
    ],
)
def test_contexts_and_gradients_are_those_of_eager_attention(rows, length, heads, size, mask, rate):
    given, allowed = vectors(rows, length, heads * size), masks(rows, length)[mask]
    shape = (rows, heads, length, length)

    def eager(query, key, value):
        kept = dropout.keep_mask(KEY, shape, rate=rate) if rate else None
        parts = [split(x, heads) for x in (query, key, value)]
        context, _ = functional.attention(*parts, allowed, keep_mask=kept, rate=rate)
        return context.transpose(0, 2, 1, 3).reshape(query.shape)

    def kernel(query, key, value):
        packed = dropout.packed_keep_mask(KEY, shape, rate=rate) if rate else None
        return tpu_attention.attention(query, key, value, allowed, heads=heads, keep_mask=packed, rate=rate)

    for found, wanted in zip(outputs_and_gradients(kernel, given), outputs_and_gradients(eager, given), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


def test_in_bfloat16():
    given = vectors(2, 64, 128, jnp.bfloat16)
    kernel = functools.partial(tpu_attention.attention, mask=None, heads=2)
    exact = outputs_and_gradients(kernel, [x.astype(jnp.float32) for x in given])
    for found, wanted in zip(outputs_and_gradients(kernel, given), exact, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(found.astype(np.float32), wanted, rtol=0, atol=0.02 * np.abs(wanted).max())


def test_devices_compute_their_rows_and_heads():
    given, mask = vectors(8, 32, 256), masks(8, 32)["padding"]
    packed = dropout.packed_keep_mask(KEY, (8, 4, 32, 32), rate=0.25)

    def attend(query, key, value):
        return tpu_attention.attention(query, key, value, mask, heads=4, keep_mask=packed, rate=0.25)

    def divided(*given):
        outputs, pull = jax.vjp(attend, *given[:3])
        return outputs, *pull(given[3])

    grid = sharding.make_mesh(jax.devices(), fsdp=2, tensor=2)
    spec = sharding.AxisRules().spec(("batch", None, "heads"))
    place = jax.sharding.NamedSharding(grid, spec)
    with jax.set_mesh(grid):
        compiled = jax.jit(divided, in_shardings=place, out_shardings=place).lower(*given).compile()
    for found, wanted in zip(compiled(*given), outputs_and_gradients(attend, given), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())
    assert "all-gather" not in compiled.as_text()


def test_lengths_and_head_sizes_of_the_kernel():
    lengths = [length for length in range(1, 700) if tpu_attention.supports(length, heads=4, head_size=32)]
    assert lengths == list(range(32, 513, 32))
    sizes = [size for size in range(1, 200) if tpu_attention.supports(32, heads=128, head_size=size)]
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 128]


# -- in the model ----------------------------------------------------------------------------------------

CONFIG = BertConfig.tiny(vocab_size=64, hidden_size=64, num_attention_heads=4, num_hidden_layers=2)
IDS = np.arange(64).reshape(2, 32) % 60
MASK = (np.arange(32) < np.asarray([[32], [20]])).astype(np.int32)


@pytest.fixture
def as_on_a_tpu(monkeypatch):
    """The model chooses as if it were compiled for a TPU; the kernel still knows better, and is interpreted."""
    monkeypatch.setattr("flaxbert.kernels.platform", lambda: "tpu")


def model(attention=AttentionImplementation.FUSED, config=CONFIG, **arguments):
    return flaxbert.BertForMaskedLM(config, attn_implementation=attention, **arguments)


def loss(model, params, *, deterministic=True, length=32, **inputs):
    rngs = None if deterministic else {"dropout": KEY}
    inputs = {"attention_mask": MASK[:, :length], **inputs}
    out = model.apply({"params": params}, IDS[:, :length], deterministic=deterministic, rngs=rngs, **inputs)
    return jnp.mean(jnp.square(out.logits))


def program(model, params, **how):
    return str(jax.make_jaxpr(jax.grad(lambda params: loss(model, params, **how)))(params))


@pytest.fixture(scope="module")
def params():
    return initial(model(), IDS)


@pytest.mark.parametrize("remat", [pytest.param(Remat.NONE, marks=pytest.mark.slow), Remat.DOTS])
def test_a_model_computes_the_same_and_drops_the_same(as_on_a_tpu, params, remat):
    def both(attention):
        this = model(attention, remat=remat)
        return jax.jit(jax.value_and_grad(lambda params: loss(this, params, deterministic=False)))(params)

    (value, gradients), (wanted, theirs) = both(AttentionImplementation.FUSED), both(AttentionImplementation.EAGER)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    for found, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(found, other, rtol=0, atol=1e-5 * max(np.abs(other).max(), 1e-3))


@pytest.mark.parametrize(("remat", "forward"), [(Remat.NONE, 1), (Remat.DOTS, 1), (Remat.FULL, 2)])
def test_the_backward_pass_runs_the_forward_kernel_again_only_where_it_keeps_nothing(
    as_on_a_tpu, params, remat, forward
):
    text = program(model(remat=remat), params, deterministic=False)
    assert text.count("name=attention_forward") == forward
    assert text.count("name=attention_backward") == 1


def test_no_kernel_where_weights_are_wanted_or_devices_are_no_tpus(params, monkeypatch):
    assert "attention_forward" not in program(model(), params)
    monkeypatch.setattr("flaxbert.kernels.platform", lambda: "tpu")
    assert "attention_forward" in program(model(), params)
    assert "attention_forward" not in program(model(AttentionImplementation.EAGER), params)
    assert "attention_forward" not in program(model(), params, length=31)
    assert "attention_forward" not in program(model(), params, output_attentions=True)
    assert "attention_forward" not in program(model(), params, head_mask=np.ones(4, np.float32))
    uneven = model(config=CONFIG.replace(hidden_size=384, num_attention_heads=8))  # heads of 48; 128 / 48 is not whole
    assert "attention_forward" not in program(uneven, initial(uneven, IDS))
