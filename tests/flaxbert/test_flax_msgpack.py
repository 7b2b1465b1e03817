"""Flax weights of transformers 4: the same bytes as flax's own, and no other error than ValueError on broken files."""

import struct
from pathlib import Path

import flax.serialization
import flax.traverse_util
import jax
import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flaxbert
from flaxbert.families import BERT
from flaxbert.weights import names
from flaxbert.weights.formats import flax_msgpack
from flaxbert.weights.formats.flax_msgpack import (
    flax_msgpack_order,
    from_flax_name,
    open_flax_msgpack,
    to_flax_name,
    write_flax_msgpack,
)
from flaxbert.weights.formats.msgpack_tokens import pack_head
from flaxbert.weights.tensors import LazyTensor, TensorSpec
from tests.flaxbert.array_tensor import ArrayTensor
from tests.flaxbert.saved_models import BERT_CLASSES

FIXTURES = Path(__file__).with_name("fixtures") / "flax"
DTYPES = ["?", "u1", "i1", "<i2", "<u2", "<f2", "bfloat16", "<i4", "<u4", "<f4", "<f8", "<i8", "<u8"]
LAYER = "bert/encoder/layer/0/attention"


def some_arrays():
    """Arrays as Flax has them, by keys joined by "/"."""
    rng = np.random.default_rng(0)
    return {
        f"{LAYER}/self/query/kernel": rng.normal(size=(7, 5)).astype(np.float32),
        f"{LAYER}/self/query/bias": rng.normal(size=5).astype(np.float16),
        f"{LAYER}/output/LayerNorm/scale": rng.normal(size=300).astype(np.float64),
        "bert/embeddings/word_embeddings/embedding": rng.normal(size=(9, 3)).astype(ml_dtypes.bfloat16),
        "cls/predictions/bias": np.array(2.5, np.float32),
        "ü/flags": np.array([True, False, True, True, False, True]),  # 16 bytes with its head: a length of its own
        "ü/empty": np.zeros((0, 4), np.float32),
        "ü/whole/kernel": np.arange(6).reshape(2, 3, 1),
    } | {f"many/{i}/kernel": np.full((1, 2), i, np.int8) for i in range(17)}


def as_stored(arrays):
    """The same as Hugging Face has them."""
    return {
        from_flax_name(name): array.T if name.endswith("/kernel") and array.ndim == 2 else array
        for name, array in arrays.items()
    }


def by_flax(arrays):
    """The file that flax writes, its keys in JAX's order."""
    tree = jax.tree.map(lambda leaf: leaf, flax.traverse_util.unflatten_dict(arrays, sep="/"))
    return flax.serialization.to_bytes(tree)


def written(path, tensors):
    specs = flax_msgpack_order(TensorSpec(name, t.dtype, t.shape) for name, t in tensors.items())
    return write_flax_msgpack(path, specs, (ArrayTensor(tensors[spec.name]) for spec in specs))


@pytest.fixture(params=[2**30, 48, 3])
def chunks(request, monkeypatch):
    """Arrays of more bytes than that are chunked; an element may be larger."""
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", request.param)
    monkeypatch.setattr(flax_msgpack, "_MAX_CHUNK_BYTES", request.param)


# -- agreement with flax ---------------------------------------------------------------------------------


def test_the_same_bytes_as_flax(tmp_path, chunks):
    arrays = some_arrays()
    written(tmp_path / "ours", as_stored(arrays))
    assert (tmp_path / "ours").read_bytes() == by_flax(arrays)


