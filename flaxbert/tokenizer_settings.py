"""The tokenizer files of a folder: their settings, and the tokens that they declare beside the vocabulary."""

from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken

from flaxbert.files import JsonObject, read_json

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TOKEN_KEYS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
_MAX_LENGTH = 10**9  # transformers writes 1e30 for "no limit"

Token = str | AddedToken


class TokenizerFiles(NamedTuple):
    """The parsed tokenizer files of a folder.

    Attributes:
        folder: the folder of the files.
        config: the content of tokenizer_config.json; empty without this file.
        stored: the content of tokenizer.json; None without this file.
        vocabulary: the path of the file with one token a line, which is read only if there is no tokenizer.json.
    """

    folder: Path
    config: JsonObject
    stored: JsonObject | None
    vocabulary: Path

    @classmethod
    def open(cls, path: Path) -> "TokenizerFiles":
        """Read the files of a folder, or of the folder of a tokenizer.json or vocabulary file.

        Raises:
            FileNotFoundError: there is neither a tokenizer.json nor a vocabulary.
            ValueError: a file is not a JSON object.
        """
        if path.name == "tokenizer.json" and path.is_file():
            path = path.parent
        folder = path if path.is_dir() else path.parent
        stored_file = path / "tokenizer.json"
        stored = read_object(stored_file) if stored_file.is_file() else None
        vocabulary = path / "vocab.txt" if path.is_dir() else path
        if stored is None and not vocabulary.is_file():
            raise FileNotFoundError(f"{vocabulary}: no such file; a tokenizer is a tokenizer.json or a vocab.txt")
        return cls(folder, read_object(folder / "tokenizer_config.json", optional=True), stored, vocabulary)

    @property
    def config_file(self) -> Path:
        """Path of tokenizer_config.json, which need not exist."""
        return self.folder / "tokenizer_config.json"

    @property
    def stored_file(self) -> Path:
        """Path of tokenizer.json, which need not exist."""
        return self.folder / "tokenizer.json"

    def flag(self, key: str, default: bool | None) -> bool | None:
        """Return a setting of tokenizer_config.json that is true or false, `default` where it is not given.

        Raises:
            ValueError: it is something else; null is allowed where `default` is None.
        """
        value = self.config.get(key, default)
        if not isinstance(value, bool) and not (value is None and default is None):
            raise ValueError(f"{self.config_file}: {key} is {value!r:.40}; it must be true or false")
        return value

    def side(self, kind: str) -> str:
        """Return "left" or "right" for `kind`, "truncation" or "padding".

        tokenizer_config.json goes before tokenizer.json; "right" where neither gives a side.
        """
        stored = (self.stored or {}).get(kind)
        default = stored.get("direction", "right") if isinstance(stored, dict) else "right"
        side = self.config.get(f"{kind}_side", str(default).lower())
        if side not in ("left", "right"):
            raise ValueError(f"{self.config_file}: {kind}_side is {side!r:.40}; it must be left or right")
        return side

    @property
    def max_length(self) -> int | None:
        """Number of tokens to which transformers truncates (`model_max_length`); None for no limit."""
        value = self.config.get("model_max_length", self.config.get("max_len"))
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 1:
            raise ValueError(f"{self.config_file}: model_max_length is {value!r:.40}; it must be a number of tokens")
        return int(value) if value <= _MAX_LENGTH else None


class DeclaredTokens(NamedTuple):
    """Tokens that the files declare beside the vocabulary.

    Attributes:
        named: special tokens by their key, such as "cls_token"; None for a key whose value is null.
        extra: special tokens without a key.
        added: tokens by id, special ones among them.
    """

    named: dict[str, Token | None]
    extra: list[Token]
    added: dict[int, AddedToken]


def read_object(file: Path, *, optional: bool = False) -> JsonObject:
    """Return the JSON object in a file; an empty one for an `optional` file that is missing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else.
    """
    if optional and not file.is_file():
        return {}
    value = read_json(file)
    if not isinstance(value, dict):
        raise ValueError(f"{file}: holds a JSON {type(value).__name__}, expected an object")
    return value


def declared_tokens(files: TokenizerFiles) -> DeclaredTokens:
    """Read the tokens as `PreTrainedTokenizerBase._from_pretrained` does, from four files.

    Where tokenizer_config.json has added_tokens_decoder, the other files are not read. Else special_tokens_map.json
    goes before tokenizer_config.json, and tokenizer.json before added_tokens.json.
    """
    config, config_file = files.config, files.config_file
    named = {key: _token(config[key], config_file, key) for key in NAMED_TOKENS if key in config}
    custom = {
        key: _token(value, config_file, key)
        for key, value in config.items()
        if key not in NAMED_TOKENS and key.endswith("_token") and isinstance(value, str | dict)
    }
    # transformers takes additional_special_tokens for extra_special_tokens where that is not given as a list.
    extra, given = config.get("extra_special_tokens"), "extra_special_tokens" in config
    if isinstance(extra, dict):
        custom |= {key: _token(value, config_file, key) for key, value in extra.items()}
        given = False
    if not given or not extra:
        given = given or ("additional_special_tokens" in config and not extra)
        extra = config.get("additional_special_tokens")
    extra = _token_list(extra or [], config_file)
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in config:
        for number, value in config["added_tokens_decoder"].items():
            if not number.isdecimal():
                raise ValueError(f"{config_file}: added_tokens_decoder has the key {number!r:.40}; expected an id")
            added[int(number)] = _added_token(value, config_file, number)
    else:
        file = files.folder / "special_tokens_map.json"
        for key, value in read_object(file, optional=True).items():
            if key == "extra_special_tokens":
                extra = [*(extra if given else []), *_token_list(value, file)]
                given = True
            elif key == "additional_special_tokens":
                extra = extra if given else _token_list(value, file)
            else:
                (named if key in NAMED_TOKENS else custom)[key] = _token(value, file, key, special=True)
        special = {str(token) for token in [*named.values(), *extra] if token is not None}
        file = files.folder / "added_tokens.json"
        for token, number in read_object(file, optional=True).items():
            if not isinstance(number, int) or isinstance(number, bool):
                raise ValueError(f"{file}: {token!r:.60} has the id {number!r:.40}; expected a whole number")
            added[number] = AddedToken(token, normalized=token not in special, special=token in special)
        for entry in (files.stored or {}).get("added_tokens", []):
            added[entry["id"]] = _added_token(entry, files.stored_file, entry["id"])
    by_content = {token.content: token for token in added.values()}
    named = {key: by_content.get(str(token), token) for key, token in named.items()}
    return DeclaredTokens(named | custom, extra, added)


def _token(value: object, file: Path, key: str, *, special: bool | None = None) -> Token | None:
    """Return a token that is written as a string or as an object; `special` replaces the object's own value."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict) and (special is not None or value.get("__type") == "AddedToken"):
        return _added_token(value if special is None else value | {"special": special}, file, key)
    raise ValueError(f"{file}: {key} is {value!r:.60}; expected a token")


def _token_list(value: object, file: Path) -> list[Token]:
    tokens = [_token(entry, file, "a special token") for entry in value] if isinstance(value, list) else [None]
    if None in tokens:
        raise ValueError(f"{file}: the special tokens are {value!r:.60}; expected a list of tokens")
    return [token for token in tokens if token is not None]


def _added_token(value: object, file: Path, key: object) -> AddedToken:
    try:
        entries: JsonObject = dict(value)  # type: ignore[call-overload]
        return AddedToken(**{name: entry for name, entry in entries.items() if name in _TOKEN_KEYS})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: the token {key!r:.60} is {value!r:.80}; expected an added token ({error})") from None
