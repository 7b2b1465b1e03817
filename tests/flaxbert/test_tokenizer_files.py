"""What lies beside weights: a tokenizer's files and those of sentence-transformers."""

import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from safetensors.numpy import load_file, save_file

import flaxbert
from flaxbert.conversion.convert import convert
from flaxbert.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from tests.flaxbert.saved_models import CONFIG, files_in, folder_of


def test_saving_carries_the_tokenizer_and_the_sentence_modules(minilm, tmp_path):
    model, params = flaxbert.from_pretrained(minilm)
    flaxbert.save_pretrained(tmp_path / "out", model, params)
    beside = [
        "1_Pooling/config.json",
        "config_sentence_transformers.json",
        "modules.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    assert files_in(tmp_path / "out") == sorted([*beside, "config.json", "model.safetensors"])
    for file in beside:
        assert (tmp_path / "out" / file).read_bytes() == (minilm / file).read_bytes()
    # Files that are there stay; a task's model is no model of sentences.
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "vocab.txt").write_text("mine")
    task = flaxbert.BertForTokenClassification(CONFIG, origin=minilm)
    fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), task.parameter_shapes())
    flaxbert.save_pretrained(tmp_path / "task", task, fresh)
    assert "modules.json" not in files_in(tmp_path / "task") and "tokenizer.json" in files_in(tmp_path / "task")
    assert (tmp_path / "task" / "vocab.txt").read_text() == "mine"
    assert task == flaxbert.BertForTokenClassification(CONFIG) and hash(task) == hash(task.clone(origin=None))


def test_pickled_weights_of_a_sentence_module_become_safetensors(tmp_path):
    folder = folder_of("BertModel", tmp_path / "a")
    (folder / "2_Dense").mkdir()
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({"linear.weight": weight}, folder / "2_Dense" / "pytorch_model.bin")
    (folder / "2_Dense" / "config.json").write_text("{}")
    convert(folder, tmp_path / "b")
    assert files_in(tmp_path / "b" / "2_Dense") == ["config.json", "model.safetensors"]
    np.testing.assert_array_equal(load_file(tmp_path / "b/2_Dense/model.safetensors")["linear.weight"], weight)


def test_safetensors_of_a_sentence_module_go_before_its_pickle(tmp_path):
    folder = folder_of("BertModel", tmp_path / "a")
    (folder / "2_Dense").mkdir()
    torch.save({"linear.weight": torch.zeros(2)}, folder / "2_Dense" / "pytorch_model.bin")
    save_file({"linear.weight": np.ones(2, np.float32)}, folder / "2_Dense" / "model.safetensors")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    convert(folder, tmp_path / "b")
    assert not (tmp_path / "b" / "onnx").exists()  # no module
    assert files_in(tmp_path / "b" / "2_Dense") == ["model.safetensors"]
    assert (load_file(tmp_path / "b/2_Dense/model.safetensors")["linear.weight"] == 1).all()


def test_a_task_s_model_takes_only_the_tokenizer_along(tmp_path):
    folder = folder_of("BertModel", tmp_path / "a")
    for file in ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text("{}")
    tokenizer = ["added_tokens.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    for file in tokenizer:
        (folder / file).write_text("{}")
    (folder / "README.md").write_text("not asked for")
    weights = ["SHA256SUMS", "config.json", "model.safetensors"]
    convert(folder, tmp_path / "b", head="BertForTokenClassification")
    assert files_in(tmp_path / "b") == sorted([*tokenizer, *weights])


def word_level(vocabulary):
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(vocabulary)}, "[UNK]"))
    backend.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return backend


def test_a_tokenizer_that_transformers_would_read_otherwise_is_carried_as_it_is(tmp_path, caplog):
    folder = folder_of("BertModel", tmp_path / "a")
    word_level([*SPECIAL_TOKENS, "a"]).save(str(folder / "tokenizer.json"))
    with caplog.at_level(logging.WARNING):
        assert convert(folder, tmp_path / "b").files[2:] == ["tokenizer.json"]
    assert "holds a WordLevel model" in caplog.text and "copied unchanged" in caplog.text


def test_a_tokenizer_of_another_model_is_carried_with_its_class(tmp_path):
    folder = folder_of("BertModel", tmp_path / "a")
    word_level([*SPECIAL_TOKENS, "a", "<x>"]).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (folder / "special_tokens_map.json").write_text(json.dumps({"mask_token": "<x>", "pad_token": {"content": "a"}}))
    done = convert(folder, tmp_path / "b")  # vocab.txt would be taken for word pieces
    assert done.files[2:] == ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    assert WordPieceTokenizer.load(tmp_path / "b").special_ids == (5, 1, 2, 3, 6)


def test_a_vocabulary_alone_gets_the_other_files(tmp_path, data_dir):
    for case, lowercase in (("uncased", True), ("cased", False)):
        folder = folder_of("BertModel", tmp_path / case)
        shutil.copy(data_dir / "tokenizers" / f"bert-base-{case}" / "vocab.txt", folder)
        if not lowercase:  # transformers would lower-case texts
            (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "model_max_length": 13}')
        done = convert(folder, tmp_path / f"{case}-out")
        assert {*done.files} == {"config.json", "SHA256SUMS", "vocab.txt", "tokenizer.json", "tokenizer_config.json"}
        read = transformers.AutoTokenizer.from_pretrained(tmp_path / f"{case}-out")
        assert (read.tokenize("Paris") == ["paris"]) == lowercase and read.model_max_length == 13


def test_links_out_of_the_folder_are_not_carried(tmp_path):
    folder = folder_of("BertModel", tmp_path / "a")
    (tmp_path / "secret").write_text("[PAD]\n")
    (folder / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="'vocab.txt' leads out of the folder"):
        convert(folder, tmp_path / "b")
    (folder / "vocab.txt").unlink()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").write_text("{}")
    (folder / "1_Pooling").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="'1_Pooling' leads out of the folder"):
        convert(folder, tmp_path / "b")
    (folder / "1_Pooling").unlink()
    (folder / "1_Pooling").mkdir()
    for file in (folder / "1_Pooling" / "config.json", folder / "modules.json"):
        file.symlink_to(tmp_path / "outside" / "config.json")
        with pytest.raises(ValueError, match=f"'{file.name}' leads out of the folder"):
            convert(folder, tmp_path / "b")
        file.unlink()
    (folder / "tokenizer").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="'tokenizer' leads out of the folder"):
        convert(folder, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    convert(folder_of("BertModel", tmp_path / "c"), tmp_path / "orbax", format="orbax")
    (tmp_path / "d").mkdir()
    shutil.copy(tmp_path / "orbax" / "config.json", tmp_path / "d")
    (tmp_path / "d" / "params").symlink_to(tmp_path / "orbax" / "params")
    with pytest.raises(ValueError, match="params: leads out of the folder"):
        convert(tmp_path / "d", tmp_path / "b")