@pytest.mark.parametrize("limit", [2**30, 70_000])
def test_lengths_of_every_width(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", limit)
    monkeypatch.setattr(flax_msgpack, "_MAX_CHUNK_BYTES", limit)
    arrays = {f"{size:x}/bias": np.arange(size).astype(np.int8) for size in (*range(20), 127, 128, 200, 70_000, 2**17)}
    arrays |= {f"{'b' * size}/kernel": np.full((size, size), 3, np.int8) for size in (31, 32, 255, 256, 1024)}
    arrays |= {f"map/{i}/bias": np.zeros((), np.uint8) for i in range(300)}
    written(tmp_path / "ours", as_stored(arrays))
    assert (tmp_path / "ours").read_bytes() == by_flax(arrays)
    found = open_flax_msgpack(tmp_path / "ours")
    for name, array in as_stored(arrays).items():
        np.testing.assert_array_equal(found[name].read(), array, strict=True)
    for size in (0, 15, 16, 2**16 - 1, 2**16, 2**32 - 1):  # too many to be made
        assert pack_head("map", size) == msgpack.Packer().pack_map_header(size)


def test_an_order_other_than_ours(tmp_path):
    arrays = {name: np.zeros(2, np.float32) for name in ("b/z/bias", "b/c/bias", "a/bias")}
    specs = [TensorSpec(from_flax_name(name), a.dtype, a.shape) for name, a in arrays.items()]
    write_flax_msgpack(tmp_path / "ours", specs, map(ArrayTensor, arrays.values()))
    tree = flax.traverse_util.unflatten_dict(arrays, sep="/")
    assert list(tree) == ["b", "a"]
    assert (tmp_path / "ours").read_bytes() == flax.serialization.to_bytes(tree) != by_flax(arrays)


def test_what_flax_wrote_is_read_whole_and_in_rows(tmp_path, chunks):
    (tmp_path / "file").write_bytes(by_flax(some_arrays()))
    found, tensors = open_flax_msgpack(tmp_path / "file"), as_stored(some_arrays())
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        stored = found[name]
        assert isinstance(stored, LazyTensor)
        assert (stored.dtype, stored.shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(stored.read(), tensor, strict=True)
        if tensor.ndim:
            for rows in (slice(0, 0), slice(1, None), slice(1, 3), slice(2, 1), slice(0, 99)):
                np.testing.assert_array_equal(stored.read(rows), tensor[rows], strict=True)


@pytest.mark.parametrize("name", ["a/kernel", "a/bias"])
@pytest.mark.parametrize("code", DTYPES)
def test_every_type_comes_back_bit_for_bit(tmp_path, code, name, chunks):
    dtype = np.dtype(code)
    bits = np.random.default_rng(1).integers(0, 2 if code == "?" else 256, 30 * dtype.itemsize, np.uint8)
    array = bits.view(dtype).reshape(6, 5)  # also numbers that are none
    (tmp_path / "theirs").write_bytes(by_flax({name: array}))
    (stored,) = open_flax_msgpack(tmp_path / "theirs").values()
    assert stored.dtype == dtype
    content = stored.read().T if name == "a/kernel" else stored.read()
    np.testing.assert_array_equal(np.ascontiguousarray(content).reshape(-1).view(np.uint8), bits)
    written(tmp_path / "ours", as_stored({name: array}))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_rows_are_all_that_is_read_of_a_tensor(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(by_flax({"a/embedding": np.zeros((1000, 4), np.float32)}))
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 1600)
    (tmp_path / "chunked").write_bytes(by_flax({"a/embedding": np.zeros((1000, 4), np.float32)}))
    counts, fromfile = [], np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda *a, **k: counts.append(a[2]) or fromfile(*a, **k))
    for file in ("file", "chunked"):
        stored = open_flax_msgpack(tmp_path / file)["a.weight"]
        assert not counts
        stored.read(slice(90, 110))
        assert sum(counts) == 20 * 4 * 4
        counts.clear()


def test_a_numpy_scalar_and_nothing_at_all(tmp_path):
    (tmp_path / "scalar").write_bytes(flax.serialization.to_bytes({"a": np.float32(1.5)}))
    (stored,) = open_flax_msgpack(tmp_path / "scalar").values()
    np.testing.assert_array_equal(stored.read(), np.array(1.5, np.float32), strict=True)
    # The first of several files is so where the first tensor alone is larger than a file may be.
    write_flax_msgpack(tmp_path / "empty", [], [])
    assert (tmp_path / "empty").read_bytes() == flax.serialization.to_bytes({})
    assert open_flax_msgpack(tmp_path / "empty") == {}


# -- names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("bert/encoder/layer/0/attention/self/query/kernel", "bert.encoder.layer.0.attention.self.query.weight"),
        ("bert/encoder/layer/11/output/dense/bias", "bert.encoder.layer.11.output.dense.bias"),
        ("bert/embeddings/LayerNorm/scale", "bert.embeddings.LayerNorm.weight"),
        ("bert/embeddings/LayerNorm/bias", "bert.embeddings.LayerNorm.bias"),
        ("embeddings/word_embeddings/embedding", "embeddings.word_embeddings.weight"),
        ("embeddings/token_type_embeddings/embedding", "embeddings.token_type_embeddings.weight"),
        ("cls/predictions/bias", "cls.predictions.bias"),
        ("cls/seq_relationship/kernel", "cls.seq_relationship.weight"),
        ("distilbert/transformer/layer/1/sa_layer_norm/scale", "distilbert.transformer.layer.1.sa_layer_norm.weight"),
        ("distilbert/transformer/layer/1/ffn/lin1/kernel", "distilbert.transformer.layer.1.ffn.lin1.weight"),
        (
            "distilbert/transformer/layer/1/output_layer_norm/scale",
            "distilbert.transformer.layer.1.output_layer_norm.weight",
        ),
        ("vocab_layer_norm/scale", "vocab_layer_norm.weight"),
        ("vocab_projector/bias", "vocab_projector.bias"),
    ],
)
def test_names_both_ways(ours, theirs):
    assert from_flax_name(ours) == theirs
    assert to_flax_name(theirs) == ours


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", BERT_CLASSES)
def test_names_of_every_head(architecture, tied):
    config = flaxbert.BertConfig(
        vocab_size=8,
        hidden_size=4,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        tie_word_embeddings=tied,
    )
    model = flaxbert.ARCHITECTURES[architecture](config)
    entries = names.name_mappings(BERT, model.parameter_shapes())
    assert entries
    for entry in entries:
        name = to_flax_name(entry.name)
        assert from_flax_name(name) == entry.name
        assert name.rpartition("/")[2] == entry.path[-1]  # ours are called as Flax calls them


