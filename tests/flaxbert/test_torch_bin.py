"""PyTorch's files of weights: what torch wrote is read, torch reads what is written, and hostile files are refused."""

import collections
import io
import os
import pickle
import pickletools
import resource
import struct
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flaxbert.weights.formats.torch_bin import open_torch_bin, write_torch_bin
from flaxbert.weights.tensors import LazyTensor, TensorSpec
from tests.flaxbert.array_tensor import ArrayTensor

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

DTYPES = ["float32", "float16", "bfloat16", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"]
BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])


def some_arrays():
    """Of every type, with all bit patterns that come up: NaNs with a payload, too."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name in DTYPES:
        dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
        content = rng.integers(0, 2 if name == "bool" else 256, 15 * dtype.itemsize, np.uint8)
        arrays[name] = content.view(dtype).reshape(5, 3)
    arrays["scalar"] = np.array(2.5, np.float32)
    arrays["empty"] = np.zeros((0, 4), np.float32)
    arrays["ü.weight"] = arrays["bfloat16"][:, :1].copy()
    return arrays


def as_torch(array):
    if not array.size:
        return torch.empty(array.shape, dtype=getattr(torch, array.dtype.name))
    # Not from_numpy: it cannot have bfloat16.
    return torch.frombuffer(bytearray(array.tobytes()), dtype=getattr(torch, array.dtype.name)).reshape(array.shape)


def same_bits(found, expected):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    bits = BITS[expected.dtype.itemsize]
    np.testing.assert_array_equal(np.ascontiguousarray(found).view(bits), np.ascontiguousarray(expected).view(bits))


def saved(path, content, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def refused(path, message):
    with pytest.raises(ValueError, match=message) as error:
        open_torch_bin(path)
    text = str(error.value)
    assert text.startswith(f"{path}: not a readable PyTorch file: ") and "\n" not in text and "weights_only" not in text


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped_again(path, contents, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def with_pickle(path, content, zipped):
    """A file of torch's with another pickle in the place of the state dict's."""
    saved(path, {"a": torch.ones(3)}, zipped)
    if zipped:
        return zipped_again(path, {n: content if n.endswith("data.pkl") else c for n, c in members(path).items()})
    stream = io.BytesIO(path.read_bytes())
    ends = []
    for _ in range(5):
        collections.deque(pickletools.genops(stream), maxlen=0)
        ends.append(stream.tell())
    whole = stream.getvalue()
    path.write_bytes(whole[: ends[2]] + content + whole[ends[3] :])
    return path


def storage_place(path):
    """Where the bytes of the only tensor lie in a zip file."""
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if "/data/" in info.filename and "/." not in info.filename)
    header = path.read_bytes()[info.header_offset :][:30]
    return info.header_offset + 30 + sum(struct.unpack("<HH", header[26:])), info


# -- reading ---------------------------------------------------------------------------------------------


@FORMATS
def test_what_torch_wrote_is_read_whole_and_in_rows(tmp_path, zipped):
    arrays = some_arrays()
    found = open_torch_bin(saved(tmp_path / "file", {name: as_torch(a) for name, a in arrays.items()}, zipped))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert isinstance(found[name], LazyTensor)
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        same_bits(found[name].read(), array)
        if array.ndim:
            for rows in (slice(0, 0), slice(1, None), slice(1, 3), slice(0, 99)):
                same_bits(found[name].read(rows), array[rows])


@FORMATS
def test_views_parameters_and_tied_tensors(tmp_path, zipped):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "transposed": base.T,
        "strided": base[1::2, ::3],
        "negative": torch.view_as_complex(torch.arange(6.0).reshape(3, 2)).conj().imag,
        "negative bfloat16": base.to(torch.bfloat16).T,
        "parameter": torch.nn.Parameter(base),
        "frozen": torch.nn.Parameter(base.to(torch.bfloat16), requires_grad=False),
        "tied": base,
    }
    assert tensors["negative"].is_neg()
    found = open_torch_bin(saved(tmp_path / "file", collections.OrderedDict(tensors), zipped))
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(
            found[name].read().astype(np.float32), tensor.detach().resolve_neg().float().numpy()
        )
        np.testing.assert_array_equal(
            found[name].read(slice(1, 2)).astype(np.float32), tensor[1:2].detach().resolve_neg().float()
        )


@FORMATS
def test_the_state_dict_of_a_model(tmp_path, zipped):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    found = open_torch_bin(saved(tmp_path / "file", model.state_dict(), zipped))
    for name, tensor in model.state_dict().items():
        same_bits(found[name].read(), tensor.numpy())


def test_a_part_of_a_tensor_is_read_without_the_rest(tmp_path):
    tensor = torch.zeros(2**14, 2**12, dtype=torch.uint8)  # 64 MiB
    for zipped in (True, False):
        found = open_torch_bin(saved(tmp_path / "file", {"a": tensor}, zipped))["a"]
        part = found.read(slice(5, 7))
        assert np.shares_memory(part, found.read())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_of_protocol_3_is_read(tmp_path, zipped):
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}
    file = tmp_path / "pytorch_model.bin"
    torch.save(state, file, pickle_protocol=3, _use_new_zipfile_serialization=zipped)
    found = open_torch_bin(file)
    np.testing.assert_array_equal(found["a"].read(), state["a"].numpy())
    np.testing.assert_array_equal(found["b"].read().astype(np.float32), np.ones(3, np.float32))


def test_a_file_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        saved(tmp_path / "file", {"a": torch.ones(3)})
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(open_torch_bin(tmp_path / "file")["a"].read(), np.ones(3))


@pytest.mark.parametrize("version", [None, "2.9.1"])
def test_without_a_torch_that_is_safe(tmp_path, monkeypatch, version):
    saved(tmp_path / "file", {"a": torch.ones(3)})
    if version is None:
        monkeypatch.setitem(sys.modules, "torch", None)
    else:
        monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    for use in (open_torch_bin, lambda file: write_torch_bin(file, [], [])):
        with pytest.raises(ValueError, match=r"torch 2.10 or newer.*pip install 'flaxbert\[torch\]'") as error:
            use(tmp_path / "file")
        assert str(tmp_path / "file") in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_torch_bin(tmp_path / "file")


# -- writing ---------------------------------------------------------------------------------------------


def written(path, arrays):
    specs = [TensorSpec(name, array.dtype, array.shape) for name, array in arrays.items()]
    return write_torch_bin(path, specs, map(ArrayTensor, arrays.values()))


def test_what_is_written_torch_reads(tmp_path):
    arrays = some_arrays() | {"transposed": np.arange(6.0).reshape(2, 3).T}
    written(tmp_path / "file", arrays)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    found = torch.load(tmp_path / "file", weights_only=True)
    ours = open_torch_bin(tmp_path / "file")
    assert list(found) == list(ours) == list(arrays)
    for name, array in arrays.items():
        assert torch.equal(
            found[name].contiguous().view(-1).view(torch.uint8), as_torch(array).view(-1).view(torch.uint8)
        )
        assert found[name].shape == array.shape and found[name].untyped_storage().nbytes() == array.nbytes
        same_bits(ours[name].read(), array)


def test_the_same_tensors_give_the_same_file_wherever_it_lies(tmp_path):
    written(tmp_path / "a", some_arrays())
    written(tmp_path / "another name", some_arrays())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "another name").read_bytes()


def test_no_tensors(tmp_path):
    written(tmp_path / "file", {})
    assert open_torch_bin(tmp_path / "file") == {}


def test_tensors_must_be_what_was_announced(tmp_path):
    spec = TensorSpec("a", np.dtype(np.float32), (3,))
    for wrong in (np.zeros(4, np.float32), np.zeros(3, np.float64)):
        with pytest.raises(ValueError, match="announced as"):
            write_torch_bin(tmp_path / "file", [spec], [ArrayTensor(wrong)])
    with pytest.raises(ValueError, match="'a' is of type uint32"):
        write_torch_bin(tmp_path / "file", [TensorSpec("a", np.dtype("u4"), (3,))], [ArrayTensor(np.zeros(3, "u4"))])
    with pytest.raises(ValueError, match="shorter"):
        write_torch_bin(tmp_path / "file", [spec], [])
    assert list(tmp_path.iterdir()) == []


def test_transformers_loads_a_folder_with_what_is_written(tmp_path):
    config = transformers.BertConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = transformers.BertModel(config)
    config.save_pretrained(tmp_path)
    written(tmp_path / "pytorch_model.bin", {name: t.numpy() for name, t in model.state_dict().items()})
    loaded, report = transformers.BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


# -- hostile files ---------------------------------------------------------------------------------------


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@FORMATS
def test_code_in_a_pickle_does_not_run(tmp_path, zipped):
    marker = tmp_path / "marker"
    content = {"a": torch.ones(3), "b": Call(os.mkdir, str(marker))}
    refused(saved(tmp_path / "file", content, zipped), r"it holds a posix\.mkdir")
    assert not marker.exists()
    torch.load(tmp_path / "file", weights_only=False)
    assert marker.exists()  # or this test tells nothing


@FORMATS
def test_code_that_a_program_has_allowed_does_not_run_either(tmp_path, zipped):
    marker = tmp_path / "marker"
    saved(tmp_path / "file", {"b": Call(Path.mkdir, marker)}, zipped)
    with torch.serialization.safe_globals([Path.mkdir, (type(marker), f"pathlib.{type(marker).__name__}")]):
        refused(tmp_path / "file", "it holds a")
    assert not marker.exists()


@FORMATS
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Call(bytearray, 2**30), "it holds a __builtin__.bytearray"),
        (Call(torch.FloatTensor, 2**30), "it holds a torch.FloatTensor"),
        (Call(collections.OrderedDict, {"a": 1}), "calls a function"),
        ({(((1, 2), 3), 4): 1}, "nests tuples deeper"),
        ({2**64: 1}, "its pickle holds LONG1"),
        (b"\x80\x02}", "pickle exhausted before seeing STOP|opcode .* unknown"),
        (b"\x80\x02}X\xff\xff\xff\xffa", "expected 4294967295 bytes"),
        (b"\x80\x04}.", "its pickle holds PROTO 4"),
        (b"\x80\x02]}b.", "its pickle holds BUILD"),
        (b"", "pickle exhausted before seeing STOP|opcode .* unknown"),
        (b"\x80\x02u.", "pop from empty list"),
        (b"\x80\x02ctorch\n\\load\n.", r"it holds a torch\.\\load"),
    ],
)
def test_pickles_that_torch_save_does_not_write(tmp_path, content, message, zipped):
    content = content if isinstance(content, bytes) else pickle.dumps(content, 2)
    refused(with_pickle(tmp_path / "file", content, zipped), message)


@FORMATS
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "it holds a Tensor, not a dict of tensors"),
        ([torch.ones(3)], "it holds a list, not a dict of tensors"),
        ({"a": torch.ones(3), "state_dict": {"a": torch.ones(3)}}, "'state_dict' is a dict, not a tensor"),
        ({"epoch": 3, "model": {}, "lr": 0.5, "betas": (0.9, 0.99), "steps": [1, 2]}, "'epoch' is a int, not a tensor"),
        ({1: torch.ones(3)}, "'1' is a Tensor, not a tensor"),
        ({"a": torch.ones(3).to_sparse()}, "it holds a torch._utils._rebuild_sparse_tensor"),
        ({"a": torch.ones(3, device="meta")}, "it holds a torch._utils._rebuild_meta_tensor_no_storage"),
        ({"a": torch.ones(3, dtype=torch.complex64)}, "it holds a torch.ComplexFloatStorage"),
        ({"a": torch.ones(3, dtype=torch.float8_e4m3fn)}, "it holds a torch.Float8_e4m3fnStorage|_rebuild_tensor_v3"),
        ({"a": torch.ones(3).expand(1000, 3)}, r"a tensor of shape \[1000, 3\] and strides \[0, 1\]"),
        ({"a": torch.ones(3).expand(3, 3)}, "does not fit into its storage of 3 numbers"),
        ({str(i): base for base in [torch.ones(4096)] for i in range(4)}, "more than twice the size"),
    ],
)
def test_what_is_no_state_dict_of_dense_tensors(tmp_path, content, message, zipped):
    refused(saved(tmp_path / "file", content, zipped), message)


@pytest.mark.filterwarnings("ignore")  # quantization is deprecated
@FORMATS
def test_quantized_tensors(tmp_path, zipped):
    content = {"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}
    refused(saved(tmp_path / "file", content, zipped), "it holds a torch._utils._rebuild_qtensor")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it begins with b''"),
        (b"PK\3\4", "it does not end as a zip archive does"),
        (b"an ordinary text\n", "it begins with b'an ordin', as neither of PyTorch's formats does"),
        (b"\x80\x02}q\x00.", "as neither of PyTorch's formats does"),
    ],
)
def test_files_of_other_formats(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    refused(tmp_path / "file", message)


def test_an_archive_of_something_else(tmp_path):
    refused(zipped_again(tmp_path / "file", {"a/b": b"c"}), "the archive holds no state dict")
    content = {"a/data.pkl": pickle.dumps({}, 2), "a/constants.pkl": pickle.dumps({}, 2)}
    refused(zipped_again(tmp_path / "file", content), "is it a TorchScript archive")


@FORMATS
def test_every_cut_is_refused(tmp_path, zipped):
    whole = saved(tmp_path / "whole", {"a": torch.arange(50.0)}, zipped).read_bytes()
    for length in range(0, len(whole), 11):
        (tmp_path / "file").write_bytes(whole[:length])
        refused(tmp_path / "file", "not a readable")


def test_flipped_bits_of_a_tensor_are_found(tmp_path):
    whole = saved(tmp_path / "file", {"a": torch.arange(50.0)}).read_bytes()
    place, info = storage_place(tmp_path / "file")
    for bit in range(0, 8 * info.file_size, 7):
        content = bytearray(whole)
        content[place + bit // 8] ^= 1 << bit % 8
        (tmp_path / "file").write_bytes(content)
        refused(tmp_path / "file", r"Bad CRC-32 for file '.*/data/0'")


def test_compressed_members(tmp_path):
    saved(tmp_path / "file", {"a": torch.zeros(5000)})
    zipped_again(tmp_path / "file", members(tmp_path / "file"), zipfile.ZIP_DEFLATED)
    torch.load(tmp_path / "file", weights_only=True)  # which torch has nothing against
    refused(tmp_path / "file", "is compressed or encrypted")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(tmp_path):
    saved(tmp_path / "file", {"a": torch.zeros(5)})
    zipped_again(tmp_path / "file", members(tmp_path / "file") | {"FILE/data.pkl": b"another"})
    refused(tmp_path / "file", "two members of the archive have the same name")


def changed_directory(path, name, field, value):
    """Writes a number into a member's entry of the directory; `field` is its struct format and offset there."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = archive.start_dir
    while content[place + 46 : place + 46 + (length := content[place + 28])].decode() != name:
        place += 46 + length + sum(struct.unpack_from("<HH", content, place + 30))
    struct.pack_into(field[0], content, place + field[1], *value)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (("<II", 20), (2**32 - 2,) * 2, "of 4294967294 bytes at byte"),  # as long as it can say
        (("<II", 20), (300, 300), "overlaps byte"),  # into the next one
        (("<I", 42), (0,), "overlaps byte|differ"),  # the place of the first one
        (("<I", 42), (2**31,), "unpack requires"),
        (("<H", 8), (0x809,), "is compressed or encrypted"),
    ],
)
def test_members_that_are_not_where_they_should_be(tmp_path, field, value, message):
    saved(tmp_path / "file", {"a": torch.zeros(50), "b": torch.zeros(50)})
    refused(changed_directory(tmp_path / "file", "file/data/0", field, value), message)


