"""Tokenizer and sentence-transformers files: copied between model folders, and completed where some are missing."""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flaxbert.files import atomic_write, path_inside, read_json
from flaxbert.weights.formats.safetensors import safetensors_order, write_safetensors
from flaxbert.weights.formats.torch_bin import open_torch_bin
from flaxbert.weights.tensors import TensorSpec

if TYPE_CHECKING:
    from flaxbert.tokenizer import WordPieceTokenizer

_log = logging.getLogger("flaxbert")

TOKENIZER_FILES = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
SENTENCE_TRANSFORMERS_FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
# 1_Pooling, 2_Dense, ...: sentence-transformers' folder of each module after the transformer.
_MODULE_FOLDER = re.compile(r"[0-9]{1,2}_[A-Za-z]{1,40}")
_MODULE_PICKLE, _MODULE_SAFETENSORS = "pytorch_model.bin", "model.safetensors"


def copy_tokenizer_files(source: Path, target: Path, *, sentence_transformers: bool) -> list[str]:
    """Copy the tokenizer's files of one model folder into another; existing files of the target stay.

    Args:
        source: the folder of a model or of a training run.
        target: the folder to copy into.
        sentence_transformers: copy the files of sentence-transformers too. Pickled weights of its modules are written
            as safetensors.

    Returns:
        the names of the files that were copied.

    Raises:
        ValueError: a file is a link out of its folder, or pickled weights that cannot be read.
    """
    copied = []
    for file, copy in _files_to_copy(source, target, sentence_transformers):
        if not file.is_file():
            continue
        if file.name == _MODULE_PICKLE:
            copied += _write_as_safetensors(file, copy.with_name(_MODULE_SAFETENSORS), target)
        elif not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(copy) as temporary:
                shutil.copyfile(file, temporary)
            copied.append(copy.relative_to(target).as_posix())
    return copied


def _files_to_copy(source: Path, target: Path, sentence_transformers: bool) -> list[tuple[Path, Path]]:
    """Return the paths in both folders; the files may be absent."""
    tokenizer = path_inside(source, "tokenizer") if (source / "tokenizer").is_dir() else source  # of a training run
    files = [(path_inside(tokenizer, name), target / name) for name in TOKENIZER_FILES]
    if not sentence_transformers:
        return files
    files += [(path_inside(source, name), target / name) for name in SENTENCE_TRANSFORMERS_FILES]
    for module in sorted(path for path in source.iterdir() if _MODULE_FOLDER.fullmatch(path.name)):
        folder = path_inside(source, module.name)
        if folder.is_dir():
            names = ("config.json", _MODULE_PICKLE, _MODULE_SAFETENSORS)
            files += [(path_inside(folder, name), target / module.name / name) for name in names]
    return files


def _write_as_safetensors(pickle: Path, copy: Path, target: Path) -> Iterator[str]:
    if copy.exists() or pickle.with_name(copy.name).exists():
        return
    tensors = open_torch_bin(pickle)
    specs = safetensors_order(TensorSpec(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items())
    copy.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(copy) as temporary:
        write_safetensors(temporary, specs, (tensors[spec.name] for spec in specs), metadata={"format": "pt"})
    yield copy.relative_to(target).as_posix()


def write_missing_tokenizer_files(folder: Path, *, max_length: int) -> list[str]:
    """Write those of vocab.txt, tokenizer.json and tokenizer_config.json that a folder with a tokenizer lacks.

    A tokenizer that is not BERT's is left as it is, with a warning.

    Args:
        folder: the model folder.
        max_length: the length in tokens to which `transformers` cuts texts.

    Returns:
        the names of the files that were written.
    """
    if not any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
        return []
    from flaxbert.tokenizer import WordPieceTokenizer  # needs a library that `import flaxbert` does without

    try:
        tokenizer = WordPieceTokenizer.load(folder)
        model_type = json.loads(tokenizer.backend.to_str())["model"]["type"]
    except ValueError as error:
        _log.warning("%s; the tokenizer's files are copied unchanged", error)
        return []
    contents = tokenizer.file_contents(max_length=max_length)
    if (folder / "tokenizer.json").is_file():
        # transformers would replace the file's normalizer by BERT's own for the class BertTokenizer.
        contents["tokenizer_config.json"] = _fast_tokenizer_config(folder, tokenizer, max_length)
    if model_type != "WordPiece":
        del contents["vocab.txt"]
    missing = {name: text for name, text in contents.items() if not (folder / name).exists()}
    for name, text in missing.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="\n")
    return list(missing)


def _fast_tokenizer_config(folder: Path, tokenizer: "WordPieceTokenizer", max_length: int) -> str:
    values = tokenizer.tokenizer_config(max_length=max_length) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    del values["do_lower_case"]
    file = folder / "special_tokens_map.json"
    special_tokens = read_json(file) if file.is_file() else None
    if isinstance(special_tokens, dict):
        values |= {key: value for key, value in special_tokens.items() if isinstance(value, str)}
    return json.dumps(values, indent=2) + "\n"
