"""Conversions: bit-exact between all formats, every loss reported, and no folder half written."""

import errno
import hashlib
import itertools
import json
import logging
import os
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import sentence_transformers
import torch
import transformers
from safetensors.numpy import load_file, save_file

import flaxbert
from flaxbert import files
from flaxbert.conversion.convert import convert
from flaxbert.conversion.inspect import inspect
from flaxbert.conversion.output import FORMATS
from flaxbert.conversion.verify import verify
from flaxbert.files import atomic_folder, verify_checksums
from flaxbert.weights.checkpoint import open_checkpoint
from flaxbert.weights.tensors import tensors_equal
from tests.flaxbert.array_tensor import ArrayTensor
from tests.flaxbert.saved_models import BERT_CLASSES, CONFIG, assert_bit_equal, files_in, folder_of, tensors_of

CLASSES = BERT_CLASSES
TF1 = Path(__file__).parents[1] / "fixtures" / "tf1"


# -- between all formats ---------------------------------------------------------------------------------------


def circuit(formats):
    """Every ordered pair of formats once, as one walk that ends where it began."""
    steps, walk = set(itertools.permutations(formats, 2)), [formats[0]]
    found = _walk(walk, steps)
    assert len(found) == len(steps) + 1 and found[0] == found[-1]
    return found


def _walk(walk, left):
    if not left:
        return walk
    for step in sorted(step for step in left if step[0] == walk[-1]):
        if found := _walk([*walk, step[1]], left - {step}):
            return found
    return []


