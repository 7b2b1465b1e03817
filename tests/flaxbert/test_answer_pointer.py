"""The answer pointer against its equations in PyTorch, its answers against every span, and its folders."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

import flaxbert
from flaxbert import losses, sharding
from flaxbert.answer_pointer import point_at_answers
from flaxbert.conversion.average import average
from flaxbert.conversion.convert import convert
from flaxbert.conversion.verify import verify
from flaxbert.export import export_onnx, export_stablehlo, load_stablehlo
from flaxbert.families import FAMILIES, HeadKind, random_inputs
from flaxbert.pipelines import QuestionAnsweringPipeline
from flaxbert.text.answers import AnswerLogits, rank_answers
from flaxbert.text.windows import QuestionWindow
from tests.flaxbert.saved_models import CONFIG, folder_of
from tests.trees import initial

NAME = "BertForPointerQuestionAnswering"
B, T = 4, 11
LENGTHS = np.array([11, 7, 9, 4])
MASK = (np.arange(T) < LENGTHS[:, None]).astype(np.int32)
# [CLS], beyond the end, negative
STARTS, ENDS = np.array([3, 0, T, -1]), np.array([3, 5, 2, 1])


@pytest.fixture(scope="module")
def model():
    return flaxbert.BertForPointerQuestionAnswering(CONFIG)


@pytest.fixture(scope="module")
def params(model):
    """Weights with which states differ from position to position, and ends from start to start."""
    rng = np.random.default_rng(0)

    def leaf(path, shape):
        deviation = {"embedding": 1.0, "kernel": 0.7 if path[0].key == "pointer" else 0.25}.get(path[-1].key, 0.2)
        return jnp.asarray(rng.normal(path[-1].key == "scale", deviation, shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, model.parameter_shapes())


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(1)
    ids, types = rng.integers(0, CONFIG.vocab_size, (B, T)), rng.integers(0, 2, (B, T))
    return {"input_ids": ids, "attention_mask": MASK, "token_type_ids": types}


@pytest.fixture(scope="module")
def call(model):
    return jax.jit(
        lambda params, inputs, **own: model.apply({"params": params}, **inputs, **own), static_argnames="beams"
    )


def torch_scores(p, states, starts):
    """Log-probabilities of starts, and of ends given `starts`, by the equations of `pointer.py`."""

    def apply(layer, x):
        return x @ layer["kernel"] + layer.get("bias", 0.0)

    def point(given, hidden, cell):
        gates = apply(p["cell"]["input"], given) + apply(p["cell"]["state"], hidden)
        i, f, g, o = gates.chunk(4, dim=-1)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        scores = torch.tanh(mapped + apply(p["state"], hidden)[:, None]) @ p["score"]["kernel"][:, 0]
        logits = scores.masked_fill(torch.from_numpy(MASK) == 0, -torch.inf).log_softmax(dim=-1)
        glimpse = (logits.exp()[..., None] * mapped).sum(dim=1)
        return logits, apply(p["mix"], torch.cat([glimpse, hidden], dim=-1)).tanh(), cell

    mapped, zero = apply(p["context"], states), torch.zeros_like(states[:, 0])
    start, hidden, cell = point(p["first_input"].expand_as(zero), zero, zero)
    end, _, _ = point(states[torch.arange(len(states)), starts], hidden, cell)
    return start, end


def test_loss_and_gradients_equal_the_equations_in_pytorch(model, params, inputs, call):
    tree = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf), requires_grad=True), params["pointer"])
    encoder = flaxbert.BertModel(CONFIG, add_pooling_layer=False)
    states = encoder.apply({"params": params["bert"]}, **inputs).last_hidden_state
    states = torch.tensor(np.asarray(states), requires_grad=True)
    start, end = torch_scores(tree, states, torch.from_numpy(STARTS).clamp(0, T - 1))
    pairs = ((start, STARTS), (end, ENDS))
    labels = [torch.from_numpy(np.where(given >= T, -100, np.maximum(given, 0))) for _, given in pairs]
    loss = (
        sum(torch.nn.functional.nll_loss(s, y, ignore_index=-100) for (s, _), y in zip(pairs, labels, strict=True)) / 2
    )
    loss.backward()

    def loss_of(params):
        out = model.apply({"params": params}, **inputs, start_positions=STARTS, beams=0)
        return losses.question_answering(out.start_logits, out.end_logits, STARTS, ENDS).mean, out

    (mean, out), gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params)
    used = MASK == 1
    np.testing.assert_allclose(out.start_logits[used], start.detach().numpy()[used], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out.end_logits[used], end.detach().numpy()[used], rtol=1e-5, atol=1e-5)
    assert (np.asarray(out.start_logits)[~used] < -1e38).all() and (np.asarray(out.end_logits)[~used] < -1e38).all()
    assert out.starts is None and out.end_logits_by_start is None
    np.testing.assert_allclose(mean, loss.item(), rtol=1e-5)
    expected = jax.tree.map(lambda leaf: leaf.grad.numpy(), tree)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradients["pointer"], expected)
    # Of the encoder, by the gradient of its states.
    _, back = jax.vjp(lambda p: encoder.apply({"params": p}, **inputs).last_hidden_state, params["bert"])
    (expected,) = back(jnp.asarray(states.grad.numpy()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradients["bert"], expected)


def test_the_ends_of_a_beam_are_those_given_its_starts(params, inputs, call):
    free = call(params, inputs, beams=4)
    assert (np.asarray(free.starts)[:, 0] == 0).all() and free.end_logits_by_start.shape == (B, 5, T)
    assert np.ptp(free.end_logits_by_start, axis=1)[MASK == 1].max() > 0.3
    for beam in range(5):
        forced = call(params, inputs, beams=0, start_positions=free.starts[:, beam])
        np.testing.assert_allclose(free.end_logits_by_start[:, beam], forced.end_logits, rtol=1e-5, atol=1e-5)
    order = np.argsort(-np.asarray(free.start_logits)[:, 1:], axis=1)[:, :4] + 1
    np.testing.assert_array_equal(free.starts[:, 1:][LENGTHS > 4], order[LENGTHS > 4])
    best = np.argmax(free.start_logits, axis=1)
    np.testing.assert_allclose(
        free.end_logits, call(params, inputs, beams=0, start_positions=best).end_logits, rtol=1e-5
    )
    # More beams than positions.
    many = call(params, inputs, beams=20)
    assert (np.sort(np.asarray(many.starts)[0])[-T:] == np.arange(T)).all() and many.starts.shape == (B, 21)


def window_of(context, first):
    offsets = np.array([[i, i + 1] for i in range(len(context))])
    ids = np.zeros(first + len(context) + 1, np.int32)
    return QuestionWindow(ids, ids, first, offsets, np.ones(len(context), bool), (0, len(context)))


def test_n_best_answers_equal_a_search_of_every_span(params, inputs, call):
    context, first, max_answer = "abcdef", 4, 3  # T = 11: four tokens before, one after
    out = call(params, inputs, beams=T)
    forced = [call(params, inputs, beams=0, start_positions=jnp.full(B, start)).end_logits for start in range(T)]
    spans = {
        context[i : j + 1]: float(out.start_logits[0, first + i]) + float(forced[first + i][0, first + j])
        for i, j in itertools.combinations_with_replacement(range(len(context)), 2)
        if j - i < max_answer
    }
    null = float(out.start_logits[0, 0]) + float(forced[0][0, 0])
    logits = AnswerLogits(*(np.asarray(array[0]) for array in (out.start_logits, out.end_logits_by_start, out.starts)))
    window = window_of(context, first)
    found = rank_answers(context, [window], [logits], n_best=100, max_answer=max_answer, may_be_empty=True)
    assert [c.text for c in found.candidates] == sorted(spans | {"": null}, key=(spans | {"": null}).get, reverse=True)
    scores = {c.text: c.score for c in found.candidates}
    assert scores == pytest.approx(spans | {"": null}, abs=1e-4)
    assert found.null_odds == pytest.approx(null - max(spans.values()), abs=1e-4)
    # A beam of two starts has the same answers, as far as they begin at these.
    out = call(params, inputs, beams=2)
    logits = AnswerLogits(*(np.asarray(array[0]) for array in (out.start_logits, out.end_logits_by_start, out.starts)))
    found = rank_answers(context, [window], [logits], n_best=100, max_answer=max_answer)
    begins = {context[s - first] for s in np.asarray(out.starts)[0] if first <= s < first + len(context)}
    assert {c.text for c in found.candidates} == {text for text in spans if text[0] in begins}


def test_padding_devices_and_bfloat16(model, params, inputs, call):
    out = call(params, inputs, beams=0, start_positions=ENDS)
    short = {name: array[3:, :4] for name, array in inputs.items()}
    alone = call(params, short, beams=0, start_positions=ENDS[3:])
    np.testing.assert_allclose(out.end_logits[3, :4], alone.end_logits[0], rtol=1e-5, atol=1e-5)
    mesh = sharding.make_mesh(data=4, fsdp=2)
    batch = jax.device_put(
        {name: np.tile(array, (2, 1)) for name, array in inputs.items()}, sharding.batch_sharding(mesh, model.rules)
    )
    with jax.set_mesh(mesh):
        split = call(jax.device_put(params, sharding.replicated(mesh)), batch, beams=3)
    whole = call(params, inputs, beams=3)
    np.testing.assert_allclose(split.end_logits_by_start[:B], whole.end_logits_by_start, rtol=1e-5, atol=1e-5)
    half = dataclasses.replace(model, dtype=jnp.bfloat16).apply(
        {"params": params}, **inputs, start_positions=ENDS, beams=0
    )
    assert half.end_logits.dtype == jnp.float32
    difference = np.abs(half.end_logits - out.end_logits)[MASK == 1]
    assert 0 < difference.max() < 0.2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"attention_mask": np.ones((B, T, T))}, r"attention_mask has shape \[4, 11, 11\]; a pointer takes \[B, T\]"),
        ({"beams": -1}, "beams is -1; it must be at least 0"),
        ({"start_positions": np.zeros(B + 1, np.int32)}, r"start_positions has shape \[5\]; allowed: \[4\]"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_impossible_arguments(model, params, inputs, arguments, said):
    with pytest.raises(ValueError, match=said):
        model.apply({"params": params}, **inputs | arguments)


# -- folders -----------------------------------------------------------------------------------------------


def test_folders_of_this_library_and_of_transformers(tmp_path, caplog):
    source = folder_of(NAME, tmp_path / "source")
    assert f"transformers has no {NAME}: of this folder it loads the encoder" in caplog.text
    for form in ("flax", "orbax", "pytorch", "safetensors"):
        convert(source, tmp_path / form, format=form, verify=True)
        assert verify(source, tmp_path / form, outputs=False).same()
    average([source, tmp_path / "flax"], tmp_path / "mean")
    assert verify(source, tmp_path / "mean", outputs=False).same(1e-6)
    model, params = flaxbert.from_pretrained(source)
    assert type(model) is flaxbert.BertForPointerQuestionAnswering
    ids = np.arange(8)[None]
    states = transformers.AutoModel.from_pretrained(source)(torch.from_numpy(ids)).last_hidden_state.detach().numpy()
    encoder = flaxbert.BertModel(model.config, add_pooling_layer=False)
    ours = encoder.apply({"params": params["bert"]}, ids).last_hidden_state
    np.testing.assert_allclose(ours, states, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_family_has_the_head(tmp_path, family):
    """Its tensors are saved and loaded bit for bit, beside those of the family's encoder."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = family.config_class(vocab_size=40, max_position_embeddings=20, **sizes)
    (architecture,) = [a for a in family.architectures if a.head is HeadKind.ANSWER_POINTER]
    model = architecture.model_class(config)
    params = initial(model, seed=3)
    flaxbert.save_pretrained(tmp_path, model, params)
    loaded, found = flaxbert.from_pretrained(tmp_path)
    assert type(loaded) is architecture.model_class
    jax.tree.map(np.testing.assert_array_equal, found, params)
    ids = np.arange(3, 12)[None]
    out = loaded.apply({"params": found}, ids, beams=2)
    base = next(a for a in family.architectures if a.head is HeadKind.NONE).model_class(config)
    encoder = dict(found[family.prefix])
    if "pooler" in base.parameter_shapes():
        encoder["pooler"] = initial(base, ids)["pooler"]
    states = base.apply({"params": encoder}, ids).last_hidden_state
    alone = point_at_answers(found["pointer"], states, jnp.ones(ids.shape, bool), start_positions=None, beams=2)
    np.testing.assert_array_equal(out.starts, alone.starts)
    np.testing.assert_allclose(out.end_logits_by_start, alone.end_logits_by_start, rtol=1e-6)


