"""Build the `tokenizers` object that `AutoTokenizer` of transformers 5 builds from the files of a model folder.

Its class decides what is read: BertTokenizer takes the vocabulary alone from tokenizer.json and its settings from
tokenizer_config.json, PreTrainedTokenizerFast takes tokenizer.json as it is. Where the files contradict each other and
transformers would choose without a setting that says so, the folder is refused.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer, models

from flaxbert.families import FAMILIES
from flaxbert.families.family import SpecialTokens
from flaxbert.tokenizer_classes import (
    ROLES,
    build_as_stored,
    build_bert,
    build_camembert,
    build_mpnet,
    build_roberta,
    build_xlm_roberta,
)
from flaxbert.tokenizer_settings import DeclaredTokens, Token, TokenizerFiles, declared_tokens, read_object

BERT_CLASS, MPNET_CLASS = "BertTokenizer", "MPNetTokenizer"
ROBERTA_CLASS, XLM_ROBERTA_CLASS, CAMEMBERT_CLASS = "RobertaTokenizer", "XLMRobertaTokenizer", "CamembertTokenizer"
STORED_CLASS = "PreTrainedTokenizerFast"
"""Name of the class that uses tokenizer.json as it is."""

_CLASSES = {
    BERT_CLASS: BERT_CLASS,
    "DistilBertTokenizer": BERT_CLASS,
    "ElectraTokenizer": BERT_CLASS,
    "MobileBertTokenizer": BERT_CLASS,
    **{name: name for name in (MPNET_CLASS, ROBERTA_CLASS, XLM_ROBERTA_CLASS, CAMEMBERT_CLASS)},
    "PreTrainedTokenizer": STORED_CLASS,
    "TokenizersBackend": STORED_CLASS,
    "PythonBackend": STORED_CLASS,
}
BERT_CLASSES = frozenset(name for name, kind in _CLASSES.items() if kind == BERT_CLASS)
"""Names of the classes that build BERT's tokenizer."""
_CLASS_OF_MODEL = {
    **dict.fromkeys(("bert", "distilbert", "electra", "mobilebert"), BERT_CLASS),
    "roberta": ROBERTA_CLASS,
    "xlm-roberta": XLM_ROBERTA_CLASS,
    "camembert": CAMEMBERT_CLASS,
    "mpnet": MPNET_CLASS,
}
# The builders of classes that also read a vocab.txt, and of those that need a tokenizer.json.
_FROM_VOCABULARY = {BERT_CLASS: build_bert, MPNET_CLASS: build_mpnet}
_FROM_STORED = {
    ROBERTA_CLASS: build_roberta,
    XLM_ROBERTA_CLASS: build_xlm_roberta,
    CAMEMBERT_CLASS: build_camembert,
    STORED_CLASS: build_as_stored,
}
_MAX_ID = 2**24  # a hundred times the largest vocabulary of a BERT model


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


def read_tokenizer(path: Path, *, lowercase: bool | None = None) -> FolderTokenizer:
    """Build the tokenizer of a model folder, or of a vocabulary file and the settings beside it.

    Args:
        path: the folder, a vocab.txt, or a tokenizer.json.
        lowercase: for a vocabulary without tokenizer.json; None takes do_lower_case, see `_lowercase`.

    Raises:
        FileNotFoundError: neither file exists.
        ValueError: a file is invalid, the files contradict each other, or a setting is not supported.
    """
    files = TokenizerFiles.open(path)
    _refuse_unsupported(files)
    # A vocabulary file that is named itself is BERT's, whatever the folder holds.
    name = BERT_CLASS if files.stored is None and path.is_file() else _class_name(files)
    kind = _CLASSES.get(name, STORED_CLASS)
    try:
        declared = declared_tokens(files)
        if kind in _FROM_VOCABULARY:
            backend = _FROM_VOCABULARY[kind](files, declared, lowercase)
        elif files.stored is None:
            raise ValueError(f"{path}: the tokenizer_class {name} is read from tokenizer.json, which is missing")
        else:
            backend = _FROM_STORED[kind](files, declared)
    except (ValueError, OSError):
        raise
    except Exception as error:  # the library raises bare Exception, and TypeError for values of other types
        raise ValueError(f"{path}: the tokenizer can't be built ({error})") from None
    uses_token_types = "token_type_ids" in (files.config.get("model_input_names") or ["token_type_ids"])
    backend.encode_special_tokens = files.flag("split_special_tokens", False)
    _check_ids(files, backend, declared)
    _check_unknown_token(files, backend, kind)
    special_tokens = _special_tokens(path, backend, declared.named)
    _check_template(files, backend, special_tokens)
    return FolderTokenizer(
        backend=backend,
        tokenizer_class=name,
        special_tokens=special_tokens,
        truncation_side=files.side("truncation"),
        max_length=files.max_length,
        uses_token_types=uses_token_types,
    )


