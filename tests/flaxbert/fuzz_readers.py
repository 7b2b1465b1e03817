"""Mutates small checkpoints of every format and reads them: each is read or refused, and nothing else happens.

    python tests/flaxbert/fuzz_readers.py [--scale 10] [--seed 1]

An audit hook sees every file that is opened and whatever would run code. What a mutation may end in is a model, a
ValueError or a FileNotFoundError that names a file of its folder. Prints what happened by reader, as JSON.
"""

import argparse
import collections
import json
import logging
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

from flaxbert.weights.checkpoint_files import open_checkpoint

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path[0] = str(Path(__file__).parents[2])  # so that it runs as a script, too

import google_crc32c
import jax
import numpy as np
import orbax.checkpoint  # noqa: F401 - what readers import when they are called is imported before the hook is set
import torch

import flaxbert
from flaxbert.conversion.convert import FORMATS, convert
from flaxbert.conversion.origin import resolve_checkpoint_path
from flaxbert.tokenizer import WordPieceTokenizer

CONFIG = flaxbert.BertConfig(
    vocab_size=11, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=5, type_vocab_size=1,
    max_position_embeddings=6, add_cross_attention=False,
)  # fmt: skip
NUMBERS = (b"0", b"-1", b"1e99", b"9" * 30, b"4611686018427387904", b"null", b'"a"', b"[]", b"{}", b"NaN", b"true")
STRINGS = (b'"../../etc/passwd"', b'"/etc/passwd"', b'"\\ud800"', b'"' + b"x" * 5000 + b'"', b'"a\\u0000b"', b'""')


# -- mutations -------------------------------------------------------------------------------------------------


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """A few changes of bytes, or of the numbers, strings and nesting of a text."""
    changed = bytearray(content)
    for _ in range(random.integers(1, 4)):
        random.choice(TEXT_CHANGES if random.random() < 0.4 else BYTE_CHANGES)(changed, random)
    return bytes(changed)


def place(content, random):
    # Headers are at both ends, and short beside the numbers that they describe.
    size = len(content)
    near = random.choice([size, min(size, 64), min(size, 1024)])
    at = int(random.integers(0, max(1, near)))
    return at if random.random() < 0.7 else max(0, size - 1 - at)


def flip(content, random):
    if content:
        content[place(content, random)] ^= 1 << int(random.integers(8))


def set_byte(content, random):
    if content:
        content[place(content, random)] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF, int(random.integers(256))]))


def large_number(content, random):
    at = place(content, random)
    content[at : at + 8] = bytes(random.choice([0, 255], 8).astype(np.uint8))


def cut(content, random):
    del content[place(content, random) :]


def remove(content, random):
    at = place(content, random)
    del content[at : at + int(random.integers(1, 40))]


def insert(content, random):
    content[(at := place(content, random)) : at] = random.bytes(int(random.integers(1, 40)))


def double(content, random):
    at, length = place(content, random), int(random.integers(1, 400))
    content[at:at] = content[at : at + length]


def exchange(pattern):
    def change(content, random):
        import re

        found = [match.span() for match in re.finditer(pattern, bytes(content))]
        if found:
            start, stop = found[int(random.integers(len(found)))]
            content[start:stop] = random.choice(np.array(NUMBERS + STRINGS, object))

    return change


def nest(content, random):
    at = place(content, random)
    content[at:at] = random.choice(np.array([b"[", b'{"a":', b"(", b"\x81\xa1a", b"}", b"]"], object)) * 20000


# Most in place: a file of another length is refused for that alone.
BYTE_CHANGES = np.array([flip] * 6 + [set_byte] * 3 + [large_number] * 2 + [cut, remove, insert, double], object)
TEXT_CHANGES = np.array([exchange(rb"-?\d+"), exchange(rb'"[^"]*"'), exchange(rb"\[[^\[\]]*\]"), nest], object)


# -- what is mutated, and how it is read -----------------------------------------------------------------------


def load(folder):
    """As a user does, and each tensor is read."""
    flaxbert.from_pretrained(folder)


def look(folder):
    for tensor in open_checkpoint(folder).tensors.values():
        tensor.read()


def unpack(folder):
    with resolve_checkpoint_path(str(folder / "a.zip")) as place:
        look(place)


def copy(folder):
    convert(folder, folder / "out")


def configure(folder):
    flaxbert.BertConfig.from_pretrained(folder)


def compare(folder):
    open_checkpoint(folder).verify_checksums()


def tokenizer(folder):
    WordPieceTokenizer.load(folder)


