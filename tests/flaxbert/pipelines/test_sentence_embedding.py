"""Vectors equal sentence-transformers."""

import json
import shutil

import numpy as np
import pytest
import sentence_transformers
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling as Pool

from flaxbert.pipelines import Pooling, SentenceEmbeddingPipeline
from flaxbert.pipelines.sentence_embedding import read_sentence_settings
from tests.flaxbert.reference_folders import saved

SENTENCES = [
    "A short one.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich; naïve café 東京.",
    "pad " * 400,  # beyond MiniLM's 256
    "the cat sat on the mat " * 3,
]


def test_minilm_equals_sentence_transformers(minilm):
    embed = SentenceEmbeddingPipeline.from_pretrained(minilm, batch_size=2)
    assert (embed.pooling, embed.normalize, embed.max_length, embed.prompt) == (Pooling.MEAN, True, 256, "")
    wanted = sentence_transformers.SentenceTransformer(str(minilm), device="cpu").encode(SENTENCES)
    found = embed(SENTENCES)
    assert found.shape == (4, 384) and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert embed([]).shape == (0, 384)


@pytest.fixture(scope="module")
def plain(data_dir, tmp_path_factory):
    return saved("BertModel", tmp_path_factory.mktemp("plain"), data_dir / "tokenizers" / "bert-base-uncased")


@pytest.mark.parametrize("pooling, normalize", [("cls", True), ("max", False)])
def test_folders_of_sentence_transformers_as_they_are_written_today(plain, tmp_path, pooling, normalize):
    after = [Pool(24, pooling_mode=pooling), *[Normalize()] * normalize]
    prompts = {"prompts": {"query": "Search for: "}, "default_prompt_name": "query"} if normalize else {}
    reference = sentence_transformers.SentenceTransformer(
        modules=[Transformer(str(plain)), *after], device="cpu", **prompts
    )
    reference.save(str(tmp_path))
    embed = SentenceEmbeddingPipeline.from_pretrained(tmp_path, batch_size=4)
    assert (embed.pooling.value, embed.normalize) == (pooling, normalize)
    assert (embed.prompt, embed.max_length) == ("Search for: " if normalize else "", 24)
    np.testing.assert_allclose(embed(SENTENCES), reference.encode(SENTENCES), rtol=0, atol=1e-5)


def test_lower_case_and_dimensions_of_the_folder(data_dir, tmp_path):
    cased = saved("BertModel", tmp_path / "cased", data_dir / "tokenizers" / "bert-base-cased")
    modules = [Transformer(str(cased)), Pool(24), Normalize()]
    sentence_transformers.SentenceTransformer(modules=modules, device="cpu", truncate_dim=10).save(str(tmp_path / "a"))
    file = tmp_path / "a" / "sentence_bert_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_lower_case": True}))
    reference = sentence_transformers.SentenceTransformer(str(tmp_path / "a"), device="cpu")
    embed = SentenceEmbeddingPipeline.from_pretrained(tmp_path / "a")
    assert embed.truncate_dim == 10 and embed([]).shape == (0, 10)
    np.testing.assert_allclose(embed(SENTENCES), reference.encode(SENTENCES), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(embed(["A Short One."]), embed(["a short one."]))
    for name, key in (("sentence_bert_config", "do_lower_case"), ("config_sentence_transformers", "truncate_dim")):
        file = tmp_path / "a" / f"{name}.json"
        before = file.read_text()
        file.write_text(json.dumps(json.loads(before) | {key: "all"}))
        with pytest.raises(ValueError, match=f"{key} is 'all'"):
            read_sentence_settings(tmp_path / "a")
        file.write_text(before)


def test_the_length_of_the_tokenizer_counts(plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "a")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": 9}))
    short, whole = (SentenceEmbeddingPipeline.from_pretrained(path) for path in (folder, plain))
    text = "one two three four five six seven eight nine ten"
    np.testing.assert_allclose(short([text]), whole(["one two three four five six seven"]), rtol=0, atol=1e-5)


def test_options_override_the_settings_of_the_folder(plain, minilm):
    assert SentenceEmbeddingPipeline.from_pretrained(plain).pooling is Pooling.MEAN  # which says nothing
    embed = SentenceEmbeddingPipeline.from_pretrained(minilm, pooling=Pooling.CLS, normalize=False, max_length=32)
    assert (embed.pooling, embed.normalize, embed.max_length) == (Pooling.CLS, False, 32)


def test_unsupported_settings_of_a_folder_are_refused(minilm, tmp_path):
    for name in ("modules.json", "1_Pooling", "sentence_bert_config.json", "config_sentence_transformers.json"):
        copy = shutil.copytree if (minilm / name).is_dir() else shutil.copyfile
        copy(minilm / name, tmp_path / name)
    assert read_sentence_settings(tmp_path).max_length == 256

    def refused(file, change, said):
        before = (tmp_path / file).read_text()
        values = json.loads(before)
        (tmp_path / file).write_text(json.dumps(change(values)))
        with pytest.raises(ValueError, match=said):
            read_sentence_settings(tmp_path)
        (tmp_path / file).write_text(before)

    dense = {"type": "sentence_transformers.models.Dense", "path": "2_Dense"}
    refused("modules.json", lambda modules: [*modules, dense], "has a module 'Dense'")
    refused("modules.json", lambda modules: [*modules, 3], "expected a list of modules")
    refused("modules.json", lambda modules: [modules[1] | {"path": "../x"}], "leads out of the folder")
    file = "1_Pooling/config.json"
    refused(file, lambda v: v | {"pooling_mode_cls_token": True}, "the pooling is .'mean', 'cls'.")
    refused(file, lambda v: {"pooling_mode": "lasttoken"}, "the pooling is .'lasttoken'.")
    prompted = {"default_prompt_name": "query", "prompts": {"query": "q: "}}
    refused("config_sentence_transformers.json", lambda v: {"default_prompt_name": "query"}, "none of its prompts")
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompted))
    assert read_sentence_settings(tmp_path).prompt == "q: "
    refused(file, lambda v: v | {"include_prompt": False}, "leaves the prompt out")
