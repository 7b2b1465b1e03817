"""Weights between our parameters and Hugging Face's files: bit-exact, strict, and clear about what is wrong."""

import collections
import functools
import json
import logging
import operator
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import flaxbert
from flaxbert.families import BERT
from flaxbert.sharding import AxisRules
from flaxbert.weights import names
from flaxbert.weights.formats import safetensors
from tests.flaxbert.saved_models import BERT_CLASSES, CONFIG

CLASSES = BERT_CLASSES
WITH_DECODER = ("BertForMaskedLM", "BertForPreTraining", "BertLMHeadModel")
WORDS = "bert.embeddings.word_embeddings.weight"


def model_and_params(name, config=CONFIG):
    model = flaxbert.ARCHITECTURES[name](config.replace(is_decoder=name == "BertLMHeadModel"))
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(0.1, 0.3, leaf.shape), jnp.float32)  # noqa: E731
    return model, jax.tree.map(draw, model.parameter_shapes())


def assert_bit_equal(left, right):
    def bits(tree):
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path): (leaf.shape, np.asarray(leaf).tobytes()) for path, leaf in leaves}

    left, right = bits(left), bits(right)
    assert left.keys() == right.keys()
    assert {path for path in left if left[path] != right[path]} == set()


@pytest.fixture
def saved(tmp_path):
    """A folder with the weights of a class, and a way to change them."""

    class Saved:
        folder = tmp_path / "saved"
        file = folder / "model.safetensors"

        def of(self, name, config=CONFIG):
            self.model, self.params = model_and_params(name, config)
            flaxbert.save_pretrained(self.folder, self.model, self.params)
            return self

        def change(self, edit):
            tensors = load_file(self.file)
            save_file(edit(tensors) or tensors, self.file)
            return self

        def load(self, name=None, **arguments):
            cls = type(self.model) if name is None else flaxbert.ARCHITECTURES[name]
            return cls.from_pretrained(self.folder, **arguments)[1]

    return Saved()