def _refuse_unsupported(files: TokenizerFiles) -> None:
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
    if files.side("padding") == "left":
        raise ValueError(
            f"{files.folder}: pads on the left, which is not supported; set padding_side in tokenizer_config.json to "
            '"right"'
        )


def _class_name(files: TokenizerFiles) -> str:
    """Return the name of the class as `AutoTokenizer` chooses it, without "Fast"."""
    model = read_object(files.folder / "config.json", optional=True)
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
    if not isinstance(model_type, str) or model_type not in _CLASS_OF_MODEL:
        raise ValueError(
            f"{files.folder}: names no tokenizer_class, and the model_type {model_type!r:.60} has none here; set "
            "tokenizer_class in tokenizer_config.json"
        )
    return _CLASS_OF_MODEL[model_type]


def _check_ids(files: TokenizerFiles, backend: Tokenizer, declared: DeclaredTokens) -> None:
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


def _check_unknown_token(files: TokenizerFiles, backend: Tokenizer, kind: str) -> None:
    """Raise ValueError if words that the model does not know have no id; the library's own error comes with a text."""
    model, source = backend.model, files.stored_file if files.stored else files.folder
    if isinstance(model, models.Unigram):
        stored = (files.stored or {}).get("model")
        if kind == STORED_CLASS and isinstance(stored, dict) and stored.get("unk_id") is None:
            raise ValueError(
                f"{source}: the Unigram model has no unk_id; set it to the id of the token for unknown words"
            )
    elif model.unk_token is not None and model.token_to_id(model.unk_token) is None:
        raise ValueError(
            f"{source}: the model's unk_token {model.unk_token!r:.60} is not in the model's own vocabulary; add it"
        )


def _special_tokens(path: Path, backend: Tokenizer, named: Mapping[str, Token | None]) -> SpecialTokens:
    """Return the named special tokens, and for roles without a name those of the first family whose tokens exist."""
    given = {role: str(named[key]) for role, key in ROLES.items() if named.get(key) is not None}
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


def _check_template(files: TokenizerFiles, backend: Tokenizer, special_tokens: SpecialTokens) -> None:
    """Raise ValueError unless the post-processor writes [CLS] before a text and [SEP] after it."""
    try:
        tokens, pair = backend.encode("").tokens, backend.encode("", "").tokens
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # panics of the library's Rust code are no Exception
        raise ValueError(f"{files.stored_file}: its post-processor is invalid ({error})") from None
    cls, sep = special_tokens.cls, special_tokens.sep
    if [backend.token_to_id(token) for token in tokens] != [backend.token_to_id(token) for token in (cls, sep)]:
        raise ValueError(
            f"{files.stored_file}: its post-processor writes {' '.join(tokens) or 'no tokens'} around a text; expected "
            f"{cls} and {sep}. Add a post-processor"
        )
    if pair[:1] != tokens[:1] or pair[-1:] != tokens[-1:]:
        raise ValueError(
            f"{files.stored_file}: its post-processor writes {' '.join(pair)} around a pair of texts; expected {cls} "
            f"first and {sep} last"
        )
