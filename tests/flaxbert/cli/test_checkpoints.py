"""Subcommands on checkpoints: output, exit codes, and sources (folders, zips, the hub)."""

import fnmatch
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
import zlib

import jax
import numpy as np
import pytest

import flaxbert
from flaxbert import cli
from flaxbert.cli import checkpoints
from flaxbert.conversion.origin import resolve_checkpoint_path
from flaxbert.conversion.shape_changes import ShapeChanges
from flaxbert.conversion.verify import Verification
from flaxbert.weights import tensors
from flaxbert.weights.checkpoint import open_checkpoint

CONFIG = flaxbert.BertConfig(
    vocab_size=23, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=6,
    max_position_embeddings=9,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    model = flaxbert.BertForMaskedLM(CONFIG)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), model.parameter_shapes())
    flaxbert.save_pretrained(tmp_path / "model", model, params)
    return tmp_path / "model"


def run(capsys, *arguments):
    """Exit code, standard output and standard error."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:  # tyro's, of wrong flags
        code = stop.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def change(folder, name, edit):
    """Another tensor in a folder's file."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors[name] = edit(tensors[name])
    save_file(tensors, folder / "model.safetensors")


# -- the words -------------------------------------------------------------------------------------------------


def test_convert_prints_a_summary(folder, tmp_path, capsys):
    code, out, err = run(
        capsys, "convert", folder, tmp_path / "out", "--format", "flax", "--max-shard-size", "1KB", "--verify"
    )
    assert (code, err) == (0, "")
    assert "BertForMaskedLM, flax from safetensors" in out and "26 tensors" in out
    assert len(list((tmp_path / "out").glob("flax_model-*.msgpack"))) > 1
    code, out, _ = run(capsys, "convert", tmp_path / "out", tmp_path / "base", "--head", "BertModel", "--json")
    done = json.loads(out)
    assert (code, done["head"], done["newly_initialised"]) == (0, "BertModel", [])
    assert "cls.predictions.bias" in done["left_out"]


def test_convert_changes_the_shape(folder, tmp_path, capsys, caplog):
    changes = ("--prune-heads", "0:1", "--keep-layers", "0", "--resize-vocab", "30", "--pad-to-multiple-of", "8")
    code, out, err = run(capsys, "convert", folder, tmp_path / "out", *changes, "--verify")
    assert (code, err) == (0, "") and "26 tensors" in out and "the vocabulary has 32 entries" in out
    assert run(capsys, "convert", tmp_path / "out", tmp_path / "again", "--prune-heads", "0:1")[0] == 0
    assert "layer 0: heads pruned before, nothing to do: [1]" in caplog.text
    config = flaxbert.BertConfig.from_pretrained(tmp_path / "out")
    assert (config.pruned_heads, config.vocab_size) == (((0, (1,)),), 32)
    for flag, value, message in [
        ("--prune-heads", "0:0,1", "pruned_heads has all heads of layer 0"),
        ("--prune-heads", "0-1", "write layers and their heads like"),
        ("--keep-layers", "0,1", "--keep-layers is [0, 1]; it must be numbers of layers from 0 to 0"),
        ("--keep-layers", "all", "write the numbers of layers like 0,2,4"),
        ("--resize-vocab", "-5", "--resize-vocab is -5; it must be at least 1"),
    ]:
        code, _, err = run(capsys, "convert", folder, tmp_path / "other", flag, value)
        assert code == 2 and message in err and not (tmp_path / "other").exists()


def test_inspect_lists_everything_and_whether_it_would_load(folder, capsys):
    code, out, _ = run(capsys, "inspect", folder)
    assert code == 0 and "loading: ok" in out and "checksums: none" in out
    assert "bert.embeddings.word_embeddings.weight" in out and "[23, 4]" in out and "hidden_size: 4" in out
    change(folder, "bert.embeddings.word_embeddings.weight", lambda array: array[:22])
    code, out, _ = run(capsys, "inspect", folder, "--json")
    found = json.loads(out)
    assert code == 1 and "[22, 4] in the file, [23, 4]" in found["report"]
    assert found["tensors"]["bert.embeddings.word_embeddings.weight"] == ["float32", [22, 4]]


