"""One device or eight: the same loss and gradients; and where every parameter's axes go."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import flaxbert
from flaxbert import losses, sharding
from flaxbert.sharding import AxisRules
from tests.flaxbert.saved_models import BERT_CLASSES
from train.distributed import Placement

CONFIG = flaxbert.BertConfig(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=8,
    intermediate_size=40,
    max_position_embeddings=16,
    type_vocab_size=2,
)
MODEL = flaxbert.BertForMaskedLM(CONFIG)
RNG = np.random.default_rng(0)
BATCH = {
    "input_ids": RNG.integers(0, 96, (16, 11)).astype(np.int32),
    "attention_mask": (np.arange(11) < RNG.integers(1, 12, (16, 1))).astype(np.int32),
    "labels": np.where(RNG.random((16, 11)) < 0.7, losses.IGNORE, RNG.integers(0, 96, (16, 11))).astype(np.int32),
}
PARAMS = jax.tree_util.tree_map_with_path(
    lambda path, leaf: jnp.asarray(RNG.normal(path[-1].key == "scale", 0.25, leaf.shape), jnp.float32),
    MODEL.parameter_shapes(),
)


@functools.partial(jax.jit, static_argnames="deterministic")
def loss_and_gradients(params, batch, key, *, deterministic, model=MODEL):
    def loss(params):
        rngs = {} if deterministic else {"dropout": key}
        out = model.apply(
            {"params": params}, batch["input_ids"], attention_mask=batch["attention_mask"],
            deterministic=deterministic, rngs=rngs,
        )  # fmt: skip
        return losses.masked_lm(out.logits, batch["labels"]).mean

    return jax.value_and_grad(loss)(params)


def placed(devices, rules):
    return placed_on(sharding.make_mesh(devices), rules)


def placed_on(mesh, rules):
    params = jax.device_put(PARAMS, sharding.tree_shardings(mesh, rules, MODEL.logical_axes()))
    batch = jax.device_put(BATCH, sharding.batch_sharding(mesh, rules))
    return params, batch, jax.device_put(jax.random.key(3), sharding.replicated(mesh))


@functools.cache
def on_one_device(deterministic):
    return loss_and_gradients(*placed(jax.devices()[:1], AxisRules()), deterministic=deterministic)


@pytest.mark.parametrize("deterministic", [pytest.param(True, marks=pytest.mark.slow), False])
@pytest.mark.parametrize(
    "rules",
    [AxisRules(), AxisRules(embed="data"), AxisRules(vocab="data", heads="data", mlp="data", position="data")],
    ids=["replicated", "width split", "vocabulary, heads and feed-forward split"],
)
def test_eight_devices_compute_what_one_does(rules, deterministic):
    params, batch, key = placed(jax.devices(), rules)
    words = params["bert"]["embeddings"]["word"]["embedding"]
    assert words.sharding.is_fully_replicated is (rules == AxisRules())
    assert len(batch["input_ids"].addressable_shards) == 8
    assert batch["input_ids"].addressable_shards[0].data.shape == (2, 11)
    loss, gradients = loss_and_gradients(params, batch, key, deterministic=deterministic)
    wanted_loss, wanted = on_one_device(deterministic)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
    for (path, gradient), reference in zip(
        jax.tree_util.tree_flatten_with_path(gradients)[0], jax.tree.leaves(wanted), strict=True
    ):
        difference = np.abs(np.asarray(gradient) - np.asarray(reference)).max()
        # The exact gradient of a key's bias is 0, so its largest entry is rounding too.
        allowed = 1e-7 if path[-2].key == "key" and path[-1].key == "bias" else 1e-5 * np.abs(reference).max()
        assert difference <= allowed, jax.tree_util.keystr(path)


def test_dropout_is_on_in_that_comparison():
    assert abs(float(on_one_device(True)[0]) - float(on_one_device(False)[0])) > 1e-3


# -- logical axes ----------------------------------------------------------------------------------------------

LOGICAL_AXES = {
    "bert/embeddings/norm/bias": ("norm",),
    "bert/embeddings/norm/scale": ("norm",),
    "bert/embeddings/position/embedding": ("position", "embed"),
    "bert/embeddings/token_type/embedding": ("token_type", "embed"),
    "bert/embeddings/word/embedding": ("vocab", "embed"),
    "bert/layers/attention/key/bias": ("layers", "heads", "head"),
    "bert/layers/attention/key/kernel": ("layers", "embed", "heads", "head"),
    "bert/layers/attention/output/bias": ("layers", "embed"),
    "bert/layers/attention/output/kernel": ("layers", "heads", "head", "embed"),
    "bert/layers/attention/query/bias": ("layers", "heads", "head"),
    "bert/layers/attention/query/kernel": ("layers", "embed", "heads", "head"),
    "bert/layers/attention/value/bias": ("layers", "heads", "head"),
    "bert/layers/attention/value/kernel": ("layers", "embed", "heads", "head"),
    "bert/layers/attention_norm/bias": ("layers", "norm"),
    "bert/layers/attention_norm/scale": ("layers", "norm"),
    "bert/layers/down/bias": ("layers", "embed"),
    "bert/layers/down/kernel": ("layers", "mlp", "embed"),
    "bert/layers/output_norm/bias": ("layers", "norm"),
    "bert/layers/output_norm/scale": ("layers", "norm"),
    "bert/layers/up/bias": ("layers", "mlp"),
    "bert/layers/up/kernel": ("layers", "embed", "mlp"),
    "bert/pooler/bias": (None,),
    "bert/pooler/kernel": ("embed", None),
    "predictions/bias": ("vocab",),
    "predictions/norm/bias": ("norm",),
    "predictions/norm/scale": ("norm",),
    "predictions/transform/bias": (None,),
    "predictions/transform/kernel": ("embed", None),
    "seq_relationship/bias": ("label",),
    "seq_relationship/kernel": ("embed", "label"),
}


def axes_of(model):
    leaves = jax.tree_util.tree_flatten_with_path(
        model.logical_axes(), is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(spec) for path, spec in leaves}


@pytest.mark.parametrize("scan", [True, False])
def test_every_axis_of_every_parameter_has_its_logical_name(scan):
    assert axes_of(flaxbert.BertForPreTraining(CONFIG, scan=scan)) == LOGICAL_AXES


@pytest.mark.parametrize("name", BERT_CLASSES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_class_names_as_many_axes_as_it_has(name, tied):
    model = flaxbert.ARCHITECTURES[name](CONFIG.replace(tie_word_embeddings=tied))
    shapes = jax.tree_util.tree_flatten_with_path(model.parameter_shapes())[0]
    ranks = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.ndim for path, leaf in shapes}
    axes = axes_of(model)
    assert {path: len(names) for path, names in axes.items()} == ranks
    known = {axis for names in axes.values() for axis in names} - {None}
    assert known <= {*vars(AxisRules())}
    if name not in ("BertForPreTraining", "BertModel"):
        assert ("bert/pooler/kernel" in axes) is (name in POOLED)


POOLED = ("BertForNextSentencePrediction", "BertForSequenceClassification", "BertForMultipleChoice")


# -- rules -----------------------------------------------------------------------------------------------------


def test_rules_map_logical_axes_to_mesh_axes():
    rules = AxisRules(embed="fsdp", heads="tensor", mlp="tensor")
    assert rules.spec(("layers", "embed", "heads", "head")) == PartitionSpec(None, "fsdp", "tensor", None)
    assert rules.spec(("batch", None)) == PartitionSpec(("data", "fsdp"), None)
    assert rules.spec(()) == PartitionSpec()


def test_one_mesh_axis_twice_in_one_array_is_an_error():
    rules = AxisRules(vocab="tensor", embed="tensor")
    with pytest.raises(ValueError, match=r"the axes \('vocab', 'embed'\) map to \['tensor', 'tensor'\]"):
        rules.spec(("vocab", "embed"))
    assert rules.spec(("vocab", None)) == PartitionSpec("tensor", None)
    with pytest.raises(ValueError, match="one mesh axis twice in one array"):
        AxisRules(mlp="fsdp").spec(("batch", None, "mlp"))


def test_unknown_logical_axis_is_an_error():
    with pytest.raises(AttributeError, match="width"):
        AxisRules().spec(("width",))
    with pytest.raises(TypeError, match="width"):
        AxisRules(width="data")


def test_mesh_takes_all_devices_or_those_given():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(sharding.make_mesh(jax.devices()[:2]).shape) == {"data": 2, "fsdp": 1, "tensor": 1}
    assert dict(sharding.make_mesh(fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize(
    "sizes, said",
    [
        ({"fsdp": 16}, "fsdp 16 x tensor 1 does not fit: there are 8 devices"),
        ({"fsdp": 3}, "fsdp 3 x tensor 1 does not fit: there are 8 devices"),
        ({"data": 2, "tensor": 2}, "data 2 x fsdp 1 x tensor 2 does not fit: there are 8 devices"),
        ({"tensor": 0}, "tensor is 0; it must be at least 1"),
    ],
)
def test_meshes_that_do_not_fit(sizes, said):
    with pytest.raises(ValueError, match=said):
        sharding.make_mesh(**sizes)


def test_parameters_that_do_not_divide_are_named():
    model = flaxbert.BertForMaskedLM(CONFIG.replace(vocab_size=97, intermediate_size=41))
    mesh = sharding.make_mesh(fsdp=2, tensor=4)
    shapes, axes = model.parameter_shapes(), model.logical_axes()
    with pytest.raises(ValueError) as error:
        sharding.check_divisible(mesh, sharding.FSDP_TENSOR, shapes, axes)
    assert str(error.value) == (
        "does not divide evenly: mlp of size 41 over 4 devices of tensor; vocab of size 97 over 4 devices of tensor. "
        "Choose another mesh"
    )
    sharding.check_divisible(mesh, sharding.FSDP, shapes, axes)


def test_a_checkpoint_that_does_not_divide_over_the_mesh_is_refused(tmp_path):
    model = flaxbert.BertModel(CONFIG.replace(intermediate_size=41))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), model.parameter_shapes())
    flaxbert.save_pretrained(tmp_path, model, params)
    with pytest.raises(ValueError, match="mlp of size 41 over 4 devices of tensor"):
        flaxbert.from_pretrained(tmp_path, mesh=sharding.make_mesh(tensor=4), rules=sharding.TENSOR)


# -- inside a user's own jit -----------------------------------------------------------------------------------


COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-to-all|collective-permute)\(.*op_name=\"([^\"]*)")


def collectives(compiled):
    """(shape, kind, operation) of each collective that moves parameters or activations, without the jitted name."""
    found = [match.groups() for match in map(COLLECTIVE.search, compiled.as_text().splitlines()) if match]
    return [(shape, kind, name.partition("/")[2]) for shape, kind, name in found]


@pytest.mark.parametrize("deterministic", [pytest.param(True, marks=pytest.mark.slow), False])
def test_parameters_are_gathered_and_activations_are_not(deterministic):
    model = flaxbert.BertForMaskedLM(CONFIG, rules=sharding.FSDP_TENSOR)

    def of_mesh(mesh):
        loss = functools.partial(loss_and_gradients.__wrapped__, deterministic=deterministic, model=model)
        inputs = placed_on(mesh, sharding.FSDP_TENSOR)
        outputs = sharding.replicated(mesh), sharding.tree_shardings(mesh, sharding.FSDP_TENSOR, MODEL.logical_axes())
        with jax.set_mesh(mesh):
            return collectives(jax.jit(loss, out_shardings=outputs).lower(*inputs).compile())

    assert of_mesh(sharding.make_mesh()) == []
    assert of_mesh(sharding.make_mesh(tensor=8)) == []
    gathered = of_mesh(sharding.make_mesh(fsdp=8))
    assert {kind for _, kind, _ in gathered} == {"all-gather"}
    # Sequences have 11 tokens, and no parameter has this size.
    assert gathered and not any("11" in re.findall(r"\d+", shape) for shape, _, _ in gathered)


def test_a_users_own_jit_is_the_trainers_program():
    """`model.apply` under `jax.jit` and `jax.set_mesh` has the collectives of the trainer's evaluation step."""
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    placement = Placement(mesh)
    model = flaxbert.BertForMaskedLM(CONFIG, rules=placement.rules)
    params, batch, _ = placed_on(mesh, placement.rules)

    def apply(params, ids):
        return model.apply({"params": params}, ids).logits

    def eval_step(params, ids):
        with placement.tracing():
            return apply(params, ids)

    trainers = jax.jit(eval_step).lower(params, batch["input_ids"]).compile()
    with jax.set_mesh(mesh):
        users = jax.jit(apply).lower(params, batch["input_ids"]).compile()
    without = jax.jit(apply).lower(params, batch["input_ids"]).compile()
    assert [kind for _, kind, _ in collectives(users)].count("all-gather") > 4
    assert sorted(collectives(users)) == sorted(collectives(trainers))
    assert sorted(collectives(without)) != sorted(collectives(trainers))


def test_meshes_with_other_axes_are_left_to_the_compiler():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    model = flaxbert.BertForMaskedLM(CONFIG, rules=sharding.FSDP_TENSOR)
    with jax.set_mesh(mesh):
        out = jax.jit(model.apply)({"params": PARAMS}, BATCH["input_ids"]).logits
    wanted = jax.jit(MODEL.apply)({"params": PARAMS}, BATCH["input_ids"]).logits
    np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-5)
