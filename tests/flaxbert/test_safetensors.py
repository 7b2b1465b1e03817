"""The safetensors format: the same bytes as its own library's, and no other error than ValueError on broken files."""

import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from flaxbert.weights.formats.safetensors import open_safetensors, safetensors_order, write_safetensors
from flaxbert.weights.tensors import TensorSpec
from tests.flaxbert.array_tensor import ArrayTensor


def some_tensors():
    rng = np.random.default_rng(0)
    return {
        "b.matrix": rng.normal(size=(7, 5)).astype(np.float32),
        "a.vector": rng.normal(size=11).astype(np.float16),
        "scalar": np.array(2.5, np.float64),
        "empty": np.zeros((0, 4), np.float32),
        "whole": np.arange(6).reshape(2, 3, 1),
        "flags": np.array([True, False, True]),
        "ü": rng.normal(size=(3, 2)).astype(ml_dtypes.bfloat16),
    }


def written(path, tensors):
    specs = safetensors_order(TensorSpec(name, t.dtype, t.shape) for name, t in tensors.items())
    return write_safetensors(path, specs, (ArrayTensor(tensors[spec.name]) for spec in specs))


def header(entries, data=b"", length=None):
    content = json.dumps(entries).encode() if not isinstance(entries, bytes) else entries
    return (len(content) if length is None else length).to_bytes(8, "little") + content + data


def test_the_same_bytes_as_the_library(tmp_path):
    save_file(some_tensors(), tmp_path / "theirs", metadata={"format": "pt"})
    written(tmp_path / "ours", some_tensors())
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_what_the_library_wrote_is_read_whole_and_in_rows(tmp_path):
    tensors = some_tensors()
    save_file(tensors, tmp_path / "file", metadata={"format": "pt"})
    found = open_safetensors(tmp_path / "file")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        stored = found[name]
        assert (stored.dtype, stored.shape, stored.size) == (tensor.dtype, tensor.shape, tensor.nbytes)
        np.testing.assert_array_equal(stored.read(), tensor)
        if tensor.ndim:
            for rows in (slice(0, 0), slice(1, None), slice(1, 3), slice(0, 99)):
                np.testing.assert_array_equal(stored.read(rows), tensor[rows])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a header of 0 bytes in a file of 0"),
        (b"\x05\0\0\0\0\0\0\0{}", "a header of 5 bytes in a file of 10"),
        (header({}, length=2**63), "a header of 9223372036854775808 bytes"),
        (header(b"{"), "not a readable safetensors file"),
        (header(b"\xff\xfe"), "not a readable safetensors file"),
        (header(b'{"a":' * 100_000), "not a readable safetensors file"),
        (header(b"[]"), "the header is not an object"),
        (header(b'{"a": 1, "a": 1}'), "a name occurs twice"),
        (header({"a": 1}), "the entry of 'a' is 1"),
        (header({"__metadata__": {"a": 1}}), "__metadata__ holds values that are not strings"),
        (header({"a": {"dtype": "F32", "shape": [1]}}), "the entry of 'a'"),
        (header({"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}}, b"1234"), "of type 'X'; known: BOOL"),
        (header({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"1234"), r"shape \[True\]"),
        (header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"), r"shape \[-1\]"),
        (header({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, b"1234"), r"shape \[1.0\]"),
        (header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"), "has 4 bytes"),
        (header({"a": {"dtype": "F32", "shape": [2**40] * 3, "data_offsets": [0, 4]}}, b"1234"), "has 4 bytes"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, b"1234"), "has -4 bytes"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678"), "begins at byte"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12345"), "the tensors end at byte"),
        (header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"123"), "the tensors end at byte"),
        (
            header({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, b"1234"),
            "'b' begins at byte",
        ),
    ],
)
def test_a_header_that_breaks_the_rules(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        open_safetensors(tmp_path / "file")
    assert str(tmp_path / "file") in str(error.value)


def test_a_tensor_that_is_cut_after_its_header_was_read(tmp_path):
    written(tmp_path / "file", some_tensors())
    found = open_safetensors(tmp_path / "file")
    with (tmp_path / "file").open("r+b") as file:
        file.truncate(found["whole"].offset + 3)
    with pytest.raises(ValueError, match="ends within 'whole'"):
        found["whole"].read()


def test_tensors_must_be_what_was_announced(tmp_path):
    spec = TensorSpec("a", np.dtype(np.float32), (3,))
    for wrong in (np.zeros(4, np.float32), np.zeros(3, np.float64)):
        with pytest.raises(ValueError, match="announced as"):
            write_safetensors(tmp_path / "file", [spec], [ArrayTensor(wrong)])


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6), st.integers(0, 10_000))
def test_mutated_files_are_read_or_refused(tmp_path, changes, length):
    whole = tmp_path / "whole"
    if not whole.exists():
        written(whole, some_tensors())
    content = bytearray(whole.read_bytes())
    for place, value in changes:
        content[place % len(content)] = value
    mutated = tmp_path / "mutated"
    mutated.write_bytes(content[: length if length < len(content) else None])
    try:
        found = open_safetensors(mutated)
    except ValueError as error:
        assert str(mutated) in str(error)
    else:
        assert sum(tensor.read().nbytes for tensor in found.values()) <= len(content)
        load_file(mutated)  # what is accepted here the library accepts, too
