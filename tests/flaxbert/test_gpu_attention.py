"""Attention by cuDNN: the choice, the program for a GPU, and all around cuDNN's call, which only a GPU can run."""

import functools
import os
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.export import DisabledSafetyCheck, export

import flaxbert
from flaxbert import AttentionImplementation, BertConfig, Remat, kernels, sharding
from flaxbert.kernels import gpu_attention
from tests.gpu import attention as on_gpu

CONFIG = BertConfig.tiny(vocab_size=64, hidden_size=48, num_attention_heads=2, num_hidden_layers=2).replace(
    attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0, intermediate_size=40, max_position_embeddings=256
)
ROWS, LENGTH = 4, 224  # 224: no size of the model
IDS = np.arange(ROWS * LENGTH).reshape(ROWS, LENGTH) % 60
PADDED = (np.arange(LENGTH) < np.asarray([[224], [200], [3], [1]])).astype(np.int32)
CALLS = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward")
MASKED_CALLS = ("__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward")


@pytest.fixture
def for_a_gpu(monkeypatch):
    """The choice is that for a GPU with cuDNN, as far as programs for one are made here."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    with on_gpu.chosen_as_on_a_gpu():
        yield


def model(config=CONFIG, dtype=jnp.bfloat16, **arguments):
    attention = {"attn_implementation": AttentionImplementation.FUSED, **arguments}
    return flaxbert.BertForMaskedLM(config, dtype=dtype, **attention)


def loss(model, params, *, length=LENGTH, deterministic=True, **inputs):
    inputs = {"attention_mask": PADDED[:, :length], **inputs}
    rngs = None if deterministic else {"dropout": jax.random.key(3)}
    out = model.apply({"params": params}, IDS[:, :length], deterministic=deterministic, rngs=rngs, **inputs)
    return jnp.mean(jnp.square(out.logits))


def gpu_program(model, **how):
    """Return the StableHLO of loss and gradients for a GPU."""
    gradients = jax.jit(jax.value_and_grad(functools.partial(loss, model, **how)))
    checks = [DisabledSafetyCheck.custom_call(name) for name in (*CALLS, *MASKED_CALLS)]
    return export(gradients, platforms=["cuda"], disabled_checks=checks)(model.parameter_shapes()).mlir_module()


def calls(text):
    """Return the names of cuDNN's calls, each with the shapes of its operands."""
    found = re.findall(r"custom_call @(__cudnn\$\w+)\(.*?: \((.*?)\) ->", text)
    return [(name, re.findall(r"tensor<([^>]*)>", operands)) for name, operands in found]


def squares(text, length=LENGTH):
    """Return the types of arrays with two axes of the sequence's length."""
    shapes = set(re.findall(r"tensor<([\dx]+x\w+)>", text))
    return {shape for shape in shapes if shape.split("x").count(str(length)) > 1}


@pytest.mark.parametrize("remat", [Remat.NONE, Remat.DOTS])
def test_a_program_for_a_gpu_calls_cudnn_and_has_no_array_of_all_scores(for_a_gpu, remat):
    text = gpu_program(model(remat=remat))
    assert tuple(name for name, _ in calls(text)) == CALLS
    assert not squares(text)
    eager = gpu_program(model(attn_implementation=AttentionImplementation.EAGER))
    assert not calls(eager) and squares(eager)


def test_packed_rows_have_one_mask_for_all_heads(for_a_gpu):
    ids = on_gpu.segments(ROWS, 128)
    packed = (ids[:, :, None] == ids[:, None]).astype(np.int32)
    text = gpu_program(model(), length=128, attention_mask=packed)
    assert tuple(name for name, _ in calls(text)) == MASKED_CALLS
    assert all(shape.startswith(("4x128x", "4x1x128x")) for shape in squares(text, 128))  # no axis of heads


def test_each_device_calls_cudnn_for_its_rows_and_heads(for_a_gpu):
    with jax.set_mesh(sharding.make_mesh(jax.devices(), data=2, fsdp=2, tensor=2)):
        text = gpu_program(model(rules=sharding.FSDP_TENSOR))
    found = calls(text)
    assert tuple(name for name, _ in found) == CALLS
    for _, operands in found:
        assert operands[:3] == ["1x224x1x24xbf16"] * 3  # 4 rows over data and fsdp, 2 heads over tensor


def test_cudnn_is_chosen_by_the_rule(for_a_gpu):
    def chosen(of=None, **how):
        return "__cudnn" in gpu_program(of or model(), **how)

    assert chosen() and chosen(length=30) and not chosen(length=31)
    assert not chosen(model(attn_implementation=AttentionImplementation.EAGER))
    assert not chosen(model(dtype=jnp.float32))
    assert not chosen(output_attentions=True)
    assert not chosen(head_mask=np.ones(2, np.float32))
    assert not chosen(attention_mask=np.ones((ROWS, LENGTH, LENGTH), np.int32))  # no multiple of 128
    dropping = model(CONFIG.replace(attention_probs_dropout_prob=0.1))
    assert chosen(dropping) and not chosen(dropping, deterministic=False)
    assert chosen(model(CONFIG.replace(hidden_dropout_prob=0.1)), deterministic=False)


def test_head_sizes_and_types_of_the_kernel():
    supports = functools.partial(gpu_attention.supports, 128, mask_per_query=False)
    sizes = [size for size in range(1, 200) if supports(head_size=size, dtype=jnp.bfloat16)]
    assert sizes == list(range(8, 129, 8))
    types = (jnp.float32, jnp.bfloat16, jnp.float16)
    assert [supports(head_size=64, dtype=dtype) for dtype in types] == [False, True, True]


@pytest.mark.parametrize("name", ["holes", "no keys", pytest.param("packed", marks=pytest.mark.slow)])
def test_all_around_the_call_is_eager_attention_on_a_mesh_too(name):
    shape, mask = (8, 40, 2, 8), on_gpu.attention_mask(name, 8, 40)
    wanted = on_gpu.outputs_and_gradients(on_gpu.eager, mask, shape, jnp.float32)
    with on_gpu.stand_in(), jax.set_mesh(sharding.make_mesh(jax.devices(), fsdp=2, tensor=2)):
        found = on_gpu.outputs_and_gradients(kernels.attend_fused, mask, shape, jnp.float32)
    if name == "no keys":  # queries and keys of such a row get no gradient
        found, wanted = found[:1], wanted[:1]
    for one, reference in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, reference, rtol=0, atol=2e-5 * np.abs(reference).max())


def test_on_a_gpu_the_numbers_are_those_of_eager_attention():
    if shutil.which("nvidia-smi") is None or subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode:
        pytest.skip("no NVIDIA GPU; python -m tests.gpu.attention checks the numbers on one")
    command, environment = [sys.executable, "-m", "tests.gpu.attention"], {**os.environ, "JAX_PLATFORMS": "cuda"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_check_for_gpus_explains_itself(capsys):
    with pytest.raises(SystemExit, match="0"):
        on_gpu.main(["--help"])
    assert "python -m tests.gpu.attention" in capsys.readouterr().out


@pytest.mark.slow  # compiles the model twice; its parts are tested above
def test_the_check_for_gpus_runs_without_one():
    done = subprocess.run([sys.executable, "-m", "tests.gpu.attention"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DRY RUN: no GPU" in done.stdout and done.stdout.endswith("dry run passed\n")