def test_a_member_of_terabytes(tmp_path):
    saved(tmp_path / "file", {"a": torch.zeros(50)})
    with zipfile.ZipFile(tmp_path / "other", "w") as archive:
        for name, content in members(tmp_path / "file").items():
            archive.writestr(name, content)
        for info in archive.infolist()[4:5]:
            info.file_size = info.compress_size = 2**42
    refused(tmp_path / "other", "of 4398046511104 bytes at byte")


def test_archives_whose_end_another_reader_would_find_elsewhere(tmp_path):
    whole = saved(tmp_path / "file", {"a": torch.zeros(50)}).read_bytes()
    for content in (
        whole + b"behind it",
        b"PK\3\4" + whole,
        whole[:-2] + b"\1\0c",
        whole[:-34] + bytes(8) + whole[-26:],
        whole[:-50] + struct.pack("<Q", 1) + whole[-42:],
    ):
        (tmp_path / "file").write_bytes(content)
        refused(tmp_path / "file", "it does not end|a directory of|the end of the archive")


class Claims(pickle.Pickler):
    """Names a storage of a terabyte where MARKER stands."""

    MARKER = frozenset({"the storage"})

    def persistent_id(self, obj):
        if obj == self.MARKER:
            return "storage", torch.FloatStorage, "0", "cpu", 2**38
        return None


