"""Check of attention by cuDNN on the GPU at hand, in about three minutes; not a test.

    python -m tests.gpu.attention

Outputs and gradients of attention in bfloat16, with and without padding, with holes, and with packed rows, may be
twice as far from those in float32 as those of eager attention in bfloat16 are. A sequence in a packed row has the
output that it has alone. Where probabilities have dropout, cuDNN is not called, and the share of kept ones is right.
With JAX_PLATFORMS=cpu all of it runs except cuDNN's call, for which JAX's own attention stands in.
"""

import argparse
import contextlib
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import flaxbert
from flaxbert import AttentionImplementation, BertConfig, dropout, functional, kernels
from flaxbert.kernels import gpu_attention
from flaxbert.sharding import AxisRules
from flaxbert.transformer import attend

RULES = AxisRules()
CALL = "__cudnn$fmha"
"""Beginning of the names of cuDNN's calls in a program."""
MASKS = ("none", "padding", "holes", "no keys", "packed")


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
    """Choose as on a GPU, and call JAX's own attention where cuDNN's would be called."""
    implementation = jax.nn.dot_product_attention

    def attention(*vectors, **arguments):
        return implementation(*vectors, **arguments | {"implementation": "xla"})

    with chosen_as_on_a_gpu(), mock.patch("jax.nn.dot_product_attention", attention):
        yield


@contextlib.contextmanager
def chosen_as_on_a_gpu() -> Iterator[None]:
    """Choose implementations as on a GPU with cuDNN."""
    with (
        mock.patch.object(kernels, "platform", lambda: "gpu"),
        mock.patch.object(gpu_attention, "has_cudnn", lambda: True),
    ):
        yield


def attention_mask(name: str, rows: int, length: int) -> jax.Array | None:
    """Return a mask [B, 1, 1 or T, T]."""
    positions = np.arange(length)[None]
    last = length - (np.arange(rows)[:, None] * 37) % (length - 8)
    keys = {
        "padding": positions < last,
        "holes": (positions < last) & (positions % 5 != 3) & (positions > 2),
        "no keys": positions < last * (np.arange(rows)[:, None] != 1),
    }
    if name == "none":
        return None
    if name == "packed":
        return functional.attention_mask(functional.packed_mask(segments(rows, length)))
    return functional.attention_mask(keys[name])


def segments(rows: int, length: int) -> np.ndarray:
    """Return segment ids [B, T]: three sequences in a row, and padding (0)."""
    ids = (
        1
        + (np.arange(length)[None] * 3 > length)
        + (np.arange(length)[None] * 5 > length * (3 + np.arange(rows)[:, None] % 2))
    )
    return np.where(np.arange(length)[None] < length - 5, ids, 0)


def parameters(heads: int, size: int, dtype: jnp.dtype) -> dict[str, dict[str, jax.Array]]:
    """Return random projections, so large that the softmax is not flat."""
    width, key = heads * size, jax.random.key(1)

    def projection(number: int, kernel: tuple[int, ...], bias: tuple[int, ...]) -> dict[str, jax.Array]:
        values = jax.random.normal(jax.random.fold_in(key, number), kernel) * 1.5 / np.sqrt(width)
        # Rounded before either computes: both have the same numbers.
        return {"kernel": values.astype(jnp.bfloat16).astype(dtype), "bias": jnp.full(bias, 0.1)}

    inputs = {
        name: projection(n, (width, heads, size), (heads, size)) for n, name in enumerate(("query", "key", "value"))
    }
    return {**inputs, "output": projection(3, (heads, size, width), (width,))}


def outputs_and_gradients(attention: Callable, mask: jax.Array | None, shape: tuple[int, int, int, int], dtype) -> list:
    """Return the output [B, T, D], and the gradients of x and of all parameters for a random one of the output."""
    rows, length, heads, size = shape
    keys = jax.random.split(jax.random.key(2))
    x, given = (jax.random.normal(key, (rows, length, heads * size), jnp.bfloat16).astype(dtype) for key in keys)
    compute = jax.jit(functools.partial(attention, mask=mask, rules=RULES))
    output, pull = jax.vjp(lambda params, x: compute(params, x), parameters(heads, size, dtype), x)
    gradients = pull(given)
    del gradients[0]["key"]["bias"]  # zero but for rounding: it adds the same to all scores of a query
    return jax.tree.leaves((output, gradients))


