"""Estimates of programs of the TPU compiler, compared with values known without it."""

import dataclasses
import importlib.util
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxbert import BertConfig
from flaxbert.sharding import make_mesh
from train.aot.collectives import HOP, TpuSlice
from train.aot.cost import estimate_cost
from train.aot.estimate import DoesNotFit, compile_config, compile_lowered, estimate_step
from train.aot.estimate_report import estimate_json, estimate_table
from train.aot.hlo import parse_program
from train.aot.topology import slice_devices
from train.config import Config, Model, Run
from train.data.pretraining.datasets import Segments
from train.distributed import MeshShape, Placement
from train.flops import CHIPS, V5E
from train.tasks.pretraining import Pretraining

if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu is not installed; pip install -e '.[tpu]'", allow_module_level=True)

SMALL = {"v4": "2x2x1", "v5e": "2x2", "v5p": "2x2x1", "v6e": "2x2", "tpu7x": "2x2x1"}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aot")
    words = ("some", "words", "that", "stand", "in", "any", "text", "and", "a", "few", "more", "of", "them")
    generator = np.random.default_rng(0)
    documents = (" ".join(generator.choice(words, size=300)) for _ in range(40))
    (folder / "text.txt").write_text("\n\n".join(documents))
    sizes = BertConfig(
        vocab_size=1,  # the tokenizer's
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return Config(
        task=Pretraining(segments=Segments.STREAM, text=str(folder / "text.txt"), vocab_size=128, max_length=64),
        model=Model(sizes=sizes, scan=True),
        run=Run(folder=folder / "run", batch_size=32, steps=10),
    )


@pytest.fixture(scope="module")
def placement():
    return Placement(make_mesh(slice_devices("v5e:2x2")[1]))


@pytest.fixture(scope="module")
def compiled(config, placement):
    before = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 10)  # JAX's default: reports name lines of code
    yield compile_config(config, placement)
    jax.config.update("jax_traceback_in_locations_limit", before)


@pytest.fixture(scope="module")
def estimated(compiled):
    return estimate_step(compiled, "v5e:2x2", V5E)


def test_memory_is_that_of_the_trees(compiled, estimated):
    parameters = sum(leaf.size for leaf in jax.tree.leaves(compiled.state.params))
    memory = estimated.memory
    assert memory.parameters == 4 * parameters  # float32, whole on every device of a data axis
    # Two moments of every parameter, and the optimizer's two counters.
    assert memory.optimizer == 2 * memory.parameters + 8
    rows = 32 // 4
    assert memory.batch == sum(
        rows * math.prod(shape.shape[1:]) * shape.dtype.itemsize for shape in compiled.batch.values()
    )
    # The compiler's count is of the same arrays, in tiles, and the step's counter.
    whole = memory.parameters + memory.optimizer + memory.batch
    assert whole < memory.arguments < 1.2 * whole
    assert memory.outputs < 0.01 * memory.parameters  # the new state takes the old one's place
    larger = dataclasses.replace(memory, outputs=1, temporaries=20, program=300, capacity=memory.arguments)
    assert (larger.total, larger.free) == (memory.arguments + 321, -321)


def test_the_gradients_are_reduced_over_the_data_axis(estimated):
    assert estimated.mesh == {"data": 4, "fsdp": 1, "tensor": 1}
    sent = estimated.cost.collectives
    assert set(sent) == {("all-reduce", ("data",))}
    reduced = sent["all-reduce", ("data",)].bytes
    assert estimated.memory.parameters <= reduced < 1.1 * estimated.memory.parameters
    # A line of two along either dimension: twice 3/4 of the bytes over two links at once.
    least = 1.5 * reduced / (2 * V5E.link_bandwidth)
    found = sent["all-reduce", ("data",)]
    assert least <= found.seconds <= least + found.runs * 2 * HOP


def test_parts_of_parameters_are_gathered_and_their_gradients_scattered(config, compiled, estimated):
    shape = MeshShape(fsdp=2)
    placement = Placement.of(shape, slice_devices("v5e:2x2")[1])
    found = estimate_step(compile_config(dataclasses.replace(config, mesh=shape), placement), "v5e:2x2", V5E)
    sent = found.cost.collectives
    layers = 4 * sum(kernel.size for kernel in kernels(compiled.state.params["bert"]["layers"]))
    for kind in ("all-gather", "reduce-scatter"):
        assert sent[kind, ("fsdp",)].bytes >= 0.9 * layers  # of small ones the compiler makes something else
    # Half of what is split, and all of the vectors that are not.
    assert 0.5 * estimated.memory.parameters < found.memory.parameters < 0.52 * estimated.memory.parameters


def kernels(layers):
    return [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(layers) if path[-1].key == "kernel"]


def test_the_programs_products_are_the_models(compiled, estimated):
    # Every row of the batch is as long as the longest: no padding but in the last row.
    per_device = estimated.model_flops / 4
    assert 1.0 <= estimated.cost.flops / per_device < 1.05
    assert estimated.cost.unknown_loops == []
    assert compiled.token_counts.tokens == estimated.tokens


def test_the_compiled_step_took_the_branches_of_the_tpu(compiled):
    text = compiled.executable.as_text()
    assert "global_norm" in text
    assert "_sum_in_strips" not in text  # of `global_norm`, on the CPU only


def test_costs_come_from_the_compiler_for_the_most_part(estimated):
    found = estimated.cost
    assert found.compiler > 0.7 * found.seconds
    assert found.seconds == pytest.approx(
        found.compiler + found.roofline + found.waiting_links + found.waiting_memory, rel=1e-6
    )
    assert found.seconds > estimated.model_flops / 4 / V5E.peak_flops
    assert 0.0 < estimated.mfu < 1.0


