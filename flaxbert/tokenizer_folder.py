"""Build the `tokenizers` object that `AutoTokenizer` of transformers 5 builds from the files of a model folder.

Its class decides what is read: BertTokenizer takes the vocabulary alone from tokenizer.json and its settings from
tokenizer_config.json, PreTrainedTokenizerFast takes tokenizer.json as it is. Where the files contradict each other and
transformers would choose without a setting that says so, the folder is refused.
"""

import base64
import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from flaxbert.families import BERT, FAMILIES
from flaxbert.families.family import SpecialTokens
from flaxbert.files import read_json

BERT_CLASS, ROBERTA_CLASS, XLM_ROBERTA_CLASS = "BertTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer"
STORED_CLASS = "PreTrainedTokenizerFast"
"""Name of the class that uses tokenizer.json as it is."""

_CLASSES = {
    BERT_CLASS: BERT_CLASS,
    "DistilBertTokenizer": BERT_CLASS,
    "ElectraTokenizer": BERT_CLASS,
    "MobileBertTokenizer": BERT_CLASS,
    ROBERTA_CLASS: ROBERTA_CLASS,
    XLM_ROBERTA_CLASS: XLM_ROBERTA_CLASS,
    "PreTrainedTokenizer": STORED_CLASS,
    "TokenizersBackend": STORED_CLASS,
    "PythonBackend": STORED_CLASS,
}
BERT_CLASSES = frozenset(name for name, kind in _CLASSES.items() if kind == BERT_CLASS)
"""Names of the classes that build BERT's tokenizer."""
_CLASS_OF_MODEL = {"bert": BERT_CLASS, "roberta": ROBERTA_CLASS, "xlm-roberta": XLM_ROBERTA_CLASS}
_MODEL_OF_CLASS = {BERT_CLASS: "WordPiece", ROBERTA_CLASS: "BPE", XLM_ROBERTA_CLASS: "Unigram"}
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ROLES = {"pad": "pad_token", "unknown": "unk_token", "cls": "cls_token", "sep": "sep_token", "mask": "mask_token"}
_BERT_TOKENS = {key: getattr(BERT.special_tokens, role) for role, key in _ROLES.items()}
_ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
_NORMALISER_DEFAULTS = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}
_MAX_ID = 2**24  # a hundred times the largest vocabulary of a BERT model
_MAX_LENGTH = 10**9  # transformers writes 1e30 for "no limit"

_Token = str | AddedToken
_Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class FolderTokenizer:
    """A tokenizer as a folder describes it.

    Attributes:
        backend: without truncation and padding.
        tokenizer_class: the class of transformers that builds it; a key of the table of classes, without "Fast".
        special_tokens: by their roles.
        truncation_side: the end of a long text that is cut off, "right" or "left".
        max_length: the length to which transformers truncates (model_max_length), or None.
        uses_token_types: False where model_input_names leaves token_type_ids out.
    """

    backend: Tokenizer
    tokenizer_class: str
    special_tokens: SpecialTokens
    truncation_side: str
    max_length: int | None
    uses_token_types: bool


class _Files(NamedTuple):
    """The parsed files of a folder.

    Attributes:
        folder: it.
        config: tokenizer_config.json; empty without one.
        stored: tokenizer.json, or None.
        vocabulary: the file with one token a line, read if there is no tokenizer.json.
    """

    folder: Path
    config: _Json
    stored: _Json | None
    vocabulary: Path

    @property
    def config_file(self) -> Path:
        return self.folder / "tokenizer_config.json"

    @property
    def stored_file(self) -> Path:
        return self.folder / "tokenizer.json"


class _DeclaredTokens(NamedTuple):
    """Tokens that the files declare beside the vocabulary.

    Attributes:
        named: special tokens by key, such as "cls_token"; None: switched off.
        extra: further special tokens.
        added: tokens with their ids.
    """

    named: dict[str, _Token | None]
    extra: list[_Token]
    added: dict[int, AddedToken]


