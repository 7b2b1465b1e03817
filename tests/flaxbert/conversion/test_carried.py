"""Settings and files of other programs: carried by every way to write a model folder, or named."""

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import flaxbert
from flaxbert.conversion.average import average
from flaxbert.conversion.convert import convert
from flaxbert.weights.checkpoint import open_checkpoint
from tests.flaxbert.saved_models import CONFIG, files_in, folder_of, tensors_of

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
TRANSFORMER, POOLING = "sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling"


def change_json(file, **changes):
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({key: value for key, value in (values | changes).items() if value is not None}))


def written_by_each(folder, parent, head=None):
    """The folders that convert, save_pretrained and average write from a model folder."""
    convert(folder, parent / "converted")
    model, params = flaxbert.from_pretrained(folder)
    flaxbert.save_pretrained(parent / "saved", model, params)
    average([folder, folder], parent / "averaged")
    return [parent / name for name in ("converted", "saved", "averaged")]


def sentence_model(folder, *, transformer="", name="BertModel"):
    """A folder of sentence-transformers with pooling, a dense layer and a module in a folder of an unusual name."""
    inside = folder / transformer
    folder_of(name, inside)
    (inside / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    (inside / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9, "do_lower_case": False}))
    paths = {transformer: TRANSFORMER, "1_Pooling": POOLING, "projection": "sentence_transformers.models.Dense"}
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(paths.items())]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 15, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "projection").mkdir()
    (folder / "projection" / "config.json").write_text(json.dumps({"in_features": 15, "out_features": 2}))
    (folder / "projection" / "notes.txt").write_text("mine")
    weights = {"linear.weight": torch.ones(2, 15), "linear.bias": torch.zeros(2)}
    torch.save(weights, folder / "projection" / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize(
    "keys",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "4.1.0"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
        {"function_to_apply": "none", "task_specific_params": {"x": {"y": 1}}},
    ],
)
def test_the_activation_of_a_cross_encoder_is_carried(tmp_path, keys):
    folder = folder_of("BertForSequenceClassification", tmp_path / "a", config=CONFIG.replace(num_labels=1))
    change_json(folder / "config.json", **keys)
    for written in written_by_each(folder, tmp_path):
        assert keys.items() <= json.loads((written / "config.json").read_text()).items()


@pytest.mark.parametrize("transformer", ["", "0_Transformer", "parts/0_BERT"])
def test_all_files_of_all_modules_are_carried(tmp_path, transformer):
    folder = sentence_model(tmp_path / "a", transformer=transformer)
    for written in written_by_each(folder, tmp_path):
        modules = json.loads((written / "modules.json").read_text())
        assert [module["path"] for module in modules] == ["", "1_Pooling", "projection"]
        expected = {"1_Pooling/config.json", "projection/config.json", "projection/notes.txt"}
        assert {*expected, "vocab.txt", "sentence_bert_config.json", "config.json"} <= set(files_in(written))
        assert load_file(written / "projection" / "model.safetensors")["linear.weight"].shape == (2, 15)
        assert open_checkpoint(written).file == written / "model.safetensors"


def test_a_model_for_another_task_says_that_the_modules_are_left_out(tmp_path, caplog):
    folder = sentence_model(tmp_path / "a")
    with caplog.at_level(logging.WARNING):
        convert(folder, tmp_path / "b", head="BertForSequenceClassification")
    assert "modules.json is left out: it is of no use to BertForSequenceClassification" in caplog.text
    assert not (tmp_path / "b" / "modules.json").exists()


@pytest.mark.parametrize("named", ["BertModel", "BertForMaskedLM"])
def test_a_language_model_head_left_in_the_weights_drops_no_module(tmp_path, named, caplog):
    folder = sentence_model(tmp_path / "a", name="BertForMaskedLM")
    change_json(folder / "config.json", architectures=[named])
    with caplog.at_level(logging.WARNING):
        written = written_by_each(folder, tmp_path)
    assert all((path / "modules.json").exists() for path in written)
    heads = [json.loads((path / "config.json").read_text())["architectures"] for path in written]
    assert heads == [[named]] * 3
    assert ("without are left out: cls.predictions.bias" in caplog.text) == (named == "BertModel")


