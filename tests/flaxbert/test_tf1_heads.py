"""Checkpoints of TensorFlow 1, one for each of Google's scripts, against what TensorFlow computed from them."""

import functools
import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers

import flaxbert
from flaxbert.weights.formats.tf1 import from_tf1_name, open_tf1, read_bundle_index

FIXTURES = Path(__file__).parent / "fixtures" / "tf1"  # made by make_tf1_fixtures.py
CLASSES = {
    "encoder": flaxbert.BertModel,
    "pretraining": flaxbert.BertForPreTraining,
    "classifier": flaxbert.BertForSequenceClassification,
    "squad": flaxbert.BertForQuestionAnswering,
}
PREFIXES = dict.fromkeys(CLASSES, "bert_model.ckpt") | {"classifier": "model.ckpt-3", "squad": "model.ckpt-3"}
SKIPPED = {
    "encoder": set(),
    "pretraining": {"adam_m", "adam_v", "global_step"},
    "squad": {"adam_m", "adam_v", "global_step"},
    "classifier": {
        "AdamWeightDecayOptimizer",
        "AdamWeightDecayOptimizer_1",
        "beta1_power",
        "beta2_power",
        "global_step",
    },
}


def expected(name):
    content = json.loads((FIXTURES / name / "expected.json").read_text())
    if name == "encoder":
        content["outputs"]["last_hidden_state"] = content["outputs"]["hidden_states"][-1]
    return content


def load(name):
    folder = FIXTURES / name
    config = flaxbert.BertConfig.from_pretrained(folder)
    assert config.hidden_act == "gelu_new"
    return CLASSES[name].from_pretrained(folder, config=config.replace(num_labels=3))


def assert_equal(found, wanted, tolerance=1e-5):
    """Every output that TensorFlow computed, at every position, padding too."""
    assert wanted
    for field, value in wanted.items():
        ours = np.stack([np.asarray(part) for part in getattr(found, field)])  # of states, or of a batch
        assert ours.dtype == np.float32 and ours.shape == np.shape(value)
        assert np.abs(value).max() > 0.5
        np.testing.assert_allclose(ours, np.float32(value), rtol=0, atol=tolerance, err_msg=field)


@pytest.mark.parametrize("name", CLASSES)
def test_a_checkpoint_computes_what_tensorflow_does(name):
    model, params = load(name)
    inputs = {key: np.array(value) for key, value in expected(name)["inputs"].items()}
    wanted = expected(name)["outputs"]
    outputs = jax.jit(functools.partial(model.apply, output_hidden_states=True))({"params": params}, **inputs)
    assert_equal(outputs, wanted)
    outputs = jax.jit(model.apply)({"params": params}, **inputs)  # where a head needs the first position alone
    del wanted["hidden_states"]
    assert_equal(outputs, wanted)


@pytest.mark.parametrize("name", CLASSES)
def test_transformers_computes_the_same_from_what_is_saved(name, tmp_path):
    flaxbert.save_pretrained(tmp_path, *load(name))
    model, report = getattr(transformers, CLASSES[name].__name__).from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert {kind: list(found) for kind, found in report.items() if found} == {}
    assert model.config.hidden_act == "gelu_new"
    assert model.config.num_labels == (2 if name == "squad" else 3)
    inputs = {key: torch.tensor(value) for key, value in expected(name)["inputs"].items()}
    with torch.no_grad():
        assert_equal(model.eval()(**inputs, output_hidden_states=True), expected(name)["outputs"])


@pytest.mark.parametrize("name", CLASSES)
def test_every_variable_is_a_weight_or_known_not_to_be_one(name):
    prefix = FIXTURES / name / PREFIXES[name]
    variables = read_bundle_index(prefix)
    tensors, skipped = open_tf1(prefix)
    assert skipped == expected(name)["others"]
    assert sorted(name for name in variables if from_tf1_name(name) in tensors) == expected(name)["weights"]
    assert len(variables) == len(tensors) + len(skipped)
    assert {slot.rpartition("/")[2] for slot in skipped} == SKIPPED[name]


def test_answers_of_squad_are_in_qa_outputs():
    variables = read_bundle_index(FIXTURES / "squad" / PREFIXES["squad"])
    _, params = load("squad")
    weights, bias = (variables[f"cls/squad/output_{part}"].read() for part in ("weights", "bias"))
    assert weights.shape == (2, 8)
    np.testing.assert_array_equal(params["qa_outputs"]["kernel"], weights.T)
    np.testing.assert_array_equal(params["qa_outputs"]["bias"], bias)


def test_a_pooler_that_a_head_does_without_is_left_out_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        load("squad")
    warning = "BertForQuestionAnswering has no pooler; left out: bert.pooler.dense.bias, bert.pooler.dense.weight"
    assert caplog.messages[-1].endswith(warning)


def test_labels_of_another_number_are_refused():
    with pytest.raises(ValueError, match=r"classifier.weight: \[3, 8\] in the file, \[2, 8\] in BertForSequence"):
        flaxbert.BertForSequenceClassification.from_pretrained(FIXTURES / "classifier")


def test_two_data_files_hold_what_one_does():
    one, two = (open_tf1(FIXTURES / name / "bert_model.ckpt") for name in ("encoder", "two_shards"))
    assert one[1] == two[1] == []
    assert one[0].keys() == two[0].keys()
    for name, tensor in one[0].items():
        np.testing.assert_array_equal(two[0][name].read(), tensor.read(), err_msg=name, strict=True)
    files = {variable.file.name for variable in read_bundle_index(FIXTURES / "two_shards/bert_model.ckpt").values()}
    assert files == {f"bert_model.ckpt.data-0000{shard}-of-00002" for shard in (0, 1)}


def test_a_partitioned_variable_is_refused():
    config = flaxbert.BertConfig.from_pretrained(FIXTURES / "encoder")
    with pytest.raises(
        ValueError, match=r"'bert/embeddings/word_embeddings' is stored in slices \(a partitioned variable\)"
    ) as error:
        flaxbert.BertModel.from_pretrained(FIXTURES / "partitioned", config=config)
    assert str(FIXTURES / "partitioned" / "bert_model.ckpt.index") in str(error.value)