def read_tokenizer(path: Path, *, lowercase: bool | None = None) -> FolderTokenizer:
    """Build the tokenizer of a model folder, or of a vocabulary file and the settings beside it.

    Args:
        path: the folder, a vocab.txt, or a tokenizer.json.
        lowercase: for a vocabulary without tokenizer.json; None takes do_lower_case, see `_lowercase`.

    Raises:
        FileNotFoundError: neither file exists.
        ValueError: a file is invalid, the files contradict each other, or a setting is not supported.
    """
    files = _open(path)
    _refuse_unsupported(files)
    name = _class_name(files)
    kind = _CLASSES.get(name, STORED_CLASS)
    declared = _declared_tokens(files)
    try:
        if kind == BERT_CLASS:
            backend = _build_bert(files, declared, lowercase)
        elif files.stored is None:
            raise ValueError(f"{path}: the tokenizer_class {name} is read from tokenizer.json, which is missing")
        elif kind == ROBERTA_CLASS:
            backend = _build_roberta(files, declared)
        elif kind == XLM_ROBERTA_CLASS:
            backend = _build_xlm_roberta(files, declared)
        else:
            backend = _stored_backend(files)
            padding = files.stored.get("padding")
            if padding is not None:
                declared.named.setdefault("pad_token", padding["pad_token"])
            _add_tokens(backend, declared)
    except (ValueError, OSError):
        raise
    except Exception as error:  # the library raises bare Exception, and TypeError for values of other types
        raise ValueError(f"{path}: the tokenizer can't be built ({error})") from None
    uses_token_types = "token_type_ids" in files.config.get("model_input_names", ("token_type_ids",))
    backend.encode_special_tokens = _flag(files, "split_special_tokens", False)
    _check_ids(files, backend, declared)
    special_tokens = _special_tokens(path, backend, declared.named)
    _check_template(files, backend, special_tokens)
    return FolderTokenizer(
        backend=backend,
        tokenizer_class=name,
        special_tokens=special_tokens,
        truncation_side=_side(files, "truncation"),
        max_length=_max_length(files),
        uses_token_types=uses_token_types,
    )


def _open(path: Path) -> _Files:
    if path.name == "tokenizer.json" and path.is_file():
        path = path.parent
    folder = path if path.is_dir() else path.parent
    stored_file = path / "tokenizer.json"
    stored = _read_object(stored_file) if stored_file.is_file() else None
    vocabulary = path / "vocab.txt" if path.is_dir() else path
    if stored is None and not vocabulary.is_file():
        raise FileNotFoundError(f"{vocabulary}: no such file; a tokenizer is a tokenizer.json or a vocab.txt")
    return _Files(folder, _read_object(folder / "tokenizer_config.json", optional=True), stored, vocabulary)