# -- what is refused -------------------------------------------------------------------------------------


def token(array, code=1, parts=None):
    content = msgpack.packb(parts or (array.shape, array.dtype.name, array.tobytes()))
    return msgpack.ExtType(code, content)


def packed(value):
    return msgpack.packb(value)


ONE = np.ones(1, np.float32)
A = token(ONE)
MARK = "__msgpack_chunked_array__"
NESTED = b"\x81\xa1a" * 100_000 + b"\x80"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "1 bytes are expected at byte 0, 0 are there"),
        (b"version 1 of a text\n", "the content is number, not map"),
        (b"\xc1", "the content is a token 0xc1, not map"),
        (packed([1]), "the content is array"),
        (b"\xdf\xff", "4 bytes are expected at byte 1, 1 are there"),
        (b"\xdf\xff\xff\xff\xff", "map of length 4294967295 at byte 0, but 0 bytes follow"),
        (packed({"a": {}}) + b"\0", "1 bytes follow the content"),
        (packed({1: A}), "a key in the outermost dict is number, not string"),
        (packed({b"a": A}), "a key in the outermost dict is bytes, not string"),
        (packed({"a": {None: A}}), "a key in 'a' is nil, not string"),
        (packed({"": A}), "the outermost dict has the key ''"),
        (packed({"a": {"b/c": A}}), "'a' has the key 'b/c'"),
        (packed({"b.c": A}), "the outermost dict has the key 'b.c'"),
        (packed({"a" * 1025: A}), "has 1025 bytes"),
        (b"\x81\xa1\xff\x80", "can't decode byte 0xff"),
        (b"\x82" + packed("a") + packed({}) + packed("a") + packed({}), "the outermost dict has the key 'a' twice"),
        (packed({"a": {"kernel": A, "scale": A}}), "'a/scale' and another array are both 'a.weight'"),
        (packed({"a": A})[:-1], "extension of length 17 at byte 3, but 17 bytes follow"),
        (packed({"a": 1}), "'a' is number, neither dict nor array"),
        (packed({"a": None}), "'a' is nil, neither"),
        (packed({"a": 1.5}), "'a' is a token 0xcb, neither"),
        (packed({"a": [1]}), "'a' is array, neither"),
        (packed({"a": "x"}), "'a' is string, neither"),
        (packed({MARK: True, "shape": {"0": 1}, "chunks": {"0": A}}), f"'{MARK}' is true, neither"),
        (packed({"a": token(ONE, code=2)}), "'a' is a complex number"),
        (packed({"a": token(ONE, code=4)}), "'a' is an extension of type 4"),
        (packed({"a": msgpack.ExtType(1, packed({}))}), "the content of 'a' is map, not array"),
        (packed({"a": token(ONE, parts=[[1], "float32"])}), "'a' has 2 parts"),
        (packed({"a": token(ONE, parts=[1, "float32", b"1234"])}), "the shape of 'a' is number, not array"),
        (packed({"a": token(ONE, parts=[[1] * 33, "float32", b"1234"])}), "'a' has 33 axes"),
        (packed({"a": token(ONE, parts=[[True], "float32", b"1234"])}), "the shape's axis 0 of 'a' is true"),
        (packed({"a": token(ONE, parts=[[1, -1], "float32", b"1234"])}), "axis 1 of 'a' is a token 0xff"),
        (packed({"a": token(ONE, parts=[[1.0], "float32", b"1234"])}), "axis 0 of 'a' is a token 0xcb"),
        (packed({"a": token(ONE, parts=[[1], b"float32", b"1234"])}), "the type of 'a' is bytes, not string"),
        (packed({"a": token(ONE, parts=[[1], "float32", "1234"])}), "the data of 'a' is string, not bytes"),
        (packed({"a": token(ONE, parts=[[2], "float32", b"1234"])}), r"'a' of shape \[2\] and type float32 has 4"),
        (packed({"a": token(ONE, parts=[[2**40] * 3, "float32", b"1234"])}), "and type float32 has 4"),
        (packed({"a": token(ONE, parts=[[0, 2**62], "float32", b""])}), "and type float32 has 0"),
        (packed({"a": token(ONE, parts=[[1], "object", b"1234"])}), "of type 'object'; known: bool"),
        (packed({"a": token(np.ones(1, np.complex64))}), "of type 'complex64'; known: bool"),
        (packed({"a": token(ONE, parts=[[1], "<f4", b"1234"])}), "of type '<f4'; known: bool"),
        (packed({"a": msgpack.ExtType(1, A.data + b"\0")}), "'a' ends at byte 23, its extension at 24"),
        (b"\x81\xa1a\xc7\x03\x01" + A.data, "'a' ends at byte 23, its extension at 9"),
        (
            b"\x81\xa1a\xc7\xff\x01\x93\x91\x01\xa7float32\xc6\xff\xff\xff\xff1234",
            "extension of length 255 at byte 3, but",
        ),
        (
            b"\x81\xa1a\xc7\x14\x01\x93\x91\x01\xa7float32\xc6\xff\xff\xff\xff1234",
            "bytes of length 4294967295 at byte 17, but 4 bytes follow",
        ),
        (NESTED, "dicts are nested deeper than 64"),
        (packed({str(i): {} for i in range(100_001)}), "more than 100000 entries"),
        (packed({"a": {MARK: True, "shape": {"0": 1}}}), "not chunked as flax does"),
        (packed({"a": {MARK: False, "shape": {"0": 1}, "chunks": {"0": A}}}), "not chunked as flax does"),
        (packed({"a": {MARK: True, "chunks": {"0": A}, "shape": {"0": 1}}}), "'shape' is not where it must be"),
        (packed({"a": {MARK: True, "shape": {"0": 1}, "other": {"0": A}}}), "'chunks' is not where it must be"),
        (packed({"a": {MARK: True, "shape": {"1": 1}, "chunks": {"0": A}}}), "'shape' of 'a' is not numbered from 0"),
        (packed({"a": {MARK: True, "shape": {"0": 2}, "chunks": {"0": A, "2": A}}}), "'chunks' of 'a' is not numbered"),
        (packed({"a": {MARK: True, "shape": [1], "chunks": {"0": A}}}), "'shape' of 'a' is array, not map"),
        (packed({"a": {MARK: True, "shape": {"0": 1.0}, "chunks": {"0": A}}}), "'a/shape/0' is a token 0xcb"),
        (packed({"a": {MARK: True, "shape": {"0": 1}, "chunks": {"0": 1}}}), "'a/chunks/0' is number, not extension"),
        (packed({"a": {MARK: True, "shape": {"0": 1}, "chunks": {}}}), "chunks of 'a' are not all flat"),
        (
            packed({"a": {MARK: True, "shape": {"0": 1}, "chunks": {"0": token(ONE.reshape(1, 1))}}}),
            "chunks of 'a' are not all flat",
        ),
        (
            packed({"a": {MARK: True, "shape": {"0": 2}, "chunks": {"0": A, "1": token(ONE.view(np.int32))}}}),
            "chunks of 'a' are not all flat and of one type",
        ),
        (packed({"a": {MARK: True, "shape": {"0": 3}, "chunks": {"0": A, "1": A}}}), "has chunks of 8 bytes"),
        (
            packed({"a": {MARK: True, "shape": {str(i): 1 for i in range(33)}, "chunks": {"0": A}}}),
            "'a' has 33 axes",
        ),
        (
            packed({"a": {MARK: True, "shape": {"0": 0, "1": 2**62}, "chunks": {"0": token(ONE[:0])}}}),
            "has chunks of 0 bytes",
        ),
    ],
)
def test_a_file_that_breaks_the_rules(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        open_flax_msgpack(tmp_path / "file")
    assert str(error.value).startswith(f"{tmp_path / 'file'}: not a readable flax_model.msgpack: ")


def test_lengths_in_longer_forms_than_need_be(tmp_path):
    array = b"\xdd" + struct.pack(">I", 3) + b"\xdc\0\1\xcf" + struct.pack(">Q", 1)
    array += b"\xdb" + struct.pack(">I", 7) + b"float32\xc6" + struct.pack(">I", 4) + ONE.tobytes()
    content = b"\xdf" + struct.pack(">I", 1) + b"\xd9\1a\xc9" + struct.pack(">IB", len(array), 1) + array
    (tmp_path / "file").write_bytes(content)
    np.testing.assert_array_equal(open_flax_msgpack(tmp_path / "file")["a"].read(), ONE)
    assert flax.serialization.msgpack_restore(content) == {"a": ONE}


def test_a_tensor_that_is_cut_after_its_head_was_read(tmp_path, chunks):
    (tmp_path / "file").write_bytes(by_flax({"a/kernel": np.ones((9, 8), np.float32)}))
    stored = open_flax_msgpack(tmp_path / "file")["a.weight"]
    with (tmp_path / "file").open("r+b") as file:
        file.truncate(150)
    with pytest.raises(ValueError, match="file: ends within 'a/kernel"):
        stored.read()


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["a.b.bias", "c.bias", "a.d.bias"], "do not follow each other"),
        (["a.bias", "a.bias"], "'a.bias' occurs twice"),
        (["a", "a.bias"], "'a' cannot hold 'a.bias'"),
        (["a.bias", "a"], "'a' occurs twice, or holds another tensor"),
        (["a..bias"], "'a..bias' has the key ''"),
        ([""], "'' has the key ''"),
        ([".bias"], "'.bias' has the key ''"),
        (["a/b"], "'a/b' cannot be written"),
        (["a.kernel"], "'a.kernel' cannot be written"),
        ([".".join("a" * 65)], "cannot be written as nested keys"),
        (["a" * 1025], "has the key 'aaaa"),
    ],
)
def test_names_that_the_format_does_not_take(tmp_path, specs, message):
    specs = [TensorSpec(name, np.dtype(np.float32), (3,)) for name in specs]
    with pytest.raises(ValueError, match=message):
        write_flax_msgpack(tmp_path / "file", specs, [ArrayTensor(np.zeros(3, np.float32))] * len(specs))
    assert not (tmp_path / "file").exists()


