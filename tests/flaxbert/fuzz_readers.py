"""Fuzz the readers of every format: mutate small checkpoints and read them.

    python tests/flaxbert/fuzz_readers.py [--mutations 12300] [--seed 0]

A mutation must end in a model, or in a ValueError or FileNotFoundError that names a file of its folder. An audit hook
reports files that are opened outside of the folder, and everything that would run code. Prints the outcomes by reader
as JSON. The first mutations of each reader are the same for every number of mutations.
"""

import argparse
import collections
import dataclasses
import json
import logging
import math
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path[0] = str(Path(__file__).parents[2])  # so that it runs as a script, too

import jax
import numpy as np
import orbax.checkpoint  # noqa: F401 - imported by readers on demand, but here before the hook is set
import torch

import flaxbert
from flaxbert.conversion.convert import convert
from flaxbert.conversion.origin import resolve_checkpoint_path
from flaxbert.conversion.output import FORMATS
from flaxbert.tokenizer import WordPieceTokenizer
from flaxbert.weights.checkpoint import open_checkpoint
from flaxbert.weights.formats.tensorflow_encoding import masked_crc32c, read_varint

CONFIG = flaxbert.BertConfig(
    vocab_size=11, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=5, type_vocab_size=1,
    max_position_embeddings=6, add_cross_attention=False,
)  # fmt: skip
NUMBER_TEXTS = (b"0", b"-1", b"1e99", b"9" * 30, b"4611686018427387904", b"null", b'"a"', b"[]", b"{}", b"NaN", b"true")
STRING_TEXTS = (b'"../../etc/passwd"', b'"/etc/passwd"', b'"\\ud800"', b'"' + b"x" * 5000 + b'"', b'"a\\u0000b"', b'""')


# -- mutations -------------------------------------------------------------------------------------------------


def mutate(content: bytes, random: np.random.Generator) -> bytes:
    """Apply one to three random changes: of bytes, or of numbers, strings and nesting in text."""
    changed = bytearray(content)
    for _ in range(random.integers(1, 4)):
        random.choice(TEXT_CHANGES if random.random() < 0.4 else BYTE_CHANGES)(changed, random)
    return bytes(changed)


def position(content, random):
    # Near one of the ends in most cases: headers are there, and short in comparison with the data.
    size = len(content)
    near = random.choice([size, min(size, 64), min(size, 1024)])
    at = int(random.integers(0, max(1, near)))
    return at if random.random() < 0.7 else max(0, size - 1 - at)


def flip(content, random):
    if content:
        content[position(content, random)] ^= 1 << int(random.integers(8))


def set_byte(content, random):
    if content:
        content[position(content, random)] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF, int(random.integers(256))]))


def large_number(content, random):
    at = position(content, random)
    content[at : at + 8] = bytes(random.choice([0, 255], 8).astype(np.uint8))


def cut(content, random):
    del content[position(content, random) :]


def remove(content, random):
    at = position(content, random)
    del content[at : at + int(random.integers(1, 40))]


def insert(content, random):
    content[(at := position(content, random)) : at] = random.bytes(int(random.integers(1, 40)))


def double(content, random):
    at, length = position(content, random), int(random.integers(1, 400))
    content[at:at] = content[at : at + length]


def exchange(pattern):
    def change(content, random):
        found = [match.span() for match in re.finditer(pattern, bytes(content))]
        if found:
            start, stop = found[int(random.integers(len(found)))]
            content[start:stop] = random.choice(np.array(NUMBER_TEXTS + STRING_TEXTS, object))

    return change


def nest(content, random):
    at = position(content, random)
    content[at:at] = random.choice(np.array([b"[", b'{"a":', b"(", b"\x81\xa1a", b"}", b"]"], object)) * 20000


# Most changes keep the length, because a file of another length is often refused for that alone.
BYTE_CHANGES = np.array([flip] * 6 + [set_byte] * 3 + [large_number] * 2 + [cut, remove, insert, double], object)
TEXT_CHANGES = np.array([exchange(rb"-?\d+"), exchange(rb'"[^"]*"'), exchange(rb"\[[^\[\]]*\]"), nest], object)


# -- readers -------------------------------------------------------------------------------------------------------


def load_model(folder):
    flaxbert.from_pretrained(folder)


def read_tensors(folder):
    for tensor in open_checkpoint(folder).tensors.values():
        tensor.read()


def read_zip(folder):
    with resolve_checkpoint_path(str(folder / "a.zip")) as unpacked:
        read_tensors(unpacked)


def convert_folder(folder):
    convert(folder, folder / "out")


