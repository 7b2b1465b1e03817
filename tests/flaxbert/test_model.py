"""What a model does beside equalling PyTorch: loops, memory, head masks, precision, dropout, initialisation."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxbert
from flaxbert import BertConfig, Remat, functional, losses
from tests.flaxbert.saved_models import BERT_CLASSES

CONFIG = BertConfig(
    vocab_size=64,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=40,
    max_position_embeddings=20,
    classifier_dropout=0.3,
)
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
B, T = 3, 9
IDS = np.random.default_rng(0).integers(1, CONFIG.vocab_size, (B, T))
MASK = np.arange(T) < np.array([[9], [4], [7]])
KEY = jax.random.key(7)


def random_params(model, seed=0):
    """Like trained weights: nothing is 0 or 1."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        offset = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(offset + 0.25 * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, model.parameter_shapes())


def run(model, params, **arguments):
    ids = IDS[:, None] if model.takes_choices else IDS
    return jax.jit(functools.partial(model.apply, **arguments))({"params": params}, ids)


# -- the same numbers, whichever way they are computed -----------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("mask", ["none", "padding", "rows"])
def test_first_position_is_the_same_when_it_alone_is_computed(layers, mask):
    model = flaxbert.BertModel(CONFIG.replace(num_hidden_layers=layers))
    rows = np.random.default_rng(1).integers(0, 2, (B, T, T)) | np.eye(T, dtype=int)
    arguments: dict = {"attention_mask": {"none": None, "padding": MASK, "rows": rows}[mask]}
    arguments["head_mask"] = np.random.default_rng(2).random((layers, CONFIG.num_attention_heads)).astype(np.float32)
    params = random_params(model)
    every, first = run(model, params, **arguments), run(model, params, first_positions_only=True, **arguments)
    assert first.last_hidden_state.shape == (B, 1, CONFIG.hidden_size)
    np.testing.assert_allclose(first.last_hidden_state, every.last_hidden_state[:, :1], atol=2e-6)
    np.testing.assert_allclose(first.pooler_output, every.pooler_output, atol=2e-6)
    states = run(model, params, first_positions_only=True, output_hidden_states=True, **arguments)
    np.testing.assert_array_equal(states.last_hidden_state, every.last_hidden_state[:, :1])
    np.testing.assert_array_equal(states.hidden_states[-1], every.last_hidden_state)


# Where MASK's sequences of 9, 4 and 7 tokens go: the second and third into row 0, the first into row 1.
PLACES = {1: (0, 0), 2: (0, 4), 0: (1, 0)}


def packed():
    """IDS and MASK in two rows of 12 positions with two slots each, one of them empty."""
    ids, positions, segments = (np.zeros((2, 12), int) for _ in range(3))
    for sequence, (row, start) in PLACES.items():
        count = MASK[sequence].sum()
        here = (row, slice(start, start + count))
        ids[here], positions[here], segments[here] = IDS[sequence, :count], np.arange(count), sequence + 1
    mask = functional.packed_mask(segments)
    return {
        "input_ids": ids,
        "position_ids": positions,
        "attention_mask": mask,
        "first_positions": np.array([[0, 4], [0, 0]]),
    }


@pytest.mark.parametrize("scan", [True, False])
def test_sequences_that_share_a_row_are_classified_as_they_are_alone(scan):
    model = flaxbert.BertForSequenceClassification(CONFIG, scan=scan)
    params = random_params(model)
    labels = np.array([1, 0, 1])

    def alone(params):
        logits = model.apply({"params": params}, IDS, attention_mask=MASK).logits
        return losses.sequence_classification(logits, labels).mean, logits

    def together(params):
        logits = model.apply({"params": params}, **packed()).logits
        assert logits.shape == (2, 2, CONFIG.num_labels)
        logits = jnp.stack([logits[1, 0], logits[0, 0], logits[0, 1]])
        return losses.sequence_classification(logits, labels).mean, logits

    (expected, found) = (jax.jit(jax.grad(f, has_aux=True))(params) for f in (alone, together))
    chex.assert_trees_all_close(found, expected, atol=5e-6)


