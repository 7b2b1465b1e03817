"""Decoders: cross-attention against PyTorch, and the cache against the same tokens without one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import flaxbert
from flaxbert import layers, sharding
from flaxbert.cache import init_cache
from flaxbert.families import BERT
from flaxbert.weights import names
from tests.flaxbert.parity import GRADIENT_TOLERANCE, OUTPUT_TOLERANCE, randomise
from tests.trees import initial

ROWS, LENGTH, SOURCE = 3, 9, 5
SIZES = {
    "vocab_size": 52,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 16,
}
CONFIG = flaxbert.BertConfig(**SIZES, is_decoder=True, add_cross_attention=True)
RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(0, 50, (ROWS, LENGTH))
STATES = RANDOM.standard_normal((ROWS, SOURCE, 24), np.float32)
STATE_MASK = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 1]])
LEFT = np.array([[1] * 9, [0] * 2 + [1] * 7, [0] * 4 + [1] * 5])  # within the prompt of 5 tokens
RIGHT = np.array([[1] * 9, [1] * 3 + [0] * 2 + [1] * 4, [1] + [0] * 4 + [1] * 4])


def random_model(config, **arguments):
    model = flaxbert.BertLMHeadModel(config, **arguments)
    params = initial(model, IDS[:1, :1])
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return model, jax.tree.unflatten(tree, noise)


# -- PyTorch -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM", "BertLMHeadModel"])
def test_cross_attention_equals_pytorch_in_outputs_and_gradients(name, tmp_path):
    config = transformers.BertConfig(**SIZES, is_decoder=True, add_cross_attention=True, attn_implementation="eager")
    reference = getattr(transformers, name)(config).eval()
    randomise(reference, 3)
    reference.save_pretrained(tmp_path)
    model, params = flaxbert.ARCHITECTURES[name].from_pretrained(tmp_path)
    given = {"attention_mask": RIGHT, "encoder_hidden_states": STATES, "encoder_attention_mask": STATE_MASK}
    asked = {"output_attentions": True, "output_hidden_states": True}
    wanted = reference(torch.tensor(IDS), **{k: torch.tensor(v) for k, v in given.items()}, use_cache=False, **asked)
    out = model.apply({"params": params}, IDS, **given, **asked)
    field = "last_hidden_state" if name == "BertModel" else "logits"
    pairs = [
        (getattr(out, field), wanted[field]),
        # transformers' masked LM computes cross-attention and does not return its probabilities.
        *zip(out.cross_attentions, wanted.get("cross_attentions", out.cross_attentions), strict=True),
        *zip(out.attentions, wanted.attentions, strict=True),
        *zip(out.hidden_states, wanted.hidden_states, strict=True),
    ]
    for ours, theirs in pairs:
        theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
        np.testing.assert_allclose(ours, theirs, atol=OUTPUT_TOLERANCE, rtol=OUTPUT_TOLERANCE)

    weights = RANDOM.standard_normal(wanted[field].shape).astype(np.float32)
    (wanted[field] * torch.tensor(weights)).sum().backward()
    gradients = jax.grad(lambda p: (getattr(model.apply({"params": p}, IDS, **given), field) * weights).sum())(params)
    theirs = {key: value.grad.numpy() for key, value in reference.named_parameters() if value.grad is not None}
    seen = set()
    for mapping in names.name_mappings(BERT, params):
        key = mapping.name if name != "BertModel" else mapping.name.removeprefix("bert.")
        leaf = np.asarray(names.leaf_at(gradients, mapping.path))
        ours = mapping.to_file_layout(leaf if mapping.layer is None else leaf[mapping.layer])
        if key in theirs:
            seen.add(key)
            largest = np.abs(theirs[key]).max() if not key.endswith("key.bias") else 0.1  # whose exact gradient is 0
            limit = GRADIENT_TOLERANCE * largest
            np.testing.assert_allclose(ours, theirs[key], atol=limit, rtol=0, err_msg=key)
    assert seen == theirs.keys() - {"cls.predictions.decoder.bias"}


# -- cache ---------------------------------------------------------------------------------------------


def as_own_trees(model, params):
    encoder = params["bert"]
    own = {**params, "bert": {**encoder, "layers": layers.unstack_layers(encoder["layers"])}}
    return model.clone(stacked_layers=False), own


def some_in_ci(cases, chosen):
    """Mark all cases but those with these numbers as slow."""
    return [
        pytest.param(*case, marks=() if number in chosen else pytest.mark.slow) for number, case in enumerate(cases)
    ]


LAYOUTS = {
    "scan": lambda model, params: (model, params),
    "loop": lambda model, params: (model.clone(scan=False), params),
    "own": as_own_trees,
}


def decode(model, params, mask, *, parts, positions=None, states=None, state_mask=None):
    """Return the logits of all tokens, computed in parts with a cache."""
    source = {} if states is None else {"encoder_hidden_states": states, "encoder_attention_mask": state_mask}
    cache = init_cache(model, rows=ROWS, length=12, encoder_length=None if states is None else SOURCE)
    logits = []
    step = jax.jit(model.apply)
    for start, stop in parts:
        given = {} if positions is None else {"position_ids": positions[:, start:stop]}
        call = {"attention_mask": mask[:, start:stop], "cache": cache, **given, **source}
        out = step({"params": params}, IDS[:, start:stop], **call)
        cache, source = out.cache, {}
        logits.append(out.logits)
    assert int(cache.length) == LENGTH
    return np.concatenate(logits, axis=1)


PARTS = {"one token a step": [(0, 5), (5, 6), (6, 7), (7, 8), (8, 9)], "several": [(0, 5), (5, 7), (7, 9)]}


@pytest.mark.parametrize(
    ("kind", "layout"),
    some_in_ci(itertools.product(["absolute", "relative_key", "relative_key_query"], LAYOUTS), [0, 4, 8]),
)
def test_cached_tokens_equal_uncached_ones(kind, layout):
    config = CONFIG.replace(position_embedding_type=kind)
    model, params = random_model(config)
    wanted = model.apply(
        {"params": params}, IDS, attention_mask=LEFT, encoder_hidden_states=STATES, encoder_attention_mask=STATE_MASK
    ).logits
    model, params = LAYOUTS[layout](model, params)
    for parts in PARTS.values():
        got = decode(model, params, LEFT, parts=parts, states=STATES, state_mask=STATE_MASK)
        np.testing.assert_allclose(got[LEFT == 1], np.asarray(wanted)[LEFT == 1], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("kind", "side"),
    some_in_ci(itertools.product(["absolute", "relative_key", "relative_key_query"], ["left", "right"]), [1, 4]),
)
def test_padding_on_either_side_changes_nothing_with_positions_of_tokens(kind, side):
    mask = {"left": LEFT, "right": RIGHT}[side]
    model, params = random_model(CONFIG.replace(position_embedding_type=kind, add_cross_attention=False))
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    got = decode(model, params, mask, parts=PARTS["several"], positions=positions)
    for row in range(ROWS):
        tokens = mask[row] == 1
        alone = model.apply({"params": params}, IDS[row, tokens][None]).logits[0]
        np.testing.assert_allclose(got[row, tokens], alone, atol=2e-5, rtol=2e-5)


def test_roberta_counts_positions_on_from_the_cache():
    config = flaxbert.RobertaConfig(**SIZES, is_decoder=True)
    model = flaxbert.RobertaModel(config)
    params = initial(model, IDS)
    ids = np.maximum(IDS, 2)  # no padding
    wanted = model.apply({"params": params}, ids).last_hidden_state
    cache = init_cache(model, rows=ROWS, length=LENGTH)
    cache = model.apply({"params": params}, ids[:, :6], cache=cache).cache
    got = model.apply({"params": params}, ids[:, 6:], cache=cache).last_hidden_state
    np.testing.assert_allclose(got, wanted[:, 6:], atol=1e-5)


@pytest.mark.parametrize(("layout",), some_in_ci([("scan",), ("own",)], [1]))
def test_eight_devices_decode_the_same_with_a_cache_divided_by_rows_and_heads(layout):
    model, params = LAYOUTS[layout](*random_model(CONFIG.replace(position_embedding_type="relative_key")))
    ids, states = np.resize(IDS, (4, LENGTH)), np.resize(STATES, (4, *STATES.shape[1:]))
    wanted = model.apply({"params": params}, ids, encoder_hidden_states=states).logits
    mesh = sharding.make_mesh(data=2, tensor=4)
    model = model.clone(rules=sharding.FSDP_TENSOR)
    params = jax.device_put(params, sharding.tree_shardings(mesh, model.rules, model.logical_axes()))
    with jax.set_mesh(mesh):
        cache = init_cache(model, rows=4, length=LENGTH, encoder_length=SOURCE)
        step = jax.jit(model.apply)
        first = step({"params": params}, ids[:, :6], cache=cache, encoder_hidden_states=states)
        second = step({"params": params}, ids[:, 6:], cache=first.cache)
    got = np.concatenate([first.logits, second.logits], axis=1)
    np.testing.assert_allclose(got, wanted, atol=2e-5, rtol=2e-5)
    for leaf in jax.tree.leaves(second.cache.layers):
        rows, heads = leaf.sharding.shard_shape(leaf.shape)[-4:-2]
        assert (rows, heads) == (2, 1)


def test_rows_of_a_cache_are_taken_in_any_order():
    for layout in LAYOUTS.values():
        model, params = layout(*random_model(CONFIG.replace(add_cross_attention=False)))
        cache = init_cache(model, rows=ROWS, length=LENGTH)
        cache = model.apply({"params": params}, IDS[:, :5], attention_mask=LEFT[:, :5], cache=cache).cache
        wanted = model.apply({"params": params}, IDS[:, 5:], cache=cache).logits
        order = np.array([2, 0, 0])
        got = model.apply({"params": params}, IDS[order, 5:], cache=cache.take_rows(order)).logits
        np.testing.assert_allclose(got, wanted[order], atol=1e-6)


def test_tokens_beyond_the_cache_are_refused_or_nan():
    model, params = random_model(CONFIG.replace(add_cross_attention=False))
    cache = init_cache(model, rows=ROWS, length=6)
    cache = model.apply({"params": params}, IDS[:, :5], cache=cache).cache
    with pytest.raises(ValueError, match="the cache has 6 slots, of which 5 are used; 2 more tokens do not fit"):
        model.apply({"params": params}, IDS[:, :2], cache=cache)
    assert np.isnan(jax.jit(model.apply)({"params": params}, IDS[:, :2], cache=cache).logits).all()
    assert np.isfinite(jax.jit(model.apply)({"params": params}, IDS[:, :1], cache=cache).logits).all()


def test_forgotten_states_of_the_encoder_give_nan():
    model, params = random_model(CONFIG)
    cache = init_cache(model, rows=ROWS, length=6, encoder_length=SOURCE)
    assert np.isnan(model.apply({"params": params}, IDS[:, :2], cache=cache).logits).all()


ENCODER = flaxbert.BertConfig(**SIZES)
REFUSED = {
    "states for an encoder": (ENCODER, {"encoder_hidden_states": STATES}, "a model without cross-attention"),
    "mask without states": (CONFIG, {"encoder_attention_mask": STATE_MASK}, "without encoder_hidden_states; give both"),
    "states of other rows": (
        CONFIG,
        {"encoder_hidden_states": STATES[:2]},
        r"encoder_hidden_states has shape \[2, 5, 24\]; allowed: \[3, X, 24\]",
    ),
    "mask of other states": (
        CONFIG,
        {"encoder_hidden_states": STATES, "encoder_attention_mask": STATE_MASK[:, :4]},
        r"encoder_attention_mask has shape \[3, 4\]; allowed: \[3, 5\] or \[3, 9, 5\]",
    ),
    "a length that chunks do not divide": (
        ENCODER.replace(chunk_size_feed_forward=2),
        {},
        "the sequence has 9 positions; chunk_size_feed_forward 2 must divide them",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_that_a_model_cannot_take_are_named(case):
    config, arguments, message = REFUSED[case]
    model = flaxbert.BertModel(config)
    params = initial(model, IDS[:1, :2])
    with pytest.raises(ValueError, match=message):
        model.apply({"params": params}, IDS, **arguments)


def test_caches_that_do_not_fit_are_named():
    model, params = random_model(CONFIG)
    with pytest.raises(ValueError, match="config.is_decoder is false"):
        init_cache(flaxbert.BertModel(ENCODER), rows=1, length=4)
    with pytest.raises(ValueError, match="length is 17; the model's positions allow 1 to 16"):
        init_cache(model, rows=1, length=17)
    with pytest.raises(ValueError, match="add_cross_attention is false"):
        init_cache(model.clone(config=CONFIG.replace(add_cross_attention=False)), rows=1, length=4, encoder_length=2)
    with pytest.raises(ValueError, match="rows is 0; it must be at least 1"):
        init_cache(model, rows=0, length=4)
    with pytest.raises(ValueError, match="encoder_length is 0; it must be at least 1"):
        init_cache(model, rows=1, length=4, encoder_length=0)
    cache = init_cache(model, rows=2, length=4)
    with pytest.raises(ValueError, match="the cache has 2 batch rows, the input 3"):
        model.apply({"params": params}, IDS[:, :2], cache=cache)
    cache = init_cache(model, rows=3, length=4)
    with pytest.raises(ValueError, match="5 positions, and the cache room for none; give init_cache encoder_length=5"):
        model.apply({"params": params}, IDS[:, :2], cache=cache, encoder_hidden_states=STATES)
    with pytest.raises(ValueError, match=r"attention_mask of a call with a cache.*\[3, 4\]; allowed: \[3, 2\]"):
        model.apply({"params": params}, IDS[:, :2], cache=cache, attention_mask=LEFT[:, :4])


# -- other features of the stack -------------------------------------------------------------------------


def test_chunks_of_the_feed_forward_half_change_nothing():
    whole, params = random_model(CONFIG.replace(add_cross_attention=False))
    chunked = whole.clone(config=whole.config.replace(chunk_size_feed_forward=3))
    got = chunked.apply({"params": params}, IDS).logits
    np.testing.assert_allclose(got, whole.apply({"params": params}, IDS).logits, atol=1e-5)


def test_steps_of_any_length_fit_a_chunked_feed_forward_half():
    whole, params = random_model(CONFIG.replace(add_cross_attention=False))
    model = whole.clone(config=whole.config.replace(chunk_size_feed_forward=3))
    new = jax.eval_shape(model.init, jax.random.key(0), model.example_ids)["params"]
    assert jax.tree.structure(new) == jax.tree.structure(params)
    out = model.apply({"params": params}, IDS[:, :4], cache=init_cache(model, rows=ROWS, length=4))
    wanted = model.apply({"params": params}, IDS).logits[:, :4]
    np.testing.assert_allclose(out.logits, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "layout"),
    some_in_ci(itertools.product(["absolute", "relative_key_query"], ["loop", "own"]), [3]),
)
def test_layouts_give_the_same_outputs_gradients_and_dropout(kind, layout):
    model, params = random_model(CONFIG.replace(position_embedding_type=kind))
    other, other_params = LAYOUTS[layout](model, params)

    def loss(params, model):
        call = {"encoder_hidden_states": STATES, "deterministic": False, "rngs": {"dropout": jax.random.key(5)}}
        return jnp.square(model.apply({"params": params}, IDS, **call).logits).mean()

    value, gradients = jax.value_and_grad(loss)(params, model)
    other_value, other_gradients = jax.value_and_grad(loss)(other_params, other)
    np.testing.assert_allclose(value, other_value, rtol=1e-5)
    if layout == "own":
        stacked = layers.stack_layers(other_gradients["bert"]["layers"])
        other_gradients = {**other_gradients, "bert": {**other_gradients["bert"], "layers": stacked}}
    for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(other_gradients), strict=True):
        floor = 1e-6  # of keys' biases, whose exact gradient is 0
        np.testing.assert_allclose(ours, theirs, atol=floor + 1e-4 * np.abs(ours).max(), rtol=0)


@pytest.mark.parametrize("kind", ["absolute", "relative_key"])
def test_first_positions_alone_equal_those_of_all(kind):
    model = flaxbert.BertModel(ENCODER.replace(position_embedding_type=kind))
    params = initial(model, IDS)
    first = np.array([[0, 4], [0, 3], [0, 7]])
    packed = np.arange(LENGTH)[None, :, None] // 4 == np.arange(LENGTH)[None, None] // 4
    call = {"first_positions": first, "attention_mask": np.repeat(packed, ROWS, axis=0)}
    every = model.apply({"params": params}, IDS, **call)
    few = model.apply({"params": params}, IDS, **call, first_positions_only=True)
    np.testing.assert_allclose(few.pooler_output, every.pooler_output, atol=1e-6)


def test_a_causal_encoder_is_loaded_with_a_warning(tmp_path, caplog):
    config = ENCODER.replace(is_decoder=True)
    model = flaxbert.BertForMaskedLM(config)
    flaxbert.save_pretrained(tmp_path, model, initial(model, IDS))
    flaxbert.BertLMHeadModel.from_pretrained(tmp_path)
    assert "is_decoder" not in caplog.text
    flaxbert.from_pretrained(tmp_path)
    assert "the attention of BertForMaskedLM is causal" in caplog.text