@pytest.mark.parametrize("dtype, tied", [(np.float32, True), (ml_dtypes.bfloat16, False)])
def test_every_pair_of_formats_is_a_round_trip_bit_for_bit(tmp_path, dtype, tied):
    config = CONFIG.replace(tie_word_embeddings=tied)
    first = folder_of("BertForPreTraining", tmp_path / "0", dtype, config)
    wanted, names = tensors_of(first), files_in(first)
    folder = first
    for i, (before, after) in enumerate(itertools.pairwise(circuit(FORMATS)), 1):
        whole = i % 2 == 0 or after == "orbax"
        done = convert(folder, tmp_path / str(i), format=after, max_shard_size=None if whole else 4000, verify=True)
        assert (done.read, done.written, done.newly_initialised) == (before, after, [])
        folder = tmp_path / str(i)
        assert open_checkpoint(folder).format == after
    assert_bit_equal(tensors_of(folder), wanted)
    assert files_in(folder) == sorted([*names, "SHA256SUMS"])
    assert (folder / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", CLASSES)
def test_what_transformers_saved_arrives_whole(tmp_path, name):
    config = transformers.BertConfig(**json.loads((folder_of(name, tmp_path / "a") / "config.json").read_text()))
    torch.manual_seed(0)
    theirs = getattr(transformers, name)(config)
    theirs.save_pretrained(tmp_path / "theirs")
    done = convert(tmp_path / "theirs", tmp_path / "ours", max_shard_size=5000)
    assert (done.head, done.newly_initialised, done.left_out) == (name, [], [])
    back, report = getattr(transformers, name).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert {kind: list(found) for kind, found in report.items() if found} == {}
    assert {k: v.tolist() for k, v in back.state_dict().items()} == {
        k: v.tolist() for k, v in theirs.state_dict().items()
    }


def test_numbers_are_rounded_only_where_asked_for(tmp_path):
    folder = folder_of("BertModel", tmp_path / "a")
    before = tensors_of(folder)
    for dtype in ("bfloat16", "float16", "float32"):
        convert(folder, tmp_path / dtype, dtype=dtype)
        target = np.dtype(getattr(ml_dtypes, dtype, dtype))
        assert_bit_equal(tensors_of(tmp_path / dtype), {name: array.astype(target) for name, array in before.items()})
        assert json.loads((tmp_path / dtype / "config.json").read_text())["dtype"] == dtype
    save_file({**before, "pooler.dense.bias": np.full(15, 70000, np.float32)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"bert.pooler.dense.bias has numbers beyond the range of float16"):
        convert(folder, tmp_path / "beyond", dtype="float16")
    assert not (tmp_path / "beyond").exists()


def test_layers_of_several_types_lose_no_digit_in_orbax(tmp_path):
    folder = folder_of("BertModel", tmp_path / "a")
    mixed = {
        name: array.astype(ml_dtypes.bfloat16 if "layer.0" in name else np.float32)
        for name, array in tensors_of(folder).items()
    }
    save_file(mixed, folder / "model.safetensors")
    convert(folder, tmp_path / "b", format="orbax", verify=True)
    widened = {name: array.astype(np.float32) for name, array in mixed.items()}
    convert(tmp_path / "b", tmp_path / "c")
    assert_bit_equal(tensors_of(tmp_path / "c"), widened)
    convert(folder, tmp_path / "d")
    assert json.loads((tmp_path / "d" / "config.json").read_text())["dtype"] == "float32"


# -- real checkpoints ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny_safetensors", "tiny_safetensors_sentence_transformer", "minilm"])
def test_real_checkpoints_go_through_bit_for_bit(data_dir, minilm, tmp_path, name):
    folder = minilm if name == "minilm" else data_dir / "checkpoints" / name
    done = convert(folder, tmp_path / "out", verify=True)
    assert done.head == "BertModel" and done.newly_initialised == []
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert set(done.left_out) == before.keys() - after.keys() <= {"embeddings.position_ids"}
    assert_bit_equal(after, {key: before[key] for key in after})
    for file in files_in(tmp_path / "out"):
        if (folder / file).exists() and file not in ("config.json", "model.safetensors"):
            assert (folder / file).read_bytes() == (tmp_path / "out" / file).read_bytes()
    text = ["The quick brown fox"]
    read = [transformers.AutoTokenizer.from_pretrained(path)(text)["input_ids"] for path in (folder, tmp_path / "out")]
    assert read[0] == read[1]


@pytest.mark.parametrize("name", ["minilm", "tiny_safetensors_sentence_transformer"])
def test_sentence_transformers_computes_the_same(data_dir, minilm, tmp_path, name):
    folder = minilm if name == "minilm" else data_dir / "checkpoints" / name
    convert(folder, tmp_path / "out")
    texts = ["A sentence.", "Another one, somewhat longer than the first."]
    before, after = (
        sentence_transformers.SentenceTransformer(str(path), device="cpu") for path in (folder, tmp_path / "out")
    )
    assert [type(module).__name__ for module in after] == [type(module).__name__ for module in before]
    np.testing.assert_array_equal(after.encode(texts), before.encode(texts))


def test_a_real_tf1_checkpoint_becomes_a_folder(data_dir, tmp_path, caplog):
    folder = data_dir / "checkpoints" / "tiny_tf1"
    with caplog.at_level(logging.WARNING):
        done = convert(folder, tmp_path / "out", verify=True)
    assert 'Google\'s "gelu" is the tanh form; hidden_act is set to "gelu_new"' in caplog.text
    assert (done.read, done.head, done.tensors, done.newly_initialised) == (
        "TensorFlow 1",
        "BertForPreTraining",
        46,
        [],
    )
    assert len(done.left_out) == 93 and all("adam_" in name or name == "global_step" for name in done.left_out)
    model, report = transformers.BertForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {kind: list(found) for kind, found in report.items() if found} == {}
    assert model.config.hidden_act == "gelu_new"
    assert (tmp_path / "out" / "vocab.txt").read_text() == (folder / "vocab.txt").read_text()
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("[MASK]") == 4
    convert(folder, tmp_path / "erf", hidden_act="gelu")
    assert flaxbert.BertConfig.from_pretrained(tmp_path / "erf").hidden_act == "gelu"


@pytest.mark.parametrize("name", ["encoder", "pretraining", "classifier", "squad"])
def test_every_head_of_tf1_becomes_a_class(tmp_path, name):
    done = convert(TF1 / name, tmp_path / "out")
    expected = {
        "encoder": flaxbert.BertModel,
        "pretraining": flaxbert.BertForPreTraining,
        "classifier": flaxbert.BertForSequenceClassification,
        "squad": flaxbert.BertForQuestionAnswering,
    }
    assert done.head == expected[name].__name__
    weights = [left for left in done.left_out if left.startswith("bert.")]
    assert weights == (["bert.pooler.dense.bias", "bert.pooler.dense.weight"] if name == "squad" else [])
    model, params = flaxbert.from_pretrained(tmp_path / "out")
    assert type(model) is expected[name]
    content = json.loads((TF1 / name / "expected.json").read_text())
    inputs = {key: np.asarray(value, np.int32) for key, value in content["inputs"].items()}
    found = model.apply({"params": params}, **inputs)
    for field in {"pooler_output", "logits", "prediction_logits", "start_logits"} & content["outputs"].keys():
        np.testing.assert_allclose(getattr(found, field), np.float32(content["outputs"][field]), rtol=0, atol=1e-5)


# -- heads -----------------------------------------------------------------------------------------------------


def test_a_new_head_is_drawn_and_another_left_out_with_a_word(tmp_path, caplog):
    folder = folder_of("BertForPreTraining", tmp_path / "a")
    with caplog.at_level(logging.WARNING):
        done = convert(folder, tmp_path / "b", head="BertForSequenceClassification")
    assert done.newly_initialised == ["classifier.bias", "classifier.weight"]
    assert len(done.left_out) == 7 and all(name.startswith("cls.") for name in done.left_out)
    assert "2 missing:\n    classifier.weight" in caplog.text and "cls.seq_relationship.weight" in caplog.text
    before, after = tensors_of(folder), tensors_of(tmp_path / "b")
    assert_bit_equal({k: v for k, v in after.items() if k in before}, {k: v for k, v in before.items() if k in after})
    assert after["classifier.weight"].shape == (3, 15) and after["classifier.weight"].std() > 0
    others = {"other": {"key": jax.random.key(1)}, "rounded": {"dtype": "bfloat16"}}
    for name, arguments in others.items():
        convert(folder, tmp_path / name, head="BertForSequenceClassification", **arguments)
    assert np.any(tensors_of(tmp_path / "other")["classifier.weight"] != after["classifier.weight"])
    assert {array.dtype.name for array in tensors_of(tmp_path / "rounded").values()} == {"bfloat16"}
    # And back to the encoder alone.
    convert(tmp_path / "b", tmp_path / "c", head="BertModel")
    base = {name.removeprefix("bert."): array for name, array in before.items() if name.startswith("bert.")}
    assert_bit_equal(tensors_of(tmp_path / "c"), base)


def test_the_class_is_that_of_the_tensors_where_the_config_names_a_smaller_one(tmp_path):
    folder = folder_of("BertForPreTraining", tmp_path / "a")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    assert convert(folder, tmp_path / "b").head == "BertForPreTraining"


def test_a_classifier_without_a_pooler_is_one_of_tokens(tmp_path):
    folder = folder_of("BertForTokenClassification", tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config))
    assert convert(folder, tmp_path / "b").head == "BertForTokenClassification"


def test_an_encoder_without_a_pooler_is_loaded_as_it_is(tmp_path, caplog):
    convert(folder_of("BertForMaskedLM", tmp_path / "a"), tmp_path / "b", head="BertModel")
    assert inspect(tmp_path / "b").loads
    with caplog.at_level(logging.WARNING):
        model, params = flaxbert.from_pretrained(tmp_path / "b")
    assert "the checkpoint has no pooler" in caplog.text
    assert not model.add_pooling_layer and params.keys() == {"embeddings", "layers"}
    with pytest.raises(ValueError, match="2 missing:\n    bert.pooler"):
        flaxbert.BertModel.from_pretrained(tmp_path / "b")


def test_plain_settings_that_are_not_used_here_are_kept(tmp_path):
    folder = folder_of("BertModel", tmp_path / "a")
    settings = {"use_cache": True, "bos_token_id": 3, "finetuning_task": "sst2"}
    dropped = {"_name_or_path": "/home/me", "auto_map": {"AutoModel": "evil"}}
    config = json.loads((folder / "config.json").read_text()) | settings | dropped
    (folder / "config.json").write_text(json.dumps(config))
    convert(folder, tmp_path / "b")
    written = json.loads((tmp_path / "b" / "config.json").read_text())
    assert settings.items() <= written.items() and not dropped.keys() & written.keys()


def test_what_fits_no_class_is_listed(tmp_path):
    folder = folder_of("BertModel", tmp_path / "a")
    save_file({**tensors_of(folder), "extra": np.zeros(2, np.float32)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 unexpected:\n    extra") as error:
        convert(folder, tmp_path / "b")
    assert "Give a class with --head CLASS" in str(error.value)
    assert files_in(tmp_path) == ["a/config.json", "a/model.safetensors"]


def test_labels_are_those_of_a_config_that_names_its_class(tmp_path):
    folder = folder_of("BertForSequenceClassification", tmp_path / "a")
    config = json.loads((folder / "config.json").read_text()) | {"id2label": {"0": "a", "1": "b"}}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "label2id"}))
    with pytest.raises(ValueError, match=r"classifier.bias: \[3\] in the file, \[2\]"):
        convert(folder, tmp_path / "b")