def test_the_deepest_names_are_read_again(tmp_path):
    tensors = {".".join("a" * 64): ONE, "b" * 1024: ONE}
    written(tmp_path / "file", tensors)
    assert open_flax_msgpack(tmp_path / "file").keys() == tensors.keys()


@pytest.mark.parametrize("code", ["c8", ">f4", "U1", "float8_e4m3"])
def test_types_that_the_format_does_not_take(tmp_path, code):
    dtype = np.dtype(code)
    with pytest.raises(ValueError, match="'a' is of type .*; known: bool"):
        write_flax_msgpack(tmp_path / "file", [TensorSpec("a", dtype, (3,))], [ArrayTensor(np.zeros(3, dtype))])


def test_tensors_must_be_what_was_announced(tmp_path):
    spec = TensorSpec("a", np.dtype(np.float32), (3,))
    for wrong in (np.zeros(4, np.float32), np.zeros(3, np.float64)):
        with pytest.raises(ValueError, match="announced as"):
            write_flax_msgpack(tmp_path / "file", [spec], [ArrayTensor(wrong)])


@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, 1_500))
def test_mutated_files_are_read_or_refused(tmp_path, monkeypatch, changes, length):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 48)
    # Few numbers, so that most of what is changed is what is parsed.
    arrays = {name: array[:9] if array.ndim else array for name, array in some_arrays().items() if "many/1" not in name}
    content = bytearray(by_flax(arrays))
    for place, value in changes:
        content[place % len(content)] = value
    mutated = tmp_path / "mutated"
    mutated.write_bytes(content[: length if length < len(content) else None])
    try:
        found = open_flax_msgpack(mutated)
    except ValueError as error:
        assert str(error).startswith(f"{mutated}: not a readable flax_model.msgpack: ")
    else:
        assert sum(tensor.read().nbytes for tensor in found.values()) <= len(content)
        # what is accepted here flax accepts, too
        theirs = flax.traverse_util.flatten_dict(flax.serialization.msgpack_restore(bytes(content)), sep="/")
        assert {from_flax_name(name) for name in theirs} == found.keys()
        for name, array in theirs.items():
            tensor = found[from_flax_name(name)].read()
            kernel = array.ndim == 2 and name.endswith("kernel")
            np.testing.assert_array_equal(tensor, array.T if kernel else array, strict=True)


# -- files of transformers 4.57.6 (make_flax_fixtures.py) ----------------------------------------------------


@pytest.mark.parametrize("name", ["pretraining", "masked_lm_untied", "classification_sharded", "model_bfloat16"])
def test_models_that_flax_classes_saved_compute_the_same(name):
    model, params = flaxbert.from_pretrained(FIXTURES / name)
    expected = dict(np.load(FIXTURES / name / "expected.npz"))
    outputs = {key.removeprefix("output."): expected.pop(key) for key in list(expected) if key.startswith("output.")}
    found = model.apply({"params": params}, **expected)
    assert outputs
    for key, output in outputs.items():
        np.testing.assert_allclose(getattr(found, key), output, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "file", sorted(FIXTURES.glob("*/*.msgpack")), ids=lambda file: f"{file.parent.name}-{file.name}"
)
def test_files_that_flax_classes_saved_are_written_again_as_they_are(tmp_path, file):
    written(tmp_path / "file", {name: tensor.read() for name, tensor in open_flax_msgpack(file).items()})
    assert (tmp_path / "file").read_bytes() == file.read_bytes()