def test_inspect_compares_checksums_unless_switched_off(folder, tmp_path, capsys):
    run(capsys, "convert", folder, tmp_path / "out")
    assert "checksums: match" in run(capsys, "inspect", tmp_path / "out")[1]
    change(tmp_path / "out", "cls.predictions.bias", lambda array: array + 1)
    code, out, _ = run(capsys, "inspect", tmp_path / "out")
    assert code == 1 and "checksums: DIFFER" in out and "does not match SHA256SUMS" in out
    code, out, _ = run(capsys, "inspect", tmp_path / "out", "--no-checksums")
    assert code == 0 and "checksums: none" in out
    code, _, err = run(capsys, "verify", folder, tmp_path / "out")
    assert code == 2 and "does not match SHA256SUMS" in err
    (tmp_path / "out" / "SHA256SUMS").write_text(f"{'0' * 64}  another\n")  # nothing of these files
    assert "checksums: none" in run(capsys, "inspect", tmp_path / "out")[1]


def test_inspect_takes_the_class_from_the_config_and_lists_optimizer_variables(folder, tmp_path, data_dir, capsys):
    run(capsys, "convert", folder, tmp_path / "out", "--head", "BertForTokenClassification")
    assert "safetensors, BertForTokenClassification\n" in run(capsys, "inspect", tmp_path / "out")[1]
    code, out, _ = run(capsys, "inspect", data_dir / "checkpoints" / "tiny_tf1" / "bert_model.ckpt")  # no such file
    assert code == 0 and "TensorFlow 1, BertForPreTraining\n" in out
    (line,) = (line for line in out.splitlines() if "no weights, left out" in line)
    assert line.startswith("  93 ") and line.count(", ") == 21 and line.endswith(", ...")


def test_an_encoder_decoder_is_inspected_and_copied(folder, tmp_path, capsys, caplog):
    both = tmp_path / "both"
    flaxbert.save_pretrained(both, *flaxbert.EncoderDecoderModel.from_two(folder, folder, decoder_start_token_id=1))
    code, out, _ = run(capsys, "inspect", both)
    assert code == 0 and "EncoderDecoderModel" in out and "loading: ok" in out
    assert run(capsys, "convert", both, tmp_path / "copy")[0] == 0
    assert "two models (in Python: flaxbert.EncoderDecoderModel); its tensors are copied unchanged" in caplog.text
    code, _, err = run(capsys, "convert", both, tmp_path / "base", "--head", "BertModel")
    assert code == 2 and "--head is 'BertModel'; model_type is 'encoder-decoder', two models" in err
    for command in (
        ["average", both, both, "--output", tmp_path / "mean"],
        ["predict", "embed", "--model", both, "a"],
    ):
        code, _, err = run(capsys, *command)
        assert code == 2 and "`flaxbert predict generate` runs it; in Python, flaxbert.from_pretrained reads it" in err


def test_verify_reports_differences(folder, tmp_path, capsys):
    run(capsys, "convert", folder, tmp_path / "pickled", "--format", "pytorch")
    code, out, _ = run(capsys, "verify", folder, tmp_path / "pickled")
    assert code == 0 and "26 tensors, at most 0 apart" in out and out.endswith("same\n")
    change(folder, "cls.predictions.bias", lambda array: array + np.float32(0.5))
    code, out, _ = run(capsys, "verify", folder, tmp_path / "pickled", "--json")
    found = json.loads(out)
    assert code == 1 and found["same"] is False and found["differing"] == {"cls.predictions.bias": pytest.approx(0.5)}
    assert found["tensors"] == pytest.approx(0.5) and found["outputs"] == pytest.approx(0.5, abs=1e-5)
    assert run(capsys, "verify", folder, tmp_path / "pickled", "--tolerance", "0.51")[0] == 0
    change(folder, "cls.predictions.bias", lambda array: array * np.float32(np.nan))
    found = json.loads(run(capsys, "verify", folder, tmp_path / "pickled", "--json", "--tolerance", "1e9")[1])
    assert found["same"] is False and found["tensors"] == "Infinity"  # of which JSON has no number
    assert run(capsys, "verify", folder, folder)[0] == 0  # not a number in the same places
    config = json.loads((folder / "config.json").read_text()) | {"hidden_act": "relu"}
    (folder / "config.json").write_text(json.dumps(config))
    code, out, _ = run(capsys, "verify", folder, tmp_path / "pickled", "--no-outputs", "--tolerance", "inf")
    assert code == 1 and "config hidden_act: 'relu' and 'gelu'" in out
    code, out, _ = run(capsys, "convert", tmp_path / "pickled", tmp_path / "base", "--head", "BertModel")
    code, out, _ = run(capsys, "verify", tmp_path / "base", tmp_path / "pickled")
    assert code == 1 and "5 only in B: cls.predictions.bias" in out and "not compared" in out
    code, out, _ = run(capsys, "verify", tmp_path / "pickled", tmp_path / "base")
    assert code == 1 and "5 only in A: cls.predictions.bias" in out