def _read_object(file: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not file.is_file():
        return {}
    value = read_json(file)
    if not isinstance(value, dict):
        raise ValueError(f"{file}: holds a JSON {type(value).__name__}, expected an object")
    return value


def _refuse_unsupported(files: _Files) -> None:
    config = files.config
    versions = config.get("fast_tokenizer_files", ["tokenizer.json"])
    for key, unsupported in (
        ("init_inputs", bool(config.get("init_inputs"))),
        ("vocab", "vocab" in config),
        ("merges", "merges" in config),
        ("auto_map", config.get("auto_map") is not None),
        ("fast_tokenizer_files", versions != ["tokenizer.json"]),
    ):
        if unsupported:
            raise ValueError(f"{files.config_file}: {key} is not supported; save the tokenizer as a tokenizer.json")
    if _side(files, "padding") == "left":
        raise ValueError(
            f"{files.folder}: pads on the left, which is not supported; set padding_side in tokenizer_config.json to "
            '"right"'
        )


def _class_name(files: _Files) -> str:
    """Return the name of the class as `AutoTokenizer` chooses it, without "Fast"."""
    model = _read_object(files.folder / "config.json", optional=True)
    name = files.config.get("tokenizer_class") or model.get("tokenizer_class")
    if isinstance(name, str):
        name = name if name == STORED_CLASS else name.removesuffix("Fast")
        if name in _CLASSES or name == STORED_CLASS:
            return name
        known = ", ".join([*_CLASSES, STORED_CLASS])
        raise ValueError(
            f"{files.folder}: the tokenizer_class is {name[:60]!r}; supported: {known}. With a tokenizer.json that "
            f"holds all of its settings, set tokenizer_class in tokenizer_config.json to {STORED_CLASS}"
        )
    model_type = model.get("model_type")
    if model_type is None:
        return BERT_CLASS if files.stored is None else STORED_CLASS
    if model_type not in _CLASS_OF_MODEL:
        raise ValueError(
            f"{files.folder}: names no tokenizer_class, and the model_type {model_type!r} has none here; set "
            "tokenizer_class in tokenizer_config.json"
        )
    return _CLASS_OF_MODEL[model_type]


# -- the classes ------------------------------------------------------------------------------------------------


def _build_bert(files: _Files, declared: _DeclaredTokens, lowercase: bool | None) -> Tokenizer:
    named = declared.named
    _set_defaults(files, named, _BERT_TOKENS)
    if files.stored is None:
        vocabulary = read_vocabulary(files.vocabulary)
    else:
        vocabulary = _stored_model(files, BERT_CLASS)["vocab"]
        _refuse_other_normaliser(files)
    settings = {key: _flag(files, key, default) for key, default in _NORMALISER_DEFAULTS.items()}
    if files.stored is None:
        settings["do_lower_case"] = _lowercase(files, vocabulary) if lowercase is None else lowercase
    return bert_backend(
        vocabulary,
        lowercase=bool(settings["do_lower_case"]),
        chinese_characters=bool(settings["tokenize_chinese_chars"]),
        strip_accents=settings["strip_accents"],
        declared=declared,
        source=files.folder,
    )


def bert_backend(
    vocabulary: Mapping[str, int],
    *,
    lowercase: bool,
    chinese_characters: bool = True,
    strip_accents: bool | None = None,
    declared: _DeclaredTokens | None = None,
    source: object = "the tokens",
) -> Tokenizer:
    """Return the WordPiece tokenizer of BERT with a vocabulary; errors name its source.

    Raises:
        ValueError: the vocabulary lacks a special token.
    """
    declared = declared or _DeclaredTokens(dict(_BERT_TOKENS), [], {})
    unknown, cls, sep = (str(declared.named[key]) for key in ("unk_token", "cls_token", "sep_token"))
    # Words of more than 100 characters become [UNK], as in Hugging Face; Google's code allows 200.
    model = models.WordPiece(dict(vocabulary), unk_token=unknown, max_input_chars_per_word=100)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, handle_chinese_chars=chinese_characters, strip_accents=strip_accents
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    _require_tokens(source, backend, declared)
    _add_tokens(backend, declared)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[_with_id(backend, cls), _with_id(backend, sep)],
    )
    return backend


def _refuse_other_normaliser(files: _Files) -> None:
    """Raise ValueError where transformers would replace a setting of tokenizer.json by a default that nobody chose."""
    stored = (files.stored or {}).get("normalizer")
    if not isinstance(stored, dict) or stored.get("type") != "BertNormalizer":
        return
    lowercase = stored.get("lowercase", True)
    values = {
        "do_lower_case": lowercase,
        "strip_accents": stored.get("strip_accents"),
        "tokenize_chinese_chars": stored.get("handle_chinese_chars", True),
    }
    if values["strip_accents"] == lowercase:
        values["strip_accents"] = None  # the same as its default
    for key, default in _NORMALISER_DEFAULTS.items():
        if values[key] != default and key not in files.config:
            raise ValueError(
                f"{files.stored_file}: was made with {key} {json.dumps(values[key])}, but tokenizer_config.json does "
                f"not say so, and transformers would use {json.dumps(default)}; add the key {key} to "
                "tokenizer_config.json"
            )


def _build_roberta(files: _Files, declared: _DeclaredTokens) -> Tokenizer:
    named = declared.named
    _set_defaults(files, named, _ROBERTA_TOKENS)
    model = _stored_model(files, ROBERTA_CLASS)
    prefix_space, trim_offsets = _flag(files, "add_prefix_space", False), _flag(files, "trim_offsets", True)
    stored = (files.stored or {}).get("pre_tokenizer")
    stored_prefix_space = isinstance(stored, dict) and stored.get("add_prefix_space", False)
    if stored_prefix_space and "add_prefix_space" not in files.config:
        raise ValueError(
            f"{files.stored_file}: was made with add_prefix_space true, but tokenizer_config.json does not say so, and "
            "transformers would use false; add the key add_prefix_space to tokenizer_config.json"
        )
    merges: list[Any] = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]
    ]
    backend = Tokenizer(models.BPE(model["vocab"], merges, continuing_subword_prefix="", end_of_word_suffix=""))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(prefix_space))
    backend.decoder = decoders.ByteLevel()
    _require_tokens(files.folder, backend, declared)
    _add_tokens(backend, declared)
    sep, cls = _with_id(backend, named["sep_token"]), _with_id(backend, named["cls_token"])
    backend.post_processor = processors.RobertaProcessing(sep, cls, bool(trim_offsets), bool(prefix_space))
    return backend


