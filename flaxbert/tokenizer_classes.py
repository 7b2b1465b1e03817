"""Build the tokenizers of transformers 5's classes for BERT, MPNet, RoBERTa, XLM-RoBERTa and CamemBERT."""

import base64
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from flaxbert.families import BERT
from flaxbert.files import require_downloaded
from flaxbert.tokenizer_settings import DeclaredTokens, JsonObject, Token, TokenizerFiles

ROLES = {"pad": "pad_token", "unknown": "unk_token", "cls": "cls_token", "sep": "sep_token", "mask": "mask_token"}
"""The key of each role's token in tokenizer_config.json."""
_BERT_TOKENS = {key: getattr(BERT.special_tokens, role) for role, key in ROLES.items()}
_ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
_MPNET_TOKENS = {**_ROBERTA_TOKENS, "unk_token": "[UNK]"}
_CAMEMBERT_UNUSED = ("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED")
_NORMALISER_DEFAULTS = {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": True}


def build_bert(files: TokenizerFiles, declared: DeclaredTokens, lowercase: bool | None) -> Tokenizer:
    """Return BERT's tokenizer for a vocab.txt, or for the vocabulary in a tokenizer.json."""
    _set_defaults(files, declared.named, _BERT_TOKENS)
    return _word_piece_backend(files, declared, lowercase, class_name="BertTokenizer")


def build_mpnet(files: TokenizerFiles, declared: DeclaredTokens, lowercase: bool | None) -> Tokenizer:
    """Return MPNet's tokenizer: BERT's pieces with RoBERTa's special tokens."""
    named = declared.named
    _set_defaults(files, named, _MPNET_TOKENS)
    _strip_before_mask(named)
    backend = _word_piece_backend(files, declared, lowercase, class_name="MPNetTokenizer")
    sep, cls = _with_id(backend, named["sep_token"]), _with_id(backend, named["cls_token"])
    backend.post_processor = processors.RobertaProcessing(sep, cls, trim_offsets=True, add_prefix_space=False)
    return backend


def _word_piece_backend(
    files: TokenizerFiles, declared: DeclaredTokens, lowercase: bool | None, *, class_name: str
) -> Tokenizer:
    if files.stored is None:
        vocabulary = _read_vocabulary(files.vocabulary)
    else:
        vocabulary = _stored_model(files, "WordPiece", class_name)["vocab"]
        _refuse_other_normaliser(files)
    settings = {key: files.flag(key, default) for key, default in _NORMALISER_DEFAULTS.items()}
    if files.stored is None:
        settings["do_lower_case"] = _lowercase(files, vocabulary) if lowercase is None else lowercase
    return bert_backend(
        vocabulary,
        lowercase=bool(settings["do_lower_case"]),
        chinese_characters=bool(settings["tokenize_chinese_chars"]),
        strip_accents=settings["strip_accents"],
        declared=declared,
        source=files.vocabulary if files.stored is None else files.stored_file,
    )


def bert_backend(
    vocabulary: Mapping[str, int],
    *,
    lowercase: bool,
    chinese_characters: bool = True,
    strip_accents: bool | None = None,
    declared: DeclaredTokens | None = None,
    source: object = "the tokens",
) -> Tokenizer:
    """Return the WordPiece tokenizer of BERT with a vocabulary; errors name its source.

    Raises:
        ValueError: the vocabulary lacks a special token.
    """
    declared = declared or DeclaredTokens(dict(_BERT_TOKENS), [], {})
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


def _refuse_other_normaliser(files: TokenizerFiles) -> None:
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


def _lowercase(files: TokenizerFiles, vocabulary: Collection[str]) -> bool:
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
            'lower-case texts; give tokenizer_config.json the key "do_lower_case" with the value false'
        )
    return uncased


def _read_vocabulary(file: Path) -> dict[str, int]:
    """Return the id of each token of a vocab.txt: its line, the last one of a token that occurs twice.

    White space at the end of a line does not count, and an empty line is the token "".

    Raises:
        ValueError: not UTF-8 text, or it begins with a byte-order mark, which would be a part of the first token.
    """
    require_downloaded(file)
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


def build_roberta(files: TokenizerFiles, declared: DeclaredTokens) -> Tokenizer:
    """Return RoBERTa's tokenizer for the vocabulary and merges in a tokenizer.json."""
    named = declared.named
    _set_defaults(files, named, _ROBERTA_TOKENS)
    model = _stored_model(files, "BPE", "RobertaTokenizer")
    prefix_space, trim_offsets = files.flag("add_prefix_space", False), files.flag("trim_offsets", True)
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
    _require_tokens(files.stored_file, backend, declared)
    _add_tokens(backend, declared)
    sep, cls = _with_id(backend, named["sep_token"]), _with_id(backend, named["cls_token"])
    backend.post_processor = processors.RobertaProcessing(sep, cls, bool(trim_offsets), bool(prefix_space))
    return backend


def build_xlm_roberta(files: TokenizerFiles, declared: DeclaredTokens) -> Tokenizer:
    """Return XLM-R's tokenizer for the vocabulary and the character map in a tokenizer.json."""
    _set_defaults(files, declared.named, _ROBERTA_TOKENS)
    vocabulary = _unigram_vocabulary(files, "XLMRobertaTokenizer")
    return _unigram_backend(files, declared, vocabulary, unknown_id=3)