def test_verify_compares_outputs_of_models_of_one_class(folder, tmp_path, capsys):
    assert "random input 0 apart" in run(capsys, "verify", folder, folder)[1]
    assert "random input not compared" in run(capsys, "verify", folder, folder, "--no-outputs")[1]
    # One label and the same tensors, of inputs with another axis.
    config = json.loads((folder / "config.json").read_text()) | {"id2label": {"0": "a"}, "label2id": {"a": 0}}
    (folder / "config.json").write_text(json.dumps(config))
    run(capsys, "convert", folder, tmp_path / "sequence", "--head", "BertForSequenceClassification")
    shutil.copytree(tmp_path / "sequence", tmp_path / "choice")
    config = json.loads((tmp_path / "choice" / "config.json").read_text())
    (tmp_path / "choice" / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMultipleChoice"]}))
    code, out, err = run(capsys, "verify", tmp_path / "sequence", tmp_path / "choice")
    assert "at most 0 apart; outputs on random input not compared" in out, err


def test_outputs_count_as_much_as_tensors():
    found = Verification(1, [], [], {}, {}, {}, tensors=0.1, outputs=0.3)
    assert not found.same(0.2) and found.same(0.3)


def test_verify_reads_every_part_of_a_tensor(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tensors, "_PART_BYTES", 32)  # two rows of four numbers
    run(capsys, "convert", folder, tmp_path / "out", "--verify")
    for row in (0, 11, 22):  # the first, one within, and the last alone in its part

        def edit(array, row=row):
            return array + (np.arange(23) == row)[:, None].astype(np.float32)

        shutil.copytree(folder, tmp_path / str(row))
        change(tmp_path / str(row), "bert.embeddings.word_embeddings.weight", edit)
        code, out, _ = run(capsys, "verify", tmp_path / str(row), tmp_path / "out", "--no-outputs")
        assert code == 1 and "largest difference bert.embeddings.word_embeddings.weight" in out


@pytest.mark.parametrize(
    "word, arguments, passed",
    [
        (
            "convert",
            ["FOLDER", "out", "--head", "BertModel", "--format", "flax", "--dtype", "float16", "--max-shard-size",
             "2KB", "--hidden-act", "relu", "--prune-heads", "0:1,2;3:0", "--keep-layers", "0,3",
             "--resize-vocab", "30", "--pad-to-multiple-of", "8", "--verify"],
            {"head": "BertModel", "format": "flax", "dtype": "float16", "max_shard_size": 2000, "hidden_act": "relu",
             "changes": ShapeChanges({0: [1, 2], 3: [0]}, [0, 3], 30, 8), "verify": True},
        ),
        ("convert", ["FOLDER", "out"],
         {"head": None, "format": "safetensors", "dtype": None, "max_shard_size": None, "hidden_act": None,
          "changes": ShapeChanges(), "verify": False}),
        ("inspect", ["FOLDER", "--no-checksums"], {"checksums": False}),
        ("verify", ["FOLDER", "FOLDER", "--no-outputs"], {"outputs": False}),
        ("average", ["FOLDER", "--output", "out", "--last", "3"], {"last": 3}),
    ],
)  # fmt: skip
def test_every_flag_arrives(folder, capsys, monkeypatch, word, arguments, passed):
    def called(*_, **given):
        given.pop("progress", None)
        raise ValueError(repr(given))

    monkeypatch.setattr(checkpoints, word, called)
    code, _, err = run(capsys, word, *(folder if argument == "FOLDER" else argument for argument in arguments))
    assert code == 2 and err == f"error: {passed!r}\n"


def test_progress_bar_for_large_checkpoints(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    assert run(capsys, "convert", folder, tmp_path / "small")[2] == ""
    monkeypatch.setattr(checkpoints, "_MIN_BYTES_FOR_BAR", 1)
    assert "writing" in run(capsys, "convert", folder, tmp_path / "large")[2]


def test_average_is_the_mean(folder, tmp_path, capsys):
    run(capsys, "convert", folder, tmp_path / "other")
    change(tmp_path / "other", "cls.predictions.bias", lambda array: array + 1)
    (tmp_path / "other" / "SHA256SUMS").unlink()
    code, out, _ = run(capsys, "average", folder, tmp_path / "other", folder, "--output", tmp_path / "mean", "--json")
    assert code == 0 and len(json.loads(out)["averaged"]) == 3
    mean, one = (open_checkpoint(path).tensors for path in (tmp_path / "mean", folder))
    for name in one:
        wanted = one[name].read() + (np.float32(1 / 3) if name == "cls.predictions.bias" else 0)
        np.testing.assert_allclose(mean[name].read(), wanted, rtol=1e-6, atol=1e-7)
    assert run(capsys, "average", folder, "--output", tmp_path / "again")[0] == 2
    run(capsys, "convert", folder, tmp_path / "base", "--head", "BertModel")
    code, _, err = run(capsys, "average", folder, tmp_path / "base", "--output", tmp_path / "again")
    assert code == 2 and "class: 'BertModel' and 'BertForMaskedLM'" in err and not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["convert", "FOLDER", "FOLDER"], "already exists"),
        (["convert", "./nowhere", "out"], "./nowhere: no such file or folder"),
        (["convert", "no/such-model-here", "out"], "no such model on the Hugging Face hub"),
        (["convert", "FOLDER", "out", "--revision", "main"], "only models on the hub have a revision"),
        (["convert", "FOLDER", "out", "--max-shard-size", "5 apples"], "write it like 5GB"),
        (["convert", "FOLDER", "out", "--max-shard-size", "0"], "write it like 5GB"),
        (["convert", "FOLDER", "out", "--hidden-act", "glu"], "--hidden-act is 'glu'"),
        (["convert", "FOLDER", "out", "--head", "BertForMaskedLm"], "BertForMaskedLM"),
        (["convert", "FOLDER", "out", "--dtyp", "float16"], "--dtype"),
        (["verify", "FOLDER", "FOLDER", "--tolerance", "-1"], "tolerance is -1"),
        (["inspect"], "required"),
        (["convrt"], "convert"),
    ],
)
def test_errors_have_exit_code_2_and_a_message(folder, tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *(folder if argument == "FOLDER" else argument for argument in arguments))
    assert code == 2 and said in out + err and "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("text, size", [("5GB", 5 * 10**9), ("200 mb", 2 * 10**8), ("3k", 3000), ("12345", 12345)])