def _build_xlm_roberta(files: _Files, declared: _DeclaredTokens) -> Tokenizer:
    named = declared.named
    _set_defaults(files, named, _ROBERTA_TOKENS)
    model = _stored_model(files, XLM_ROBERTA_CLASS)
    backend = Tokenizer(models.Unigram([tuple(entry) for entry in model["vocab"]], unk_id=3, byte_fallback=False))
    normaliser = (files.stored or {}).get("normalizer") or {}
    for entry in normaliser.get("normalizers", [normaliser]):
        if entry.get("type") == "Precompiled" and "precompiled_charsmap" in entry:
            backend.normalizer = normalizers.Precompiled(base64.b64decode(entry["precompiled_charsmap"]))
            break
    scheme = "always" if _flag(files, "add_prefix_space", True) else "never"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)]
    )
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    _require_tokens(files.folder, backend, declared)
    _add_tokens(backend, declared)
    bos, eos = str(named["bos_token"]), str(named["eos_token"])
    backend.post_processor = processors.TemplateProcessing(
        single=[bos, "$A", eos],
        pair=[bos, "$A", eos, eos, "$B", eos],
        special_tokens=[_with_id(backend, bos), _with_id(backend, eos)],
    )
    return backend


def _with_id(backend: Tokenizer, token: _Token | None) -> tuple[str, int]:
    number = backend.token_to_id(str(token))
    assert number is not None  # _require_tokens
    return str(token), number


def _stored_backend(files: _Files) -> Tokenizer:
    try:
        backend = Tokenizer.from_file(str(files.stored_file))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{files.stored_file}: not a tokenizer.json ({error})") from None
    backend.no_padding()  # sentence-transformers stores a fixed length in the file
    backend.no_truncation()
    return backend


def _stored_model(files: _Files, class_name: str) -> _Json:
    """Return the "model" of tokenizer.json; raise ValueError if it is not of the kind that the class reads."""
    model = (files.stored or {}).get("model")
    kind = _MODEL_OF_CLASS[class_name]
    if not isinstance(model, dict):
        raise ValueError(f"{files.stored_file}: not a tokenizer.json (it holds no model)")
    # Old files name no type; a WordPiece model has a dict of tokens and no merges.
    untyped = "BPE" if "merges" in model else "WordPiece" if isinstance(model.get("vocab"), dict) else "Unigram"
    if model.get("type", untyped) != kind:
        raise ValueError(
            f"{files.stored_file}: holds a {model.get('type', untyped)} model, which transformers would read as "
            f"{kind} for the class {class_name}; to use the file as it is, set tokenizer_class in "
            f"tokenizer_config.json to {STORED_CLASS}"
        )
    return model


def _lowercase(files: _Files, vocabulary: Collection[str]) -> bool:
    """Return do_lower_case; where transformers has no default, infer it from the vocabulary.

    transformers takes true where the folder does not say. A vocabulary is cased if more than one token in a hundred has
    a capital letter (a third in Google's cased vocabularies, next to none in uncased and Chinese ones).
    """
    special = set(_BERT_TOKENS.values())
    uncased = sum(token != token.lower() for token in vocabulary if token not in special) <= len(vocabulary) / 100
    if "do_lower_case" in files.config:
        return bool(files.config["do_lower_case"])
    if not uncased and (files.config.get("tokenizer_class") or (files.folder / "config.json").is_file()):
        raise ValueError(
            f"{files.vocabulary}: is cased, but tokenizer_config.json does not say so, and transformers would "
            'lower-case texts; write {"do_lower_case": false} to tokenizer_config.json'
        )
    return uncased


def read_vocabulary(file: Path) -> dict[str, int]:
    """Return the id of each token of a vocab.txt: its line, the last one of a token that occurs twice.

    White space at the end of a line does not count, and an empty line is the token "".

    Raises:
        ValueError: not UTF-8 text, or it begins with a byte-order mark, which would be a part of the first token.
    """
    try:
        vocabulary = models.WordPiece.read_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{file}: not UTF-8 text ({error})") from None
    if any(token.startswith("\ufeff") and i == 0 for token, i in vocabulary.items()):
        raise ValueError(
            f"{file}: begins with a byte-order mark, which would be a part of the first token; save the file as UTF-8 "
            "without it"
        )
    return vocabulary


