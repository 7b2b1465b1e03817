"""Layers and tokens left out: equal to plain PyTorch, the same under every layout, and refused where undefined."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import flaxbert
from flaxbert import BertConfig, Remat, functional, length_adaptive, sharding
from flaxbert.families import family_of
from flaxbert.length_adaptive import KeptTokens, LayerPlan
from flaxbert.stack import stack
from tests.flaxbert import parity
from tests.flaxbert.length_adaptive import AdaptiveEncoder
from tests.flaxbert.parity import (
    GRADIENT_TOLERANCE,
    OUTPUT_TOLERANCE,
    head_of,
    projected,
    random_inputs,
    run_ours,
    saved,
)
from tests.flaxbert.saved_models import BERT_CLASSES
from tests.flaxbert.test_model import CONFIG, IDS, MASK, B, T, random_params
from tests.flaxbert.test_sharding import collectives
from train.aot.hlo import parse_program
from train.aot.instruction_cost import matmul_flops

DISTILBERT_CLASSES = (
    "DistilBertModel",
    "DistilBertForMaskedLM",
    "DistilBertForSequenceClassification",
    "DistilBertForMultipleChoice",
    "DistilBertForTokenClassification",
    "DistilBertForQuestionAnswering",
)
CASES = [(name, seed) for seed, name in enumerate((*BERT_CLASSES, *DISTILBERT_CLASSES))]
# In a first run a test of a head takes 4 s: the others are slow.
QUICK = ("BertForQuestionAnswering",)
LENGTHS = (7, 7, 4)


def random_arguments(layers: int, rng: np.random.Generator) -> dict:
    """Draw lengths, among them some beyond the input, the layers that run, and whether [CLS] is kept."""
    lengths = sorted(rng.integers(1, parity.T + 2, layers).tolist(), reverse=True)
    some = sorted(rng.choice(layers, max(layers - 1, 1), replace=False).tolist())
    return {
        "length_config": lengths,
        "layer_config": [None, some][int(rng.integers(2))],
        "always_keep_cls_token": [None, True, False][int(rng.integers(3))],
    }


def run_torch(reference, model, inputs, labels, arguments):
    """Return outputs, gradients and the encoder of the reference, whose layers are replaced by plain PyTorch."""
    base = getattr(reference, reference.base_model_prefix, reference)
    arrays = {key: torch.from_numpy(value) for key, value in (inputs | labels).items()}
    states = arrays.pop("states", None)
    keep_cls = arguments["always_keep_cls_token"]
    encoder = AdaptiveEncoder(
        base,
        mask=arrays.get("attention_mask"),
        length_config=arguments["length_config"],
        layer_config=arguments["layer_config"],
        keep_cls=type(model).keeps_cls_token if keep_cls is None else keep_cls,
    )
    (base.transformer if hasattr(base, "transformer") else base.encoder).forward = encoder
    out = reference(**arrays)
    (out.loss if states is None else projected(out, states)).backward()
    gradients = {
        name: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
        for name, p in reference.named_parameters()
    }
    return out, gradients, encoder


def assert_equal_to_torch(name, seed, folder):
    rng = np.random.default_rng(seed)
    layers = int(rng.integers(2, 5))
    key = family_of(flaxbert.ARCHITECTURES[name]).config_keys.get("num_hidden_layers", "num_hidden_layers")
    reference = saved(name, folder, seed, **{key: layers})
    model, params = getattr(flaxbert, name).from_pretrained(folder)
    inputs, labels = random_inputs("padded", model, rng), head_of(model).labels(rng, model.config)
    if seed % 3:  # padding before and between tokens, too
        inputs["attention_mask"] &= rng.random(inputs["attention_mask"].shape) < 0.7
    arguments = random_arguments(layers, rng)
    out, _, gradients = run_ours(model, params, inputs | arguments, labels)
    wanted, wanted_gradients, encoder = run_torch(reference, model, inputs, labels, arguments)
    assert min(encoder.gaps, default=1) > 1e-6, "scores are tied: draw another seed"
    assert out.lengths == tuple(state.shape[1] for state in encoder.states)
    for ours, state in zip(out.hidden_states[1:], encoder.states, strict=True):
        np.testing.assert_allclose(ours, state.detach().numpy(), rtol=0, atol=OUTPUT_TOLERANCE)
    for field in (f.name for f in dataclasses.fields(out)):
        if field in ("hidden_states", "attentions", "lengths") or getattr(out, field) is None:
            continue
        theirs = getattr(wanted, field).detach().numpy()
        np.testing.assert_allclose(getattr(out, field), theirs, rtol=0, atol=OUTPUT_TOLERANCE, err_msg=field)
    for key, theirs in wanted_gradients.items():
        largest = np.abs(theirs).max()
        # Where the exact gradient is 0, both sides hold sums of cancelled terms.
        allowed = 1e-6 if largest < 1e-5 else GRADIENT_TOLERANCE * largest
        assert np.abs(gradients[key] - theirs).max() <= allowed, key


@pytest.mark.parametrize(("name", "seed"), [case for case in CASES if case[0] in QUICK])
def test_outputs_and_gradients_equal_pytorch(name, seed, tmp_path):
    assert_equal_to_torch(name, seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("repeat", range(4))
@pytest.mark.parametrize(("name", "seed"), CASES)
def test_outputs_and_gradients_of_every_head_equal_pytorch(name, seed, repeat, tmp_path):
    assert_equal_to_torch(name, 1000 * (repeat + 1) + seed, tmp_path)


# -- the same numbers, whichever way they are computed -----------------------------------------------------------


def apply(model, params, ids=IDS, mask=MASK, **arguments):
    call = functools.partial(model.apply, **arguments)
    return jax.jit(lambda params, ids, mask: call({"params": params}, ids, attention_mask=mask))(params, ids, mask)


def test_full_lengths_are_the_model_itself():
    model = flaxbert.BertModel(CONFIG)
    params = random_params(model)
    plain, full = apply(model, params), apply(model, params, length_config=(99, 99, 9))
    np.testing.assert_array_equal(full.last_hidden_state, plain.last_hidden_state)
    np.testing.assert_array_equal(full.pooler_output, plain.pooler_output)
    assert full.lengths == (9, 9, 9) and plain.lengths is None


@pytest.mark.parametrize(
    ("real", "kept", "positions"),
    [
        ([1, 1, 1, 1], KeptTokens(2, cls=False), [1, 2]),
        ([1, 1, 0, 1], KeptTokens(2, cls=False), [1, 3]),
        ([1, 1, 0, 1], KeptTokens(2, cls=True), [0, 1]),
        ([0, 1, 0, 0], KeptTokens(3, cls=False), [0, 1, 2]),  # padding in its order
    ],
)
def test_tokens_of_the_highest_scores_are_chosen_and_padding_last(real, kept, positions):
    scores = jnp.array([[-0.5, 0.4, 0.9, -0.2]])  # a head mask may be negative
    chosen = length_adaptive.choose_tokens(scores, jnp.array([real]) == 1, kept)
    np.testing.assert_array_equal(chosen, [positions])


@pytest.mark.slow
@pytest.mark.parametrize("keep_cls", [True, False])
def test_first_position_is_the_same_when_it_alone_is_computed(keep_cls):
    model = flaxbert.BertModel(CONFIG)
    params = random_params(model)
    arguments = {"length_config": LENGTHS, "always_keep_cls_token": keep_cls}
    every, first = apply(model, params, **arguments), apply(model, params, first_positions_only=True, **arguments)
    np.testing.assert_allclose(first.last_hidden_state, every.last_hidden_state[:, :1], atol=2e-6)
    np.testing.assert_allclose(first.pooler_output, every.pooler_output, atol=2e-6)
    assert first.lengths == every.lengths == LENGTHS


@pytest.mark.slow
def test_loops_trees_and_remat_change_nothing():
    model = flaxbert.BertModel(CONFIG)
    params = random_params(model)
    wanted = apply(model, params, length_config=LENGTHS, layer_config=[0, 2])
    trees = {**params, "layers": {str(i): jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(3)}}
    for other, given in (
        (model.clone(scan=False), params),
        (model.clone(remat=Remat.FULL), params),
        (model.clone(stacked_layers=False), trees),
        (model.clone(config=CONFIG.replace(length_config=LENGTHS, layer_config=[0, 2])), params),
    ):
        arguments = {} if other.config.length_config else {"length_config": LENGTHS, "layer_config": [0, 2]}
        out = apply(other, given, **arguments)
        np.testing.assert_array_equal(out.last_hidden_state, wanted.last_hidden_state)
        assert out.lengths == wanted.lengths == (7, 4)


@pytest.mark.slow
def test_a_pruned_head_is_one_masked_by_zero():
    model = flaxbert.BertModel(CONFIG)
    params = random_params(model)
    head_mask = np.ones((3, 4), np.float32)
    head_mask[0, 1] = head_mask[1, [0, 3]] = 0
    config, pruned = flaxbert.surgery.prune_heads(CONFIG, params, {0: [1], 1: [0, 3]})
    wanted = apply(model, params, length_config=LENGTHS, head_mask=head_mask)
    out = apply(model.clone(config=config), pruned, length_config=LENGTHS)
    np.testing.assert_allclose(out.last_hidden_state, wanted.last_hidden_state, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["BertModel", "RobertaModel", "ElectraModel", "MPNetModel"])
def test_tokens_dropped_are_no_longer_attended_to(name, monkeypatch):
    """Later layers compute what they do for all tokens with those dropped masked: distances are between places."""
    model_class = getattr(flaxbert, name)
    omitted = {"unused", "id2label", *model_class.config_class.fixed_fields}
    sizes = {key: value for key, value in vars(CONFIG).items() if key not in omitted}
    if name == "BertModel":
        sizes["position_embedding_type"] = "relative_key_query"
    model = model_class(model_class.config_class(**sizes))
    given = {}

    def recording(params, x, shared, **arguments):
        given.update(params=params, x=x, shared=shared, arguments=arguments)
        return stack(params, x, shared, **arguments)

    monkeypatch.setattr("flaxbert.encoder.stack", recording)
    arguments = {"length_config": (7, 7, 7), "output_hidden_states": True}
    out = model.apply({"params": random_params(model)}, IDS, attention_mask=MASK, **arguments)
    run = functools.partial(stack, given["params"], config=model.config, execution=model.execution)
    first = run(given["x"], given["shared"], plan=LayerPlan(T, (0,), (T,), True)).last
    distances = jnp.abs(out.hidden_states[1][:, :, None] - first[:, None]).sum(-1)  # of tokens kept to all tokens
    kept = np.asarray(distances.argmin(-1))
    assert (np.diff(kept, axis=1) > 0).all() and (kept[:, 0] == 0).all() and (kept[:, -1] > 6).any()
    is_kept = np.zeros((B, T), bool)
    np.put_along_axis(is_kept, kept, True, axis=1)
    shared = given["shared"]._replace(mask=given["shared"].mask & is_kept[:, None, None])
    wanted = run(first, shared, plan=LayerPlan(T, (1, 2), (T, T), True)).last
    wanted = np.where(is_kept[..., None], wanted, given["x"])  # tokens dropped keep the embedding
    np.testing.assert_allclose(out.last_hidden_state, wanted, atol=4e-6)


@pytest.mark.slow
def test_bfloat16_is_near_and_drops_as_many():
    model = flaxbert.BertModel(CONFIG)
    params = random_params(model)
    wanted = apply(model, params, length_config=(9, 9, 4))
    out = apply(model.clone(dtype=jnp.bfloat16), params, length_config=(9, 9, 4))
    assert out.last_hidden_state.dtype == jnp.bfloat16 and out.lengths == wanted.lengths
    # Rounding may choose another token; [CLS] is always there.
    np.testing.assert_allclose(out.last_hidden_state[:, 0], wanted.last_hidden_state[:, 0], atol=0.1)


@pytest.mark.slow
def test_dropout_of_a_layer_that_keeps_all_is_unchanged():
    model = flaxbert.BertModel(CONFIG)
    params = random_params(model)
    arguments = {"deterministic": False, "rngs": {"dropout": jax.random.key(3)}}
    plain, full = apply(model, params, **arguments), apply(model, params, length_config=(9, 9, 9), **arguments)
    np.testing.assert_array_equal(full.last_hidden_state, plain.last_hidden_state)
    dropped = apply(model, params, length_config=LENGTHS, **arguments).last_hidden_state
    assert np.isfinite(dropped).all() and np.abs(dropped - plain.last_hidden_state).max() > 0.1


def test_rows_on_eight_devices_are_not_gathered():
    model = flaxbert.BertForTokenClassification(CONFIG)
    params, ids = random_params(model), np.tile(IDS, (6, 1))[:16]
    mask = np.tile(MASK, (6, 1))[:16]

    def states(params, ids, mask):
        return model.apply({"params": params}, ids, attention_mask=mask, length_config=LENGTHS).logits

    mesh = sharding.make_mesh()
    batch = jax.device_put((ids, mask), sharding.batch_sharding(mesh, model.rules))
    replicated = jax.device_put(params, sharding.replicated(mesh))
    compiled = jax.jit(states).lower(replicated, *batch).compile()
    assert collectives(compiled) == []
    np.testing.assert_allclose(compiled(replicated, *batch), jax.jit(states)(params, ids, mask), atol=2e-6)


# -- cost --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [False, True])
def test_flops_are_those_of_the_compiled_program(first):
    model = flaxbert.BertModel(CONFIG, scan=False, add_pooling_layer=False)
    arguments = {"length_config": (12, 8, 8), "layer_config": (0, 2)}
    ids = jax.ShapeDtypeStruct((1, 16), jnp.int32)

    def states(params, ids):
        return model.apply({"params": params}, ids, first_positions_only=first, **arguments).last_hidden_state

    program = parse_program(jax.jit(states).lower(model.parameter_shapes(), ids).compile().as_text())
    counted = sum(
        matmul_flops(part, line)
        for part in program.computations.values()
        for line in part.instructions
        if line.opcode in ("dot", "convolution")
    )
    assert counted == length_adaptive.flops(CONFIG, 16, **arguments, first_position_only=first)


# -- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"length_config": (4, 7, 2)},
            r"length_config is \[4, 7, 2\]; each number must be at least 1",
        ),
        ({"length_config": (4, 2, 0)}, "at least 1"),
        ({"length_config": (4, 2)}, "length_config has 2 numbers; the model has 3 layers"),
        (
            {"length_config": "(4, 2, 2)"},
            r"length_config is '\(4, 2, 2\)'; it must be a list of whole numbers",
        ),
        ({"layer_config": "[0]"}, "layer_config is .* it must be a list of whole numbers"),
        ({"layer_config": (2, 1)}, "layer_config is .* numbers of layers from 0 to 2, in ascending order"),
        ({"layer_config": ()}, "in ascending order"),
        ({"always_keep_cls_token": "yes"}, "always_keep_cls_token is 'yes'"),
    ],
)
def test_errors_name_the_argument_and_the_cure(arguments, message):
    model = flaxbert.BertModel(CONFIG)
    with pytest.raises(ValueError, match=message):
        CONFIG.replace(**arguments)
    if "always_keep_cls_token" in arguments:
        arguments = arguments | {"length_config": LENGTHS}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: model.apply({"params": random_params(model)}, IDS, **arguments))


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        (
            {},
            {"attention_mask": functional.packed_mask(MASK.astype(int))},
            "is given with a mask for each query",
        ),
        ({}, {"first_positions": np.zeros((3, 2), int)}, "length_config is given with first_positions"),
        ({"is_decoder": True}, {}, "length_config is given to a decoder"),
    ],
)
def test_inputs_whose_tokens_have_no_length_of_their_own_are_refused(changes, arguments, message):
    model = flaxbert.BertModel(CONFIG.replace(**changes))
    params = random_params(model)

    def states(lengths):
        return model.apply({"params": params}, IDS, length_config=lengths, **arguments).last_hidden_state

    with pytest.raises(ValueError, match=message):
        states(LENGTHS)
    jax.eval_shape(lambda: states((9, 9, 9)))  # drops nothing


def test_config_json_holds_lists_and_only_where_they_are_given():
    config = CONFIG.replace(length_config=[7, 7, 4], layer_config=(0, 2), always_keep_cls_token=False)
    values = config.to_dict()
    assert (values["length_config"], values["layer_config"]) == ((7, 7, 4), (0, 2))
    assert BertConfig.from_dict(values) == config
    assert not {"length_config", "layer_config", "always_keep_cls_token"} & CONFIG.to_dict().keys()


def test_layers_left_out_are_layers_dropped():
    model = flaxbert.BertModel(CONFIG)
    params = random_params(model)
    config, smaller = flaxbert.surgery.drop_layers(CONFIG, params, keep=[0, 2])
    out, wanted = apply(model, params, layer_config=[0, 2]), apply(model.clone(config=config), smaller)
    np.testing.assert_allclose(out.last_hidden_state, wanted.last_hidden_state, atol=2e-6)
    assert out.lengths == (9, 9)
    adaptive = CONFIG.replace(length_config=[7, 5, 4], layer_config=(0, 2))
    config, _ = flaxbert.surgery.drop_layers(adaptive, params, keep=[1, 2])
    assert (config.length_config, config.layer_config) == ((5, 4), (1,))
