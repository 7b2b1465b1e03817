"""Real weights: all-MiniLM-L6-v2, a BERT of 6 layers trained to embed sentences."""

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import flaxbert
from flaxbert.families import BERT
from flaxbert.weights import names

SENTENCES = [
    "A short one.",
    "The library must give the same vectors as the reference, whatever the length of a sentence beside it.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich; naïve café 東京.",
    "pad " * 40,
]


@pytest.fixture(scope="module")
def loaded(minilm):
    return flaxbert.BertModel.from_pretrained(minilm)


def test_sentence_embeddings_equal_pytorch(minilm, loaded):
    batch = transformers.AutoTokenizer.from_pretrained(minilm)(SENTENCES, padding=True, return_tensors="np")
    assert len(set(batch["attention_mask"].sum(axis=1))) == len(SENTENCES)
    model, params = loaded
    ours = jax.jit(model.apply)({"params": params}, **batch).last_hidden_state
    reference = transformers.BertModel.from_pretrained(minilm, attn_implementation="eager").eval()
    with torch.no_grad():
        wanted = reference(**{k: torch.from_numpy(v) for k, v in batch.items()}).last_hidden_state

    def embed(states):
        mask = batch["attention_mask"][:, :, None]
        mean = (np.asarray(states) * mask).sum(axis=1) / mask.sum(axis=1)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    np.testing.assert_allclose(embed(ours), embed(wanted), rtol=0, atol=1e-5)


def test_every_tensor_of_the_file_has_its_place(minilm, loaded):
    in_file = {f"bert.{name}" for name in load_file(minilm / "model.safetensors")}
    table = {entry.name for entry in names.name_mappings(BERT, loaded[1])}
    assert in_file - BERT.buffer_names == table


def test_saved_tensors_are_the_original_files_bit_for_bit(minilm, loaded, tmp_path):
    flaxbert.save_pretrained(tmp_path, *loaded)
    original, saved = load_file(minilm / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    kept = {name for name in original if f"bert.{name}" not in BERT.buffer_names}
    assert saved.keys() == kept
    assert {name for name in kept if saved[name].tobytes() != original[name].tobytes()} == set()
    assert flaxbert.BertConfig.from_pretrained(tmp_path) == loaded[0].config
