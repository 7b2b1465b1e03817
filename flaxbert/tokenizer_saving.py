"""The files that a tokenizer is saved as."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import normalizers

from flaxbert.files import atomic_write
from flaxbert.tokenizer_files import TOKENIZER_FILES
from flaxbert.tokenizer_settings import JsonObject

if TYPE_CHECKING:
    from flaxbert.tokenizer import WordPieceTokenizer  # which saves itself with this module


def save_tokenizer(tokenizer: "WordPieceTokenizer", folder: Path, *, max_length: int) -> None:
    """Write files from which `AutoTokenizer` reads the same tokenizer; delete other tokenizer files of the folder.

    A tokenizer of BERT's class is written as tokenizer.json, tokenizer_config.json and vocab.txt. One of another class
    is written as the files that it was loaded from.

    Args:
        tokenizer: to save.
        folder: created if it does not exist.
        max_length: length to which `transformers` truncates: the model's number of positions. Used for BERT's class; a
            smaller `max_length` of the tokenizer's own stays.

    Raises:
        ValueError: the tokenizer is of another class and was not loaded from a folder.
    """
    contents = {name: text.encode() for name, text in file_contents(tokenizer, max_length=max_length).items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        with atomic_write(folder / name) as aside:
            aside.write_bytes(content)
    for name in set(TOKENIZER_FILES) - contents.keys():
        (folder / name).unlink(missing_ok=True)


def file_contents(tokenizer: "WordPieceTokenizer", *, max_length: int | None) -> dict[str, str]:
    """Return the contents of the files that `save_tokenizer` writes, by name; no vocab.txt that would change an id.

    Raises:
        ValueError: as `save_tokenizer`.
    """
    if tokenizer.source_files:
        return {name: content.decode() for name, content in tokenizer.source_files.items()}
    if not tokenizer.has_word_pieces or not tokenizer.uses_bert_class:
        raise ValueError(
            f"the tokenizer's model is {type(tokenizer.backend.model).__name__}; only WordPiece can be saved without "
            "the files of a folder: load the tokenizer with WordPieceTokenizer.load"
        )
    contents = {
        "tokenizer.json": tokenizer.backend.to_str(pretty=True),
        "tokenizer_config.json": json_text(_bert_config(tokenizer, max_length)),
    }
    ids = tokenizer.backend.get_vocab(with_added_tokens=False)
    lines = sorted(ids, key=ids.__getitem__)
    # A vocab.txt is read line by line, without white space at the end of a line.
    if all(ids[line] == i and line == line.rstrip() and "\n" not in line for i, line in enumerate(lines)):
        contents["vocab.txt"] = "".join(f"{line}\n" for line in lines)
    return contents


def _bert_config(tokenizer: "WordPieceTokenizer", max_length: int | None) -> JsonObject:
    """Return tokenizer_config.json; transformers takes these settings and not those of tokenizer.json."""
    config: JsonObject = {"tokenizer_class": tokenizer.tokenizer_class, "do_lower_case": tokenizer.lowercase}
    normalizer = tokenizer.backend.normalizer
    if isinstance(normalizer, normalizers.BertNormalizer):
        if not normalizer.handle_chinese_chars:
            config["tokenize_chinese_chars"] = False
        if normalizer.strip_accents is not None:
            config["strip_accents"] = normalizer.strip_accents
    if tokenizer.truncation_side != "right":
        config["truncation_side"] = tokenizer.truncation_side
    if tokenizer.backend.encode_special_tokens:
        config["split_special_tokens"] = True
    if not tokenizer.uses_token_types:
        config["model_input_names"] = ["input_ids", "attention_mask"]
    lengths = [length for length in (max_length, tokenizer.max_length) if length is not None]
    if lengths:
        config["model_max_length"] = min(lengths)
    tokens = tokenizer.special_tokens
    return config | {
        "pad_token": tokens.pad,
        "unk_token": tokens.unknown,
        "cls_token": tokens.cls,
        "sep_token": tokens.sep,
        "mask_token": tokens.mask,
    }


def json_text(value: object) -> str:
    """Return the text of a JSON file."""
    return json.dumps(value, indent=2) + "\n"