# -- round trips -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_transformers_loads_what_we_save_and_we_load_what_it_saves(name, tmp_path):
    model, params = model_and_params(name)
    flaxbert.save_pretrained(tmp_path / "ours", model, params)
    theirs, report = getattr(transformers, name).from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert {kind: list(found) for kind, found in report.items() if found} == {}
    rng = np.random.default_rng(0)
    ids = rng.integers(0, CONFIG.vocab_size, (2, 3, 7) if model.takes_choices else (2, 7))
    out = jax.jit(model.apply)({"params": params}, ids)
    with torch.no_grad():
        wanted = theirs.eval()(torch.from_numpy(ids))
    compared = [field for field in vars(out) if "logits" in field or field in ("last_hidden_state", "pooler_output")]
    assert compared
    for field in compared:
        np.testing.assert_allclose(getattr(out, field), getattr(wanted, field).numpy(), rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again, back = flaxbert.from_pretrained(tmp_path / "theirs")
    assert type(again) is type(model)
    assert again.config == (model.config.replace(num_labels=2) if "Question" in name else model.config)
    assert_bit_equal(back, params)


@pytest.mark.parametrize("name", CLASSES)
def test_transformers_file_passes_through_us_bit_for_bit(name, tmp_path):
    values = {"vocab_size": 61, "hidden_size": 15, "num_hidden_layers": 2, "num_attention_heads": 3}
    values |= {"intermediate_size": 17, "max_position_embeddings": 13, "is_decoder": name == "BertLMHeadModel"}
    theirs = getattr(transformers, name)(transformers.BertConfig(**values))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_()
    theirs.save_pretrained(tmp_path / "theirs")
    flaxbert.save_pretrained(tmp_path / "ours", *flaxbert.from_pretrained(tmp_path / "theirs"))
    before, after = (load_file(tmp_path / side / "model.safetensors") for side in ("theirs", "ours"))
    assert_bit_equal(after, before)


@pytest.mark.parametrize("name", CLASSES)
def test_every_parameter_has_exactly_one_place_in_the_file(name):
    model, params = model_and_params(name)
    table = names.name_mappings(BERT, params)
    assert max(collections.Counter(entry.name for entry in table).values()) == 1
    shapes = {path: leaf.shape for path, leaf in flat(params).items()}
    seen = collections.Counter()
    for entry in table:
        whole = shapes["/".join(entry.path)]
        assert entry.shape == (whole if entry.layer is None else whole[1:])
        assert np.prod(entry.file_shape) == np.prod(entry.shape)
        seen["/".join(entry.path), entry.layer] += 1
    wanted = {(path, i) for path, shape in shapes.items() for i in (range(shape[0]) if "layers" in path else [None])}
    assert seen == dict.fromkeys(wanted, 1)


def test_parameter_of_no_known_name_is_an_error():
    _, params = model_and_params("BertForMaskedLM")
    with pytest.raises(ValueError, match="no Hugging Face name is known for the parameters.*predictions/extra"):
        names.name_mappings(BERT, {**params, "predictions": {**params["predictions"], "extra": np.zeros(3)}})


def flat(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }


# The contract: these paths and shapes never change. V=61, D=15, H=3, K=5, F=17, L=2.
PRETRAINING_PATHS = {
    "bert/embeddings/norm/bias": (15,),
    "bert/embeddings/norm/scale": (15,),
    "bert/embeddings/position/embedding": (13, 15),
    "bert/embeddings/token_type/embedding": (3, 15),
    "bert/embeddings/word/embedding": (61, 15),
    "bert/layers/attention/key/bias": (2, 3, 5),
    "bert/layers/attention/key/kernel": (2, 15, 3, 5),
    "bert/layers/attention/output/bias": (2, 15),
    "bert/layers/attention/output/kernel": (2, 3, 5, 15),
    "bert/layers/attention/query/bias": (2, 3, 5),
    "bert/layers/attention/query/kernel": (2, 15, 3, 5),
    "bert/layers/attention/value/bias": (2, 3, 5),
    "bert/layers/attention/value/kernel": (2, 15, 3, 5),
    "bert/layers/attention_norm/bias": (2, 15),
    "bert/layers/attention_norm/scale": (2, 15),
    "bert/layers/down/bias": (2, 15),
    "bert/layers/down/kernel": (2, 17, 15),
    "bert/layers/output_norm/bias": (2, 15),
    "bert/layers/output_norm/scale": (2, 15),
    "bert/layers/up/bias": (2, 17),
    "bert/layers/up/kernel": (2, 15, 17),
    "bert/pooler/bias": (15,),
    "bert/pooler/kernel": (15, 15),
    "predictions/bias": (61,),
    "predictions/norm/bias": (15,),
    "predictions/norm/scale": (15,),
    "predictions/transform/bias": (15,),
    "predictions/transform/kernel": (15, 15),
    "seq_relationship/bias": (2,),
    "seq_relationship/kernel": (15, 2),
}


@pytest.mark.parametrize("scan", [True, False])
def test_the_parameter_tree_is_the_documented_one(scan):
    model = flaxbert.BertForPreTraining(CONFIG, scan=scan)
    assert {path: leaf.shape for path, leaf in flat(model.parameter_shapes()).items()} == PRETRAINING_PATHS


# -- what does not fit -----------------------------------------------------------------------------------------


def test_one_error_lists_all_that_is_missing_unexpected_or_misshaped(saved):
    missing = ["bert.encoder.layer.1.output.dense.bias", "cls.seq_relationship.weight"]

    def edit(tensors):
        for name in missing:
            del tensors[name]
        tensors["bert.embeddings.word_embeddings.weight"] = np.zeros((60, 15), np.float32)
        tensors["bert.pooler.dense.bias"] = np.zeros(16, np.float32)
        tensors["extra.one"] = tensors["bert.extra.two"] = np.zeros(1, np.float32)

    saved.of("BertForPreTraining").change(edit)
    for strict in (True, False):
        with pytest.raises(ValueError, match="the weights do not fit BertForPreTraining") as error:
            saved.load(strict=strict)
        text = str(error.value)
        assert str(saved.file) in text
        for line in (
            "2 missing:", *missing, "2 unexpected:", "extra.one", "bert.extra.two", "2 of another shape:",
            "bert.embeddings.word_embeddings.weight: [60, 15] in the file, [61, 15] in BertForPreTraining",
            "bert.pooler.dense.bias: [16] in the file, [15] in BertForPreTraining",
        ):  # fmt: skip
            assert line in text


def test_another_number_of_layers_is_missing_or_unexpected(saved):
    saved.of("BertModel")
    with pytest.raises(ValueError, match=r"16 missing:\n.*encoder.layer.2"):
        saved.load(config=CONFIG.replace(num_hidden_layers=3))
    with pytest.raises(ValueError, match=r"16 unexpected:\n.*encoder.layer.1"):
        saved.load(config=CONFIG.replace(num_hidden_layers=1), strict=False)


def test_not_strict_draws_a_new_head_afresh_and_names_it(saved, caplog):
    saved.of("BertModel")
    key = jax.random.key(5)
    with pytest.raises(ValueError, match="classifier.weight"):
        saved.load("BertForSequenceClassification")
    params = saved.load("BertForSequenceClassification", strict=False, key=key)
    [record] = [r for r in caplog.records if r.name == "flaxbert"]
    assert record.levelno == logging.WARNING
    assert "2 missing:\n    classifier.weight\n    classifier.bias" in record.getMessage()
    assert_bit_equal(params["bert"], saved.params)
    fresh = jax.jit(flaxbert.BertForSequenceClassification(CONFIG).init)(key, jnp.zeros((1, 1), int))["params"]
    assert_bit_equal(params["classifier"], fresh["classifier"])
    assert np.any(params["classifier"]["kernel"])
    other = saved.load("BertForSequenceClassification", strict=False)
    assert np.any(other["classifier"]["kernel"] != params["classifier"]["kernel"])


@pytest.mark.parametrize("lost", ["bert.encoder.layer.0.attention.self.query.bias", WORDS])
def test_not_strict_never_draws_an_encoder_weight(saved, lost):
    saved.of("BertForMaskedLM").change(lambda tensors: tensors.pop(lost) is None)
    with pytest.raises(ValueError, match=f"1 missing:\n    {lost}"):
        saved.load(strict=False)


def test_not_strict_leaves_out_another_head(saved, caplog):
    saved.of("BertForPreTraining")
    with pytest.raises(ValueError, match="7 unexpected"):
        saved.load("BertModel")
    params = saved.load("BertModel", strict=False)
    assert_bit_equal(params, saved.params["bert"])
    assert "7 unexpected:" in caplog.text and "cls.seq_relationship.bias" in caplog.text
    without = saved.load("BertModel", strict=False, add_pooling_layer=False)
    assert "pooler" not in without


def test_head_of_another_shape_never_passes(saved):
    saved.of("BertForTokenClassification")
    with pytest.raises(ValueError, match=r"classifier.weight: \[3, 15\] in the file, \[5, 15\]"):
        saved.load(config=CONFIG.replace(num_labels=5), strict=False)


def test_given_config_replaces_the_files(saved):
    saved.of("BertForTokenClassification")
    model, _ = flaxbert.BertForTokenClassification.from_pretrained(
        saved.folder, config=CONFIG.replace(hidden_dropout_prob=0.5), dtype=jnp.bfloat16, scan=False
    )
    assert (model.config.hidden_dropout_prob, model.dtype, model.scan) == (0.5, jnp.bfloat16, False)


# -- spellings of names ----------------------------------------------------------------------------------------


def test_prefix_may_be_absent_or_present(saved):
    saved.of("BertForQuestionAnswering")
    strip = lambda tensors: {name.removeprefix("bert."): value for name, value in tensors.items()}  # noqa: E731
    saved.change(strip)
    assert_bit_equal(saved.load(), saved.params)
    saved.of("BertModel")
    assert not any(name.startswith("bert.") for name in load_file(saved.file))
    saved.change(lambda tensors: {f"bert.{name}": value for name, value in tensors.items()})
    assert_bit_equal(saved.load(), saved.params)


@pytest.mark.parametrize("name", ["BertForPreTraining", "BertModel"])
def test_legacy_gamma_and_beta(saved, name):
    def edit(tensors):
        def legacy(key):
            return key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

        return {legacy(key): value for key, value in tensors.items()}

    saved.of(name).change(edit)
    assert sum("gamma" in key for key in load_file(saved.file)) == (6 if name == "BertForPreTraining" else 5)
    assert_bit_equal(saved.load(), saved.params)


def test_two_spellings_of_one_weight_are_an_error(saved):
    def edit(tensors):
        tensors["bert.embeddings.LayerNorm.gamma"] = tensors["bert.embeddings.LayerNorm.weight"]

    saved.of("BertForMaskedLM").change(edit)
    with pytest.raises(ValueError, match="two spellings of one weight"):
        saved.load()


def test_gamma_in_another_name_is_no_norm(saved):
    saved.of("BertForMaskedLM").change(lambda tensors: tensors.update({"gamma_ray.weight": np.zeros(1, np.float32)}))
    with pytest.raises(ValueError, match="unexpected:\n    gamma_ray.weight"):
        saved.load()


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertModel"])
def test_buffers_of_old_files_are_passed_over(saved, name, caplog):
    prefix = "" if name == "BertModel" else "bert."

    def edit(tensors):
        tensors[f"{prefix}embeddings.position_ids"] = np.arange(13)[None]
        tensors[f"{prefix}embeddings.token_type_ids"] = np.zeros((1, 13), np.int64)

    saved.of(name).change(edit)
    assert_bit_equal(saved.load(), saved.params)
    assert caplog.records == []


# -- tied weights ----------------------------------------------------------------------------------------------

ALIASES = {"cls.predictions.decoder.weight": WORDS, "cls.predictions.decoder.bias": "cls.predictions.bias"}


@pytest.mark.parametrize("present", [(), ("weight",), ("bias",), ("weight", "bias")])
@pytest.mark.parametrize("name", WITH_DECODER)
def test_aliases_of_tied_weights_may_be_present(saved, name, present, caplog):
    saved.of(name)
    assert not ALIASES.keys() & load_file(saved.file).keys()
    aliases = {f"cls.predictions.decoder.{kind}": ALIASES[f"cls.predictions.decoder.{kind}"] for kind in present}
    saved.change(lambda tensors: tensors.update({alias: tensors[name] for alias, name in aliases.items()}))
    assert_bit_equal(saved.load(), saved.params)
    assert caplog.records == []


@pytest.mark.parametrize("alias", ALIASES)
def test_alias_may_stand_alone(saved, alias):
    saved.of("BertForPreTraining")
    saved.change(lambda tensors: tensors.update({alias: tensors.pop(ALIASES[alias])}))
    assert_bit_equal(saved.load(), saved.params)


@pytest.mark.parametrize("alias", ALIASES)
def test_alias_that_contradicts_is_an_error(saved, alias):
    saved.of("BertForPreTraining")
    saved.change(lambda tensors: tensors.update({alias: tensors[ALIASES[alias]] + 1}))
    for strict in (True, False):
        with pytest.raises(ValueError, match=f"{alias} differs from {ALIASES[alias]}.*tie_word_embeddings"):
            saved.load(strict=strict)


def test_untied_decoder_keeps_its_own_weights(tmp_path):
    model, params = model_and_params("BertForMaskedLM", CONFIG.replace(tie_word_embeddings=False))
    assert {"decoder"} == params["predictions"].keys() - {"norm", "transform"}
    flaxbert.save_pretrained(tmp_path, model, params)
    theirs, report = transformers.BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert {kind: list(found) for kind, found in report.items() if found} == {}
    decoder = theirs.cls.predictions.decoder
    assert np.array_equal(decoder.weight.detach().numpy(), params["predictions"]["decoder"]["kernel"].T)
    theirs.save_pretrained(tmp_path)
    assert_bit_equal(flaxbert.from_pretrained(tmp_path)[1], params)


def test_bias_of_an_untied_decoder_under_its_older_name(saved):
    saved.of("BertForMaskedLM", CONFIG.replace(tie_word_embeddings=False))
    saved.change(lambda tensors: tensors.pop("cls.predictions.decoder.bias") is None)
    assert_bit_equal(saved.load(), saved.params)


# -- dtypes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_files_of_another_precision_give_float32(dtype, tmp_path):
    values = {"vocab_size": 61, "hidden_size": 15, "num_hidden_layers": 2, "num_attention_heads": 3}
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(**values, intermediate_size=17)).to(dtype)
    theirs.save_pretrained(tmp_path)
    _, params = flaxbert.from_pretrained(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    state = {name: value.float().numpy() for name, value in theirs.state_dict().items()}
    for entry in names.name_mappings(BERT, params):
        leaf = functools.reduce(operator.getitem, entry.path, params)
        leaf = np.asarray(leaf if entry.layer is None else leaf[entry.layer])
        np.testing.assert_array_equal(entry.to_file_layout(leaf), state[entry.name], err_msg=entry.name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_saved_in_another_precision(tmp_path, dtype):
    model, params = model_and_params("BertForMaskedLM")
    flaxbert.save_pretrained(tmp_path, model, params, dtype=dtype)
    theirs, report = transformers.BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True, dtype="auto")
    assert {kind: list(found) for kind, found in report.items() if found} == {}
    assert {parameter.dtype for parameter in theirs.parameters()} == {getattr(torch, dtype)}
    rounded = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), params)
    assert_bit_equal(flaxbert.from_pretrained(tmp_path)[1], rounded)