# -- tokens that are declared beside the vocabulary --------------------------------------------------------------


def _declared_tokens(files: _Files) -> _DeclaredTokens:
    """Read the tokens as `PreTrainedTokenizerBase._from_pretrained` does, from four files.

    Where tokenizer_config.json has added_tokens_decoder, the other files are not read. Else special_tokens_map.json
    goes before tokenizer_config.json, and tokenizer.json before added_tokens.json.
    """
    config, config_file = files.config, files.config_file
    named = {key: _token(config[key], config_file, key) for key in _NAMED if key in config}
    custom = {
        key: _token(value, config_file, key)
        for key, value in config.items()
        if key not in _NAMED and key.endswith("_token") and isinstance(value, str | dict)
    }
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(extra, dict):
        custom |= {key: _token(value, config_file, key) for key, value in extra.items()}
        extra = []
    extra = _token_list(extra, config_file)
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in config:
        for number, value in config["added_tokens_decoder"].items():
            added[int(number)] = _added_token(value, config_file, number)
    else:
        file = files.folder / "special_tokens_map.json"
        for key, value in _read_object(file, optional=True).items():
            if key in ("additional_special_tokens", "extra_special_tokens"):
                if key == "extra_special_tokens" or not ({"extra_special_tokens", key} & config.keys()):
                    extra += [token for token in _token_list(value, file) if token not in extra]
            else:
                (named if key in _NAMED else custom)[key] = _token(value, file, key, special=True)
        special = {str(token) for token in [*named.values(), *extra] if token is not None}
        file = files.folder / "added_tokens.json"
        for token, number in _read_object(file, optional=True).items():
            if not isinstance(number, int) or isinstance(number, bool):
                raise ValueError(f"{file}: {token!r:.60} has the id {number!r:.40}; expected a whole number")
            added[number] = AddedToken(token, normalized=token not in special, special=token in special)
        for entry in (files.stored or {}).get("added_tokens", []):
            added[entry["id"]] = _added_token(entry, files.stored_file, entry["id"])
    by_content = {token.content: token for token in added.values()}
    named = {key: by_content.get(str(token), token) for key, token in named.items()}
    return _DeclaredTokens(named | custom, extra, added)


def _token(value: object, file: Path, key: str, *, special: bool | None = None) -> _Token | None:
    """Return a token that is written as a string or as an object; `special` replaces the object's own value."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict) and (special is not None or value.get("__type") == "AddedToken"):
        return _added_token(value if special is None else value | {"special": special}, file, key)
    raise ValueError(f"{file}: {key} is {value!r:.60}; expected a token")


def _token_list(value: object, file: Path) -> list[_Token]:
    tokens = [_token(entry, file, "a special token") for entry in value] if isinstance(value, list) else [None]
    if None in tokens:
        raise ValueError(f"{file}: the special tokens are {value!r:.60}; expected a list of tokens")
    return [token for token in tokens if token is not None]


def _added_token(value: object, file: Path, key: object) -> AddedToken:
    try:
        return AddedToken(**{name: entry for name, entry in dict(value).items() if name not in ("id", "__type")})  # type: ignore[call-overload]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: the token {key!r:.60} is {value!r:.80}; expected an added token ({error})") from None


def _set_defaults(files: _Files, named: dict[str, _Token | None], defaults: Mapping[str, str]) -> None:
    """Add the class's own special tokens for those that no file names."""
    for key, token in defaults.items():
        if named.setdefault(key, token) is None:
            raise ValueError(f"{files.config_file}: {key} is null; this class of tokenizer needs one")


def _require_tokens(source: object, backend: Tokenizer, declared: _DeclaredTokens) -> None:
    """Raise ValueError if a special token is not in the vocabulary; transformers would append it."""
    vocabulary = {token.content for token in declared.added.values()} | backend.get_vocab().keys()
    keys = [key for key in (*_ROLES.values(), "bos_token", "eos_token") if declared.named.get(key) is not None]
    needed = dict.fromkeys(str(declared.named[key]) for key in keys)
    missing = [token for token in needed if token not in vocabulary]
    if missing:
        raise ValueError(
            f"{source}: the vocabulary lacks {', '.join(missing)}; add these tokens, or name the vocabulary's own in "
            "tokenizer_config.json (pad_token, unk_token, cls_token, sep_token, mask_token)"
        )