def test_the_report_says_estimated_and_names_lines_of_the_model(estimated):
    text = estimate_table(estimated)
    for part in ("memory", "time of a step", "collectives", "costliest operations"):
        assert f"\nestimated {part}" in text
    assert "measured" not in text
    assert re.search(r"flaxbert/\w+\.py:\d+ jit\(step\)", text)
    assert "all-reduce         over data" in text
    assert "fits, free" in text
    found = json.loads(estimate_json(estimated))
    assert found["estimated"]["step_seconds"] == estimated.cost.seconds
    assert found["estimated"]["fits"] is True
    assert found["chip"]["name"] == "v5e"


def test_the_report_prefers_lines_of_this_repository(estimated):
    # A line of optax, called by one of ours: XLA names the innermost line first.
    name, operation = next((n, o) for n, o in estimated.cost.operations.items() if o.source and "train/" in o.source[0])
    library = "/lib/python3/site-packages/optax/_src/transform.py:3"
    operation = dataclasses.replace(operation, source=(library, *operation.source))
    alone = dataclasses.replace(estimated.cost, operations={name: operation})
    last = estimate_table(dataclasses.replace(estimated, cost=alone)).splitlines()[-1]
    assert re.match(r" +(train|flaxbert)/[\w/]+\.py:\d+ jit\(step\)", last)


def test_a_batch_that_does_not_divide_is_a_mistake(config, placement):
    run = dataclasses.replace(config.run, batch_size=30)
    with pytest.raises(ValueError, match="batch_size is 30, which does not divide over 4 devices"):
        compile_config(dataclasses.replace(config, run=run), placement)


@pytest.fixture(scope="module")
def one_v5e():
    return program_mesh("v5e")


def program_mesh(name):
    chip, devices = slice_devices(f"{name}:{SMALL[name]}")
    return chip, Mesh(np.asarray(devices[:1]), ("data",))


def compiled_cost(chip, mesh, function, *shapes):
    whole = NamedSharding(mesh, PartitionSpec())
    lowered = jax.jit(function, in_shardings=whole, out_shardings=whole).lower(*shapes)
    return estimate_cost(parse_program(lowered.compile().as_text()), TpuSlice.of(chip, mesh))


def test_loops_cost_what_they_cost_unrolled(one_v5e):
    x, w = jax.ShapeDtypeStruct((2048, 1024), jnp.bfloat16), jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16)

    def layer(x, w):
        return jnp.tanh(x @ w)

    def looped(x, w):
        inner = lambda x, _: (layer(x, w), None)  # noqa: E731
        outer = lambda x, _: (jax.lax.scan(inner, x, None, length=4)[0] + 1, None)  # noqa: E731
        return jax.lax.scan(outer, x, None, length=3)[0]

    def unrolled(x, w):
        for _ in range(3):
            for _ in range(4):
                x = layer(x, w)
            x = x + 1
        return x

    loops, straight = (compiled_cost(*one_v5e, function, x, w) for function in (looped, unrolled))
    assert loops.flops == straight.flops == 12 * 2 * 2048 * 1024**2
    assert not loops.unknown_loops
    # Of the products alone: a loop also copies what it carries from turn to turn.
    assert products(loops) == pytest.approx(products(straight), rel=0.05)
    assert loops.cycles > straight.cycles


def products(found):
    return sum(operation.seconds for operation in found.operations.values() if "dot_general" in operation.op_name)


@pytest.mark.slow  # the unrolled program takes half a minute to compile
def test_a_model_costs_scanned_about_what_it_costs_unrolled(config, placement, estimated):
    model = dataclasses.replace(config.model, scan=False)
    unrolled = estimate_step(compile_config(dataclasses.replace(config, model=model), placement), "v5e:2x2", V5E)
    assert unrolled.cost.flops == estimated.cost.flops
    # A loop copies what it carries from turn to turn, of so small a model a third of the step: so the products alone.
    assert products(estimated.cost) == pytest.approx(products(unrolled.cost), rel=0.1)
    assert estimated.cost.cycles > unrolled.cost.cycles


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_at_the_chips_clock_a_large_product_comes_near_the_peak(chip):
    found, mesh = program_mesh(chip.name)
    assert found == chip
    assert mesh.devices[0].device_kind in chip.kinds
    devices = slice_devices(f"{chip.name}:{SMALL[chip.name]}")[1]
    assert len(devices) == 4 * chip.devices
    side = 8192
    matrix = jax.ShapeDtypeStruct((side, side), jnp.bfloat16)
    result = compiled_cost(chip, mesh, jnp.matmul, matrix, matrix)
    assert result.flops == 2 * side**3
    assert 0.65 < result.flops / result.seconds / (chip.peak_flops / chip.devices) < 1.0


def test_what_is_too_large_says_by_how_much(one_v5e):
    _, mesh = one_v5e
    whole = NamedSharding(mesh, PartitionSpec())
    matrix, rows = jax.ShapeDtypeStruct((30000, 65536), jnp.float32), jax.ShapeDtypeStruct((4096, 65536), jnp.float32)
    step = jax.jit(lambda x, y: (x + 1, y + 1), in_shardings=whole, out_shardings=whole)
    # Two large ones of 4 x 30000 x 65536 bytes = 7.32 GiB, two of 1 GiB.
    expected = r"needs 16.65G of the 15.75G of a device, \S+ too much.*"
    expected += r"(\n +7.32G  f32\[30000,65536\]\S*  (Argument|Output) .*){2}(\n +1.00G  f32\[4096,65536\].*){2}$"
    with pytest.raises(DoesNotFit, match=expected):
        compile_lowered(step.lower(matrix, rows))