def test_parse_size(text, size):
    assert checkpoints.parse_size(text) == size


def test_python_m_flaxbert():
    done = subprocess.run([sys.executable, "-m", "flaxbert", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("convert", "inspect", "verify", "average"))


def test_labels_of_any_script_survive_any_locale(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text()) | {"id2label": {"0": "Ä", "1": "中"}}
    (folder / "config.json").write_text(json.dumps(config))
    plain = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "flaxbert", "convert", folder, tmp_path / "中"]
    done = subprocess.run(command, capture_output=True, text=True, env=plain)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "中" / "config.json").read_bytes())["id2label"] == {"0": "Ä", "1": "中"}


def test_names_in_a_file_are_escaped(folder, tmp_path, capsys):
    change(folder, "cls.predictions.bias", lambda array: array)
    content = (folder / "model.safetensors").read_bytes().replace(b"cls.predictions.bias", b"\\u001b[2J\\ud800 \\nbc")
    (folder / "model.safetensors").write_bytes(content)
    for arguments in (["inspect", folder], ["inspect", folder, "--json"], ["convert", folder, tmp_path / "out"]):
        code, out, err = run(capsys, *arguments)
        assert code == 2 - (arguments[0] == "inspect") and "ud800" in out + err
        assert (out + err).replace("\n", "").isprintable()
    config = json.loads((folder / "config.json").read_text()) | {"hidden_act": "x" * 10**6}
    (folder / "config.json").write_text(json.dumps(config))
    code, _, err = run(capsys, "convert", folder, tmp_path / "out")
    assert code == 2 and len(err) < 110_000 and "allowed: 'gelu'" in err