def test_saved_in_no_other_precision(tmp_path):
    with pytest.raises(ValueError, match="dtype is int8; allowed: float32, float16, bfloat16"):
        flaxbert.save_pretrained(tmp_path / "new", *model_and_params("BertModel"), dtype=jnp.int8)
    assert content(tmp_path / "new") is None


def test_whole_numbers_are_no_weights(saved):
    saved.of("BertModel").change(lambda tensors: tensors.update({"pooler.dense.bias": np.arange(15)}))
    with pytest.raises(ValueError, match="1 no floating-point numbers:\n    bert.pooler.dense.bias: int64"):
        saved.load()


# -- several files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2000, 5000])
def test_shards_are_those_of_transformers(tmp_path, limit):
    model, params = model_and_params("BertForPreTraining")
    flaxbert.save_pretrained(tmp_path / "ours", model, params, max_shard_size=limit)
    files = sorted(path.name for path in (tmp_path / "ours").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    for file in files:
        tensors = load_file(tmp_path / "ours" / file)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= limit
    theirs, report = transformers.BertForPreTraining.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert {kind: list(found) for kind, found in report.items() if found} == {}
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=limit)
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    for side in ("ours", "theirs"):
        assert_bit_equal(flaxbert.from_pretrained(tmp_path / side)[1], params)