def test_of_two_classes_that_do_not_fit_the_named_one_is_reported(tmp_path):
    folder = folder_of("BertForPreTraining", tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["BertForMaskedLM"], "hidden_size": 18}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="the weights do not fit BertForMaskedLM"):
        convert(folder, tmp_path / "b")


# -- models without a class here -------------------------------------------------------------------------------


def test_a_family_without_a_class_is_carried_over_as_it_is(tmp_path):
    config = transformers.AlbertConfig(
        vocab_size=31, embedding_size=8, hidden_size=8, num_hidden_layers=2, num_attention_heads=2
    )
    theirs = transformers.AlbertForMaskedLM(config)
    theirs.save_pretrained(tmp_path / "0")
    for i, form in enumerate(("pytorch", "safetensors"), 1):
        done = convert(tmp_path / str(i - 1), tmp_path / str(i), format=form, max_shard_size=90_000, verify=True)
        assert (done.head, done.written, done.newly_initialised, done.left_out) == ("AlbertForMaskedLM", form, [], [])
        assert open_checkpoint(tmp_path / str(i)).format == form
    assert_bit_equal(tensors_of(tmp_path / "2"), tensors_of(tmp_path / "0"))
    back, report = transformers.AlbertForMaskedLM.from_pretrained(tmp_path / "2", output_loading_info=True)
    assert {kind: list(found) for kind, found in report.items() if found} == {}
    assert back.config.num_hidden_layers == 2 and back.num_parameters() == theirs.num_parameters()
    assert verify(tmp_path / "0", tmp_path / "2").same()
    convert(tmp_path / "0", tmp_path / "half", dtype="bfloat16")
    found = verify(tmp_path / "0", tmp_path / "half")
    assert not found.same() and 0 < found.tensors < 0.01
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert not inspect(tmp_path / "0").loads