def build_camembert(files: TokenizerFiles, declared: DeclaredTokens) -> Tokenizer:
    """Return CamemBERT's tokenizer for the vocabulary and the character map in a tokenizer.json."""
    named = declared.named
    _set_defaults(files, named, _ROBERTA_TOKENS)
    _strip_before_mask(named)
    if "additional_special_tokens" not in files.config:
        declared = declared._replace(extra=[*declared.extra, *_CAMEMBERT_UNUSED])
    vocabulary = _unigram_vocabulary(files, "CamembertTokenizer")
    unknown = str(named["unk_token"])
    unknown_id = next((i for i, (token, _) in enumerate(vocabulary) if token == unknown), 0)
    return _unigram_backend(files, declared, vocabulary, unknown_id=unknown_id)


def _strip_before_mask(named: dict[str, Token | None]) -> None:
    """Let a mask token that is given as text take the space before it."""
    mask = named["mask_token"]
    if isinstance(mask, str):
        named["mask_token"] = AddedToken(mask, lstrip=True, special=True)


def _unigram_vocabulary(files: TokenizerFiles, class_name: str) -> list[tuple[str, float]]:
    return [(str(token), score) for token, score in _stored_model(files, "Unigram", class_name)["vocab"]]


def _unigram_backend(
    files: TokenizerFiles, declared: DeclaredTokens, vocabulary: list[tuple[str, float]], *, unknown_id: int
) -> Tokenizer:
    named = declared.named
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=unknown_id, byte_fallback=False))
    normaliser = (files.stored or {}).get("normalizer") or {}
    for entry in normaliser.get("normalizers", [normaliser]):
        if entry.get("type") == "Precompiled" and "precompiled_charsmap" in entry:
            backend.normalizer = normalizers.Precompiled(base64.b64decode(entry["precompiled_charsmap"]))
            break
    scheme = "always" if files.flag("add_prefix_space", True) else "never"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)]
    )
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    _require_tokens(files.stored_file, backend, declared)
    _add_tokens(backend, declared)
    bos, eos = str(named["bos_token"]), str(named["eos_token"])
    backend.post_processor = processors.TemplateProcessing(
        single=[bos, "$A", eos],
        pair=[bos, "$A", eos, eos, "$B", eos],
        special_tokens=[_with_id(backend, bos), _with_id(backend, eos)],
    )
    return backend


def build_as_stored(files: TokenizerFiles, declared: DeclaredTokens) -> Tokenizer:
    """Return the tokenizer of a tokenizer.json, with the tokens that other files declare."""
    try:
        backend = Tokenizer.from_file(str(files.stored_file))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{files.stored_file}: not a tokenizer.json ({error})") from None
    if backend.padding is not None:
        declared.named.setdefault("pad_token", backend.padding["pad_token"])
    backend.no_padding()  # sentence-transformers stores a fixed length in the file
    backend.no_truncation()
    _add_tokens(backend, declared)
    return backend


def _stored_model(files: TokenizerFiles, kind: str, class_name: str) -> JsonObject:
    """Return the "model" of tokenizer.json; raise ValueError if it is not of the kind that the class reads."""
    model = (files.stored or {}).get("model")
    if not isinstance(model, dict):
        raise ValueError(f"{files.stored_file}: not a tokenizer.json (it holds no model)")
    # Old files name no type; a WordPiece model has a dict of tokens and no merges.
    untyped = "BPE" if "merges" in model else "WordPiece" if isinstance(model.get("vocab"), dict) else "Unigram"
    if model.get("type", untyped) != kind:
        raise ValueError(
            f"{files.stored_file}: holds a {model.get('type', untyped)} model, which transformers would read as "
            f"{kind} for the class {class_name}; to use the file as it is, set tokenizer_class in "
            "tokenizer_config.json to PreTrainedTokenizerFast"
        )
    return model


def _set_defaults(files: TokenizerFiles, named: dict[str, Token | None], defaults: Mapping[str, str]) -> None:
    """Add the class's own special tokens for those that no file names."""
    for key, token in defaults.items():
        if named.setdefault(key, token) is None:
            raise ValueError(f"{files.config_file}: {key} is null; this class of tokenizer needs one")


def _require_tokens(source: object, backend: Tokenizer, declared: DeclaredTokens) -> None:
    """Raise ValueError if a special token is not in the vocabulary; transformers would append it."""
    vocabulary = {token.content for token in declared.added.values()} | backend.get_vocab().keys()
    keys = [key for key in (*ROLES.values(), "bos_token", "eos_token") if declared.named.get(key) is not None]
    needed = dict.fromkeys(str(declared.named[key]) for key in keys)
    missing = [token for token in needed if token not in vocabulary]
    if missing:
        raise ValueError(
            f"{source}: the vocabulary lacks {', '.join(missing)}; add these tokens, or name the vocabulary's own in "
            "tokenizer_config.json (pad_token, unk_token, cls_token, sep_token, mask_token)"
        )


def _with_id(backend: Tokenizer, token: Token | None) -> tuple[str, int]:
    number = backend.token_to_id(str(token))
    assert number is not None  # _require_tokens
    return str(token), number


def _add_tokens(backend: Tokenizer, declared: DeclaredTokens) -> None:
    """Add the declared tokens in the order of `TokenizersBackend.__init__`, which decides about new ids."""
    tokens: list[Token] = [token for _, token in sorted(declared.added.items())]
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