def test_saving_in_another_number_of_files_leaves_none_of_the_others(tmp_path):
    model, params = model_and_params("BertModel")
    index = tmp_path / "model.safetensors.index.json"
    for limit in (4000, 8000, None, 4000):
        flaxbert.save_pretrained(tmp_path, model, params, max_shard_size=limit)
        assert index.exists() == (limit is not None)
        named = set(json.loads(index.read_text())["weight_map"].values()) if limit else {"model.safetensors"}
        assert {path.name for path in tmp_path.glob("*.safetensors")} == named
        assert len(named) == {4000: 5, 8000: 3, None: 1}[limit]
        assert_bit_equal(flaxbert.from_pretrained(tmp_path)[1], params)


@pytest.fixture
def sharded(tmp_path):
    """A folder of four files, and a way to change its index."""
    model, params = model_and_params("BertModel")
    flaxbert.save_pretrained(tmp_path / "sharded", model, params, max_shard_size=4000)
    file = tmp_path / "sharded" / "model.safetensors.index.json"

    class Sharded:
        folder, names = tmp_path / "sharded", sorted(json.loads(file.read_text())["weight_map"])

        def change(self, edit):
            content = json.loads(file.read_text())
            edit(content["weight_map"])
            file.write_text(json.dumps(content))

    return Sharded()


