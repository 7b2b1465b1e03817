"""Bad inputs: each error names the argument, what was given and what is allowed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxbert
from tests.flaxbert.saved_models import BERT_CLASSES

CONFIG = flaxbert.BertConfig(
    vocab_size=50,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=9,
    max_position_embeddings=7,
    type_vocab_size=2,
)
IDS = np.ones((2, 5), np.int32)


def zeros(model):
    return {"params": jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), model.parameter_shapes())}


MODEL = flaxbert.BertModel(CONFIG)
VARIABLES = zeros(MODEL)


def changed(value):
    array = IDS.copy()
    array[1, 3] = value
    return array


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": changed(50)}, r"input_ids holds 50 at \[1, 3\]; allowed: 0 to 49 \(vocab_size\)"),
        ({"input_ids": changed(-1)}, r"input_ids holds -1 at \[1, 3\]; allowed: 0 to 49"),
        ({"token_type_ids": changed(2)}, r"token_type_ids holds 2 at \[1, 3\]; allowed: 0 to 1 \(type_vocab_size\)"),
        ({"token_type_ids": changed(-1)}, r"token_type_ids holds -1 at"),
        (
            {"position_ids": changed(7)},
            r"position_ids holds 7 at \[1, 3\]; allowed: 0 to 6 \(max_position_embeddings\)",
        ),
        ({"position_ids": changed(-2)}, r"position_ids holds -2 at"),
        ({"first_positions": np.array([[0], [5]])}, r"first_positions holds 5 at \[1, 0\]; allowed: 0 to 4"),
        ({"input_ids": np.ones((2, 8), int)}, r"the sequence has 8 positions; max_position_embeddings is 7"),
        ({"input_ids": np.ones((2, 0), int)}, "the sequences have no positions"),
        ({"input_ids": None}, "give exactly one of input_ids and inputs_embeds"),
        ({"inputs_embeds": np.ones((2, 5, 8), np.float32)}, "give exactly one of input_ids and inputs_embeds"),
        ({"head_mask": np.ones(3, np.float32)}, r"head_mask has shape \[3\]; allowed: \[4\] or \[2, 4\]"),
        ({"head_mask": np.ones((4, 2), np.float32)}, r"head_mask has shape \[4, 2\]; allowed: \[4\] or \[2, 4\]"),
    ],
)
def test_values_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        MODEL.apply(VARIABLES, **{"input_ids": IDS} | arguments)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        # All but the last of each would broadcast, and be wrong without a word.
        ("attention_mask", np.ones((2, 1)), r"\[2, 5\] or \[2, 5, 5\]"),
        ("attention_mask", np.ones((1, 5)), r"\[2, 5\] or \[2, 5, 5\]"),
        ("attention_mask", np.ones((2, 1, 5)), r"\[2, 5\] or \[2, 5, 5\]"),
        ("attention_mask", np.ones((2, 4)), r"\[2, 5\] or \[2, 5, 5\]"),
        ("token_type_ids", np.ones((2, 1), int), r"\[2, 5\]"),
        ("token_type_ids", np.ones((2, 6), int), r"\[2, 5\]"),
        ("position_ids", np.ones((2, 1), int), r"\[2, 5\] or \[1, 5\]"),
        ("position_ids", np.ones((3, 5), int), r"\[2, 5\] or \[1, 5\]"),
        ("first_positions", np.ones((1, 3), int), r"\[2, P\]"),
        ("first_positions", np.ones(2, int), r"\[2, P\]"),
        ("input_ids", np.ones(5, int), r"\[B, T\]"),
        ("input_ids", np.ones((2, 3, 5), int), r"\[B, T\]"),
        ("inputs_embeds", np.ones((2, 5, 1), np.float32), r"\[B, T, 8\]"),
        ("inputs_embeds", np.ones((2, 5), np.float32), r"\[B, T, 8\]"),
    ],
)
@pytest.mark.parametrize("traced", [False, True])
def test_wrong_shapes(name, value, allowed, traced, unchecked):
    arguments = {name: value} if name == "inputs_embeds" else {"input_ids": IDS} | {name: value}
    apply = jax.jit(MODEL.apply) if traced else MODEL.apply
    shape = r"\[" + ", ".join(map(str, value.shape)) + r"\]"
    with pytest.raises(ValueError, match=f"{name} has shape {shape}; allowed: {allowed}"):
        apply(VARIABLES, **arguments)


@pytest.mark.parametrize("name", sorted(set(BERT_CLASSES) - {"BertModel", "BertForMultipleChoice"}))
def test_heads_pass_their_inputs_to_the_same_checks(name):
    model = flaxbert.ARCHITECTURES[name](CONFIG)
    with pytest.raises(ValueError, match="input_ids holds 50"):
        model.apply(zeros(model), changed(50))
    with pytest.raises(ValueError, match="give exactly one of input_ids and inputs_embeds"):
        model.apply(zeros(model))


def test_multiple_choice_needs_its_axis_of_choices(unchecked):
    model = flaxbert.BertForMultipleChoice(CONFIG)
    variables = zeros(model)
    for arguments in ({"input_ids": IDS}, {"input_ids": IDS[:, None], "attention_mask": IDS}):
        with pytest.raises(
            ValueError, match=r"an input of shape \(2, 5\) has no axis of choices; \[B, C, T\] is needed"
        ):
            model.apply(variables, **arguments)
    with pytest.raises(ValueError, match="give exactly one of input_ids and inputs_embeds"):
        model.apply(variables)
    with pytest.raises(ValueError, match="give exactly one of input_ids and inputs_embeds"):
        model.apply(variables, IDS[:, None], inputs_embeds=np.ones((2, 1, 5, 8), np.float32))
    with pytest.raises(ValueError, match="input_ids holds 50"):
        model.apply(variables, changed(50)[:, None])


def test_unknown_argument_is_refused():
    with pytest.raises(TypeError, match="atention_mask"):
        MODEL.apply(VARIABLES, IDS, atention_mask=IDS)


@pytest.mark.parametrize("name", ["first_positions", "first_positions_only", "atention_mask"])
def test_a_head_refuses_arguments_that_it_does_not_take(name):
    model = flaxbert.BertForTokenClassification(CONFIG)
    with pytest.raises(TypeError, match=f"BertForTokenClassification takes no argument '{name}'"):
        model.apply(zeros(model), IDS, **{name: np.zeros((2, 1), int)})


@pytest.mark.parametrize("name", ["BertForMaskedLM", "RobertaForMaskedLM"])
def test_masked_positions_have_a_row_for_each_sequence(name, unchecked):
    config = CONFIG if name == "BertForMaskedLM" else flaxbert.RobertaConfig(**dataclasses.asdict(CONFIG))
    model = flaxbert.ARCHITECTURES[name](config)
    with pytest.raises(ValueError, match=r"masked_lm_positions has shape \[1, 3\]; allowed: \[2, M\]"):
        model.apply(zeros(model), IDS, masked_lm_positions=np.zeros((1, 3), int))


@pytest.mark.parametrize("name", ["input_ids", "token_type_ids", "position_ids"])
def test_a_negative_id_is_loud_where_it_cannot_be_checked(name):
    params = jax.tree.map(lambda leaf: leaf + 1.0, VARIABLES)
    inputs = {"input_ids": IDS, "token_type_ids": np.zeros_like(IDS), "position_ids": np.arange(5)[None] + 0 * IDS}
    out = jax.jit(MODEL.apply)(params, **inputs | {name: changed(-1)}).last_hidden_state
    assert np.isnan(out[1, 3]).all()
    assert np.isfinite(out[0]).all()


def test_one_row_of_positions_serves_every_row():
    out = MODEL.apply(VARIABLES, IDS, position_ids=np.array([[6, 5, 4, 3, 2]]))
    assert out.last_hidden_state.shape == (2, 5, 8)


def test_id_beyond_the_table_is_loud_where_it_cannot_be_checked():
    params = jax.tree.map(lambda leaf: leaf + 1.0, VARIABLES)
    out = jax.jit(MODEL.apply)(params, changed(50)).last_hidden_state
    assert np.isnan(out[1, 3]).all()
    assert np.isfinite(out[0]).all()