@FORMATS
def test_a_storage_that_claims_a_terabyte(tmp_path, zipped):
    stream = io.BytesIO()
    arguments = (Claims.MARKER, 0, (1,), (1,), False, collections.OrderedDict())
    Claims(stream, 2).dump({"a": Call(torch._utils._rebuild_tensor_v2, *arguments)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = (
        "storage '0' has 1099511627776 bytes, its member" if zipped else "the storages that it lists are not those"
    )
    refused(with_pickle(tmp_path / "file", stream.getvalue(), zipped), message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


def test_an_old_file_whose_storages_are_not_as_long_as_it_says(tmp_path):
    whole = saved(tmp_path / "file", {"a": torch.ones(200)}, False).read_bytes()
    claim = b"K\xc8Nt"  # 200, None, and the end of the tuple
    assert whole.count(claim) == 1
    (tmp_path / "file").write_bytes(whole.replace(claim, b"J\0\0\0\x70Nt"))
    refused(tmp_path / "file", "its tensors end at byte 7516")


@FORMATS
def test_mutated_files_are_read_or_refused(tmp_path, zipped):
    whole = saved(tmp_path / "whole", {name: as_torch(a) for name, a in some_arrays().items()}, zipped).read_bytes()
    mutated = tmp_path / "mutated"

    @settings(
        max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(
        st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
        st.integers(0, 20_000),
    )
    def check(changes, length):
        content = bytearray(whole)
        for place, value in changes:
            content[place % len(content)] = value
        mutated.write_bytes(content[: length if length < len(content) else None])
        try:
            found = open_torch_bin(mutated)
        except ValueError as error:
            assert str(mutated) in str(error)
        else:
            assert sum(tensor.read().nbytes for tensor in found.values()) <= 2 * len(content)

    check()


@FORMATS
def test_mutated_pickles_are_read_or_refused(tmp_path, zipped):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4)).state_dict()
    whole = saved(tmp_path / "file", {**model, "p": torch.nn.Parameter(torch.ones(2))}, zipped)
    contents, start, mutated = {}, whole.read_bytes(), tmp_path / "mutated"
    if zipped:
        contents = members(whole)
        start = contents["file/data.pkl"]
    codes = st.one_of(st.integers(0, 255), st.sampled_from(list(b"(tRb}])\x85\x86\x87sueaqhQKMJ.N0\\")))

    @settings(
        max_examples=300, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(st.lists(st.tuples(st.integers(0, 900), codes), min_size=1, max_size=3))
    def check(changes):
        content = bytearray(start)
        for place, value in changes:
            content[place % len(content)] = value
        if zipped:  # with the checksums of what it now is
            zipped_again(mutated, {**contents, "file/data.pkl": bytes(content)})
        else:
            mutated.write_bytes(content)
        try:
            found = open_torch_bin(mutated)
        except ValueError as error:
            assert str(mutated) in str(error)
        else:
            assert sum(tensor.read().nbytes for tensor in found.values()) <= 2 * mutated.stat().st_size

    check()


def test_a_full_disk_is_reported_as_such(tmp_path):
    spec = TensorSpec("a", np.dtype(np.float32), (2_000_000,))
    (tmp_path / "a.bin").symlink_to("/dev/full")  # every write fails
    with pytest.raises(OSError, match="No space left on device"):
        write_torch_bin(tmp_path / "a.bin", [spec], [ArrayTensor(np.zeros(2_000_000, np.float32))])