@pytest.mark.parametrize(
    "sent, code, said", [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "")], ids=["SIGINT", "SIGTERM"]
)
def test_an_interruption_leaves_no_files(folder, tmp_path, capsys, monkeypatch, sent, code, said):
    before = signal.getsignal(signal.SIGTERM)
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # by a worker of pytest-xdist
    monkeypatch.setattr("flaxbert.conversion.convert.copy_other_files", lambda *_, **__: signal.raise_signal(sent))
    assert run(capsys, "convert", folder, tmp_path / "out") == (code, "", said)
    signal.signal(signal.SIGINT, ignored)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert signal.getsignal(signal.SIGTERM) == before


# -- from the hub ----------------------------------------------------------------------------------------------


def test_a_model_of_the_hub_is_taken_from_its_cache_when_offline(folder, tmp_path, capsys, monkeypatch):
    # The cache as huggingface_hub lays it out: refs, snapshots of links, blobs.
    root, commit = tmp_path / "hub" / "models--someone--bert", "0123456789abcdef0123456789abcdef01234567"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    (root / "snapshots" / commit).mkdir(parents=True)
    (root / "blobs").mkdir()
    for i, file in enumerate(folder.iterdir()):
        (root / "blobs" / str(i)).write_bytes(file.read_bytes())
        (root / "snapshots" / commit / file.name).symlink_to(f"../../blobs/{i}")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for revision in ([], ["--revision", "main"], ["--revision", commit]):
        code, out, err = run(capsys, "inspect", "someone/bert", *revision)
        assert code == 0 and "BertForMaskedLM" in out, err
    code, _, err = run(capsys, "inspect", "someone/bert", "--revision", "v2")
    assert code == 2 and "someone/bert" in err
    assert run(capsys, "convert", "someone/bert", tmp_path / "out")[0] == 0
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_pickles_are_downloaded_only_where_there_is_nothing_else(folder, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, *, revision, allow_patterns):
        files = ["config.json", "1_Pooling/config.json", "vocab.txt", *present]
        wanted = [file for file in files if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns)]
        asked.append((name, revision, wanted))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    beside, present = ["config.json", "vocab.txt"], ["model.safetensors", "pytorch_model.bin"]
    with resolve_checkpoint_path("someone/bert", revision="v1") as path:
        assert path == folder and asked == [("someone/bert", "v1", [*beside, "model.safetensors"])]
    # The folders of modules have any names: modules.json lists them.
    (folder / "modules.json").write_text('[{"idx": 1, "name": "1", "path": "1_Pooling", "type": "Pooling"}]')
    with resolve_checkpoint_path("someone/bert"):
        with_modules = ["config.json", "1_Pooling/config.json", "vocab.txt"]
        assert asked[2:] == [("someone/bert", None, [*with_modules, "model.safetensors"])]
    (folder / "modules.json").unlink()
    (folder / "model.safetensors").unlink()
    present.remove("model.safetensors")
    with resolve_checkpoint_path("someone/bert"):
        assert asked[3:] == [("someone/bert", None, beside), ("someone/bert", None, [*beside, "pytorch_model.bin"])]


# -- zips ------------------------------------------------------------------------------------------------------


def zipped(file, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file


def test_a_zip_as_google_publishes_it(data_dir, tmp_path, capsys):
    checkpoint = data_dir / "checkpoints" / "tiny_tf1"
    members = [(f"uncased_L-2/{file.name}", file.read_bytes()) for file in checkpoint.iterdir()]
    members += [("__MACOSX/uncased_L-2/bert_config.json", b"no"), ("uncased_L-2/", b""), ("../../evil.py", b"no")]
    file = zipped(tmp_path / "uncased.ZIP", members)
    with resolve_checkpoint_path(str(file)) as place:
        kept = {path.name for path in place.iterdir()}
    assert not place.exists()
    assert kept == {path.name for path in checkpoint.iterdir()} - {"LICENSE.repo", "bert_model.ckpt.meta"}
    assert run(capsys, "convert", file, tmp_path / "out")[0] == 0
    assert run(capsys, "verify", tmp_path / "out", file)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "uncased.ZIP"]


