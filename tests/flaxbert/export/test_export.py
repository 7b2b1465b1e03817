"""Exported programs compute the outputs of the model, for any batch size and length."""

import datetime
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import flaxbert
from flaxbert import cli
from flaxbert.export import export_onnx, export_stablehlo, exported_model, load_stablehlo, stablehlo
from flaxbert.models import BertModel
from tests.flaxbert.saved_models import BERT_CLASSES, CONFIG, folder_of
from tests.flaxbert.transformers4_fixtures import FOLDER
from tests.trees import initial

# BertForPreTraining is both of its heads; these are slow to compile, nine times.
OTHERS = sorted(set(BERT_CLASSES) - {"BertLMHeadModel", "BertForPreTraining"})


def inputs_of(rows, length, choices=None):
    random = np.random.default_rng(rows)
    shape = (rows, length) if choices is None else (rows, choices, length)
    mask = (np.arange(length) < random.integers(1, length + 1, (*shape[:-1], 1))).astype(np.int32)
    return random.integers(0, 61, shape, np.int32), mask, random.integers(0, 3, shape, np.int32)


def run(source, *inputs):
    model, params = flaxbert.from_pretrained(source)
    return jax.device_get(jax.jit(lambda *inputs: exported_model.model_outputs(model, params, *inputs))(*inputs))


def assert_equal(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].shape == wanted[name].shape
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["BertForMultipleChoice", pytest.param("BertModel", marks=pytest.mark.slow)])
def test_stablehlo_takes_any_shape_and_needs_only_jax(name, tmp_path, unchecked):
    pytest.importorskip("flatbuffers")
    source, target = folder_of(name, tmp_path / "model"), tmp_path / "out"
    done = export_stablehlo(source, target)
    assert done.parity <= 1e-6 and done.platforms == ("cpu", "cuda", "tpu")
    assert done.inputs["input_ids"] == ("int32", ("B", "C", "T") if "Choice" in name else ("B", "T"))
    choices = 3 if "Choice" in name else None
    program = load_stablehlo(target)
    inputs = inputs_of(1, 13, choices)
    assert_equal(program(*inputs), run(source, *inputs), 1e-5)
    # As a user does without this library:
    inputs = inputs_of(5, 4, choices)
    bare = jax.export.deserialize(bytearray((target / "program.stablehlo").read_bytes()))
    found = bare.call(load_file(target / "weights.safetensors"), *inputs)
    assert_equal(found, run(source, *inputs), 1e-5)
    assert json.loads((target / "export.json").read_text())["outputs"].keys() == found.keys()
    with pytest.raises(ValueError, match="the inputs have 14 tokens; the program takes 13 at most"):
        program(*inputs_of(2, 14, choices))


