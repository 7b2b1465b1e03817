"""Tokenizer and sentence-transformers files: copied between model folders, and completed where some are missing."""

import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from flaxbert.files import atomic_write, path_inside, read_json
from flaxbert.weights.formats.safetensors import safetensors_order, write_safetensors
from flaxbert.weights.formats.torch_bin import open_torch_bin
from flaxbert.weights.tensors import TensorSpec

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
WRITTEN_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json")
"""The files that BERT's tokenizer is saved as."""
SENTENCE_TRANSFORMERS_FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
# 1_Pooling, 2_Dense, ...: sentence-transformers' folder of each module after the transformer.
_MODULE_FOLDER = re.compile(r"[0-9]{1,2}_[A-Za-z]{1,40}")
_MODULE_PICKLE, _MODULE_SAFETENSORS = "pytorch_model.bin", "model.safetensors"


def copy_tokenizer_files(
    source: Path, target: Path, *, sentence_transformers: bool, max_length: int | None = None
) -> list[str]:
    """Copy the tokenizer's files of one model folder into another; existing files of the target stay.

    `AutoTokenizer` chooses a class and settings by config.json, too. Where it would read the target's files otherwise
    than those of the source, tokenizer_config.json is written with the class and settings.

    Args:
        source: the folder of a model or of a training run.
        target: the folder to copy into.
        sentence_transformers: copy the files of sentence-transformers too. Pickled weights of its modules are written
            as safetensors.
        max_length: write missing files of the tokenizer, too, with this model_max_length.

    Returns:
        the names of the files that were copied or written.

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
    if any(name in copied for name in ("vocab.txt", "tokenizer.json")):
        copied += _complete(_tokenizer_folder(source), target, copied, max_length)
    return copied


def _tokenizer_folder(source: Path) -> Path:
    return path_inside(source, "tokenizer") if (source / "tokenizer").is_dir() else source  # of a training run


def _files_to_copy(source: Path, target: Path, sentence_transformers: bool) -> list[tuple[Path, Path]]:
    """Return the paths in both folders; the files may be absent."""
    tokenizer = _tokenizer_folder(source)
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


def _complete(source: Path, target: Path, copied: list[str], max_length: int | None) -> list[str]:
    """Write files that the tokenizer lacks; a tokenizer that cannot be read stays as it was copied, with a warning."""
    config = target / "tokenizer_config.json"
    is_chosen_alike = (source / "config.json").is_file() and (target / "config.json").is_file()
    if is_chosen_alike or (config.is_file() and "tokenizer_class" in read_json(config)):
        needed = [name for name in WRITTEN_FILES if not (target / name).exists()] if max_length is not None else []
    else:
        needed = ["tokenizer_config.json"] if config.name in copied or not config.exists() else []
        needed += [name for name in WRITTEN_FILES if max_length is not None and not (target / name).exists()]
    if not needed:
        return []
    from flaxbert.tokenizer import WordPieceTokenizer  # needs a library that `import flaxbert` does without

    try:
        contents = WordPieceTokenizer.load(source).file_contents(max_length=max_length)
    except ValueError as error:
        _log.warning("%s; the tokenizer's files are copied unchanged", error)
        return []
    written = [name for name in dict.fromkeys(needed) if name in contents]
    for name in written:
        with atomic_write(target / name) as temporary:
            temporary.write_text(contents[name], encoding="utf-8", newline="\n")
    return [name for name in written if name not in copied]