def test_modules_out_of_the_folder_are_refused(tmp_path):
    folder = sentence_model(tmp_path / "a")
    for path in ("../a", "/etc", "x/../../a"):
        modules = [{"path": "", "type": TRANSFORMER}, {"path": path, "type": POOLING}]
        (folder / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(ValueError, match=r"leads out of the folder"):
            convert(folder, tmp_path / "b")
    (folder / "modules.json").write_text('[{"path": 1}]')
    with pytest.raises(ValueError, match=r"modules.json: expected a list of modules"):
        convert(folder, tmp_path / "b")
    assert files_in(tmp_path) == sorted(f"a/{name}" for name in files_in(folder))


def test_files_of_other_tokenizers_are_carried(tmp_path):
    folder = folder_of("BertModel", tmp_path / "a")
    names = ("sentencepiece.bpe.model", "merges.txt", "vocab.json", "chat_template.jinja")
    for name in names:
        (folder / name).write_text("{}")
    for written in written_by_each(folder, tmp_path):
        assert set(names) <= set(files_in(written))


# -- classes ---------------------------------------------------------------------------------------------------


def test_a_masked_lm_over_the_tensors_of_pretraining_is_loaded(tmp_path, caplog):
    theirs = transformers.BertForPreTraining(transformers.BertConfig(**CONFIG.to_dict()))
    theirs.save_pretrained(tmp_path / "a")
    change_json(tmp_path / "a" / "config.json", architectures=["BertForMaskedLM"])
    with caplog.at_level(logging.WARNING):
        model, params = flaxbert.from_pretrained(tmp_path / "a")
    assert type(model) is flaxbert.BertForMaskedLM
    left_out = (
        "bert.pooler.dense.bias, bert.pooler.dense.weight, cls.seq_relationship.bias, cls.seq_relationship.weight"
    )
    assert f"weights that BertForMaskedLM does without are left out: {left_out}" in caplog.text
    wanted = transformers.BertForMaskedLM.from_pretrained(tmp_path / "a", attn_implementation="eager").eval()
    ids = np.arange(12).reshape(2, 6)
    with torch.no_grad():
        logits = wanted(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(model.apply({"params": params}, ids).logits, logits, atol=1e-5)


def test_a_head_of_another_task_beside_the_named_one_is_left_out(tmp_path, caplog):
    folder = folder_of("BertForSequenceClassification", tmp_path / "a")
    head = {name: array for name, array in tensors_of(folder_of("BertForMaskedLM", tmp_path / "lm")).items()
            if name.startswith("cls.")}  # fmt: skip
    save_file({**tensors_of(folder), **head}, folder / "model.safetensors", metadata={"format": "pt"})
    for written in written_by_each(folder, tmp_path):
        assert json.loads((written / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]
        assert not any(name.startswith("cls.") for name in tensors_of(written))
    assert "does without are left out: cls.predictions.bias" in caplog.text


def test_a_class_that_changes_is_said(tmp_path, caplog):
    folder = folder_of("BertForTokenClassification", tmp_path / "a")
    change_json(folder / "config.json", architectures=["BertForSequenceClassification"])
    assert convert(folder, tmp_path / "b").head == "BertForTokenClassification"
    assert (
        "names ['BertForSequenceClassification'], but its tensors are those of BertForTokenClassification"
        in caplog.text
    )
    change_json(folder / "config.json", architectures=["BertForEverything"])
    convert(folder, tmp_path / "c")
    assert "names ['BertForEverything'], but its tensors are those of BertForTokenClassification" in caplog.text


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForSequenceClassification", "BertModel"])
def test_a_file_is_a_source_like_its_folder(tmp_path, name):
    folder = folder_of(name, tmp_path / "a")
    for path in (folder, folder / "model.safetensors"):
        model, params = flaxbert.from_pretrained(path)
        assert type(model).__name__ == name and jnp.isfinite(params.get("bert", params)["layers"]["up"]["bias"]).all()
    change_json(folder / "config.json", architectures=None)  # as in Google's files
    assert type(flaxbert.from_pretrained(folder / "model.safetensors")[0]).__name__ == name


@pytest.mark.filterwarnings("ignore::UserWarning")  # transformers initialises vectors of one number as matrices
@pytest.mark.parametrize("name", ["prelu", "xielu"])
def test_activations_with_parameters_equal_those_of_transformers(tmp_path, name):
    torch.manual_seed(0)
    config = transformers.BertConfig(**CONFIG.replace(hidden_act=name).to_dict())
    theirs = transformers.BertForMaskedLM._from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if "act_fn" in key:
                parameter.add_(torch.rand(1) / 8)
    theirs.save_pretrained(tmp_path / "a")
    model, params = flaxbert.from_pretrained(tmp_path / "a")
    ids = np.arange(12).reshape(2, 6)
    labels = torch.tensor(ids)
    out = theirs(labels, labels=labels)
    out.loss.backward()
    np.testing.assert_allclose(model.apply({"params": params}, ids).logits, out.logits.detach().numpy(), atol=1e-5)

    def loss(params):
        logits = model.apply({"params": params}, ids).logits
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=-1))

    gradients = jax.grad(loss)(params)
    for i, layer in enumerate(theirs.bert.encoder.layer):
        for key, parameter in layer.intermediate.intermediate_act_fn.named_parameters():
            found = gradients["bert"]["layers"]["activation"][key][i]
            np.testing.assert_allclose(found, parameter.grad.float().numpy(), atol=1e-4)
    flaxbert.save_pretrained(tmp_path / "b", model, params)
    back = transformers.BertForMaskedLM.from_pretrained(tmp_path / "b", attn_implementation="eager").float().eval()
    with torch.no_grad():
        np.testing.assert_allclose(back(labels).logits.numpy(), out.logits.detach().numpy(), atol=1e-5)


# -- averages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"id2label": {"0": "b", "1": "a", "2": "c"}}, "id2label: ('b', 'a', 'c') and ('a', 'b', 'c')"),
        ({"hidden_act": "relu"}, "hidden_act: 'relu' and 'gelu'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps: 1e-05 and 1e-12"),
        ({"num_attention_heads": 5}, "num_attention_heads: 5 and 3"),
        ({"problem_type": "regression"}, "problem_type: 'regression' and None"),
        ({"sbert_ce_default_activation_function": "x"}, "sbert_ce_default_activation_function: 'x' and None"),
    ],
)
def test_models_that_differ_in_more_than_their_numbers_are_not_averaged(tmp_path, changes, named):
    folders = [folder_of("BertForSequenceClassification", tmp_path / name) for name in "ab"]
    change_json(folders[1] / "config.json", hidden_dropout_prob=0.3, transformers_version="4.0")
    average(folders, tmp_path / "alike")
    change_json(folders[1] / "config.json", label2id=None, **changes)
    with pytest.raises(ValueError) as error:
        average(folders, tmp_path / "mean")
    assert named in str(error.value) and not (tmp_path / "mean").exists()


def test_models_with_other_vocabularies_heads_or_modules_are_not_averaged(tmp_path):
    folders = [sentence_model(tmp_path / name) for name in "ab"]
    average(folders, tmp_path / "alike")
    (folders[1] / "vocab.txt").write_text("\n".join([*TOKENS[:5], *"acbdefgh"]) + "\n")
    with pytest.raises(ValueError, match="differ in the vocabulary: token 6 is 'c' and 'b'"):
        average(folders, tmp_path / "mean")
    shutil.copy(folders[0] / "vocab.txt", folders[1])
    change_json(folders[1] / "1_Pooling" / "config.json", pooling_mode_cls_token=True)
    with pytest.raises(ValueError, match=r"differ in 1_Pooling/config.json of sentence-transformers"):
        average(folders, tmp_path / "mean")
    heads = [folder_of(name, tmp_path / name) for name in ("BertForMaskedLM", "BertForPreTraining")]
    for pair in (heads, heads[::-1]):
        with pytest.raises(ValueError, match="class: 'Bert.*' and 'Bert"):
            average(pair, tmp_path / "mean")