@pytest.mark.parametrize("name", ["classifier_pruned", "encoder_relative_key"])
def test_onnx_refuses_what_transformers_5_lacks(name, tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match="pruned heads or relative positions.*Use stablehlo"):
        export_onnx(FOLDER / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_stablehlo_of_one_length_drops_tokens(tmp_path, unchecked):
    pytest.importorskip("flatbuffers")
    source, target = folder_of("BertForQuestionAnswering", tmp_path / "model"), tmp_path / "out"
    lengths = (9, 5)
    done = export_stablehlo(source, target, length=11, length_config=lengths, layer_config=(0, 1))
    assert done.parity <= 1e-6 and "lengths" not in done.outputs
    adaptive = json.loads((target / "export.json").read_text())["adaptive"]
    assert adaptive == {"length_config": [9, 5], "layer_config": [0, 1]}
    model, params = flaxbert.from_pretrained(source)
    inputs = inputs_of(4, 11)
    given = dict(zip(BertModel.input_names, inputs, strict=True))
    wanted = model.apply({"params": params}, **given, length_config=lengths, layer_config=(0, 1))
    found = load_stablehlo(target)(*inputs)
    np.testing.assert_allclose(found["start_logits"], wanted.start_logits, atol=1e-5)
    assert np.abs(found["start_logits"] - model.apply({"params": params}, **given).start_logits).max() > 1e-3
    # The same as a point of a search.
    point = {"length_config": lengths, "layer_config": (0, 1), "always_keep_cls_token": False}
    (tmp_path / "front.json").write_text(json.dumps({"points": {"50%": point}}))
    flags = ["--format", "stablehlo", "--length", "11", "--point", f"50%@{tmp_path / 'front.json'}"]
    assert cli.main(["export", str(source), str(tmp_path / "point"), *flags]) == 0
    assert json.loads((tmp_path / "point" / "export.json").read_text())["adaptive"] == json.loads(json.dumps(point))
    np.testing.assert_array_equal(load_stablehlo(tmp_path / "point")(*inputs)["start_logits"], found["start_logits"])


def test_export_of_dropped_tokens_needs_one_length_and_stablehlo(tmp_path, capsys, unchecked):
    pytest.importorskip("flatbuffers")
    source = folder_of("BertForQuestionAnswering", tmp_path / "model")
    lengths = (9, 5)
    with pytest.raises(ValueError, match="length_config is given and the inputs have any length; give --length"):
        export_stablehlo(source, tmp_path / "out", length_config=lengths)
    flags = ["--format", "onnx", "--length-config", *map(str, lengths)]
    assert cli.main(["export", str(source), str(tmp_path / "out"), *flags]) == 2
    assert "--length-config and --always-keep-cls-token need --format stablehlo" in capsys.readouterr().err
    pytest.importorskip("onnxruntime")
    source = folder_of("BertModel", tmp_path / "adapted", config=CONFIG.replace(length_config=lengths))
    with pytest.raises(ValueError, match="computes all layers and tokens. Use stablehlo"):
        export_onnx(source, tmp_path / "out", length=11)


@pytest.mark.slow
def test_other_weights_of_the_same_sizes_run_in_the_same_program(tmp_path, unchecked):
    pytest.importorskip("flatbuffers")
    source, target = folder_of("BertForMaskedLM", tmp_path / "model"), tmp_path / "out"
    export_stablehlo(source, target, length=7)
    tensors = load_file(target / stablehlo.WEIGHTS)
    program = jax.export.deserialize(bytearray((target / stablehlo.PROGRAM).read_bytes()))
    inputs = inputs_of(2, 7)
    before = program.call(tensors, *inputs)["logits"]
    tensors["predictions/bias"] = tensors["predictions/bias"] + np.float32(1)
    np.testing.assert_allclose(program.call(tensors, *inputs)["logits"], before + 1, atol=1e-5)
    with pytest.raises(ValueError):  # the length is fixed
        program.call(tensors, *inputs_of(2, 8))


@pytest.mark.parametrize(
    "name", ["BertForPreTraining", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_onnx_equals_the_model(name, tmp_path, unchecked):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    source = folder_of(name, tmp_path / "model")
    done = export_onnx(source, tmp_path / "out")
    assert done.parity <= 1e-5
    if name in ("BertForMultipleChoice", "BertForPreTraining"):  # of the others the parity says it
        session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
        inputs = inputs_of(4, 11, 3 if name == "BertForMultipleChoice" else None)
        given = {name: array.astype(np.int64) for name, array in zip(BertModel.input_names, inputs, strict=True)}
        names = [value.name for value in session.get_outputs()]
        assert_equal(dict(zip(names, session.run(names, given), strict=True)), run(source, *inputs), 1e-5)


@pytest.mark.parametrize(
    "activation", ["gelu_new", *(pytest.param(a, marks=pytest.mark.slow) for a in ("silu", "mish"))]
)
def test_onnx_activations_and_untied_words(activation, tmp_path, unchecked):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    config = CONFIG.replace(hidden_act=activation, tie_word_embeddings=False)
    source = folder_of("BertForMaskedLM", tmp_path / "model", config=config)
    done = export_onnx(source, tmp_path / "out", length=6)
    assert done.parity <= 1e-5 and done.inputs["input_ids"] == ("int64", ("B", 6))


def test_onnx_refuses_causal_models(tmp_path, unchecked):
    pytest.importorskip("onnxruntime")
    source = folder_of("BertLMHeadModel", tmp_path / "causal")
    with pytest.raises(ValueError, match="is_decoder is true.*Use stablehlo"):
        export_onnx(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_onnx_of_a_model_without_pooler(tmp_path, unchecked):
    pytest.importorskip("onnxruntime")
    model = flaxbert.BertModel(CONFIG, add_pooling_layer=False)
    params = initial(model, np.zeros((1, 2), np.int32))
    flaxbert.save_pretrained(tmp_path / "model", model, params)
    exported = export_onnx(tmp_path / "model", tmp_path / "out")
    assert exported.parity <= 1e-5
    assert exported.outputs == {"last_hidden_state": ("float32", ("B", "T", CONFIG.hidden_size))}


def test_onnx_runtime_fuses_the_attention_of_every_layer(tmp_path, unchecked):
    onnxruntime = pytest.importorskip("onnxruntime")
    optimizer = pytest.importorskip("onnxruntime.transformers.optimizer")
    config = CONFIG.replace(hidden_size=16, num_attention_heads=2)
    source = folder_of("BertForPreTraining", tmp_path / "model", config=config)
    export_onnx(source, tmp_path / "out")
    sizes = {"num_heads": config.num_attention_heads, "hidden_size": config.hidden_size}
    fused = optimizer.optimize_model(str(tmp_path / "out" / "model.onnx"), model_type="bert", opt_level=0, **sizes)
    counts = fused.get_fused_operator_statistics()
    assert counts["Attention"] == config.num_hidden_layers and counts["EmbedLayerNormalization"] == 1
    fused.save_model_to_file(str(tmp_path / "fused.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "fused.onnx"))
    inputs = inputs_of(4, 11)
    arrays = {name: array.astype(np.int64) for name, array in zip(BertModel.input_names, inputs, strict=True)}
    names = [value.name for value in session.get_outputs()]
    assert_equal(dict(zip(names, session.run(names, arrays), strict=True)), run(source, *inputs), 1e-5)


def test_outputs_of_another_shape_are_an_error():
    model = flaxbert.BertForSequenceClassification(CONFIG)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model.parameter_shapes())
    with pytest.raises(ValueError, match=r"returns logits with shape \(1, 3\); the model returns shape \(2, 3\)"):
        exported_model.largest_difference(model, params, lambda *inputs: {"logits": np.zeros((1, 3), np.float32)}, None)


@pytest.mark.parametrize("format", [pytest.param("stablehlo", marks=pytest.mark.slow), "onnx"])
def test_the_command(format, tmp_path, capsys, unchecked):
    for package in ("flatbuffers", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    source, target = folder_of("BertForSequenceClassification", tmp_path / "model"), tmp_path / "out"
    (source / "vocab.txt").write_text("[PAD]\n")  # is carried along
    assert cli.main(["export", str(source), str(target), "--format", format]) == 0
    out = capsys.readouterr().out
    assert "output logits: float32 [B, 3]" in out and "on random input" in out
    assert {"export.json", "vocab.txt"} < {path.name for path in target.iterdir()}
    description = json.loads((target / "export.json").read_text())
    assert description["parity"] <= 1e-5 and sorted(description["files"]) == sorted(p.name for p in target.iterdir())
    assert description["readable_by"] in out
    assert datetime.date.fromisoformat(description["exported_on"]) <= datetime.datetime.now(datetime.UTC).date()
    assert cli.main(["export", str(source), str(target), "--format", format]) == 2
    assert "already exists" in capsys.readouterr().err
    assert cli.main(["export", str(source), str(tmp_path / "b"), "--format", format, "--length", "14"]) == 2
    assert "length is 14; allowed: 1 to 13" in capsys.readouterr().err


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(exported_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs flatbuffers, .*pip install 'flaxbert\[export\]'"):
        export_stablehlo(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match=r"needs torch, .*pip install 'flaxbert\[onnx\]'"):
        export_onnx(tmp_path, tmp_path / "out")


def test_loading_an_invalid_program(tmp_path):
    pytest.importorskip("flatbuffers")
    (tmp_path / "export.json").write_text('{"max_length": 13}')
    (tmp_path / "program.stablehlo").write_bytes(b"no program")
    with pytest.raises(ValueError, match="not a program of jax.export"):
        load_stablehlo(tmp_path)