def read_config(folder):
    flaxbert.BertConfig.from_pretrained(folder)


def verify_checksums(folder):
    open_checkpoint(folder).verify_checksums()


def load_tokenizer(folder):
    WordPieceTokenizer.load(folder)


# -- mutations of a folder's files -----------------------------------------------------------------------------


def mutate_table_block(folder, random):
    """Mutate the first block of a TensorFlow index and correct its CRC."""
    file = folder / "bert_model.ckpt.index"
    content = bytearray(file.read_bytes())
    end = _first_block_size(content)
    block = mutate(bytes(content[:end]), random)[:end].ljust(end, b"\0") + b"\0"  # and the byte for compression
    content[: end + 5] = block + masked_crc32c(block).to_bytes(4, "little")
    file.write_bytes(content)


def _first_block_size(content):
    footer, position, handles = content[-48:], 0, []
    for _ in range(4):  # offset and size of the block of metadata, then of the index block
        number, position = read_varint(footer, position)
        handles.append(number)
    position = handles[2]
    _, position = read_varint(content, position)  # first entry of the index block: shared bytes of the key,
    key_length, position = read_varint(content, position)  # other bytes of the key,
    _, position = read_varint(content, position)  # length of the value: offset and size of the first block
    offset, position = read_varint(content, position + key_length)
    assert offset == 0
    return read_varint(content, position)[0]


def mutate_pickle(folder, random):
    """Mutate the pickle of a PyTorch zip file and pack it again with correct CRCs."""
    file = folder / "pytorch_model.bin"
    with zipfile.ZipFile(file) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            archive.writestr(name, mutate(content, random) if name.endswith("data.pkl") else content)


def mutate_one_of(*names):
    def change(folder, random):
        file = folder / str(random.choice(names))
        file.write_bytes(mutate(file.read_bytes(), random))

    return change


def mutate_any_of(pattern):
    def change(folder, random):
        files = sorted(path for path in folder.rglob(pattern) if path.is_file())
        file = files[int(random.integers(len(files)))]
        file.write_bytes(mutate(file.read_bytes(), random))

    return change


@dataclasses.dataclass(frozen=True)
class Case:
    """A folder, how to mutate it, how to read it, and its share of 12,300 mutations."""

    folder: Path
    change: Callable[[Path, np.random.Generator], None]
    read: Callable[[Path], None]
    share: int


