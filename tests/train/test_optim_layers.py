"""Parameters stacked by layer: statistics per layer, rates per layer, and frozen parameters."""

import chex
import jax
import numpy as np
import optax
import pytest

from flaxbert import BertConfig, BertModel
from flaxbert.families import BERT
from flaxbert.layers import unstack_layers
from flaxbert.weights import names
from tests.unstacked import MODEL, gradients, start, trained, unstacked
from train.optim import Optim, make_optimizer
from train.optim.algorithms import Adafactor, AdamW, BertAdam, Lamb
from train.optim.parameters import scale_heads, view_shape

RULES = [AdamW(), BertAdam(), Lamb(), Adafactor(beta1=0.9, scale_parameter=True)]


def by_path(tree):
    """Leaves by their path's keys."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {tuple(jax.tree_util.keystr((key,), simple=True) for key in path): leaf for path, leaf in leaves}


def test_views_are_the_tensors_of_hugging_face():
    leaves = {tuple(key.key for key in p): (p, x) for p, x in jax.tree_util.tree_flatten_with_path(start())[0]}
    for entry in names.name_mappings(BERT, start()):
        path, leaf = leaves[entry.path]
        view = view_shape(path, leaf.shape)[0 if entry.layer is None else 1 :]
        assert view == (entry.file_shape if entry.input_axes is None else entry.file_shape[::-1]), entry.name


def layer_by_layer(tree):
    """The tree with a subtree for every layer, attention's parameters as matrices and vectors."""

    def one(path, leaf):
        last = path[-1].key
        if last == "bias":
            return leaf.reshape(-1)
        if last == "kernel" and leaf.ndim == 3:
            return leaf.reshape(-1, 12) if path[-2].key == "output" else leaf.reshape(12, -1)
        return leaf

    stack = tree["bert"]["layers"]
    layers = {
        f"layer{i}": jax.tree_util.tree_map_with_path(one, jax.tree.map(lambda leaf, i=i: leaf[i], stack))
        for i in range(3)
    }
    return {**tree, "bert": {**{key: x for key, x in tree["bert"].items() if key != "layers"}, **layers}}


@pytest.mark.parametrize("rule", [Lamb(), Adafactor(scale_parameter=True, beta1=0.9), Adafactor(smallest_factored=10)])
def test_a_stack_trains_as_its_layers_do(rule):
    settings = Optim(learning_rate=1e-2, warmup=0.2, algorithm=rule)
    recorded = gradients()[:10]
    stacked = layer_by_layer(trained(settings, recorded=recorded))
    apart = trained(settings, layer_by_layer(start()), [layer_by_layer(gradient) for gradient in recorded])
    for path, leaf in by_path(apart).items():
        np.testing.assert_allclose(by_path(stacked)[path], leaf, rtol=1e-6, atol=1e-7, err_msg="/".join(path))
    chex.assert_trees_all_equal_shapes(stacked, apart)


@pytest.mark.parametrize("rule", [AdamW(), BertAdam(), Lamb()])
def test_moments_lie_like_their_parameters(rule):
    state = by_path(make_optimizer(Optim(algorithm=rule), 10).init(start()))
    moments = {path: leaf for path, leaf in state.items() if leaf.ndim}
    assert all(leaf.dtype == np.int32 for path, leaf in state.items() if path not in moments)
    for path, parameter in by_path(start()).items():
        found = [leaf for name, leaf in moments.items() if name[-len(path) :] == path]
        assert [leaf.shape for leaf in found] == [parameter.shape] * 2, path
    assert len(moments) == 2 * len(by_path(start()))


def test_adafactor_keeps_rows_and_columns():
    state = by_path(make_optimizer(Optim(algorithm=Adafactor()), 10).init(start()))
    kernel = ("bert", "layers", "attention", "query", "kernel")
    shapes = [leaf.shape for path, leaf in state.items() if path[-5:] == kernel and leaf.size > 3]
    assert shapes == [(3, 12), (3, 12)]
    assert all(leaf.ndim == 0 for leaf in state.values() if leaf.dtype == np.int32)
    assert sum(leaf.size for leaf in state.values()) < 0.5 * sum(leaf.size for leaf in jax.tree.leaves(start()))


def one_update(settings, params, gradient):
    """The updates of the first step."""
    optimizer = make_optimizer(settings, 10)
    return jax.jit(optimizer.update)(gradient, optimizer.init(params), params)[0]


@pytest.mark.parametrize("rule", [AdamW(), Lamb()])
def test_layer_decay(rule):
    settings = {"warmup": 0.0, "algorithm": rule}
    plain = unstacked(one_update(Optim(**settings), start(), gradients()[0]))
    lowered = unstacked(one_update(Optim(**settings, layer_decay=0.5), start(), gradients()[0]))
    for name, update in plain.items():
        factor = 1.0
        if name.startswith("bert.embeddings."):
            factor = 0.5**4
        if name.startswith("bert.encoder."):
            factor = 0.5 ** (3 - int(name.split(".")[3]))
        np.testing.assert_allclose(lowered[name], factor * update, rtol=1e-6, err_msg=name)
        assert np.any(update)


def test_layer_decay_of_a_bare_model():
    params = jax.jit(BertModel(BertConfig.tiny(vocab_size=20)).init)(jax.random.key(0), np.zeros((1, 1), np.int32))
    ones = jax.tree.map(np.ones_like, params["params"])
    updates = by_path(one_update(Optim(learning_rate=1.0, warmup=0.0, layer_decay=0.5, weight_decay=0.0), ones, ones))
    for path, factor in {
        ("embeddings", "word", "embedding"): [0.125],
        ("layers", "up", "bias"): [[0.25], [0.5]],
        ("pooler", "bias"): [1.0],
    }.items():
        expected = np.broadcast_to(-np.asarray(factor), updates[path].shape)
        np.testing.assert_allclose(updates[path], expected, rtol=2e-2)  # a gradient below 1e-2, beside 1e-8