def checked_again(folder, random):
    """Mutates a table's first block, and makes its checksum right."""
    file = folder / "bert_model.ckpt.index"
    content = bytearray(file.read_bytes())
    footer = content[-48:]
    end = _first_block(bytes(content), bytes(footer))
    block = mutated(bytes(content[:end]), random)[:end].ljust(end, b"\0")
    crc = google_crc32c.value(block + b"\0")
    content[: end + 1] = block + b"\0"
    content[end + 1 : end + 5] = ((((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")
    file.write_bytes(content)


def _first_block(content, footer):
    from flaxbert.weights.formats import tensor_bundle

    _, at = tensor_bundle._handle(footer, 0)
    handle, _ = tensor_bundle._handle(footer, at)
    ((_, value), *_) = tensor_bundle._block(content, handle)
    return tensor_bundle._handle(value, 0)[0][1]


def pickled_again(folder, random):
    """Mutates the pickle of a zip, and packs it again."""
    file = folder / "pytorch_model.bin"
    with zipfile.ZipFile(file) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            archive.writestr(name, mutated(content, random) if name.endswith("data.pkl") else content)


def one_of(*names):
    def change(folder, random):
        file = folder / str(random.choice(names))
        file.write_bytes(mutated(file.read_bytes(), random))

    return change


def any_of(pattern):
    def change(folder, random):
        files = sorted(path for path in folder.rglob(pattern) if path.is_file())
        file = files[int(random.integers(len(files)))]
        file.write_bytes(mutated(file.read_bytes(), random))

    return change


def make(above: Path):
    """Folders to mutate: name -> (folder, change, read, how often)."""
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
    (above / "beside" / "modules.json").write_text('[{"idx": 0, "path": ""}, {"idx": 1, "path": "../x"}]')
    (above / "beside" / "2_Dense").mkdir()
    torch.save({"linear.weight": torch.ones(2, 2)}, above / "beside" / "2_Dense" / "pytorch_model.bin")
    return {
        "safetensors": (above / "whole", one_of("model.safetensors"), look, 2500),
        "config.json": (above / "whole", one_of("config.json"), configure, 600),
        "index.json": (above / "shards", one_of("model.safetensors.index.json"), look, 1500),
        "SHA256SUMS": (above / "sums", one_of("SHA256SUMS", "model.safetensors"), compare, 600),
        "pytorch": (above / "pytorch", one_of("pytorch_model.bin"), look, 700),
        "pytorch, pickle": (above / "pytorch", pickled_again, look, 700),
        "pytorch, before 1.6": (above / "old", one_of("pytorch_model.bin"), look, 700),
        "flax": (above / "flax", one_of("flax_model.msgpack"), look, 1500),
        "tensorflow": (
            above / "tf1",
            one_of("bert_model.ckpt.index", "bert_model.ckpt.data-00000-of-00001"),
            look,
            700,
        ),
        "tensorflow, checksums right": (above / "tf1", checked_again, look, 1500),
        "zip": (above / "zip", one_of("a.zip"), unpack, 700),
        "orbax": (above / "orbax", any_of("*"), look, 20),
        "tokenizer": (above / "beside", one_of("tokenizer.json", "vocab.txt", "tokenizer_config.json"), tokenizer, 500),
        "a whole folder, converted": (above / "beside", any_of("*"), copy, 40),
        "a whole folder, loaded": (above / "sums", any_of("*"), load, 40),
    }


# -- what may happen -------------------------------------------------------------------------------------------

watched: Path | None = None
seen: list[str] = []


def audit(event, arguments):
    """Writes down what a reader must not do: open files elsewhere, or run anything."""
    if watched is None:
        return
    if event == "open" and isinstance(arguments[0], str) and os.path.exists(arguments[0]):  # not one within a dir_fd
        path, ours = os.path.realpath(arguments[0]), (str(watched), sys.prefix, sys.base_prefix, "/proc/", "/sys/")
        if not path.startswith(ours) and "flaxbert-" not in path and path != "/dev/null":
            seen.append(f"open {path}")
    elif event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect", "pty.spawn"):
        seen.append(f"{event} {arguments!r}"[:200])


def expected(error, folder) -> bool:
    named = "flaxbert-" in str(error) or str(folder) in str(error)
    return isinstance(error, ValueError | FileNotFoundError) and named


def attempt(case, work, random) -> tuple[str, list[str]]:
    """Mutates a copy and reads it: whether it was read, and what should not have happened."""
    global watched
    original, change, read, _ = case
    folder, above = work / "x", {path.name for path in work.parent.iterdir()}
    shutil.copytree(original, folder)
    change(folder, random)
    wrong, outcome, watched = [], "read", work
    try:
        read(folder)
    except BaseException as error:
        outcome = "refused"
        if not expected(error, folder):
            wrong.append(f"{type(error).__name__}: {str(error)[:300]}")
    watched = None
    wrong += seen
    seen.clear()
    left = [*({path.name for path in work.iterdir()} - {"x"}), *({path.name for path in work.parent.iterdir()} - above)]
    wrong += [f"left {name}" for name in left if name != work.name]
    shutil.rmtree(work)
    return outcome, wrong


def main(arguments=None):
    """Runs all; exit code 1 when something else happened than may."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0, help="how many times the usual number of mutations")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message="Sharding info not provided")  # orbax, of a leaf on the host
    sys.addaudithook(audit)
    report, seconds, wrong = {}, {}, []
    with tempfile.TemporaryDirectory() as above:
        cases = make(Path(above))
        work = Path(above) / "work"
        for (
            original,
            _,
            read,
            _,
        ) in cases.values():  # as they are: what they import is imported, and what they need there
            shutil.copytree(original, work / "x")
            read(work / "x")
            shutil.rmtree(work)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number, (name, case) in enumerate(cases.items()):
            counts, started = collections.Counter(), time.perf_counter()
            for i in range(round(case[-1] * flags.scale)):
                outcome, found = attempt(case, work, np.random.default_rng([flags.seed, number, i]))
                counts[outcome] += 1
                wrong += [f"{name} {i}: {what}" for what in found]
            report[name], seconds[name] = dict(counts), round(time.perf_counter() - started, 1)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    total = sum(sum(counts.values()) for counts in report.values())
    found = {"readers": report, "seconds": seconds, "mutations": total, "grown_kilobytes": grown, "wrong": wrong}
    print(json.dumps(found, indent=2))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
