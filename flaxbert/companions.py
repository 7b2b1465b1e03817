"""The files beside a model's weights without which it is of little use: its tokenizer's, and sentence-transformers'."""

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

TOKENIZER = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
SENTENCES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
# 1_Pooling, 2_Dense, ...: a folder for each module after the transformer.
_MODULE = re.compile(r"[0-9]{1,2}_[A-Za-z]{1,40}")
_DENSE = ("pytorch_model.bin", "model.safetensors")


def carry(home: Path, target: Path, *, sentences: bool) -> list[str]:
    """Copies the tokenizer's files of a model folder into another one, and those of sentence-transformers if asked to.

    What is there already stays. Weights of a module that are pickled are written as safetensors.

    Returns:
        the names of the files that were copied.

    Raises:
        ValueError: a file is a link out of its folder, or pickled weights that cannot be read.
    """
    tokenizer = path_inside(home, "tokenizer") if (home / "tokenizer").is_dir() else home  # of a training run
    wanted = [(path_inside(tokenizer, name), target / name) for name in TOKENIZER]
    if sentences:
        wanted += [(path_inside(home, name), target / name) for name in SENTENCES]
        for module in sorted(path for path in home.iterdir() if _MODULE.fullmatch(path.name)):
            folder = path_inside(home, module.name)
            if folder.is_dir():
                wanted += [
                    (path_inside(folder, name), target / module.name / name) for name in ("config.json", *_DENSE)
                ]
    copied = []
    for file, copy in wanted:
        if not file.is_file():
            continue
        if file.name == _DENSE[0]:
            copied += _without_pickle(file, copy.with_name(_DENSE[1]), target)
        elif not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(copy) as aside:
                shutil.copyfile(file, aside)
            copied.append(copy.relative_to(target).as_posix())
    return copied


def _without_pickle(file: Path, copy: Path, target: Path) -> Iterator[str]:
    if copy.exists() or file.with_name(copy.name).exists():
        return
    tensors = open_torch_bin(file)
    specs = safetensors_order(TensorSpec(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items())
    copy.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(copy) as aside:
        write_safetensors(aside, specs, (tensors[spec.name] for spec in specs), metadata={"format": "pt"})
    yield copy.relative_to(target).as_posix()


def complete(folder: Path, *, max_length: int) -> list[str]:
    """Writes what a tokenizer's folder lacks of vocab.txt, tokenizer.json and tokenizer_config.json.

    A tokenizer that is not BERT's is left as it is, with a warning.

    Returns:
        the names of the files that were written.
    """
    if not any((folder / name).is_file() for name in TOKENIZER[:2]):
        return []
    from flaxbert.tokenizer import WordPieceTokenizer  # a library that `import flaxbert` does without

    try:
        tokenizer = WordPieceTokenizer.load(folder)
        model = json.loads(tokenizer.backend.to_str())["model"]["type"]
    except ValueError as error:
        _log.warning("%s; the tokenizer's files are carried over as they are", error)
        return []
    contents = tokenizer.file_contents(max_length=max_length)
    if (folder / "tokenizer.json").is_file():
        # Whatever its normalizer is, it stays: transformers would build BERT's own for the class BertTokenizer.
        contents["tokenizer_config.json"] = _config(folder, tokenizer, max_length)
    if model != "WordPiece":
        del contents["vocab.txt"]
    lacking = {name: text for name, text in contents.items() if not (folder / name).exists()}
    for name, text in lacking.items():
        with atomic_write(folder / name) as aside:
            aside.write_text(text, encoding="utf-8", newline="\n")
    return list(lacking)


def _config(folder: Path, tokenizer: "WordPieceTokenizer", max_length: int) -> str:
    values = tokenizer.tokenizer_config(max_length=max_length) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    del values["do_lower_case"]
    if (folder / "special_tokens_map.json").is_file():
        told = read_json(folder / "special_tokens_map.json")
        values |= (
            {key: value for key, value in told.items() if isinstance(value, str)} if isinstance(told, dict) else {}
        )
    return json.dumps(values, indent=2) + "\n"