OUTSIDE = [
    "../model.safetensors",
    "/etc/passwd",
    "..",
    ".",
    "",
    "sub/model.safetensors",
    "a\0b",
    "x" * 5000,
    "ä" * 200,
    "\ud800",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_cannot_lead_out_of_its_folder(sharded, name, tmp_path):
    sharded.change(lambda places: places.update({sharded.names[0]: name}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="leads out of the folder"):
        flaxbert.from_pretrained(sharded.folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_link_cannot_lead_out_of_its_folder(saved, name, tmp_path):
    saved.of("BertModel")
    (saved.folder / name).rename(tmp_path / "elsewhere")
    (saved.folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"'{name}' leads out of the folder"):
        saved.load()
    (saved.folder / name).unlink()
    (saved.folder / name).symlink_to(name)  # to itself
    with pytest.raises((ValueError, FileNotFoundError)):
        saved.load()


def test_links_of_the_hub_cache_are_followed(saved, tmp_path):
    saved.of("BertModel")
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(saved.folder.iterdir()):
        (blobs / str(i)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    assert_bit_equal(flaxbert.from_pretrained(snapshot)[1], saved.params)


def test_an_index_that_does_not_fit_its_files(sharded):
    def edit(change):
        sharded.change(change)
        return pytest.raises((ValueError, FileNotFoundError))

    with edit(lambda places: places.update({"no.such": places[sharded.names[0]]})) as error:
        flaxbert.from_pretrained(sharded.folder)
    assert "1 tensors are not in the files that it names: no.such" in str(error.value)
    with edit(lambda places: (places.pop("no.such"), places.pop(sharded.names[0]))) as error:
        flaxbert.from_pretrained(sharded.folder)
    assert f"holds {sharded.names[0]!r}, which model.safetensors.index.json places in None" in str(error.value)
    with edit(lambda places: places.update({sharded.names[0]: "lost.safetensors"})) as error:
        flaxbert.from_pretrained(sharded.folder)
    assert "lost.safetensors: no such file" in str(error.value)
    with edit(lambda places: places.update({sharded.names[0]: 3})) as error:
        flaxbert.from_pretrained(sharded.folder)
    assert "has no weight_map from tensor names to file names" in str(error.value)


# -- several devices -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rules", [AxisRules(), AxisRules(embed="data"), AxisRules(mlp="data", heads="data")])
def test_each_device_reads_its_own_part(tmp_path, rules, monkeypatch):
    config = CONFIG.replace(hidden_size=16, num_attention_heads=8, intermediate_size=24)
    model, params = model_and_params("BertForMaskedLM", config)
    flaxbert.save_pretrained(tmp_path, model, params)
    mesh = flaxbert.sharding.make_mesh()
    read, whole = 0, safetensors.FileTensor.read

    def counted(self, rows=slice(None)):
        nonlocal read
        part = whole(self, rows)
        read += part.nbytes
        return part

    monkeypatch.setattr(safetensors.FileTensor, "read", counted)
    _, placed = flaxbert.from_pretrained(tmp_path, mesh=mesh, rules=rules)
    assert_bit_equal(placed, params)
    wanted = flaxbert.sharding.tree_shardings(mesh, rules, model.logical_axes())
    jax.tree.map(lambda leaf, s: chex.assert_equal(leaf.sharding.is_equivalent_to(s, leaf.ndim), True), placed, wanted)
    # What is whole on every device is read once; of what is split by the file's rows, each row once.
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert read == total if rules == AxisRules() else read < 8 * total


def test_mismatched_sizes_are_drawn_afresh_where_asked_for(saved, caplog):
    saved.of("BertForTokenClassification")
    wider = CONFIG.replace(num_labels=5, max_position_embeddings=20)
    key = jax.random.key(3)
    params = saved.load(config=wider, ignore_mismatched_sizes=True, key=key)
    assert "2 of another shape" not in caplog.text and "3 of another shape" in caplog.text
    fresh = jax.jit(type(saved.model)(wider).init)(key, jnp.zeros((1, 1), int))["params"]
    chex.assert_trees_all_close(params["classifier"], fresh["classifier"], rtol=1e-6)
    chex.assert_trees_all_close(
        params["bert"]["embeddings"]["position"], fresh["bert"]["embeddings"]["position"], rtol=1e-6
    )
    assert_bit_equal(params["bert"]["layers"], saved.params["bert"]["layers"])
    with pytest.raises(ValueError, match="3 of another shape"):
        saved.load(config=wider, strict=False)


# -- broken files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:7],
        lambda whole: whole[:300],
        lambda whole: whole[:-1],
        lambda whole: whole + b"\0",
        lambda whole: b"garbage " * 99,
        lambda whole: b"\xff" * 8 + whole[8:],
        lambda whole: whole.replace(b'"F32"', b'"X99"', 1),
    ],
    ids=["empty", "no header", "half a header", "one byte short", "one byte long", "garbage", "huge header", "dtype"],
)
def test_broken_file_is_named(saved, damage):
    saved.of("BertModel")
    saved.file.write_bytes(damage(saved.file.read_bytes()))
    with pytest.raises(ValueError, match="not a readable safetensors file") as error:
        saved.load()
    assert str(saved.file) in str(error.value)


def test_missing_file_is_named_with_what_is_there(saved, tmp_path):
    saved.of("BertModel").file.rename(saved.folder / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match=r"model.safetensors: no such file.*config.json, weights.safetensors"):
        saved.load()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        flaxbert.BertModel.from_pretrained(tmp_path / "nowhere")


def test_architecture_that_is_not_known_is_named(saved):
    saved.of("BertModel")
    file = saved.folder / "config.json"
    file.write_text(file.read_text().replace('"BertModel"', '"GPT2Model"'))
    with pytest.raises(ValueError, match="architectures.*GPT2Model.*known: BertModel"):
        flaxbert.from_pretrained(saved.folder)


# -- saving is all or nothing ----------------------------------------------------------------------------------


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else None


def test_parameters_of_another_model_are_not_saved(tmp_path):
    model, _ = model_and_params("BertForMaskedLM")
    _, other = model_and_params("BertForMaskedLM", CONFIG.replace(vocab_size=60))
    del other["bert"]["layers"]["up"]
    with pytest.raises(ValueError, match="these are not the parameters of BertForMaskedLM") as error:
        flaxbert.save_pretrained(tmp_path / "new", model, {**other, "extra": jnp.zeros(3)})
    for line in (
        "bert/embeddings/word/embedding: (60, 15), expected (61, 15)",
        "bert/layers/up/kernel: missing, expected (2, 15, 17)",
        "extra: (3,), expected nothing",
    ):
        assert line in str(error.value)
    assert content(tmp_path / "new") is None


@pytest.mark.parametrize("step", ["weights", "config"])
def test_failing_save_leaves_the_old_files_as_they_were(saved, step, monkeypatch):
    saved.of("BertModel")
    (saved.folder / "vocab.txt").write_text("kept")
    before = content(saved.folder)

    def full_disk(*_, **__):
        raise OSError("disk full")

    if step == "weights":
        monkeypatch.setattr(safetensors, "tensor_bytes", full_disk)  # after the header
    else:
        monkeypatch.setattr(pathlib.Path, "write_text", full_disk)
    with pytest.raises(OSError, match="disk full"):
        flaxbert.save_pretrained(saved.folder, saved.model, jax.tree.map(lambda leaf: leaf + 1, saved.params))
    assert content(saved.folder) == before


def test_target_that_is_a_file_is_an_error_and_stays(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError, match="file"):
        flaxbert.save_pretrained(tmp_path / "file", *model_and_params("BertModel"))
    assert content(tmp_path) == {"file": b"kept"}


def test_saved_files_are_readable_by_others(saved):
    saved.of("BertModel")
    assert {oct(path.stat().st_mode & 0o444) for path in saved.folder.iterdir()} == {oct(0o444)}
    assert content(saved.folder).keys() == {"config.json", "model.safetensors"}


def test_saving_again_replaces_both_files_and_leaves_others(saved):
    saved.of("BertModel")
    (saved.folder / "vocab.txt").write_text("kept")
    saved.of("BertForMaskedLM", CONFIG.replace(vocab_size=50))
    assert_bit_equal(flaxbert.from_pretrained(saved.folder)[1], saved.params)
    assert (saved.folder / "vocab.txt").read_text() == "kept"
