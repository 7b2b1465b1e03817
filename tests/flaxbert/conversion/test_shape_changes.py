"""Conversions that change the model's shape: pruned heads, fewer layers, another vocabulary."""

import chex
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import flaxbert
from flaxbert import surgery
from flaxbert.conversion.convert import convert
from flaxbert.conversion.shape_changes import ShapeChanges, parse_heads, parse_layers
from flaxbert.tokenizer import WordPieceTokenizer
from tests.flaxbert.saved_models import CONFIG, assert_bit_equal, folder_of, tensors_of
from tests.flaxbert.transformers4_fixtures import FOLDER

PRUNED = FOLDER / "classifier_pruned"


@pytest.mark.parametrize("format", ["safetensors", "pytorch", "orbax"])
def test_pruned_heads_and_dropped_layers_are_those_of_surgery(tmp_path, format):
    changes = ShapeChanges(prune_heads={0: [1, 2], 1: [3], 2: [0, 3]}, keep_layers=[0, 2])
    done = convert(FOLDER / "classifier", tmp_path / "new", changes=changes, format=format, verify=True)
    assert (done.newly_initialised, done.left_out) == ([], [])
    model, params = flaxbert.from_pretrained(tmp_path / "new")
    pruned, whole = flaxbert.from_pretrained(PRUNED)
    config, wanted = surgery.drop_layers(pruned.config, whole, keep=[0, 2])
    assert model.config == config and config.pruned_heads == ((0, (1, 2)), (1, (0, 3)))
    chex.assert_trees_all_equal(params, wanted)


def test_a_pruned_model_is_pruned_further(tmp_path):
    convert(FOLDER / "classifier", tmp_path / "one", changes=ShapeChanges(prune_heads={0: [1], 2: [0, 3]}))
    convert(tmp_path / "one", tmp_path / "two", changes=ShapeChanges(prune_heads={0: [1, 2], 1: [3]}), verify=True)
    wanted = load_file(PRUNED / "model.safetensors")
    assert_bit_equal(load_file(tmp_path / "two" / "model.safetensors"), wanted)


def test_numbers_keep_their_dtype(tmp_path):
    source = folder_of("BertForMaskedLM", tmp_path / "a", ml_dtypes.bfloat16)
    convert(source, tmp_path / "b", changes=ShapeChanges(pad_to_multiple_of=64), verify=True)
    old, new = tensors_of(source), tensors_of(tmp_path / "b")
    assert {tensor.dtype for tensor in new.values()} == {np.dtype(ml_dtypes.bfloat16)}
    size = -(-CONFIG.vocab_size // 64) * 64
    for name, tensor in old.items():
        if CONFIG.vocab_size in tensor.shape:
            assert len(new[name]) == size
        np.testing.assert_array_equal(new[name][: len(tensor)], tensor, err_msg=name)


def test_a_new_head_is_reported_as_newly_initialised(tmp_path):
    source = folder_of("BertForMaskedLM", tmp_path / "a")
    head, changes = "BertForSequenceClassification", ShapeChanges(vocab_size=CONFIG.vocab_size + 1)
    done = convert(source, tmp_path / "b", head=head, changes=changes)
    assert done.newly_initialised == [
        "bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"
    ]  # fmt: skip
    assert flaxbert.from_pretrained(tmp_path / "b")[0].config.vocab_size == CONFIG.vocab_size + 1


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(tmp_path):
    source = folder_of("BertModel", tmp_path / "a")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    WordPieceTokenizer.from_tokens(tokens, lowercase=True).save(source, max_length=8)
    with pytest.raises(ValueError, match="the tokenizer has 7 tokens, more than the new vocabulary of 6"):
        convert(source, tmp_path / "b", changes=ShapeChanges(vocab_size=6))
    assert not (tmp_path / "b").exists()
    convert(source, tmp_path / "b", changes=ShapeChanges(vocab_size=7))


def test_a_checkpoint_of_a_stack_loads_as_a_tree_for_each_layer(tmp_path):
    source = folder_of("BertModel", tmp_path / "a")
    convert(source, tmp_path / "b", format="orbax")
    _, stacked = flaxbert.BertModel.from_pretrained(source)
    model, params = flaxbert.BertModel.from_pretrained(tmp_path / "b", stacked_layers=False)
    chex.assert_trees_all_equal(params["layers"], flaxbert.layers.unstack_layers(stacked["layers"]))
    chex.assert_trees_all_equal_shapes(params, model.parameter_shapes())


@pytest.mark.parametrize("name", ["classifier_pruned", "encoder_relative_key"])
def test_what_flax_classes_ignore_is_not_written_for_them(name, tmp_path):
    with pytest.raises(
        ValueError, match="the Flax classes of transformers 4 ignore pruned heads and relative positions"
    ):
        convert(FOLDER / name, tmp_path / "new", format="flax")
    assert not (tmp_path / "new").exists()


def test_texts_of_heads_and_layers():
    assert parse_heads("0:1,2;3:0") == {0: [1, 2], 3: [0]}
    assert parse_layers("0,2,4") == [0, 2, 4]
    for text in ("", "0", "0:", "0:1;", "a:1", "0:1,b"):
        with pytest.raises(ValueError, match="write layers and their heads like 0:1,2;3:0"):
            parse_heads(text)
    with pytest.raises(ValueError, match="it names layer 0 twice"):
        parse_heads("0:1;0:2")
    with pytest.raises(ValueError, match="keep_layers is '0-2'; write the numbers of layers like 0,2,4"):
        parse_layers("0-2")
