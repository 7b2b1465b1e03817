"""Pruned heads, other vocabularies and positions, fewer layers: against the whole model, and against transformers."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

import flaxbert
from flaxbert import BertConfig, surgery
from flaxbert.layers import stack_layers, unstack_layers
from tests.flaxbert.transformers4_fixtures import FOLDER, as_tensors, stored_values
from tests.trees import by_path, initial

SIZES = {
    "vocab_size": 23,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 9,
}
IDS = np.array([[3, 7, 9, 1, 5], [4, 8, 2, 0, 0]], np.int32)
MASK = (IDS > 0).astype(np.int32)


@functools.cache
def random_model(name="BertForMaskedLM", **changes):
    """A model and parameters of which none is 0 or 1 in all entries."""
    model_class = getattr(flaxbert, name)
    model = model_class(model_class.config_class(**{**SIZES, **changes}))
    params = initial(model)
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.3, leaf.shape).astype(np.float32), params)


def apply(model, params, **inputs):
    return jax.jit(model.apply)({"params": params}, IDS, attention_mask=MASK, **inputs)


def first_output(model, params, **inputs):
    return jax.tree.leaves(apply(model, params, **inputs))[0]


# -- pruned heads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["classifier", "roberta_classifier", "decoder_cross_attention_relative_key"])
def test_pruning_twice_gives_the_parameters_of_transformers_4(name):
    model, params = flaxbert.from_pretrained(FOLDER / name)
    config = model.config
    for heads in ({0: [1], 2: [0, 3]}, {0: [1, 2], 1: [3]}):
        config, params = surgery.prune_heads(config, params, heads)
    wanted_model, wanted = flaxbert.from_pretrained(FOLDER / f"{name}_pruned")
    assert config == wanted_model.config
    assert config.pruned_heads == ((0, (1, 2)), (1, (3,)), (2, (0, 3)))
    chex.assert_trees_all_equal(params, wanted)


@pytest.mark.parametrize("name", flaxbert.ARCHITECTURES)
def test_every_class_has_the_changed_shapes(name):
    model, params = random_model(name)
    for change in (
        lambda config, params: surgery.prune_heads(config, params, {0: [2], 1: [0, 2]}),
        lambda config, params: surgery.drop_layers(config, params, keep=[1, 2]),
        lambda config, params: surgery.resize_token_embeddings(config, params, 31),
        lambda config, params: surgery.resize_positions(config, params, 7),
    ):
        config, params = change(model.config, params)
        model = model.clone(config=config)
        chex.assert_trees_all_equal_shapes(params, model.parameter_shapes())


@pytest.mark.parametrize("name", ["BertModel", "BertForMultipleChoice", "DistilBertForMaskedLM"])
def test_a_pruned_head_is_a_masked_head(name):
    model, params = random_model(name)
    config, pruned = surgery.prune_heads(model.config, params, {1: [0, 2], 2: np.array([1])})
    mask = np.ones((3, 3), np.float32)
    mask[1, [0, 2]] = mask[2, 1] = 0
    inputs = {"input_ids": IDS[:, None].repeat(2, 1)} if model.takes_choices else {"input_ids": IDS}
    run = lambda model, params, **more: jax.jit(model.apply)({"params": params}, **inputs, **more)  # noqa: E731
    chex.assert_trees_all_close(
        run(model.clone(config=config), pruned), run(model, params, head_mask=mask), rtol=1e-5, atol=1e-5
    )
    removed = sum(leaf.size for leaf in jax.tree.leaves(params)) - sum(leaf.size for leaf in jax.tree.leaves(pruned))
    assert removed == 3 * (4 * 12 * 4 + 3 * 4)  # a head has 4 kernels [12, 4] and 3 biases [4]


def test_a_pruned_model_is_written_as_transformers_4_writes_it(tmp_path):
    folder = FOLDER / "classifier_pruned"
    model, params = flaxbert.from_pretrained(folder)
    flaxbert.save_pretrained(tmp_path, model, params)
    again, read = flaxbert.from_pretrained(tmp_path)
    assert again.config == model.config
    chex.assert_trees_all_equal(read, params)
    given = transformers.BertConfig.from_pretrained(folder).to_dict()["pruned_heads"]
    assert transformers.BertConfig.from_pretrained(tmp_path).to_dict()["pruned_heads"] == given


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({0: [0, 1, 2]}, "all heads of layer 0"),
        ({3: [0]}, "a layer of pruned_heads is 3; it must be a whole number from 0 to 2"),
        ({1: [3]}, "a head of layer 1 in pruned_heads is 3"),
    ],
)
def test_heads_that_cannot_be_pruned(heads, message):
    model, params = random_model()
    with pytest.raises(ValueError, match=message):
        surgery.prune_heads(model.config, params, heads)


def test_all_heads_of_a_layer_cannot_be_pruned_one_after_the_other():
    model, params = random_model()
    config, params = surgery.prune_heads(model.config, params, {1: [0, 2]})
    with pytest.raises(ValueError, match="all heads of layer 1"):
        surgery.prune_heads(config, params, {1: [1]})


def test_importance_is_the_gradient_of_the_head_mask():
    stored = stored_values("encoder_chunked", "head_mask_per_layer")
    model, params = flaxbert.from_pretrained(FOLDER / "encoder_chunked")
    inputs = stored["input"]
    given = inputs.pop("head_mask")

    def loss(params, head_mask, factor):
        out = model.apply({"params": params}, **inputs, head_mask=head_mask * given)
        return factor * sum((getattr(out, name) * value).sum() for name, value in stored["cotangent"].items())

    importance = surgery.head_importance(model.config, params, loss, [1.0, -2.0])
    wanted = np.abs(stored["gradient"]["head_mask"] * given)
    np.testing.assert_allclose(importance, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), rtol=1e-4)


def test_importance_leaves_out_pruned_heads():
    model, params = random_model()
    config, params = surgery.prune_heads(model.config, params, {1: [0]})
    model = model.clone(config=config)

    def loss(params, head_mask, ids):
        return model.apply({"params": params}, ids, head_mask=head_mask).logits[0, 0, 0]

    importance = surgery.head_importance(config, params, loss, [IDS])
    assert importance[1, 0] == 0 and np.count_nonzero(importance) == 8
    assert 0 not in surgery.least_important_heads(config, importance, 0.5).get(1, [])
    with pytest.raises(ValueError, match="batches is empty"):
        surgery.head_importance(config, params, loss, [])
    with pytest.raises(ValueError, match="not finite"):
        surgery.head_importance(config, jax.tree.map(lambda leaf: leaf * jnp.nan, params), loss, [IDS])


def test_the_cross_attention_of_a_pruned_head_gives_it_no_importance():
    """A head mask also scales the head of the same number of the cross-attention, which stays."""
    model, params = random_model("BertLMHeadModel", is_decoder=True, add_cross_attention=True)
    config, params = surgery.prune_heads(model.config, params, {1: [0]})
    model, states = model.clone(config=config), np.random.default_rng(1).normal(size=(2, 4, 12)).astype(np.float32)

    def loss(params, head_mask, ids):
        return model.apply({"params": params}, ids, head_mask=head_mask, encoder_hidden_states=states).logits[0, 0, 0]

    importance = surgery.head_importance(config, params, loss, [IDS])
    assert importance[1, 0] == 0 and np.count_nonzero(importance) == 8


def test_the_least_important_heads_leave_one_in_each_layer():
    config = BertConfig(**SIZES)
    importance = np.array([[0.1, 0.2, 0.3], [0.9, 0.8, 0.7], [0.4, 0.35, 0.6]])
    assert surgery.least_important_heads(config, importance, 0.0) == {}
    assert surgery.least_important_heads(config, importance, 0.5) == {0: [0, 1], 2: [0, 1]}
    assert surgery.least_important_heads(config, importance, 2 / 3) == {0: [0, 1], 1: [1, 2], 2: [0, 1]}
    with pytest.raises(ValueError, match=r"fraction is 0.8; it must be from 0 to 0.667"):
        surgery.least_important_heads(config, importance, 0.8)
    with pytest.raises(ValueError, match=r"the shape \(2, 3\); the model has layers and heads \(3, 3\)"):
        surgery.least_important_heads(config, importance[:2], 0.5)


# -- vocabulary --------------------------------------------------------------------------------------------

LANGUAGE_MODELS = [
    *(("BertForMaskedLM", tied) for tied in (True, False)),
    ("RobertaForMaskedLM", False),
    ("DistilBertForMaskedLM", False),
]


@pytest.mark.parametrize("size", [17, 31])
@pytest.mark.parametrize("mean_resizing", [True, False])
@pytest.mark.parametrize(("name", "tied"), LANGUAGE_MODELS)
def test_a_resized_vocabulary_is_that_of_transformers(name, tied, mean_resizing, size, tmp_path):
    model, params = random_model(name, tie_word_embeddings=tied)
    flaxbert.save_pretrained(tmp_path, model, params)
    reference = getattr(transformers, name).from_pretrained(tmp_path)
    reference.resize_token_embeddings(size, mean_resizing=mean_resizing)
    config, new = surgery.resize_token_embeddings(model.config, params, size, mean_resizing=mean_resizing)
    assert config == model.config.replace(vocab_size=size)
    wanted = dict(reference.named_parameters())
    for key, tensor in as_tensors(model.clone(config=config), new).items():
        if key == "cls.predictions.decoder.bias":
            key = "cls.predictions.bias"
        old = tensor[:23] if size in tensor.shape else tensor
        np.testing.assert_array_equal(old, wanted[key].detach().numpy()[: len(old)], err_msg=key)
        added, theirs = tensor[len(old) :], wanted[key].detach().numpy()[len(old) :]
        # Random vectors: around the same mean, or of the same size.
        if mean_resizing or added.ndim == 1:
            np.testing.assert_allclose(added, theirs, rtol=0, atol=1e-3, err_msg=key)
        elif len(added):
            assert 0.5 < np.std(added) / np.std(theirs) < 2, key


@pytest.mark.parametrize("size", [17, 31])
def test_a_resized_vocabulary_does_not_change_the_logits_of_others(size):
    model, params = random_model()
    config, new = surgery.resize_token_embeddings(model.config, params, size)
    logits, common = first_output(model.clone(config=config), new), min(size, 23)
    np.testing.assert_allclose(logits[..., :common], first_output(model, params)[..., :common], rtol=0, atol=1e-5)


def test_new_vectors_have_the_mean_and_the_scaled_covariance_of_the_old_ones():
    model, params = random_model()
    _, new = surgery.resize_token_embeddings(model.config, params, 4023)
    table = np.asarray(new["bert"]["embeddings"]["word"]["embedding"], np.float64)
    covariance = np.cov(table[:23].T, bias=True)
    np.testing.assert_allclose(np.cov(table[23:].T) * 1e9, covariance, atol=0.1 * covariance.max())
    np.testing.assert_allclose(table[23:].mean(0), table[:23].mean(0), atol=1e-5)


def test_a_vocabulary_is_rounded_up_and_its_padded_rows_are_left_out():
    model = random_model("BertForPreTraining")[0].clone(vocab_multiple=16)
    params = initial(model)
    config, new = surgery.resize_token_embeddings(model.config, params, pad_to_multiple_of=8)
    assert config.vocab_size == 24
    chex.assert_trees_all_equal_shapes(new, model.clone(config=config, vocab_multiple=1).parameter_shapes())
    table = new["bert"]["embeddings"]["word"]["embedding"]
    assert np.all(table[23] != 0)  # not one of the rows of zeros behind the vocabulary


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({"pad_token_id": 20}, {"vocab_size": 20}, "vocab_size is 20 and pad_token_id 20"),
        ({"pad_token_id": -1}, {"vocab_size": 30}, "vocab_size is 30 and pad_token_id -1"),
        ({}, {"vocab_size": 0}, "vocab_size is 0"),
        ({}, {"pad_to_multiple_of": 0}, "pad_to_multiple_of is 0; it must be at least 1"),
    ],
)
def test_vocabularies_that_are_refused(changes, arguments, message):
    model, params = random_model(**changes)
    with pytest.raises(ValueError, match=message):
        surgery.resize_token_embeddings(model.config, params, **arguments)


# -- positions and layers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 14])
@pytest.mark.parametrize(("position_type", "pruned"), [("absolute", False), ("relative_key", True)])
def test_other_numbers_of_positions_do_not_change_outputs(position_type, size, pruned):
    model, params = random_model("BertModel", position_embedding_type=position_type)
    config = model.config
    if pruned:
        config, params = surgery.prune_heads(config, params, {1: [2]})
    wanted = first_output(model.clone(config=config), params)
    config, new = surgery.resize_positions(config, params, size)
    np.testing.assert_array_equal(first_output(model.clone(config=config), new), wanted)
    tables = [leaf for path, leaf in by_path(new).items() if "position" in path or "distance" in path]
    assert all(np.all(table[-1:] != 0) for table in tables)


def test_positions_of_roberta_are_cut_behind_the_first_one():
    model, params = random_model("RobertaModel")
    config, new = surgery.resize_positions(model.config, params, 7)  # 2 before the first of 5 tokens
    np.testing.assert_array_equal(first_output(model.clone(config=config), new), first_output(model, params))
    with pytest.raises(ValueError, match="max_position_embeddings is 2; it must exceed"):
        surgery.resize_positions(model.config, params, 2)


@pytest.mark.parametrize("pruned", [{}, {1: [0]}, {0: [2], 2: [0, 1]}])
def test_dropped_layers_are_not_computed(pruned):
    model, params = random_model("BertModel")
    config, params = surgery.prune_heads(model.config, params, pruned)
    new_config, new = surgery.drop_layers(config, params, keep=[0, 2])
    assert new_config.num_hidden_layers == 2
    assert new_config.pruned_heads == tuple((layer // 2, tuple(heads)) for layer, heads in pruned.items() if layer != 1)
    layers = params["layers"] if pruned else unstack_layers(params["layers"])
    kept = {"0": layers["0"], "1": layers["2"]}
    wanted = kept if new_config.pruned_heads else stack_layers(kept)
    chex.assert_trees_all_equal(new, {**params, "layers": wanted})
    assert np.isfinite(first_output(model.clone(config=new_config), new)).all()


@pytest.mark.parametrize("keep", [[], [2, 0], [0, 0], [0, 3], [-1]])
def test_layers_that_cannot_be_kept(keep):
    model, params = random_model("BertModel")
    with pytest.raises(ValueError, match="numbers of layers from 0 to 2, in ascending order"):
        surgery.drop_layers(model.config, params, keep=keep)


def test_parameters_of_another_model_are_refused():
    model, params = random_model("BertModel")
    with pytest.raises(ValueError, match="params has 3 layers; the config has 2"):
        surgery.drop_layers(model.config.replace(num_hidden_layers=2), params, keep=[0])
    with pytest.raises(ValueError, match=r"params has the keys \['roberta'\]"):
        surgery.prune_heads(model.config, {"roberta": params}, {0: [1]})
