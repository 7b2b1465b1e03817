"""TensorFlow 1 checkpoints: a real one against a forward pass in plain NumPy, and damaged ones."""

import functools
import math
import shutil
from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flaxbert
from flaxbert.families import BERT
from flaxbert.weights import names
from flaxbert.weights.formats import tf1
from flaxbert.weights.formats.tf1 import open_tf1, read_bundle_index
from tests.flaxbert.tf1_files import block, entry, index, message


@pytest.fixture
def checkpoint(data_dir, tmp_path):
    """A copy of a real checkpoint of four dimensions and two layers, with the slots of its optimizer."""
    for file in (data_dir / "checkpoints" / "tiny_tf1").iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    return tmp_path / "bert_model.ckpt"


def test_every_variable_of_a_real_checkpoint(checkpoint):
    variables = read_bundle_index(checkpoint)
    tensors, skipped = open_tf1(checkpoint)
    assert len(variables) == len(tensors) + len(skipped) == 139
    assert {name.rsplit("/", 1)[-1] for name in skipped} == {"adam_m", "adam_v", "global_step"}
    kernel = variables["bert/encoder/layer_1/intermediate/dense/kernel"].read()
    weight = tensors["bert.encoder.layer.1.intermediate.dense.weight"]
    assert kernel.shape == (4, 16) and weight.shape == (16, 4) and weight.dtype == np.float32
    np.testing.assert_array_equal(weight.read(), kernel.T)
    np.testing.assert_array_equal(weight.read(slice(3, 7)), kernel.T[3:7])
    config = flaxbert.BertConfig.from_pretrained(checkpoint.with_name("bert_config.json"))
    shapes = flaxbert.BertForPreTraining(config).parameter_shapes()
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        entry.name: entry.file_shape for entry in names.name_mappings(BERT, shapes)
    }


def numpy_forward(v, ids, types, mask, layers, heads):
    """BERT in float64 from the variables under Google's names: hidden states, word scores, next-sentence scores."""

    def norm(x, scope):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-12)
        return scaled * v[f"{scope}/LayerNorm/gamma"] + v[f"{scope}/LayerNorm/beta"]

    def dense(x, scope):
        return x @ v[f"{scope}/kernel"] + v[f"{scope}/bias"]

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    words = v["bert/embeddings/word_embeddings"]
    x = words[ids] + v["bert/embeddings/token_type_embeddings"][types]
    x = norm(x + v["bert/embeddings/position_embeddings"][: ids.shape[1]], "bert/embeddings")
    for layer in range(layers):
        scope = f"bert/encoder/layer_{layer}"
        split = lambda y: y.reshape(*y.shape[:2], heads, -1).swapaxes(1, 2)  # noqa: E731
        q, k, w = (split(dense(x, f"{scope}/attention/self/{name}")) for name in ("query", "key", "value"))
        scores = q @ k.swapaxes(2, 3) / math.sqrt(q.shape[-1]) - 10000.0 * (1 - mask[:, None, None])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        context = (weights / weights.sum(-1, keepdims=True)) @ w
        context = context.swapaxes(1, 2).reshape(x.shape)
        x = norm(x + dense(context, f"{scope}/attention/output/dense"), f"{scope}/attention/output")
        inner = gelu(dense(x, f"{scope}/intermediate/dense"))
        x = norm(x + dense(inner, f"{scope}/output/dense"), f"{scope}/output")
    pooled = np.tanh(dense(x[:, 0], "bert/pooler/dense"))
    transformed = norm(gelu(dense(x, "cls/predictions/transform/dense")), "cls/predictions/transform")
    words = transformed @ words.T + v["cls/predictions/output_bias"]
    following = pooled @ v["cls/seq_relationship/output_weights"].T + v["cls/seq_relationship/output_bias"]
    return x, words, following