def _add_tokens(backend: Tokenizer, declared: _DeclaredTokens) -> None:
    """Add the declared tokens in the order of `TokenizersBackend.__init__`, which decides about new ids."""
    tokens: list[_Token] = [token for _, token in sorted(declared.added.items())]
    present = {token.content for token in backend.get_added_tokens_decoder().values()} | set(map(str, tokens))
    for token in (*declared.named.values(), *declared.extra):
        if token is not None and str(token) not in present and token not in tokens:
            tokens.append(token)
    named = {str(token) for token in declared.named.values() if token}
    for i, token in enumerate(tokens):
        if isinstance(token, str):
            tokens[i] = AddedToken(token, special=True)
        elif not token.special and token.content in named:
            token.special = True
    backend.add_tokens(tokens)


def _check_ids(files: _Files, backend: Tokenizer, declared: _DeclaredTokens) -> None:
    vocabulary = backend.get_vocab()
    largest = max(vocabulary.values(), default=0)
    if largest > _MAX_ID:  # the library would count up to this id and list every id that is missing
        raise ValueError(f"{files.stored_file}: the largest token id is {largest}; allowed: up to {_MAX_ID}")
    for number, token in declared.added.items():
        found = backend.token_to_id(token.content)
        if found != number:
            raise ValueError(
                f"{files.folder}: declares the token {token.content!r:.60} with the id {number}, but in the vocabulary "
                f"its id is {found}; give each token one id in all files"
            )
    if len(set(vocabulary.values())) < len(vocabulary):
        seen: dict[int, str] = {}
        first, second = next((seen[i], token) for token, i in vocabulary.items() if seen.setdefault(i, token) != token)
        raise ValueError(
            f"{files.folder}: the tokens {first!r:.60} and {second!r:.60} have the same id {vocabulary[second]}; give "
            "each token its own"
        )


def _special_tokens(path: Path, backend: Tokenizer, named: Mapping[str, _Token | None]) -> SpecialTokens:
    """Return the named special tokens, and for roles without a name those of the first family whose tokens exist."""
    given = {role: str(named[key]) for role, key in _ROLES.items() if named.get(key) is not None}
    missing: list[str] = []
    for family in FAMILIES.values():
        tokens = dataclasses.asdict(family.special_tokens) | given
        lacking = [token for token in tokens.values() if backend.token_to_id(token) is None]
        if not lacking:
            return SpecialTokens(**tokens)
        missing = missing or lacking
    needed = "; ".join(
        f"{name}: {' '.join(dataclasses.astuple(family.special_tokens))}" for name, family in FAMILIES.items()
    )
    raise ValueError(
        f"{path}: the vocabulary lacks {', '.join(missing)}; add all special tokens of one family ({needed})"
    )


def _check_template(files: _Files, backend: Tokenizer, special_tokens: SpecialTokens) -> None:
    ids = backend.encode("").ids
    cls, sep = backend.token_to_id(special_tokens.cls), backend.token_to_id(special_tokens.sep)
    if ids != [cls, sep]:
        raise ValueError(
            f"{files.stored_file}: its post-processor writes {' '.join(backend.encode('').tokens) or 'no tokens'} "
            f"around a text; expected {special_tokens.cls} and {special_tokens.sep}. Add a post-processor"
        )


# -- settings ---------------------------------------------------------------------------------------------------


def _flag(files: _Files, key: str, default: bool | None) -> bool | None:
    value = files.config.get(key, default)
    if not isinstance(value, bool) and not (value is None and default is None):
        raise ValueError(f"{files.config_file}: {key} is {value!r:.40}; it must be true or false")
    return value


def _side(files: _Files, kind: str) -> str:
    """Return the side of "truncation" or "padding": that of tokenizer_config.json, else of tokenizer.json."""
    stored = (files.stored or {}).get(kind)
    default = stored.get("direction", "right") if isinstance(stored, dict) else "right"
    side = files.config.get(f"{kind}_side", str(default).lower())
    if side not in ("left", "right"):
        raise ValueError(f"{files.config_file}: {kind}_side is {side!r:.40}; it must be left or right")
    return side


def _max_length(files: _Files) -> int | None:
    config = files.config
    value = config.get("model_max_length", config.get("max_len"))
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1:
        raise ValueError(f"{files.config_file}: model_max_length is {value!r:.40}; it must be a number of tokens")
    return int(value) if value <= _MAX_LENGTH else None
