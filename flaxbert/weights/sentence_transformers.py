"""Folders of sentence-transformers: the transformer's own folder, and the files of the modules that follow it.

modules.json lists the modules in order, each with a path below the folder: "" or "0_Transformer" for the transformer,
then for example "1_Pooling" and "2_Dense". The config and the weights of the transformer are in its path.
"""

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from flaxbert.files import atomic_write, path_inside, read_json, require_downloaded
from flaxbert.tokenizer_files import tokenizer_folder
from flaxbert.weights.formats.safetensors import safetensors_order, write_safetensors
from flaxbert.weights.formats.torch_bin import open_torch_bin
from flaxbert.weights.tensors import TensorSpec

_log = logging.getLogger("flaxbert")

MODULES_FILE = "modules.json"
# Of tokenizers that are not BERT's, beside `TOKENIZER_FILES`.
OTHER_TOKENIZER_FILES = ("*.model", "*.spm", "*.codes", "*.tiktoken", "*.jinja", "vocab.bpe", "encoder.json")
_USUAL_NAME = re.compile(r"[0-9]{1,2}_[A-Za-z]{1,40}")  # 1_Pooling, 2_Dense, ...
_PICKLE, _SAFETENSORS = "pytorch_model.bin", "model.safetensors"


def transformer_folder(folder: Path) -> Path:
    """Return the folder of the transformer's config, weights and tokenizer: most often `folder` itself.

    Raises:
        ValueError: modules.json is damaged, or names a path out of the folder.
    """
    if (folder / "config.json").is_file():
        return folder
    modules = _read_modules(folder)
    return _module_folder(folder, modules[0]["path"]) if modules and "Transformer" in modules[0]["type"] else folder


def module_paths(folder: Path) -> list[str]:
    """Return the paths of the modules in a folder that are not the folder itself.

    Raises:
        ValueError: modules.json is damaged, or names a path out of the folder.
    """
    if not (folder / MODULES_FILE).exists():
        return sorted(path.name for path in folder.iterdir() if _USUAL_NAME.fullmatch(path.name))
    paths = [module["path"].removesuffix("/") for module in _read_modules(folder)]
    return [path for path in paths if _module_folder(folder, path) != folder]


def module_files(folder: Path) -> dict[str, Path]:
    """Return the files of all modules but the transformer by their paths in the folder.

    Without modules.json, folders of the names that sentence-transformers gives count as modules.
    """
    files: dict[str, Path] = {}
    for path in module_paths(folder):
        inside = _module_folder(folder, path)
        if inside != transformer_folder(folder) and inside.is_dir():
            files |= {f"{path}/{name}": file for name, file in _files_below(inside).items()}
    return files


def copy_files_of_other_tokenizers(source: Path, target: Path) -> list[str]:
    """Copy the files of tokenizers that are not BERT's, such as sentencepiece.bpe.model; existing files stay."""
    copied, source = [], tokenizer_folder(source)
    for name in sorted({file.name for pattern in OTHER_TOKENIZER_FILES for file in source.glob(pattern)}):
        file = path_inside(source, name)
        if file.is_file() and not (target / name).exists():
            _copy(file, target / name)
            copied.append(name)
    return copied


def copy_sentence_transformers_files(source: Path, target: Path) -> list[str]:
    """Copy modules.json, its settings and all files of the modules after the transformer; existing files stay.

    The transformer's path becomes "", where its weights are written. Pickled weights of the modules are written as
    safetensors. Return the paths of the written files below `target`.

    Raises:
        ValueError: modules.json is damaged, a file is a link out of its folder, or pickled weights cannot be read.
    """
    transformer = transformer_folder(source)
    settings = [path_inside(source, "config_sentence_transformers.json")]
    settings += [path_inside(transformer, file.name) for file in sorted(transformer.glob("sentence_*_config.json"))]
    files = {file.name: file for file in settings if file.is_file()} | module_files(source)
    copied = []
    if transformer != source and not (target / MODULES_FILE).exists():
        modules = _read_modules(source)
        modules[0] = {**modules[0], "path": ""}
        with atomic_write(target / MODULES_FILE) as temporary:
            temporary.write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
        copied.append(MODULES_FILE)
        _log.warning("%s: the files of the transformer move from %s to the model's folder", source, transformer.name)
    elif (source / MODULES_FILE).is_file():
        files[MODULES_FILE] = path_inside(source, MODULES_FILE)
    for name, file in files.items():
        if file.name == _PICKLE and file.with_name(_SAFETENSORS).exists():
            continue
        copy = target / name
        copy = copy.with_name(_SAFETENSORS) if file.name == _PICKLE else copy
        if not copy.exists():
            _copy(file, copy)
            copied.append(copy.relative_to(target).as_posix())
    return copied


def _copy(file: Path, copy: Path) -> None:
    require_downloaded(file)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(copy) as temporary:
        if file.name != _PICKLE:
            shutil.copyfile(file, temporary)
            return
        tensors = open_torch_bin(file)
        specs = safetensors_order(TensorSpec(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items())
        write_safetensors(temporary, specs, (tensors[spec.name] for spec in specs))


def _read_modules(folder: Path) -> list[dict[str, str]]:
    file = path_inside(folder, MODULES_FILE)
    if not file.is_file():
        return []
    modules = read_json(file)
    if not isinstance(modules, list) or not all(_is_module(module) for module in modules):
        raise ValueError(f"{file}: expected a list of modules, each with its type and path")
    return modules


def _is_module(module: object) -> bool:
    return isinstance(module, Mapping) and all(isinstance(module.get(key), str) for key in ("path", "type"))


def _module_folder(folder: Path, path: str) -> Path:
    for part in path.removesuffix("/").split("/") if path else []:
        folder = path_inside(folder, part) if part != "." else folder
    return folder


def _files_below(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for name in sorted(entry.name for entry in folder.iterdir()):
        path = path_inside(folder, name)
        if path.is_dir():
            files |= {f"{name}/{below}": file for below, file in _files_below(path).items()}
        elif path.is_file():
            files[name] = path
    return files