@pytest.mark.parametrize("states", [False, True])
def test_pooled_vectors_of_a_packed_row(states):
    model = flaxbert.BertModel(CONFIG)
    params = random_params(model)
    alone = run(model, params, attention_mask=MASK)
    arguments = packed() | {"output_hidden_states": states}
    for only in (False, True):
        out = jax.jit(functools.partial(model.apply, first_positions_only=only, **arguments))({"params": params})
        assert out.last_hidden_state.shape == (2, 2 if only else 12, CONFIG.hidden_size)
        for sequence, (row, start) in PLACES.items():
            slot = int(start > 0)
            np.testing.assert_allclose(out.pooler_output[row, slot], alone.pooler_output[sequence], atol=2e-6)
            vector = out.last_hidden_state[row, slot if only else start]
            np.testing.assert_allclose(vector, alone.last_hidden_state[sequence, 0], atol=2e-6)


def test_heads_on_the_pooled_vector_leave_the_other_positions_of_the_last_block_out():
    model = flaxbert.BertForSequenceClassification(CONFIG, scan=False)
    params = random_params(model)
    flops = {
        states: jax.jit(functools.partial(model.apply, output_hidden_states=states))
        .lower({"params": params}, IDS).compile().cost_analysis()["flops"]
        for states in (False, True)
    }  # fmt: skip
    width, inner = CONFIG.hidden_size, CONFIG.intermediate_size
    spared = (B * T - B) * (4 * width * width + 4 * width * inner)  # query, output, up, down
    assert flops[True] - flops[False] > spared


@functools.cache
def loss_and_gradients_of_a_classifier(scan, remat):
    model = flaxbert.BertForSequenceClassification(CONFIG, scan=scan, remat=remat)

    def loss(params):
        rngs = {"dropout": KEY}
        logits = model.apply({"params": params}, IDS, attention_mask=MASK, deterministic=False, rngs=rngs).logits
        return losses.sequence_classification(logits, jnp.arange(B) % 2).mean

    return jax.jit(jax.value_and_grad(loss))(random_params(model))


@pytest.mark.parametrize(
    ("scan", "remat"),
    [pytest.param(False, Remat.NONE, marks=pytest.mark.slow), (False, Remat.DOTS), (True, Remat.FULL)],
)
def test_scan_unrolled_and_remat_agree_where_one_position_is_computed(scan, remat):
    plain, other = (loss_and_gradients_of_a_classifier(*how) for how in ((True, Remat.NONE), (scan, remat)))
    chex.assert_trees_all_close(other, plain, rtol=1e-5, atol=1e-6)


@functools.cache
def loss_outputs_and_gradients(scan, remat):
    model = flaxbert.BertForMaskedLM(CONFIG.replace(num_hidden_layers=2), scan=scan, remat=remat)
    labels = jnp.where(jnp.asarray(IDS) % 3 == 0, IDS, losses.IGNORE)

    def loss(params):
        out = model.apply(
            {"params": params}, IDS, attention_mask=MASK, deterministic=False, rngs={"dropout": KEY},
            output_hidden_states=True, output_attentions=True,
        )  # fmt: skip
        return losses.masked_lm(out.logits, labels).mean, out

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(random_params(model))


@pytest.mark.parametrize(
    ("scan", "remat"),
    [
        pytest.param(scan, remat, marks=() if scan or remat is Remat.NONE else pytest.mark.slow)
        for scan in (True, False)
        for remat in Remat
    ],
)
def test_scan_unrolled_and_remat_agree_with_dropout_on(scan, remat):
    plain, other = loss_outputs_and_gradients(True, Remat.NONE), loss_outputs_and_gradients(scan, remat)
    # Recomputed, a sum may be fused otherwise and end a rounding apart: 2e-6 of each array's largest entry, or of 0.5
    # (a key's bias has a true gradient of zero).
    for one, two in zip(jax.tree.leaves(other), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=2e-6 * max(0.5, np.abs(two).max()))