def eager(params, x, mask, *, rules):
    """Eager attention with the signature of `kernels.attend_fused`."""
    return attend(params, x, x, mask, rules=rules)[0]


def distance(found: list, wanted: list) -> float:
    """Return the largest difference, each array's relative to its largest entry."""
    pairs = [(np.asarray(a, np.float32), np.asarray(b, np.float32)) for a, b in zip(found, wanted, strict=True)]
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)) for a, b in pairs)


def check_parity(shape: tuple[int, int, int, int], name: str) -> str | None:
    """Compare output and gradients with those of eager attention in float32."""
    mask = attention_mask(name, *shape[:2])
    found = outputs_and_gradients(kernels.attend_fused, mask, shape, jnp.bfloat16)
    exact = outputs_and_gradients(eager, mask, shape, jnp.float32)
    rounded = outputs_and_gradients(eager, mask, shape, jnp.bfloat16)
    if name == "no keys":  # such a row has no gradient through its scores: compare the outputs
        found, exact, rounded = found[:1], exact[:1], rounded[:1]
    ours, theirs = distance(found, exact), distance(rounded, exact)
    print(f"  {'x'.join(map(str, shape))} {name}: {ours:.2e} from float32, eager {theirs:.2e}", flush=True)
    finite = all(bool(jnp.isfinite(part.astype(jnp.float32)).all()) for part in found)
    return None if finite and ours <= 2 * theirs + 1e-3 else f"{shape} {name}: {ours:.2e}, eager {theirs:.2e}"


def check_packing(shape: tuple[int, int, int, int]) -> str | None:
    """Compare each sequence of packed rows with the same sequence alone in a row."""
    rows, length, heads, size = shape
    params, ids = parameters(heads, size, jnp.dtype(jnp.bfloat16)), segments(rows, length)
    x = jax.random.normal(jax.random.key(3), (rows, length, heads * size), jnp.bfloat16)
    compute = jax.jit(functools.partial(kernels.attend_fused, rules=RULES))
    packed, worst = compute(params, x, attention_mask("packed", rows, length)), 0.0
    for number in (1, 2, 3):
        own = ids == number
        order = np.argsort(~own, axis=1, kind="stable")
        alone = compute(
            params, jnp.take_along_axis(x, order[..., None], axis=1), functional.attention_mask(np.sort(~own) == 0)
        )
        wanted = jnp.take_along_axis(packed, order[..., None], axis=1)
        inside = (np.sort(~own) == 0)[..., None]
        worst = max(worst, distance([jnp.where(inside, alone, 0)], [jnp.where(inside, wanted, 0)]))
    print(f"  {'x'.join(map(str, shape))} packed and alone: {worst:.2e}", flush=True)
    return None if worst < 2e-2 else f"{shape} packed rows differ from rows of one sequence by {worst:.2e}"


def masked_lm(implementation: AttentionImplementation, *, rate: float) -> tuple[Callable, Any]:
    """Return a loss of (params, key) of a model of two layers, and its parameters."""
    config = BertConfig.base().replace(num_hidden_layers=2, vocab_size=1024, attention_probs_dropout_prob=rate)
    model = flaxbert.BertForMaskedLM(config, dtype=jnp.dtype(jnp.bfloat16), attn_implementation=implementation)
    ids = np.random.default_rng(0).integers(5, 1000, (4, 128))
    mask = (np.arange(128) < np.asarray([[128], [100], [64], [9]])).astype(np.int32)

    def loss(params, key):
        rngs = None if key is None else {"dropout": key}
        out: Any = model.apply({"params": params}, ids, attention_mask=mask, deterministic=key is None, rngs=rngs)
        return -jnp.mean(jax.nn.log_softmax(out.logits)[..., 7] * mask)

    return loss, model.init(jax.random.key(0), ids)["params"]