def test_a_checkpoint_of_another_head_gets_a_new_pointer(tmp_path, caplog):
    source = folder_of("BertForQuestionAnswering", tmp_path / "source")
    _, params = flaxbert.BertForPointerQuestionAnswering.from_pretrained(source, strict=False)
    assert "pointer.cell.state.weight" in caplog.text and "qa_outputs.weight" in caplog.text
    assert np.std(params["pointer"]["mix"]["kernel"]) == pytest.approx(0.02, rel=0.2)
    conversion = convert(source, tmp_path / "new", head=NAME)
    assert "pointer.score.weight" in conversion.newly_initialised


@pytest.mark.usefixtures("unchecked")  # lengths are symbols
def test_exported_as_stablehlo_but_not_as_onnx(tmp_path):
    source = folder_of(NAME, tmp_path / "source")
    exported = export_stablehlo(source, tmp_path / "program")
    assert exported.parity < 1e-5 and exported.outputs["starts"].shape == ("B", 21)
    model, params = flaxbert.from_pretrained(source)
    run = load_stablehlo(tmp_path / "program")
    given = random_inputs(model, rows=2, length=9)
    expected = model.apply({"params": params}, **given)
    found = run(*given.values())
    np.testing.assert_array_equal(found["starts"], expected.starts)
    np.testing.assert_allclose(found["end_logits_by_start"], expected.end_logits_by_start, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=f"transformers, which makes the ONNX graph, has no {NAME}. Use stablehlo"):
        export_onnx(source, tmp_path / "onnx")