# -- head mask ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_layer", [False, True])
def test_head_mask_is_a_factor_on_each_heads_context(per_layer):
    model = flaxbert.BertModel(CONFIG)
    params = random_params(model)
    layers, heads = CONFIG.num_hidden_layers, CONFIG.num_attention_heads
    factors = np.random.default_rng(1).uniform(-1, 2, (layers, heads)).astype(np.float32)
    factors[:, 1], factors[:, 2] = 0, 1
    if not per_layer:
        factors[:] = factors[0]
    # A head's context meets nothing but its slice of the output kernel.
    kernel = params["layers"]["attention"]["output"]["kernel"]
    by_hand = {**params, "layers": {**params["layers"]}}
    by_hand["layers"]["attention"] = {
        **params["layers"]["attention"],
        "output": {**params["layers"]["attention"]["output"], "kernel": kernel * factors[:, :, None, None]},
    }
    wanted = run(model, by_hand, attention_mask=MASK, output_attentions=True)
    out = run(
        model, params, attention_mask=MASK, output_attentions=True, head_mask=factors if per_layer else factors[0]
    )
    np.testing.assert_allclose(out.last_hidden_state, wanted.last_hidden_state, rtol=0, atol=1e-5)
    for layer in range(layers):
        scaled = wanted.attentions[layer] * factors[layer][None, :, None, None]
        np.testing.assert_allclose(out.attentions[layer], scaled, rtol=0, atol=1e-5)


def test_head_mask_of_ones_changes_nothing():
    model = flaxbert.BertModel(CONFIG)
    params = random_params(model)
    chex.assert_trees_all_equal(run(model, params, head_mask=np.ones(4, np.float32)), run(model, params))


# -- what is returned --------------------------------------------------------------------------------------------


def test_hidden_states_are_the_embeddings_and_every_layer():
    model = flaxbert.BertModel(CONFIG)
    params = random_params(model)
    out = run(model, params, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == CONFIG.num_hidden_layers + 1
    assert len(out.attentions) == CONFIG.num_hidden_layers
    np.testing.assert_array_equal(out.hidden_states[-1], out.last_hidden_state)
    tables = {name: params["embeddings"][name]["embedding"] for name in ("word", "position", "token_type")}
    total = tables["word"][IDS] + tables["position"][None, :T] + tables["token_type"][None, :1]
    norm = params["embeddings"]["norm"]
    wanted = functional.layer_norm(total, norm["scale"], norm["bias"], epsilon=CONFIG.layer_norm_eps)
    np.testing.assert_allclose(out.hidden_states[0], wanted, rtol=0, atol=1e-5)


def test_nothing_is_returned_that_was_not_asked_for():
    out = run(flaxbert.BertModel(CONFIG), random_params(flaxbert.BertModel(CONFIG)))
    assert out.hidden_states is None and out.attentions is None


def test_without_pooling_layer_there_is_no_pooler():
    model = flaxbert.BertModel(CONFIG, add_pooling_layer=False)
    params = random_params(model)
    assert "pooler" not in params
    assert run(model, params).pooler_output is None


def test_masked_lm_positions_choose_rows_of_the_logits():
    model = flaxbert.BertForMaskedLM(CONFIG)
    params = random_params(model)
    positions = np.array([[0, 3], [2, 2], [8, 0]])
    few = run(model, params, masked_lm_positions=positions).logits
    every = run(model, params).logits
    np.testing.assert_allclose(few, np.take_along_axis(np.asarray(every), positions[..., None], 1), atol=1e-5)
    with pytest.raises(ValueError, match=r"masked_lm_positions holds 9 at \[0, 1\]; allowed: 0 to 8"):
        model.apply({"params": params}, IDS, masked_lm_positions=np.array([[0, 9]] * B))


# -- masks -------------------------------------------------------------------------------------------------------


def sensitivity(config, **arguments):
    """|d logits[t] / d embeds[s]|, largest over the batch and the width: [T, T]."""
    model = flaxbert.BertLMHeadModel(config)
    params = random_params(model)
    embeds = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, config.hidden_size)), jnp.float32)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=config.vocab_size), jnp.float32)

    def scores(embeds):
        return (model.apply({"params": params}, inputs_embeds=embeds, **arguments).logits @ weights).sum(axis=0)

    return np.abs(np.asarray(jax.jit(jax.jacrev(scores))(embeds))).max(axis=(1, 3))


