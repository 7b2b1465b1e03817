"""Load, train and save WordPiece tokenizers in BERT's file formats, with the `tokenizers` library.

Tokenizers of other kinds are loaded from a tokenizer.json, and saved as the files that they were loaded from.
"""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from flaxbert.families import BERT, FAMILIES
from flaxbert.families.family import SpecialTokens
from flaxbert.files import atomic_write, path_inside, read_json
from flaxbert.tokenizer_files import TOKENIZER_FILES

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = dataclasses.astuple(BERT.special_tokens)
_MAX_ID = 2**24  # a hundred times the largest vocabulary of a BERT model


@dataclasses.dataclass(frozen=True)
class WordPieceTokenizer:
    """WordPiece tokenizer that encodes `[CLS] a [SEP]` and `[CLS] a [SEP] b [SEP]`.

    A tokenizer.json of another family's tokenizer, such as RoBERTa's byte-level BPE, is loaded too.

    Attributes:
        backend: the tokenizer of the `tokenizers` library.
        lowercase: True if texts are lower-cased before they are split.
        special_tokens: the special tokens by their roles; BERT's are `[CLS]` and so on.
        source_files: the contents, by name, of the files that a tokenizer of another kind was loaded from; empty for
            WordPiece. Not compared.
    """

    backend: Tokenizer
    lowercase: bool
    special_tokens: SpecialTokens = BERT.special_tokens
    source_files: Mapping[str, bytes] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def load(cls, path: str | Path, *, lowercase: bool | None = None) -> "WordPieceTokenizer":
        """Load the tokenizer of a model folder (tokenizer.json, or vocab.txt) or of a vocabulary file.

        Args:
            path: the folder, or a file with one token per line.
            lowercase: for a vocabulary without tokenizer.json. None takes `do_lower_case` of tokenizer_config.json. If
                that is missing, as in Google's checkpoints, a vocabulary is cased if more than one token in a hundred
                has a capital letter (a third in their cased vocabularies, next to none in uncased and Chinese ones).

        Raises:
            FileNotFoundError: neither file exists.
            ValueError: the file is not a tokenizer, or the vocabulary lacks a special token.
        """
        path = Path(path)
        serialised = path / "tokenizer.json"
        if serialised.is_file():
            try:
                backend = Tokenizer.from_file(str(serialised))
            except Exception as error:  # the library raises bare Exception
                raise ValueError(f"{serialised}: not a tokenizer.json ({error})") from None
            largest = max(backend.get_vocab().values(), default=0)
            if largest > _MAX_ID:  # the library would count up to this id and list every id that is missing
                raise ValueError(f"{serialised}: the largest token id is {largest}; allowed: up to {_MAX_ID}")
            backend.no_padding()  # sentence-transformers stores a fixed length in the file
            backend.no_truncation()
            normalizer = json.loads(backend.to_str())["normalizer"] or {}
            tokenizer = cls(backend, bool(normalizer.get("lowercase", False)))
            if not tokenizer.has_word_pieces:
                files = [path_inside(path, name) for name in TOKENIZER_FILES]
                contents = {file.name: file.read_bytes() for file in files if file.is_file()}
                tokenizer = dataclasses.replace(tokenizer, source_files=contents)
        else:
            file = path / "vocab.txt" if path.is_dir() else path
            if not file.is_file():
                raise FileNotFoundError(f"{file}: no such file; a tokenizer is a tokenizer.json or a vocab.txt")
            vocabulary = _read_vocabulary(file)
            tokenizer = cls._build(vocabulary, _lowercase(file.parent, vocabulary) if lowercase is None else lowercase)
        return tokenizer._with_special_tokens(path)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int,
        lowercase: bool = True,
        chinese_characters: bool = True,
        min_frequency: int = 2,
    ) -> "WordPieceTokenizer":
        """Learn a vocabulary of at most `vocab_size` word pieces: special tokens first, the others sorted.

        The library's threads choose among pieces of equal frequency at random, so two calls may differ in a few tokens:
        store the result instead of training it again.

        Args:
            texts: iterated once.
            vocab_size: number of tokens, special tokens included.
            lowercase: lower-case texts and remove accents.
            chinese_characters: make each Chinese character a word.
            min_frequency: minimum number of occurrences of a piece.

        Raises:
            ValueError: `vocab_size` is not larger than the number of special tokens.
        """
        if vocab_size <= len(SPECIAL_TOKENS):
            raise ValueError(f"vocab_size is {vocab_size}; it must exceed the {len(SPECIAL_TOKENS)} special tokens")
        backend = cls._build(_vocabulary(SPECIAL_TOKENS), lowercase, chinese_characters).backend
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=list(SPECIAL_TOKENS),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        pieces = sorted(set(backend.get_vocab()) - set(SPECIAL_TOKENS))  # the library's order varies between calls
        return cls._build(_vocabulary((*SPECIAL_TOKENS, *pieces)), lowercase, chinese_characters)

    @classmethod
    def from_tokens(cls, tokens: Sequence[str], *, lowercase: bool) -> "WordPieceTokenizer":
        """Build a tokenizer from a vocabulary: all tokens, special ones included, in the order of their ids.

        Raises:
            ValueError: a special token is missing.
        """
        tokenizer = cls._build(_vocabulary(tokens), lowercase)
        return tokenizer._with_special_tokens("the tokens")

    @classmethod
    def _build(
        cls, vocabulary: dict[str, int], lowercase: bool, chinese_characters: bool = True
    ) -> "WordPieceTokenizer":
        # Words of more than 100 characters become [UNK], as in Hugging Face; Google's code allows 200.
        backend = Tokenizer(models.WordPiece(vocabulary, unk_token=UNK, max_input_chars_per_word=100))
        backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase, handle_chinese_chars=chinese_characters)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        present = [token for token in SPECIAL_TOKENS if token in vocabulary]
        backend.add_special_tokens(present)
        if CLS in vocabulary and SEP in vocabulary:
            backend.post_processor = processors.TemplateProcessing(
                single=f"{CLS} $A {SEP}",
                pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
                special_tokens=[(CLS, vocabulary[CLS]), (SEP, vocabulary[SEP])],
            )
        return cls(backend, lowercase)

    def save(self, folder: str | Path, *, max_length: int) -> None:
        """Write vocab.txt, tokenizer.json and tokenizer_config.json, which `AutoTokenizer` reads.

        A tokenizer that is not WordPiece is written as the files that it was loaded from, unchanged; tokenizer files
        that it does not have are deleted from `folder`, because `AutoTokenizer` would combine them with its own.

        Args:
            folder: created if it does not exist.
            max_length: length to which `transformers` truncates: the model's number of positions. Used for WordPiece.

        Raises:
            ValueError: the tokenizer is not WordPiece and was not loaded from a folder.
        """
        folder = Path(folder)
        if self.has_word_pieces:
            texts = self.file_contents(max_length=max_length)
            contents = {name: text.encode() for name, text in texts.items()}
        elif self.source_files:
            contents = self.source_files
        else:
            raise ValueError(
                f"the tokenizer's model is {type(self.backend.model).__name__}; only WordPiece can be saved without "
                "the files of a folder: load the tokenizer with WordPieceTokenizer.load"
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with atomic_write(folder / name) as aside:
                aside.write_bytes(content)
        if not self.has_word_pieces:
            for name in set(TOKENIZER_FILES) - contents.keys():
                (folder / name).unlink(missing_ok=True)

    def file_contents(self, *, max_length: int) -> dict[str, str]:
        """Return the contents of the files that `save` writes for a WordPiece tokenizer, by name."""
        return {
            "vocab.txt": "".join(f"{token}\n" for token in self.vocabulary),
            "tokenizer.json": self.backend.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(
                self.tokenizer_config(max_length=max_length) | self._normaliser_config(), indent=2
            )
            + "\n",
        }

    def tokenizer_config(self, *, max_length: int) -> dict[str, str | bool | int]:
        """Return the content of tokenizer_config.json."""
        return {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.lowercase,
            "model_max_length": max_length,
            "pad_token": self.special_tokens.pad,
            "unk_token": self.special_tokens.unknown,
            "cls_token": self.special_tokens.cls,
            "sep_token": self.special_tokens.sep,
            "mask_token": self.special_tokens.mask,
        }

    def _normaliser_config(self) -> dict[str, bool]:
        # transformers builds BertTokenizer's normaliser from these keys and ignores that of tokenizer.json.
        normalizer = self.backend.normalizer
        if not isinstance(normalizer, normalizers.BertNormalizer):
            return {}
        config = {} if normalizer.handle_chinese_chars else {"tokenize_chinese_chars": False}
        return config if normalizer.strip_accents is None else config | {"strip_accents": normalizer.strip_accents}

    @property
    def vocabulary_digest(self) -> str:
        """SHA-256, in hexadecimal, of the tokens in the order of their ids, one a line."""
        return hashlib.sha256("\n".join(self.vocabulary).encode()).hexdigest()

    @property
    def vocabulary(self) -> list[str]:
        """All tokens in the order of their ids."""
        ids = self.backend.get_vocab()
        return sorted(ids, key=ids.__getitem__)

    @property
    def vocab_size(self) -> int:
        """Largest id plus 1."""
        return max(self.backend.get_vocab().values()) + 1

    def token_id(self, token: str) -> int:
        """Return the id of a token.

        Raises:
            ValueError: the token is not in the vocabulary.
        """
        token_id = self.backend.token_to_id(token)
        if token_id is None:
            special = ", ".join(dataclasses.astuple(self.special_tokens))
            raise ValueError(
                f"{token!r} is not in the vocabulary of {self.vocab_size} tokens, whose special tokens are {special}; "
                "use a tokenizer that has this token"
            )
        return token_id

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of padding, unknown word, [CLS], [SEP] and [MASK], in this order."""
        return tuple(map(self.token_id, dataclasses.astuple(self.special_tokens)))

    @property
    def has_word_pieces(self) -> bool:
        """True for a WordPiece vocabulary, whose tokens within a word begin with "##"."""
        return isinstance(self.backend.model, models.WordPiece)

    def piece_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens and not truncated."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_pieces(self, texts: Sequence[str]) -> list[Encoding]:
        """Return encodings with `ids`, `tokens`, `word_ids` and `offsets`, without special tokens and not truncated.

        `offsets` are the start and end of each piece, in characters of the text.
        """
        return self.backend.encode_batch(list(texts), add_special_tokens=False)

    def encode(self, texts: Sequence[str], pairs: Sequence[str | None], *, max_length: int) -> list[Encoding]:
        """Encode `[CLS] text [SEP]`, followed by `pair [SEP]` where the pair is not None.

        Texts are truncated to `max_length` tokens together, the longer one of a pair first. The encodings have `ids`,
        `type_ids` and `attention_mask`, but no offsets and tokens, which saves time.
        """
        inputs = [text if pair is None else (text, pair) for text, pair in zip(texts, pairs, strict=True)]
        self.backend.enable_truncation(max_length, strategy="longest_first")
        try:
            return self.backend.encode_batch_fast(inputs)
        finally:
            self.backend.no_truncation()

    def tokens(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return the tokens of ids; the unknown token for ids that the vocabulary lacks."""
        return [self.backend.id_to_token(int(i)) or self.special_tokens.unknown for i in ids]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids, special tokens included."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def _with_special_tokens(self, path: Path | str) -> "WordPieceTokenizer":
        """Return the tokenizer with the special tokens of the first family whose tokens it has."""
        missing = []
        for family in FAMILIES.values():
            tokens = dataclasses.astuple(family.special_tokens)
            lacking = [token for token in tokens if self.backend.token_to_id(token) is None]
            if not lacking:
                return dataclasses.replace(self, special_tokens=family.special_tokens)
            missing = missing or lacking
        needed = "; ".join(
            f"{name}: {' '.join(dataclasses.astuple(family.special_tokens))}" for name, family in FAMILIES.items()
        )
        raise ValueError(
            f"{path}: the vocabulary lacks {', '.join(missing)}; add all special tokens of one family ({needed})"
        )


def _vocabulary(tokens: Iterable[str]) -> dict[str, int]:
    return {token: i for i, token in enumerate(tokens)}


def _read_vocabulary(file: Path) -> dict[str, int]:
    try:
        # Not splitlines(): it takes tokens such as U+2028 for line ends.
        lines = file.read_text(encoding="utf-8").removesuffix("\n").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error})") from None
    vocabulary = _vocabulary(lines)
    if len(vocabulary) != len(lines):
        twice = next(token for i, token in enumerate(lines) if vocabulary[token] != i)
        raise ValueError(f"{file}: the token {twice!r} occurs twice (again on line {vocabulary[twice] + 1})")
    return vocabulary


def _lowercase(folder: Path, vocabulary: Collection[str]) -> bool:
    capitalised = sum(token != token.lower() for token in vocabulary if token not in SPECIAL_TOKENS)
    uncased = capitalised <= len(vocabulary) / 100
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return uncased
    config = read_json(file)
    value = config.get("do_lower_case", uncased) if isinstance(config, dict) else None
    if not isinstance(value, bool):
        raise ValueError(f"{file}: do_lower_case is {value!r}; it must be true or false")
    return value