def test_requests_that_need_a_class_are_refused_for_other_families(tmp_path, caplog):
    folder = folder_of("BertModel", tmp_path / "a")
    values = json.loads((folder / "config.json").read_text()) | {"model_type": "albert"}
    values |= {"auto_map": {"AutoModel": "evil.Model"}, "_attn_implementation_internal": "x/y", "architectures": 5}
    (folder / "config.json").write_text(json.dumps(values))
    for arguments in ({"head": "BertModel"}, {"hidden_act": "relu"}, {"format": "orbax"}, {"format": "flax"}):
        with pytest.raises(ValueError, match="albert"):
            convert(folder, tmp_path / "b", **arguments)
    with caplog.at_level(logging.WARNING):
        done = convert(folder, tmp_path / "b", format="pytorch")
    assert "model_type is 'albert', which has no class here; its tensors are copied unchanged" in caplog.text
    assert done.head == "albert"
    kept = json.loads((tmp_path / "b" / "config.json").read_text())
    assert "hidden_size" in kept and not {"auto_map", "_attn_implementation_internal"} & kept.keys()
    assert_bit_equal(tensors_of(tmp_path / "b"), tensors_of(folder))


# -- all or nothing --------------------------------------------------------------------------------------------


def test_mistakes_are_reported_before_anything_is_written(tmp_path):
    folder = folder_of("BertModel", tmp_path / "a")
    before = files_in(tmp_path)
    for arguments, message in (
        ({"dtype": "int8"}, "dtype is 'int8'; allowed: float32, float16, bfloat16"),
        ({"format": "onnx"}, "format is 'onnx'; allowed: safetensors"),
        ({"head": "BertForX"}, "head is 'BertForX'; allowed for 'bert': BertModel"),
        ({"max_shard_size": 0}, "max_shard_size is 0"),
        ({"max_shard_size": 9, "format": "orbax"}, "orbax divides its files itself"),
        ({"hidden_act": "gelu2"}, "hidden_act"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(folder, tmp_path / "b", **arguments)
    with pytest.raises(FileExistsError, match="already exists"):
        convert(folder, folder)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(FileExistsError, match="link: already exists"):
        convert(folder, tmp_path / "link")
    (tmp_path / "link").unlink()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        convert(tmp_path / "nowhere", tmp_path / "b")
    assert files_in(tmp_path) == before and not (tmp_path / "b").exists()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("tied", [True, False])
def test_progress_ends_where_it_said(tmp_path, format, tied):
    folder = folder_of("BertForMaskedLM", tmp_path / "a", config=CONFIG.replace(tie_word_embeddings=tied))
    reports = []
    done = convert(folder, tmp_path / "b", format=format, dtype="float16", progress=lambda *now: reports.append(now))
    assert (
        reports == sorted(reports) and {total for _, total in reports} == {done.bytes} and reports[-1][0] == done.bytes
    )
    entries = flaxbert.from_pretrained(tmp_path / "b")[0].parameter_shapes()
    assert done.bytes == 2 * sum(leaf.size for leaf in jax.tree.leaves(entries))


def test_a_file_may_be_as_large_as_the_limit(tmp_path):
    folder = folder_of("BertModel", tmp_path / "a")
    size = convert(folder, tmp_path / "b").bytes
    for less, count in ((0, 1), (1, 2)):
        convert(folder, tmp_path / str(less), max_shard_size=size - less)
        assert len(list((tmp_path / str(less)).glob("*.safetensors"))) == count


def test_others_may_read_a_folder_in_a_new_folder(tmp_path):
    folder = folder_of("BertModel", tmp_path / "a")
    convert(folder, tmp_path / "new" / "deep" / "b")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "new" / "deep" / "b").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    folder = folder_of("BertModel", tmp_path / "a")

    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(shutil, "copyfile", full)
    (folder / "vocab.txt").write_text("[PAD]\n")
    with pytest.raises(OSError, match="disk full"):
        convert(folder, tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_a_failure_leaves_nothing_that_is_still_being_written(tmp_path, monkeypatch):
    remove, tried = shutil.rmtree, []

    def too_early(path, **arguments):
        tried.append(path)
        if len(tried) > 1:
            remove(path, **arguments)

    monkeypatch.setattr(shutil, "rmtree", too_early)
    with pytest.raises(OSError, match="full"), atomic_folder(tmp_path / "out"):
        raise OSError("full")
    assert len(tried) == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_gets_its_name_when_all_of_it_is_on_the_disk(tmp_path, monkeypatch, format):
    folder_of("BertModel", tmp_path / "a")
    synced, content, rename, fsync = set(), {}, os.rename, os.fsync

    def syncing(opened):
        fsync(opened)
        synced.add(os.fstat(opened).st_ino)

    def renaming(before, after):
        if Path(after) == tmp_path / "b":
            assert tmp_path.stat().st_ino not in synced
            content.update({path: path.stat().st_ino for path in (before, *before.rglob("*"))})
            assert set(content.values()) <= synced
        rename(before, after)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "rename", renaming)
    convert(tmp_path / "a", tmp_path / "b", format=format)
    assert len(content) > 3 and tmp_path.stat().st_ino in synced


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_disk_that_fails_after_the_writing_is_reported(tmp_path, monkeypatch, file):
    def failing(opened):
        if f".{file}." in os.readlink(f"/proc/self/fd/{opened}"):
            raise OSError(errno.EIO, "Input/output error")

    folder_of("BertModel", tmp_path / "a")
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(OSError, match="Input/output error"):
        convert(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_flipped_bit_of_what_was_written_is_found(tmp_path, format):
    folder = tmp_path / "b"
    convert(folder_of("BertModel", tmp_path / "a"), folder, format=format)
    listed = dict(line.split("  ")[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
    weights = [file for file in files_in(folder) if file not in ("config.json", "SHA256SUMS")]
    assert listed == {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in weights}
    largest = max((folder / file for file in weights), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 16
    largest.write_bytes(content)
    for attempt in (
        lambda: flaxbert.from_pretrained(folder),
        lambda: convert(folder, tmp_path / "c"),
    ):
        with pytest.raises(ValueError, match=r"does not match|not a readable") as error:
            attempt()
        assert str(folder) in str(error.value)
    assert not (tmp_path / "c").exists()


def test_sums_beside_a_tf1_checkpoint_are_of_its_index_and_data(tmp_path):
    shutil.copytree(TF1 / "encoder", tmp_path / "a")
    files = [file for file in files_in(tmp_path / "a") if ".index" in file or ".data" in file]
    for file in files:
        (tmp_path / "a" / "SHA256SUMS").write_text(f"{'0' * 64}  {file}\n")
        with pytest.raises(ValueError, match=f"{file}: does not match SHA256SUMS"):
            convert(tmp_path / "a", tmp_path / "b")
    assert len(files) == 2


def test_verification_finds_what_was_written_wrongly(tmp_path, monkeypatch):
    from flaxbert.weights.formats import orbax_params

    written = orbax_params.write_orbax_params
    zeros = lambda folder, table, tensors: written(folder, table, {k: _Zeros(t) for k, t in tensors.items()})  # noqa: E731
    monkeypatch.setattr("flaxbert.conversion.convert.write_orbax_params", zeros)
    folder = folder_of("BertModel", tmp_path / "a")
    with pytest.raises(ValueError, match="39 tensors differ from the checkpoint's after writing"):
        convert(folder, tmp_path / "b", format="orbax", verify=True)
    assert not (tmp_path / "b").exists()
    convert(folder, tmp_path / "b", format="orbax")  # nobody asked


def test_equal_tensors_are_equal_in_every_part_and_as_long(monkeypatch):
    monkeypatch.setattr("flaxbert.weights.tensors._PART_BYTES", 32)  # two rows of four numbers
    one = np.arange(20, dtype=np.float32).reshape(5, 4)
    assert tensors_equal(ArrayTensor(one), ArrayTensor(one.copy()))
    for row in range(5):
        other = one + (np.arange(5) == row)[:, None].astype(np.float32)
        assert not tensors_equal(ArrayTensor(one), ArrayTensor(other))
    assert not tensors_equal(ArrayTensor(one[:4]), ArrayTensor(one))
    assert not tensors_equal(ArrayTensor(one[:0]), ArrayTensor(one))


def test_saving_again_without_sums_takes_the_old_ones_away(tmp_path):
    folder = folder_of("BertModel", tmp_path / "a", checksums=True)
    assert "SHA256SUMS" in files_in(folder)
    folder_of("BertModel", folder, dtype=np.float16)
    assert files_in(folder) == ["config.json", "model.safetensors"]


def test_verification_looks_at_the_sums_too(tmp_path, monkeypatch):
    text = files.format_checksums
    for module in ("weights.folder", "conversion.convert"):
        zeros = lambda digests: text(dict.fromkeys(digests, "0" * 64))  # noqa: E731
        monkeypatch.setattr(f"flaxbert.{module}.format_checksums", zeros)
    for format in FORMATS:
        with pytest.raises(ValueError, match="does not match SHA256SUMS"):
            convert(folder_of("BertModel", tmp_path / "a"), tmp_path / "b", format=format, verify=True)


SUMS = ["{upper}  {name}", "SHA256 ({name}) = {digest}", "{digest} *./{name}\r", "\ufeff{digest}  {name}"]


@pytest.mark.parametrize("line", SUMS)
def test_sums_of_other_programs_are_read(tmp_path, line):
    folder = folder_of("BertModel", tmp_path / "a")
    file = folder / "model.safetensors"
    for digest in (hashlib.sha256(file.read_bytes()).hexdigest(), "0" * 64):
        text = line.format(digest=digest, upper=digest.upper(), name=file.name)
        (folder / "SHA256SUMS").write_bytes(f"{text}\n".encode())
        if digest != "0" * 64:
            assert verify_checksums(folder, [file])
    with pytest.raises(ValueError, match="model.safetensors: does not match SHA256SUMS"):
        verify_checksums(folder, [file])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of orbax's threads, after an error
def test_a_cut_file_of_any_format_is_named(tmp_path):
    source = folder_of("BertModel", tmp_path / "a")
    for format in FORMATS:
        folder = tmp_path / format
        convert(source, folder, format=format)
        (folder / "SHA256SUMS").unlink()
        refused = 0
        for file in sorted(folder.rglob("*")):
            if not file.is_file() or file.name == "config.json":
                continue
            content = file.read_bytes()
            for size in [len(content) // 2] if format == "orbax" else [0, len(content) // 2]:
                file.write_bytes(content[:size])
                try:
                    flaxbert.from_pretrained(folder)
                except ValueError as error:
                    refused += 1
                    assert str(error).startswith(f"{file}: "), error
            file.write_bytes(content)
        assert refused >= (4 if format == "orbax" else 2)  # orbax writes files that it does not read, too


def test_verification_takes_no_number_for_what_it_is(tmp_path):
    folder = folder_of("BertModel", tmp_path / "a")
    odd = np.asarray([np.nan, np.inf, -np.inf] * 5, np.float32)
    save_file({**tensors_of(folder), "pooler.dense.bias": odd}, folder / "model.safetensors")
    for dtype in (None, "float16", "bfloat16"):
        convert(folder, tmp_path / str(dtype), dtype=dtype, verify=True)
        written = tensors_of(tmp_path / str(dtype))["pooler.dense.bias"]
        np.testing.assert_array_equal(written.astype(np.float32), odd)


class _Zeros:
    supports_row_reads = True

    def __init__(self, tensor):
        self.dtype, self.shape = tensor.dtype, tensor.shape

    def read(self, rows=slice(None)):
        return np.zeros(self.shape, self.dtype)[rows]


def test_a_pipe_is_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "bert_model.ckpt.index")
    with pytest.raises(FileNotFoundError, match="bert_model.ckpt.index: no such file"):
        open_checkpoint(tmp_path)
    convert(folder_of("BertModel", tmp_path / "a"), tmp_path / "orbax", format="orbax")
    (tmp_path / "orbax" / "params" / "manifest.ocdbt").unlink()
    os.mkfifo(tmp_path / "orbax" / "params" / "manifest.ocdbt")
    with pytest.raises(ValueError, match="manifest.ocdbt: a link or a special file"):
        open_checkpoint(tmp_path / "orbax")
    os.mkfifo(tmp_path / "listed")
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  listed\n")
    with pytest.raises(ValueError, match="listed: listed in SHA256SUMS, but not a regular file"):
        verify_checksums(tmp_path, [tmp_path / "listed"])


def test_inspection_says_what_a_load_would(tmp_path):
    folder = folder_of("BertForMaskedLM", tmp_path / "a", max_shard_size=4000, checksums=True)
    found = inspect(folder)
    assert (found.format, found.head, found.loads, found.checksums) == ("safetensors", "BertForMaskedLM", True, True)
    model, params = flaxbert.from_pretrained(folder)
    assert found.parameters == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert found.tensors["bert.embeddings.word_embeddings.weight"] == ("float32", [61, 15])
    assert found.config is not None and found.config["hidden_size"] == 15
    (folder / "SHA256SUMS").unlink()
    config = json.loads((folder / "config.json").read_text()) | {"hidden_size": 18}
    (folder / "config.json").write_text(json.dumps(config))
    changed = inspect(folder)
    assert changed.checksums is None and not changed.loads and "of another shape" in str(changed.report)
    (folder / "config.json").unlink()
    without = inspect(folder)
    assert without.config is None and "config.json: no such file" in str(without.report)