def test_decoder_never_looks_ahead():
    seen = sensitivity(CONFIG.replace(is_decoder=True)) != 0
    np.testing.assert_array_equal(seen, np.tril(np.ones((T, T), bool)))


def test_decoder_joins_its_causal_mask_with_padding():
    padding = np.arange(T) < np.array([[5]] * B)
    seen = sensitivity(CONFIG.replace(is_decoder=True), attention_mask=padding) != 0
    # Every position still sees itself through the residual.
    np.testing.assert_array_equal(seen, np.tril(np.ones((T, T), bool)) & padding[0] | np.eye(T, dtype=bool))


def test_mask_of_rows_is_used_as_given_even_by_a_decoder():
    blocks = np.kron(np.eye(3), np.ones((3, 3)))[None].repeat(B, 0)
    for decoder in (False, True):
        seen = sensitivity(CONFIG.replace(is_decoder=decoder), attention_mask=blocks) != 0
        np.testing.assert_array_equal(seen, blocks[0])


def test_multiple_choice_takes_a_mask_of_rows():
    model = flaxbert.BertForMultipleChoice(CONFIG)
    params = random_params(model)
    rows = np.random.default_rng(0).random((B, 2, T, T)) < 0.7
    ids = np.stack([IDS, IDS[:, ::-1]], axis=1)
    out = jax.jit(model.apply)({"params": params}, ids, attention_mask=rows).logits
    for choice in range(2):
        alone = jax.jit(model.apply)({"params": params}, ids[:, choice : choice + 1], attention_mask=rows[:, [choice]])
        np.testing.assert_allclose(out[:, choice], alone.logits[:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_row_of_padding_gives_finite_outputs_and_gradients(dtype):
    model = flaxbert.BertForMaskedLM(CONFIG, dtype=dtype)
    mask = np.array([[1] * T, [0] * T, [1] * T])

    def loss(params):
        out = model.apply({"params": params}, IDS, attention_mask=mask, output_attentions=True)
        return losses.masked_lm(out.logits, IDS).mean, out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(random_params(model))
    chex.assert_tree_all_finite(jax.tree.leaves((out, gradients)))
    for attention in out.attentions:
        uniform = np.full((4, T, T), 1 / T)
        np.testing.assert_allclose(attention[1].astype(np.float32), uniform, rtol=jnp.finfo(dtype).eps)


# -- the pad row ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "pad", "learns"),
    [
        (flaxbert.BertForTokenClassification, 5, False),
        (flaxbert.BertForTokenClassification, None, True),
        (flaxbert.BertForMaskedLM, 5, True),  # by the tied decoder
    ],
)
def test_pad_row_gets_no_gradient_through_the_lookup(cls, pad, learns):
    model = cls(CONFIG.replace(pad_token_id=pad))
    ids = np.where(MASK, IDS, 5)
    loss = lambda params: (model.apply({"params": params}, ids).logits ** 2).sum()  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(random_params(model))["bert"]["embeddings"]["word"]["embedding"]
    assert bool(np.any(gradient[5])) is learns
    assert np.any(gradient[IDS[0, 0]])


# -- precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BERT_CLASSES)
def test_bfloat16_keeps_float32_parameters_and_logits(name, unchecked):
    model = flaxbert.ARCHITECTURES[name](CONFIG, dtype=jnp.bfloat16)
    shapes = model.parameter_shapes()
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    ids = IDS[:, None] if model.takes_choices else IDS
    apply = functools.partial(model.apply, output_hidden_states=True, output_attentions=True)
    out = jax.eval_shape(apply, {"params": shapes}, ids)
    assert {state.dtype for state in out.hidden_states + out.attentions} == {jnp.dtype(jnp.bfloat16)}
    scores = {field: value for field, value in vars(out).items() if field.endswith("logits")}
    assert {value.dtype for value in scores.values()} == ({jnp.dtype(jnp.float32)} if scores else set())
    assert bool(scores) is (name != "BertModel")


def test_bfloat16_outputs_are_near_those_of_float32():
    half, full = (flaxbert.BertForPreTraining(CONFIG, dtype=dtype) for dtype in (jnp.bfloat16, jnp.float32))
    params = random_params(half)
    out, wanted = run(half, params, attention_mask=MASK), run(full, params, attention_mask=MASK)
    for field in ("prediction_logits", "seq_relationship_logits"):
        exact = np.asarray(getattr(wanted, field))
        # bfloat16 has 8 bits; the errors of a few layers add up.
        assert 0 < np.abs(getattr(out, field) - exact).max() < 0.05 * np.abs(exact).max()


# -- initialisation ------------------------------------------------------------------------------------------------


def test_fresh_parameters_follow_the_references_rule():
    config = BertConfig(
        vocab_size=400, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=50, initializer_range=0.05, pad_token_id=3,
    )  # fmt: skip
    model = flaxbert.BertForPreTraining(config)
    params = jax.jit(model.init)(KEY, IDS)["params"]
    drawn = []
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        name, leaf = jax.tree_util.keystr(path), np.asarray(leaf)
        if path[-1].key == "bias":
            assert not leaf.any(), name
        elif path[-1].key == "scale":
            assert (leaf == 1).all(), name
        else:
            leaf = np.delete(leaf, 3, axis=0) if "word" in name else leaf
            assert abs(leaf.std() / 0.05 - 1) < 4 / np.sqrt(2 * leaf.size), name
            assert abs(leaf.mean() / 0.05) < 4 / np.sqrt(leaf.size), name
            drawn.append(leaf.ravel())
    every = np.concatenate(drawn) / 0.05
    # A normal has 4.55% beyond two deviations; one truncated there has none.
    assert abs((np.abs(every) > 2).mean() - 0.0455) < 4 * np.sqrt(0.0455 / every.size)
    assert not params["bert"]["embeddings"]["word"]["embedding"][3].any()
    # No two layers and no two kernels of one shape may be the same draw.
    blocks = params["bert"]["layers"]["attention"]
    alike = [blocks[name]["kernel"][layer].ravel() for name in ("query", "key", "value", "output") for layer in (0, 1)]
    assert np.abs(np.corrcoef(alike)[np.triu_indices(8, 1)]).max() < 5 / 64


def test_parameters_are_plain_arrays_and_repeat_for_one_key():
    model = flaxbert.BertForMultipleChoice(CONFIG)
    init = jax.jit(model.init)
    ids = IDS[:, None]
    params = init(KEY, ids)["params"]
    assert all(type(leaf) is type(jnp.zeros(1)) for leaf in jax.tree.leaves(params))
    chex.assert_trees_all_equal(init(KEY, ids)["params"], params)
    chex.assert_trees_all_equal_shapes_and_dtypes(model.parameter_shapes(), params)
    assert not np.array_equal(
        init(jax.random.key(8), ids)["params"]["classifier"]["kernel"], params["classifier"]["kernel"]
    )


# -- dropout -------------------------------------------------------------------------------------------------------


def dropped(config, cls=flaxbert.BertModel, key=KEY, **arguments):
    model = cls(config)
    arguments |= {"deterministic": False, "rngs": {"dropout": key}}
    return run(model, random_params(model), **arguments)


def test_deterministic_means_no_dropout():
    model = flaxbert.BertForSequenceClassification(CONFIG)
    params = random_params(model)
    plain = flaxbert.BertForSequenceClassification(CONFIG.replace(**NO_DROPOUT))
    chex.assert_trees_all_equal(run(model, params).logits, run(plain, params).logits)
    chex.assert_trees_all_equal(
        run(model, params).logits, run(plain, params, deterministic=False, rngs={"dropout": KEY}).logits
    )


def test_attention_dropout_draws_a_mask_for_every_row_head_and_layer():
    config = CONFIG.replace(**NO_DROPOUT | {"attention_probs_dropout_prob": 0.5})
    attentions = np.stack(dropped(config, output_attentions=True).attentions)
    kept = (attentions != 0).reshape(-1, T * T)
    assert abs(kept.mean() - 0.5) < 4 * 0.5 / np.sqrt(kept.size)
    assert len(np.unique(kept, axis=0)) == len(kept) == CONFIG.num_hidden_layers * B * CONFIG.num_attention_heads
    # The first layer's input knows no dropout yet, so its weights are the plain ones, doubled where kept.
    model = flaxbert.BertModel(config)
    plain = run(model, random_params(model), output_attentions=True).attentions[0]
    np.testing.assert_allclose(attentions[0], np.where(attentions[0] != 0, 2 * plain, 0), rtol=1e-5)


def test_embedding_dropout_comes_after_the_norm():
    config = CONFIG.replace(**NO_DROPOUT | {"hidden_dropout_prob": 0.5})
    first = np.asarray(dropped(config, output_hidden_states=True).hidden_states[0])
    model = flaxbert.BertModel(config)
    plain = run(model, random_params(model), output_hidden_states=True).hidden_states[0]
    assert abs((first == 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(first.size)
    np.testing.assert_allclose(first, np.where(first != 0, 2 * plain, 0), rtol=1e-5)


@pytest.mark.parametrize("site", ["attention", "down"])
def test_both_halves_of_a_block_drop_before_the_residual(site):
    config = CONFIG.replace(num_hidden_layers=1, **NO_DROPOUT | {"hidden_dropout_prob": 0.3})
    model = flaxbert.BertModel(config)
    params = random_params(model)
    layer = params["layers"]
    # One half gives nothing, the other 100 everywhere; after the norms what was dropped is negative.
    for name, linear in (("attention", layer["attention"]["output"]), ("down", layer["down"])):
        linear["kernel"] = jnp.zeros_like(linear["kernel"])
        linear["bias"] = jnp.full_like(linear["bias"], 100.0 if name == site else 0.0)
    for name in ("attention_norm", "output_norm"):
        layer[name] = {"scale": jnp.ones((1, 24)), "bias": jnp.zeros((1, 24))}
    kept = np.asarray(run(model, params, deterministic=False, rngs={"dropout": KEY}).last_hidden_state) > 0
    assert abs(kept.mean() - 0.7) < 4 * np.sqrt(0.3 * 0.7 / kept.size)


@pytest.mark.parametrize(
    ("name", "field", "drops"),
    [
        ("BertForSequenceClassification", "logits", True),
        ("BertForMultipleChoice", "logits", True),
        ("BertForTokenClassification", "logits", True),
        ("BertForNextSentencePrediction", "logits", False),
        ("BertForQuestionAnswering", "start_logits", False),
        ("BertForMaskedLM", "logits", False),
    ],
)
def test_classifier_dropout_is_before_the_classifiers_only(name, field, drops):
    model = flaxbert.ARCHITECTURES[name](
        CONFIG.replace(num_hidden_layers=1, **NO_DROPOUT | {"classifier_dropout": 0.5})
    )
    params = random_params(model)
    out, plain = run(model, params, deterministic=False, rngs={"dropout": KEY}), run(model, params)
    assert bool(np.any(getattr(out, field) != getattr(plain, field))) is drops


def test_classifier_dropout_falls_back_to_hidden_dropout():
    assert CONFIG.replace(classifier_dropout=None, hidden_dropout_prob=0.2).head_dropout_prob == 0.2
    assert CONFIG.replace(classifier_dropout=0.0, hidden_dropout_prob=0.2).head_dropout_prob == 0.0


def test_dropout_repeats_for_a_key_and_differs_for_another():
    one, again, other = (dropped(CONFIG, key=jax.random.key(k)).last_hidden_state for k in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other)
