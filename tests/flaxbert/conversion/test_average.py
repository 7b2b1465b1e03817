"""Averages: exact, of one model's checkpoints and the newest of a run, with the tokenizer files of the first."""

import json
import shutil

import jax
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file

import flaxbert
from flaxbert.conversion.average import average
from flaxbert.conversion.convert import convert
from flaxbert.weights.formats.orbax_params import orbax_steps

CONFIG = flaxbert.BertConfig(
    vocab_size=23, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=6,
    max_position_embeddings=9,
)  # fmt: skip
VOCABULARY = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"


def folder_of(value, folder, name="BertForMaskedLM", dtype=np.float32):
    """A saved model all of whose weights are one number."""
    model = flaxbert.ARCHITECTURES[name](CONFIG)
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, value, np.float32), model.parameter_shapes())
    flaxbert.save_pretrained(folder, model, params, dtype=dtype, checksums=True)
    return folder


def values_of(folder):
    return {(array.dtype.name, float(number)) for array in load_file(folder / "model.safetensors").values()
            for number in array.flat}  # fmt: skip


def test_sums_do_not_overflow_the_type_of_the_checkpoints(tmp_path):
    paths = [folder_of(value, tmp_path / str(value), dtype=np.float16) for value in (60000, 50016)]
    assert average(paths, tmp_path / "mean") == paths
    assert values_of(tmp_path / "mean") == {("float16", 55008.0)}


def test_the_newest_checkpoints_of_a_run_are_taken_by_number(tmp_path):
    for step in (3, 6, 12):
        folder = folder_of(step, tmp_path / "model")
        convert(folder, tmp_path / "orbax", format="orbax")
        (tmp_path / "run" / "checkpoints" / str(step)).mkdir(parents=True)
        (tmp_path / "orbax" / "params").rename(tmp_path / "run" / "checkpoints" / str(step) / "default")
        shutil.rmtree(tmp_path / "orbax")
    shutil.copy(tmp_path / "model" / "config.json", tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "20" / "default").mkdir(parents=True)  # being written
    assert list(orbax_steps(tmp_path / "run")) == [3, 6, 12]
    found = average([tmp_path / "run"], tmp_path / "mean", last=2)
    assert [path.parent.name for path in found] == ["6", "12"]
    assert values_of(tmp_path / "mean") == {("float32", 9.0)}
    with pytest.raises(ValueError, match="last=1 and 1 paths; it takes .* at least 2"):
        average([tmp_path / "run"], tmp_path / "more", last=1)


def test_what_lies_there_stays_and_a_damaged_checkpoint_is_told(tmp_path):
    paths = [folder_of(value, tmp_path / str(value)) for value in (1, 3)]
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="there: already exists"):
        average(paths, tmp_path / "there")
    content = bytearray((paths[1] / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (paths[1] / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"3.model.safetensors: does not match SHA256SUMS"):
        average(paths, tmp_path / "mean")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3", "there"]


@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM"])
def test_tokenizer_files_are_those_of_the_first_checkpoint(tmp_path, name):
    paths = [folder_of(value, tmp_path / str(value), name) for value in (1, 3)]
    for path in paths:
        (path / "vocab.txt").write_text(f"{VOCABULARY}first\n")
        modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
        (path / "modules.json").write_text(json.dumps(modules))
    average(paths, tmp_path / "mean")
    assert values_of(tmp_path / "mean") == {("float32", 2.0)}
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "mean")
    assert read.tokenize("first second") == ["first", "[UNK]"] and read.model_max_length == 9
    assert (tmp_path / "mean" / "modules.json").exists()