def bomb(tmp_path):
    content = io.BytesIO()
    with (
        zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.data-00000-of-00001", "w") as f,
    ):
        for _ in range(100):
            f.write(bytes(2**20))
    return content.getvalue()


def claiming(size):
    """A stored member that says it has this many bytes."""
    name = b"bert_model.ckpt.index"
    crc = zlib.crc32(b"x")
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, crc, size, size, len(name), 0) + name + b"x"
    central = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, crc, size, size, len(name), 0, 0, 0, 0, 0, 0)
    central += name
    return local + central + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(central), len(local), 0)


def stored(path, *members):
    return zipped(path / "x", members, zipfile.ZIP_STORED).read_bytes()


def test_predict_and_export_take_every_source_that_their_help_names(data_dir, tmp_path, capsys):
    vocabulary = data_dir / "tokenizers" / "bert-base-uncased" / "vocab.txt"
    model = flaxbert.BertForMaskedLM(flaxbert.BertConfig.tiny(vocab_size=30522, num_hidden_layers=1))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), model.parameter_shapes())
    flaxbert.save_pretrained(tmp_path / "a", model, params)
    shutil.copy(vocabulary, tmp_path / "a")
    values = json.loads((tmp_path / "a" / "config.json").read_text())
    del values["architectures"]
    (tmp_path / "a" / "config.json").write_text(json.dumps(values))
    members = [(f"uncased/{file.name}", file.read_bytes()) for file in sorted((tmp_path / "a").iterdir())]
    file = zipped(tmp_path / "uncased.zip", members)
    for source in (file, tmp_path / "a" / "model.safetensors", tmp_path / "a"):
        code, out, err = run(capsys, "predict", "fill-mask", "--model", source, "--", "a [MASK]")
        assert code == 0 and "[MASK]" in out, err
    code, out, err = run(capsys, "export", file, tmp_path / "exported", "--length", 8)
    assert code == 0 and "BertForMaskedLM" in out, err
    code, _, err = run(capsys, "predict", "classify", "--model", file, "--", "a text")
    assert code == 2 and "holds a BertForMaskedLM" in err and str(file) in err and "flaxbert-" not in err
    code, out, _ = run(capsys, "average", file, file, "--output", tmp_path / "mean")
    assert code == 0 and f"the mean of {file}, {file}" in out
    code, out, _ = run(capsys, "inspect", file)
    assert code == 0 and out.startswith(f"{file}")


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda path: bomb(path), "would unpack to 104857600; at most 20 times is unpacked"),
        (lambda _: claiming(2**31), "would unpack to 2147483648"),
        (lambda _: claiming(2**20), "not a readable zip"),
        (lambda _: b"PK", "not a readable zip"),
        (lambda _: b"", "not a readable zip"),
        (lambda path: zipped(path / "x", [("a/vocab.txt", "a"), ("b/vocab.txt", "b")]).read_bytes(), "holds two"),
        (lambda path: zipped(path / "x", [("readme.md", "a")]).read_bytes(), "holds no checkpoint"),
        (lambda path: zipped(path / "x", [("vocab.txt", "a")], zipfile.ZIP_LZMA).read_bytes(), "packed by method 14"),
        (
            lambda path: stored(path, ("vocab.txt", "abc" * 99)).replace(b"abc", b"abd", 1),
            "Bad CRC-32",
        ),
        (
            lambda path: stored(path, ("vocab.txt", "abc")).replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"),
            "encrypted",
        ),
    ],
)  # fmt: skip
def test_zips_that_are_refused(tmp_path, capsys, make, said):
    content = make(tmp_path)
    (tmp_path / "x").unlink(missing_ok=True)
    (tmp_path / "a.zip").write_bytes(content)
    code, _, err = run(capsys, "convert", tmp_path / "a.zip", tmp_path / "out")
    assert code == 2 and said in err and "a.zip" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]