def test_layer_decay_without_layers():
    params = {"bias": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match="layer_decay needs parameters stacked by layer"):
        one_update(Optim(layer_decay=0.5), params, params)


@pytest.mark.parametrize("rule", [AdamW(), Lamb()])
def test_head_rate(rule):
    settings = {"warmup": 0.0, "algorithm": rule, "frozen": ("bert/pooler",)}
    plain = by_path(one_update(Optim(**settings), start(), gradients()[0]))
    raised = by_path(one_update(Optim(**settings, head_rate=8.0), start(), gradients()[0]))
    for path, update in plain.items():
        np.testing.assert_array_equal(raised[path], update * (1 if path[0] == "bert" else 8), err_msg=str(path))
    assert {path[0] for path in plain} > {"bert"}
    tree = {"encoder": {"embeddings": np.ones(2), "pooler": np.ones(2)}, "decoder": {"bert": {"layers": np.ones(2)}}}
    factors = by_path(scale_heads(3.0).update(tree | {"projection": np.ones(2)}, optax.EmptyState())[0])
    assert {"/".join(path): x[0] for path, x in factors.items() if x[0] != 1} == {"projection": 3.0}
    with pytest.raises(ValueError, match=r"head_rate is 3.0, but this model has no head"):
        scale_heads(3.0).update(tree, optax.EmptyState())


@pytest.mark.parametrize("rule", [Lamb(), Adafactor(scale_parameter=True, beta1=0.9)])
def test_a_tree_for_each_layer_trains_as_a_stack_does(rule):
    settings = Optim(learning_rate=1e-2, warmup=0.2, algorithm=rule, layer_decay=0.9)
    recorded = gradients()[:5]

    def apart(tree):
        return {**tree, "bert": {**tree["bert"], "layers": unstack_layers(tree["bert"]["layers"])}}

    wanted = by_path(apart(trained(settings, recorded=recorded)))
    found = by_path(trained(settings, apart(start()), [apart(gradient) for gradient in recorded]))
    assert found.keys() == wanted.keys()
    for path, leaf in found.items():
        np.testing.assert_allclose(leaf, wanted[path], rtol=1e-6, atol=1e-7, err_msg="/".join(path))


FROZEN = ("bert/embeddings", "bert/layers/attention/query", "predictions/bias")


def is_frozen(path):
    return "/".join(path).startswith(FROZEN)


@pytest.mark.parametrize(
    ("rule", "layer_decay"),
    [
        (RULES[0], 1.0),
        pytest.param(RULES[1], 0.9, marks=pytest.mark.slow),
        pytest.param(RULES[2], 1.0, marks=pytest.mark.slow),
        (RULES[3], 0.9),
    ],
)
def test_frozen_parameters_stay_and_do_not_count(rule, layer_decay):
    settings = {"learning_rate": 1e-2, "warmup": 0.2, "algorithm": rule, "layer_decay": layer_decay}
    recorded = gradients()[:5]

    def scaled(factor):
        def scale(path, leaf):
            return leaf * np.float32(factor) if is_frozen(tuple(key.key for key in path)) else leaf

        return [jax.tree_util.tree_map_with_path(scale, gradient) for gradient in recorded]

    # However large their gradients, all others move as if those were 0.
    found = by_path(trained(Optim(**settings, frozen=FROZEN), recorded=scaled(1e6)))
    expected = by_path(trained(Optim(**settings), recorded=scaled(0.0)))
    count = 0
    for path, before in by_path(start()).items():
        if is_frozen(path):
            count += 1
            assert found[path].tobytes() == before.tobytes(), path
        else:
            np.testing.assert_allclose(found[path], expected[path], rtol=1e-6, atol=1e-8, err_msg="/".join(path))
            assert np.any(found[path] != before)
    assert count == 8


@pytest.mark.parametrize("rule", RULES)
def test_frozen_parameters_have_no_state(rule):
    optimizer = make_optimizer(Optim(algorithm=rule, frozen=FROZEN), 10)
    paths = by_path(optimizer.init(start()))
    for path in by_path(start()):
        assert any(name[-len(path) :] == path for name in paths) != is_frozen(path), path


def test_a_frozen_stack_has_its_depth_still():
    settings = Optim(warmup=0.0, layer_decay=0.5, frozen=("bert/layers",))
    updates = by_path(one_update(settings, start(), gradients()[0]))
    plain = by_path(one_update(Optim(warmup=0.0, frozen=("bert/layers",)), start(), gradients()[0]))
    word = ("bert", "embeddings", "word", "embedding")
    np.testing.assert_allclose(updates[word], 0.5**4 * plain[word], rtol=1e-6)
    assert not np.any(updates["bert", "layers", "up", "kernel"])


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("bert/embeding", "frozen has 'bert/embeding': no such parameters; bert has embeddings, layers, pooler"),
        ("embeddings", "no such parameters; the model has bert, predictions, seq_relationship"),
        ("bert/pooler/bias/x", "no such parameters; bert/pooler/bias has nothing below it"),
        ("bert/", "no such parameters; bert has embeddings, layers, pooler"),
    ],
)
def test_frozen_paths_that_do_not_exist(prefix, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make_optimizer(Optim(frozen=("bert/pooler", prefix)), 10).init, MODEL.parameter_shapes())


def test_freezing_everything_is_refused():
    with pytest.raises(ValueError, match="frozen is bert, predictions, seq_relationship, which leaves nothing"):
        make_optimizer(Optim(frozen=("bert", "predictions", "seq_relationship")), 10).init(start())