def test_the_pipeline_takes_the_beam(data_dir, tmp_path):
    tokens = (data_dir / "tokenizers" / "bert-base-uncased" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    config = CONFIG.replace(vocab_size=len(tokens), max_position_embeddings=32)
    source = folder_of(NAME, tmp_path, config=config)
    (source / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    answer = QuestionAnsweringPipeline.from_pretrained(source, n_best=32, top_k=3, null_threshold=100.0)
    context = "The cat lives in Rome."
    (found,) = answer([("Where?", context)])
    ids = answer.tokenizer.encode(["Where?"], [context], max_length=32)[0]
    batch = {"input_ids": np.array([ids.ids]), "token_type_ids": np.array([ids.type_ids])}
    places = [i for i in range(len(ids.ids) - 1) if ids.type_ids[i] == 1]
    scores = {}
    for start in places:
        out = answer.model.apply({"params": answer.params}, **batch, start_positions=np.array([start]), beams=0)
        scores |= {
            (start, end): float(out.start_logits[0, start] + out.end_logits[0, end]) for end in places if end >= start
        }
    best = sorted(scores.values(), reverse=True)
    assert found.candidates[0].score == pytest.approx(best[0], abs=1e-4)
    assert found.text == found.candidates[0].text != "" and len(found.candidates) == 3