def make_cases(above: Path) -> dict[str, Case]:
    """Write the folders to mutate and return the cases by name."""
    model = flaxbert.BertModel(CONFIG)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(0, 1, leaf.shape).astype(np.float32), model.parameter_shapes())
    flaxbert.save_pretrained(above / "whole", model, params)
    flaxbert.save_pretrained(above / "shards", model, params, max_shard_size=500)
    for form in FORMATS:
        convert(above / "whole", above / form, format=form)
    convert(above / "whole", above / "sums")
    for form in ("pytorch", "flax", "orbax"):
        (above / form / "SHA256SUMS").unlink()
    shutil.copytree(above / "pytorch", above / "old")
    state = torch.load(above / "pytorch" / "pytorch_model.bin", weights_only=True)
    torch.save(state, above / "old" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    shutil.copytree(Path(__file__).parent / "fixtures" / "tf1" / "encoder", above / "tf1")
    (above / "tf1" / "expected.json").unlink()
    (above / "zip").mkdir()
    with zipfile.ZipFile(above / "zip" / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((above / "tf1").iterdir()):
            archive.write(file, f"uncased/{file.name}")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b"]
    shutil.copytree(above / "whole", above / "beside")
    WordPieceTokenizer.train(["a b"], vocab_size=11).save(above / "beside", max_length=6)
    (above / "beside" / "vocab.txt").write_text("\n".join(words) + "\n")
    (above / "beside" / "modules.json").write_text(
        '[{"idx": 0, "path": "", "type": "Transformer"}, {"idx": 1, "path": "2_Dense", "type": "Dense"}]'
    )
    (above / "beside" / "2_Dense").mkdir()
    torch.save({"linear.weight": torch.ones(2, 2)}, above / "beside" / "2_Dense" / "pytorch_model.bin")
    return {
        "safetensors": Case(above / "whole", mutate_one_of("model.safetensors"), read_tensors, 2500),
        "config.json": Case(above / "whole", mutate_one_of("config.json"), read_config, 600),
        "index.json": Case(above / "shards", mutate_one_of("model.safetensors.index.json"), read_tensors, 1500),
        "SHA256SUMS": Case(above / "sums", mutate_one_of("SHA256SUMS", "model.safetensors"), verify_checksums, 600),
        "pytorch": Case(above / "pytorch", mutate_one_of("pytorch_model.bin"), read_tensors, 700),
        "pytorch, pickle": Case(above / "pytorch", mutate_pickle, read_tensors, 700),
        "pytorch, before 1.6": Case(above / "old", mutate_one_of("pytorch_model.bin"), read_tensors, 700),
        "flax": Case(above / "flax", mutate_one_of("flax_model.msgpack"), read_tensors, 1500),
        "tensorflow": Case(
            above / "tf1",
            mutate_one_of("bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"),
            read_tensors,
            700,
        ),
        "tensorflow, correct CRC": Case(above / "tf1", mutate_table_block, read_tensors, 1500),
        "zip": Case(above / "zip", mutate_one_of("a.zip"), read_zip, 700),
        "orbax": Case(above / "orbax", mutate_any_of("*"), read_tensors, 20),
        "tokenizer": Case(
            above / "beside", mutate_one_of("tokenizer.json", "vocab.txt", "tokenizer_config.json"), load_tokenizer, 500
        ),
        "a whole folder, converted": Case(above / "beside", mutate_any_of("*"), convert_folder, 40),
        "a whole folder, loaded": Case(above / "sums", mutate_any_of("*"), load_model, 40),
    }


# -- allowed outcomes ------------------------------------------------------------------------------------------

watched_folder: Path | None = None
violations: list[str] = []


def audit(event, arguments):
    """Record files that a reader opens outside of the folder, and attempts to run code or to connect."""
    if watched_folder is None:
        return
    if event == "open" and isinstance(arguments[0], str) and os.path.exists(arguments[0]):  # not relative to a dir_fd
        path = os.path.realpath(arguments[0])
        allowed = (str(watched_folder), sys.prefix, sys.base_prefix, "/proc/", "/sys/")
        if not path.startswith(allowed) and "flaxbert-" not in path and path != "/dev/null":
            violations.append(f"open {path}")
    elif event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect", "pty.spawn"):
        violations.append(f"{event} {arguments!r}"[:200])


def is_expected(error, folder) -> bool:
    names_a_file = "flaxbert-" in str(error) or str(folder) in str(error)
    return isinstance(error, ValueError | FileNotFoundError) and names_a_file


def attempt(case: Case, work: Path, random) -> tuple[str, list[str]]:
    """Mutate a copy of the folder and read it; return "read" or "refused", and the violations."""
    global watched_folder
    folder, names_above = work / "x", {path.name for path in work.parent.iterdir()}
    shutil.copytree(case.folder, folder)
    case.change(folder, random)
    wrong, outcome, watched_folder = [], "read", work
    try:
        case.read(folder)
    except BaseException as error:
        outcome = "refused"
        if not is_expected(error, folder):
            wrong.append(f"{type(error).__name__}: {str(error)[:300]}")
    watched_folder = None
    wrong += violations
    violations.clear()
    left = {path.name for path in work.iterdir()} - {"x"}
    left |= {path.name for path in work.parent.iterdir()} - names_above - {work.name}
    wrong += [f"left {name}" for name in left]
    shutil.rmtree(work)
    return outcome, wrong


def main(arguments=None):
    """Run all cases; return exit code 1 after a violation."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mutations", type=int, default=12_300, help="least number of mutations of all readers")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="Sharding info not provided")  # orbax, for an array on the host
    sys.addaudithook(audit)
    report, seconds, wrong = {}, {}, []
    with tempfile.TemporaryDirectory() as above:
        cases = make_cases(Path(above))
        work = Path(above) / "work"
        for case in cases.values():  # unchanged first, so that on-demand imports and their memory are not counted
            shutil.copytree(case.folder, work / "x")
            case.read(work / "x")
            shutil.rmtree(work)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        shares = sum(case.share for case in cases.values())
        for number, (name, case) in enumerate(cases.items()):
            outcomes, started = collections.Counter(), time.perf_counter()
            for i in range(math.ceil(case.share * flags.mutations / shares)):
                outcome, found = attempt(case, work, np.random.default_rng([flags.seed, number, i]))
                outcomes[outcome] += 1
                wrong += [f"{name} {i}: {violation}" for violation in found]
            report[name], seconds[name] = dict(outcomes), round(time.perf_counter() - started, 1)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    total = sum(sum(outcomes.values()) for outcomes in report.values())
    result = {"readers": report, "seconds": seconds, "mutations": total, "grown_kilobytes": grown, "wrong": wrong}
    print(json.dumps(result, indent=2))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