def check_model() -> str | None:
    """Compare loss and gradients of a model with those by eager attention."""
    results = []
    for implementation in (AttentionImplementation.FUSED, AttentionImplementation.EAGER):
        loss, params = masked_lm(implementation, rate=0.0)
        value, gradients = jax.jit(jax.value_and_grad(lambda params, loss=loss: loss(params, None)))(params)
        results.append((float(value), jax.tree.leaves(gradients)))
    (value, ours), (wanted, theirs) = results
    far = [
        float(jnp.linalg.norm((a - b).ravel()) / jnp.linalg.norm(b.ravel())) for a, b in zip(ours, theirs, strict=True)
    ]
    print(f"  loss {value:.5f}, eager {wanted:.5f}; gradients differ by {statistics.median(far):.2e} (median norm)")
    return (
        None if abs(value - wanted) < 5e-3 and statistics.median(far) < 3e-2 else "the model's loss or gradients differ"
    )


def check_dropout() -> str | None:
    """Check that cuDNN is called where probabilities have no dropout and only there, and the share that is kept."""
    calls = {}
    for rate in (0.0, 0.1):
        loss, params = masked_lm(AttentionImplementation.FUSED, rate=rate)
        text = jax.jit(jax.grad(loss)).lower(params, jax.random.key(0)).as_text()
        calls[rate] = text.count(CALL)
    shape, rate = (8, 12, 512, 512), 0.1
    kept = float(jnp.mean(dropout.keep_mask(jax.random.key(4), shape, rate=rate), dtype=jnp.float32))
    deviation = np.sqrt(rate * (1 - rate) / np.prod(shape))
    print(f"  calls of cuDNN by dropout rate: {calls}; kept {kept:.6f} of probabilities at rate {rate}")
    if abs(kept - (1 - rate)) > 5 * deviation + 2**-17:
        return f"dropout keeps {kept:.6f} of the probabilities instead of {1 - rate}"
    if calls[0.1] or (jax.default_backend() == "gpu" and not calls[0.0]):
        return f"calls of cuDNN by dropout rate: {calls}"
    return None


def time_attention(shape: tuple[int, int, int, int]) -> None:
    """Print the time of forward and backward pass beside eager attention, in turns."""
    rows, length, heads, size = shape
    params, mask = parameters(heads, size, jnp.dtype(jnp.bfloat16)), attention_mask("padding", rows, length)
    x = jax.random.normal(jax.random.key(2), (rows, length, heads * size), jnp.bfloat16)
    steps, seconds = {}, {}
    for name, attention in (("fused", kernels.attend_fused), ("eager", eager)):
        loss = lambda params, x, attention=attention: jnp.sum(jnp.square(attention(params, x, mask, rules=RULES)))  # noqa: E731
        steps[name], seconds[name] = jax.jit(jax.grad(loss, argnums=(0, 1))), []
        jax.block_until_ready(steps[name](params, x))
    for _ in range(20):
        for name, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(params, x))
            seconds[name].append(time.perf_counter() - start)
    print("  " + ", ".join(f"{name} {statistics.median(s) * 1e3:.3f} ms" for name, s in seconds.items()))


def main(arguments: list[str]) -> int:
    """Run all checks; return 0, or 1 if one has failed."""
    argparse.ArgumentParser(
        "tests.gpu.attention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)
    device, on_gpu = jax.devices()[0], jax.default_backend() == "gpu"
    print(f"{device.device_kind}, jax {jax.__version__}")
    if on_gpu and not gpu_attention.has_cudnn():
        print("error: cuDNN's attention needs an NVIDIA GPU of compute capability 8.0 or later", file=sys.stderr)
        return 1
    shapes = [(4, 128, 12, 64), (4, 384, 6, 32), (3, 512, 16, 64)] if on_gpu else [(4, 128, 2, 64)]
    if not on_gpu:
        print("DRY RUN: no GPU; JAX's own attention stands in for cuDNN's call, of which nothing is proved")
    with contextlib.nullcontext() if on_gpu else stand_in():
        failed = [check_parity(shape, name) for shape in shapes for name in MASKS]
        failed += [check_packing(shape) for shape in shapes]
        failed += [check_model(), check_dropout()]
        if on_gpu:
            time_attention((32, 512, 16, 64))
    for line in filter(None, failed):
        print(f"FAILED: {line}", file=sys.stderr)
    print("failed" if any(failed) else "passed" if on_gpu else "dry run passed")
    return int(any(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
