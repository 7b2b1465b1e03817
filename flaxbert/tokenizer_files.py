"""Tokenizer files: copied between model folders, and completed where some are missing."""

import logging
import shutil
from pathlib import Path

from flaxbert.files import atomic_write, path_inside, read_json, require_downloaded

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


def copy_tokenizer_files(source: Path, target: Path, *, max_length: int | None = None) -> list[str]:
    """Copy the tokenizer's files of one model folder into another; existing files of the target stay.

    `AutoTokenizer` chooses a class and settings by config.json, too. Where it would read the target's files otherwise
    than those of the source, tokenizer_config.json is written with the class and settings.

    Args:
        source: the folder of a model or of a training run.
        target: the folder to copy into.
        max_length: write missing files of the tokenizer, too, with this model_max_length.

    Returns:
        the names of the files that were copied or written.

    Raises:
        ValueError: a file is a link out of its folder, a pointer of git-lfs or a web page.
    """
    copied = []
    folder = tokenizer_folder(source)
    for name in TOKENIZER_FILES:
        file, copy = path_inside(folder, name), target / name
        if file.is_file() and not copy.exists():
            require_downloaded(file)
            with atomic_write(copy) as temporary:
                shutil.copyfile(file, temporary)
            copied.append(name)
    if any(name in copied for name in ("vocab.txt", "tokenizer.json")):
        copied += _complete(folder, target, copied, max_length)
    return copied


def tokenizer_folder(source: Path) -> Path:
    """Return the folder of a model's tokenizer: that of a training run is below it."""
    if not (source / "tokenizer").is_dir() or any((source / name).is_file() for name in TOKENIZER_FILES):
        return source
    return path_inside(source, "tokenizer")


def _complete(source: Path, target: Path, copied: list[str], max_length: int | None) -> list[str]:
    """Write files that the tokenizer lacks; a tokenizer that cannot be read stays as it was copied, with a warning."""
    config = target / "tokenizer_config.json"
    same_class = (source / "config.json").is_file() and (target / "config.json").is_file()
    settings = read_json(config) if config.is_file() else {}
    if same_class or (isinstance(settings, dict) and "tokenizer_class" in settings):
        needed = [name for name in WRITTEN_FILES if not (target / name).exists()] if max_length is not None else []
    else:
        needed = ["tokenizer_config.json"] if config.name in copied or not config.exists() else []
        needed += [name for name in WRITTEN_FILES if max_length is not None and not (target / name).exists()]
    if not needed:
        return []
    # Need a library that `import flaxbert` does without.
    from flaxbert.tokenizer import WordPieceTokenizer
    from flaxbert.tokenizer_saving import file_contents

    try:
        contents = file_contents(WordPieceTokenizer.load(source), max_length=max_length)
    except ValueError as error:
        _log.warning("%s; the tokenizer's files are copied unchanged", error)
        return []
    written = [name for name in dict.fromkeys(needed) if name in contents]
    for name in written:
        with atomic_write(target / name) as temporary:
            temporary.write_text(contents[name], encoding="utf-8", newline="\n")
    return [name for name in written if name not in copied]