def test_a_real_checkpoint_computes_what_numpy_does(checkpoint):
    model, params = flaxbert.BertForPreTraining.from_pretrained(checkpoint.parent)
    assert model.config.hidden_act == "gelu_new"
    variables = {name: variable.read().astype(np.float64) for name, variable in read_bundle_index(checkpoint).items()}
    rng = np.random.default_rng(0)
    ids, types = rng.integers(0, 15, (3, 11)), rng.integers(0, 2, (3, 11))
    mask = (np.arange(11) < np.array([[11], [6], [9]])).astype(np.int32)
    # Larger than trained ones, which are so near zero that any two models would agree.
    arguments = {"attention_mask": mask, "token_type_ids": types, "output_hidden_states": True}
    out = jax.jit(functools.partial(model.apply, **arguments))(
        {"params": jax.tree.map(lambda leaf: 20 * leaf, params)}, ids
    )
    large = {name: 20 * value for name, value in variables.items()}
    states, words, following = numpy_forward(large, ids, types, mask, 2, 4)
    assert np.abs(words).max() > 1
    np.testing.assert_allclose(out.hidden_states[-1][mask == 1], states[mask == 1], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(out.prediction_logits[mask == 1], words[mask == 1], rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(out.seq_relationship_logits, following, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("path", ["folder", "prefix", "index"])
def test_a_checkpoint_is_found_by_folder_prefix_or_index(checkpoint, path):
    found = {"folder": checkpoint.parent, "prefix": checkpoint, "index": checkpoint.with_name("bert_model.ckpt.index")}
    config = flaxbert.BertConfig.from_pretrained(checkpoint.parent)
    _, params = flaxbert.BertForPreTraining.from_pretrained(found[path], config=config)
    assert params["bert"]["layers"]["up"]["kernel"].shape == (2, 4, 16)


def test_google_files_are_recognised_and_warned_about_their_gelu(checkpoint, caplog):
    config = flaxbert.BertConfig.from_pretrained(checkpoint.parent)
    assert config.hidden_act == "gelu_new"
    assert 'bert_config.json: Google\'s "gelu" is the tanh form; hidden_act is set to "gelu_new"' in caplog.text


def test_names_of_every_head():
    for name, expected in {
        "bert/encoder/layer_11/output/LayerNorm/gamma": "bert.encoder.layer.11.output.LayerNorm.weight",
        "bert/embeddings/token_type_embeddings": "bert.embeddings.token_type_embeddings.weight",
        "cls/predictions/transform/dense/kernel": "cls.predictions.transform.dense.weight",
        "cls/predictions/output_bias": "cls.predictions.bias",
        "cls/seq_relationship/output_weights": "cls.seq_relationship.weight",
        "cls/squad/output_weights": "qa_outputs.weight",
        "cls/squad/output_bias": "qa_outputs.bias",
        "output_weights": "classifier.weight",
        "output_bias": "classifier.bias",
        "some/thing_else": "some/thing_else",
    }.items():
        assert tf1.from_tf1_name(name) == expected


def with_variables(monkeypatch, *more):
    """The real index with some variables added to it."""
    real = read_bundle_index

    def read_index(prefix):
        found = real(prefix)
        return found | {name: found["bert/pooler/dense/bias"] for name in more}

    monkeypatch.setattr(tf1, "read_bundle_index", read_index)


def test_slots_are_known_by_the_names_that_tensorflow_gives_them(checkpoint, monkeypatch):
    before = open_tf1(checkpoint)
    slots = [f"bert/pooler/dense/kernel/{name}" for name in ("Adam", "Adam_1", "AdamWeightDecayOptimizer")]
    slots += ["output_bias/AdamWeightDecayOptimizer_1", "beta1_power", "beta2_power"]
    with_variables(monkeypatch, *slots)
    tensors, skipped = open_tf1(checkpoint)
    assert tensors.keys() == before[0].keys()
    assert skipped == [*before[1], *slots]
    with_variables(monkeypatch, "bert/pooler/dense/kernel/Adamant")
    assert "bert/pooler/dense/kernel/Adamant" in open_tf1(checkpoint)[0]


def test_a_checkpoint_of_tensorflow_2_is_refused(checkpoint, monkeypatch):
    with_variables(monkeypatch, "model/layer_with_weights-0/embeddings/.ATTRIBUTES/VARIABLE_VALUE")
    with pytest.raises(ValueError, match="a TensorFlow 2 checkpoint.*Export it to safetensors first"):
        flaxbert.BertForPreTraining.from_pretrained(checkpoint.parent)


def test_variables_that_are_not_known_are_reported(checkpoint, monkeypatch):
    with_variables(monkeypatch, "my/own/bias", "elsewhere", "bert/pooler/dense/beta")
    with pytest.raises(
        ValueError, match=r"'bert/pooler/dense/beta' and another variable are both 'bert.pooler.dense.bias'"
    ):
        flaxbert.BertForPreTraining.from_pretrained(checkpoint.parent)
    monkeypatch.undo()
    with_variables(monkeypatch, "my/own/bias", "elsewhere")
    with pytest.raises(ValueError, match=r"2 unexpected:\n    my.own.bias\n    elsewhere"):
        flaxbert.BertForPreTraining.from_pretrained(checkpoint.parent)


@pytest.mark.parametrize("lost", ["bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"])
def test_a_missing_file_is_named(checkpoint, lost):
    config = flaxbert.BertConfig.from_pretrained(checkpoint.parent)
    checkpoint.with_name(lost).unlink()
    with pytest.raises(FileNotFoundError, match="no such file|No such file") as error:
        flaxbert.BertForPreTraining.from_pretrained(checkpoint.parent, config=config)
    assert str(checkpoint.parent) in str(error.value)


def test_tensors_behind_a_link_out_of_the_folder_are_refused(checkpoint, tmp_path_factory):
    file, elsewhere = checkpoint.with_name("bert_model.ckpt.data-00000-of-00001"), tmp_path_factory.mktemp("elsewhere")
    file.rename(elsewhere / "data")
    file.symlink_to(elsewhere / "data")
    with pytest.raises(ValueError, match="leads out of the folder"):
        flaxbert.BertForPreTraining.from_pretrained(checkpoint.parent)


def test_two_checkpoints_in_a_folder_must_be_named(checkpoint):
    for suffix in ("index", "data-00000-of-00001"):
        shutil.copyfile(checkpoint.with_name(f"bert_model.ckpt.{suffix}"), checkpoint.with_name(f"other.{suffix}"))
    with pytest.raises(ValueError, match=r"holds 2 checkpoints \(bert_model.ckpt.index, other.index\)"):
        flaxbert.BertForPreTraining.from_pretrained(checkpoint.parent)


def flips(content, count=100):
    """The content with one bit changed, at places all over it."""
    rng = np.random.default_rng(0)
    for place in rng.choice(len(content), count, replace=False):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.integers(8)
        yield bytes(changed)


def test_any_flipped_bit_of_the_tensors_is_found(checkpoint):
    file = checkpoint.with_name("bert_model.ckpt.data-00000-of-00001")
    variables = read_bundle_index(checkpoint).values()
    for changed in flips(file.read_bytes()):
        file.write_bytes(changed)
        with pytest.raises(ValueError, match="do not match their checksum; the file is damaged") as error:
            [variable.read() for variable in variables]
        assert str(file) in str(error.value)


def test_a_flipped_bit_of_the_index_is_found_or_means_nothing(checkpoint):
    file = checkpoint.with_name("bert_model.ckpt.index")
    before = read_bundle_index(checkpoint)
    harmless = 0
    for changed in flips(file.read_bytes()):
        file.write_bytes(changed)
        try:
            found = read_bundle_index(checkpoint)
        except (ValueError, FileNotFoundError):
            continue
        harmless += 1  # some bytes mean nothing: those of an empty block, those that fill up the footer
        assert found == before
    assert harmless < 10


@pytest.fixture(scope="session")
def original(data_dir, tmp_path_factory):
    """The bytes of the real index, and a folder to write changed ones to, with the real data beside."""
    source, folder = data_dir / "checkpoints" / "tiny_tf1", tmp_path_factory.mktemp("mutated")
    shutil.copyfile(source / "bert_model.ckpt.data-00000-of-00001", folder / "x.data-00000-of-00001")
    return (source / "bert_model.ckpt.index").read_bytes(), folder / "x"


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=6),
    st.one_of(st.none(), st.integers(0, 5000)),
    st.booleans(),
)
def test_a_mutated_index_is_read_or_refused(original, changes, length, checked):
    content, prefix = bytearray(original[0]), original[1]
    for place, value in changes:
        content[place % len(content)] = value
    with pytest.MonkeyPatch.context() as patch:
        if not checked:  # as if whoever made the file had put the right checksums in
            patch.setattr(tf1, "masked_crc32c", lambda _: mock.ANY)
        prefix.with_name("x.index").write_bytes(content[:length])
        try:
            for variable in read_bundle_index(prefix).values():
                assert variable.read().nbytes <= 8420
        except (ValueError, FileNotFoundError) as error:
            assert str(prefix.parent) in str(error)


NUMBERS = np.array([1.5, -2.0], "<f4")
DATA = NUMBERS.tobytes()
HEADER = (b"", message((1, 1)))
SIZE = len(block([HEADER])) - 5  # without compression and checksum


def test_a_written_index_is_read(tmp_path):
    (tmp_path / "x.index").write_bytes(
        index(block([HEADER]), block([(b"a", entry(DATA)), (b"text", entry(b"", dtype=7))]))
    )
    (tmp_path / "x.data-00000-of-00001").write_bytes(DATA)
    found = read_bundle_index(tmp_path / "x")
    assert found.keys() == {"a"}
    np.testing.assert_array_equal(found["a"].read(), NUMBERS)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (block([]), "announces 0 data files"),
        (block([(b"", message((1, 2**40)))]), "data files"),
        (block([(b"", message((1, 1), (2, 1)))]), "big-endian"),
        (block([HEADER, (b"a", entry(DATA, offset=1))]), "'a' ends at byte 9 of x.data-00000-of-00001, which has 8"),
        (block([HEADER, (b"a", entry(DATA)), (b"b", entry(DATA))]), "its variables overlap"),
        (block([HEADER, (b"a", entry(DATA, shape=(3,)))]), r"'a' of shape \[3\] and type float32 has 8 bytes"),
        (block([HEADER, (b"a", entry(DATA, shape=(2**63, 2**63)))]), "'a' has the shape"),
        (block([HEADER, (b"a", entry(DATA, shape=(1,) * 33))]), "'a' has the shape"),
        (block([HEADER, (b"a", entry(DATA, shard=1))]), "'a' is in data file 1 of 1"),
        (block([HEADER, (b"a", entry(DATA, more=[(7, b"")]))]), "'a' is stored in slices"),
        (
            block([HEADER, (b"\0a\0\1\1\1\x80\x82", entry(DATA)), (b"a", entry(DATA, more=[(7, b"")]))]),
            "'a' is stored in slices",
        ),
        (block([HEADER, (b"a", message((1, 1), (2, message((3, 1)))))]), "'a' has no known shape"),
        (block([HEADER, (b"a", message((1, b"1")))]), "field 1 is not a number"),
        (block([HEADER, (b"a", b"\x0b")]), "field 1 has the wire type 3"),
        (block([HEADER, (b"a", b"\x0a\x7f")]), "field 1 runs over the end"),
        (block([HEADER, (b"a", b"\xff" * 11)]), "a number has more than ten bytes"),
        (block([HEADER, (b"\xff", entry(DATA))]), "is not UTF-8"),
        (block([HEADER, HEADER]), "the name b'' occurs twice"),
        (block([HEADER], compression=1), "its blocks are compressed"),
        (block([HEADER, (b"a", entry(DATA))], shared=1), "an entry of the block at byte 0 runs over its end"),
        (block([HEADER, (b"ab", entry(DATA)), (b"c", entry(DATA))], shared=3), "runs over its end"),
    ],
)
def test_an_index_that_breaks_the_rules(tmp_path, content, expected):
    (tmp_path / "x.index").write_bytes(index(content))
    (tmp_path / "x.data-00000-of-00001").write_bytes(DATA)
    with pytest.raises(ValueError, match=expected) as error:
        read_bundle_index(tmp_path / "x")
    assert str(tmp_path / "x.index") in str(error.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "may be cut short"),
        (index(block([HEADER]))[:-1], "may be cut short"),
        (index(block([HEADER]), places=[(0, 2**40)]), "does not fit into"),
        (index(block([HEADER]), places=[(0, SIZE), (0, SIZE)]), "overlap"),
        (index(block([HEADER]), places=[(0, SIZE - 1)]), "does not match its checksum"),
    ],
)
def test_a_table_that_breaks_the_rules(tmp_path, content, expected):
    (tmp_path / "x.index").write_bytes(content)
    with pytest.raises(ValueError, match=expected):
        read_bundle_index(tmp_path / "x")
