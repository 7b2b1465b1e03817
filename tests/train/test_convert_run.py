"""Checkpoints of a training run as models: converted while it trains, averaged, and parameters for orbax."""

import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

import flaxbert
from flaxbert.conversion.average import average
from flaxbert.conversion.convert import convert
from flaxbert.weights.checkpoint import open_checkpoint
from flaxbert.weights.formats import orbax_params

EXPORTED = "model/model.safetensors"


def state_of(item):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata(item).item_metadata.tree
        on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return checkpointer.restore(item, args=ocp.args.PyTreeRestore(restore_args=on_host))


@pytest.mark.parametrize("path", [".", "checkpoints", "checkpoints/12", "checkpoints/12/default"])
def test_a_run_converts_into_the_model_that_it_exported(finished, tmp_path, path):
    done = convert(finished.folder / path, tmp_path / "out")
    assert (done.read, done.head) == ("orbax", "BertForMaskedLM")
    exported, converted = load_file(finished.folder / EXPORTED), load_file(tmp_path / "out" / "model.safetensors")
    assert exported.keys() == converted.keys()
    for name in exported:
        np.testing.assert_array_equal(converted[name], exported[name])
    for file in ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (finished.folder / "model" / file).read_bytes()


def test_an_older_checkpoint_is_another_model(finished, tmp_path):
    convert(finished.folder / "checkpoints" / "6", tmp_path / "out")
    earlier = load_file(tmp_path / "out" / "model.safetensors")
    wanted = state_of(finished.folder / "checkpoints" / "6" / "default")["params"]
    bias, beyond = np.split(wanted["predictions"]["bias"], [300])  # the vocabulary is padded to 3 x 128
    np.testing.assert_array_equal(earlier["cls.predictions.bias"], bias)
    np.testing.assert_array_equal(beyond, np.zeros(84, np.float32))
    assert np.any(earlier["cls.predictions.bias"] != load_file(finished.folder / EXPORTED)["cls.predictions.bias"])


def test_the_average_of_the_last_checkpoints(finished, tmp_path):
    found = average([finished.folder], tmp_path / "mean", last=2)
    assert [path.parent.name for path in found] == ["6", "12"]
    _, params = flaxbert.from_pretrained(tmp_path / "mean")
    states = [state_of(path)["params"] for path in found]

    def compare(mean, a, b):
        exact = (a.astype(np.float64) + b) / 2
        np.testing.assert_allclose(mean, exact[tuple(map(slice, mean.shape))], rtol=1e-7, atol=1e-12)

    jax.tree.map(compare, params, *states)
    assert (tmp_path / "mean" / "vocab.txt").exists() and (tmp_path / "mean" / "SHA256SUMS").exists()
    with pytest.raises(ValueError, match=r"holds 2 checkpoints \(\[6, 12\]\), asked for the last 3"):
        average([finished.folder], tmp_path / "more", last=3)
    with pytest.raises(ValueError, match="it takes the folder of one run"):
        average([finished.folder, finished.folder], tmp_path / "more", last=2)


def test_parameters_for_orbax_are_the_tree_itself(finished, tmp_path):
    convert(finished.folder / "model", tmp_path / "out", format="orbax")
    model, params = flaxbert.from_pretrained(finished.folder / "model")
    stored = state_of(tmp_path / "out" / "params")
    jax.tree.map(np.testing.assert_array_equal, stored, params)
    again, loaded = flaxbert.BertForMaskedLM.from_pretrained(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert again == model
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"))
    _, sharded = flaxbert.BertForMaskedLM.from_pretrained(tmp_path / "out", mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, sharded, params)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(sharded)} == {8}


@pytest.fixture
def step(finished, tmp_path):
    """A copy of a checkpoint, to be damaged."""
    shutil.copytree(finished.folder / "checkpoints" / "6", tmp_path / "run" / "checkpoints" / "6")
    shutil.copy(finished.folder / "config.json", tmp_path / "run")
    return tmp_path / "run" / "checkpoints" / "6" / "default"


def test_a_link_in_a_checkpoint_is_refused(step, tmp_path):
    file = step / "manifest.ocdbt"
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"manifest.ocdbt: a link"):
        open_checkpoint(step)


def test_a_damaged_checkpoint_is_named(step):
    (step / "_METADATA").write_text("{")
    with pytest.raises(ValueError, match=r"_METADATA: not a readable orbax checkpoint"):
        open_checkpoint(step)
    (step / "_METADATA").unlink()
    with pytest.raises(FileNotFoundError, match="nor other weights"):
        open_checkpoint(step)


def test_parameters_of_another_library_are_refused(tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "params", {"dense": {"kernel": np.zeros((2, 2), np.float32)}})
    with pytest.raises(ValueError, match="not the parameters of a model of this library.*dense/kernel"):
        open_checkpoint(tmp_path)


def test_parameters_that_claim_more_than_the_files_hold(step, monkeypatch):
    monkeypatch.setattr(orbax_params, "_ALWAYS_ALLOWED_BYTES", 10)
    monkeypatch.setattr(orbax_params, "_MAX_COMPRESSION", 0.01)
    with pytest.raises(ValueError, match=r"announces \d+ bytes of parameters, in files of \d+ bytes"):
        open_checkpoint(step)


def test_a_finished_run_says_what_model_it_is(finished):
    config = json.loads((finished.folder / "config.json").read_text())
    assert config == json.loads((finished.folder / "model" / "config.json").read_text())
