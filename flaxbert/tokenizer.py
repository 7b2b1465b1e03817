"""WordPiece tokenizers in BERT's layout: load, train, save. The `tokenizers` library does the work."""

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from flaxbert.files import atomic_write, read_json

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MAX_ID = 2**24  # a hundred times the largest vocabulary of a BERT


@dataclasses.dataclass(frozen=True)
class WordPieceTokenizer:
    """Text to word-piece ids and back; `[CLS] a [SEP]` and `[CLS] a [SEP] b [SEP]` around sequences."""

    backend: Tokenizer
    lowercase: bool

    @classmethod
    def load(cls, path: str | Path, *, lowercase: bool | None = None) -> "WordPieceTokenizer":
        """Reads a model folder (tokenizer.json, or vocab.txt) or a vocabulary file of one token a line.

        Args:
            path: the folder or file.
            lowercase: of a vocabulary without tokenizer.json; None takes `do_lower_case` of tokenizer_config.json.
                Where that says nothing, as with Google's checkpoints, a vocabulary with more than one capitalised
                token in a hundred is a cased one (theirs: a third; uncased and Chinese ones: next to none).

        Raises:
            FileNotFoundError: neither file is there.
            ValueError: not a tokenizer, or a special token is missing from the vocabulary.
        """
        path = Path(path)
        serialised = path / "tokenizer.json"
        if serialised.is_file():
            try:
                backend = Tokenizer.from_file(str(serialised))
            except Exception as error:  # the library raises bare Exception
                raise ValueError(f"{serialised}: not a tokenizer.json ({error})") from None
            largest = max(backend.get_vocab().values(), default=0)
            if largest > _MAX_ID:  # the library counts up to it, and lists the ids that are not there
                raise ValueError(f"{serialised}: has a token of the id {largest}; at most {_MAX_ID} is read")
            backend.no_padding()  # sentence-transformers stores a fixed length of its own
            backend.no_truncation()
            normalizer = json.loads(backend.to_str())["normalizer"] or {}
            tokenizer = cls(backend, bool(normalizer.get("lowercase", False)))
        else:
            file = path / "vocab.txt" if path.is_dir() else path
            if not file.is_file():
                raise FileNotFoundError(f"{file}: no such file; a tokenizer is a tokenizer.json or a vocab.txt")
            vocabulary = _read_vocabulary(file)
            tokenizer = cls._build(vocabulary, _lowercase(file.parent, vocabulary) if lowercase is None else lowercase)
        tokenizer._require_special_tokens(path)
        return tokenizer

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
        """Learns a vocabulary of at most `vocab_size` word pieces: special tokens first, the others sorted.

        Pieces of equal frequency at the edge of the vocabulary are chosen by chance (the library's threads), so two
        calls may differ in a few tokens: keep the result, don't learn it again.

        Args:
            texts: read once.
            vocab_size: special tokens included.
            lowercase: fold case, and take accents away.
            chinese_characters: take each Chinese character for a word.
            min_frequency: pieces that are rarer are not learnt.

        Raises:
            ValueError: `vocab_size` leaves no room beside the special tokens.
        """
        if vocab_size <= len(SPECIAL_TOKENS):
            raise ValueError(f"vocab_size is {vocab_size}; it must exceed the {len(SPECIAL_TOKENS)} special tokens")
        learner = cls._build(
            {token: i for i, token in enumerate(SPECIAL_TOKENS)}, lowercase, chinese_characters
        ).backend
        learner.train_from_iterator(
            texts,
            trainers.WordPieceTrainer(
                vocab_size=vocab_size,
                min_frequency=min_frequency,
                special_tokens=list(SPECIAL_TOKENS),
                show_progress=False,
            ),
        )
        pieces = sorted(set(learner.get_vocab()) - set(SPECIAL_TOKENS))  # the library's order varies between calls
        return cls._build(
            {token: i for i, token in enumerate((*SPECIAL_TOKENS, *pieces))}, lowercase, chinese_characters
        )

    @classmethod
    def from_tokens(cls, tokens: Sequence[str], *, lowercase: bool) -> "WordPieceTokenizer":
        """The tokenizer of this vocabulary: the tokens in the order of their ids, special ones among them."""
        tokenizer = cls._build({token: i for i, token in enumerate(tokens)}, lowercase)
        tokenizer._require_special_tokens("the tokens")
        return tokenizer

    @classmethod
    def _build(
        cls, vocabulary: dict[str, int], lowercase: bool, chinese_characters: bool = True
    ) -> "WordPieceTokenizer":
        # 100: words longer than that become [UNK], as in Hugging Face; Google's code allows 200.
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
        """Writes vocab.txt, tokenizer.json and tokenizer_config.json, which `AutoTokenizer` reads.

        Args:
            folder: made if it is not there.
            max_length: what `transformers` truncates to: the model's number of positions.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self.file_contents(max_length=max_length).items():
            with atomic_write(folder / name) as aside:
                aside.write_text(text, encoding="utf-8", newline="\n")

    def file_contents(self, *, max_length: int) -> dict[str, str]:
        """The contents of the files that `save` writes, by name."""
        return {
            "vocab.txt": "".join(f"{token}\n" for token in self.vocabulary),
            "tokenizer.json": self.backend.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(self.tokenizer_config(max_length=max_length), indent=2) + "\n",
        }

    def tokenizer_config(self, *, max_length: int) -> dict[str, str | bool | int]:
        """The content of tokenizer_config.json."""
        return {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.lowercase,
            "model_max_length": max_length,
            **{f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS},
        }

    @property
    def vocabulary_digest(self) -> str:
        """SHA-256, in hexadecimal, of the tokens in the order of their ids, one a line."""
        return hashlib.sha256("\n".join(self.vocabulary).encode()).hexdigest()

    @property
    def vocabulary(self) -> list[str]:
        """The tokens in the order of their ids."""
        ids = self.backend.get_vocab()
        return sorted(ids, key=ids.__getitem__)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.backend.get_vocab().values()) + 1

    def token_id(self, token: str) -> int:
        """The id of a token of the vocabulary."""
        found = self.backend.token_to_id(token)
        if found is None:
            raise ValueError(f"{token!r} is not in the vocabulary")
        return found

    @property
    def special_ids(self) -> tuple[int, ...]:
        """Ids of [PAD], [UNK], [CLS], [SEP] and [MASK]."""
        return tuple(self.token_id(token) for token in SPECIAL_TOKENS)

    def piece_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, nothing added and nothing cut."""
        return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_pieces(self, texts: Sequence[str]) -> list[Encoding]:
        """The pieces of each text, nothing added and nothing cut.

        The encodings carry `ids` and `offsets`: from which character of the text to which each piece comes.
        """
        return self.backend.encode_batch(list(texts), add_special_tokens=False)

    def encode(self, texts: Sequence[str], pairs: Sequence[str | None], *, max_length: int) -> list[Encoding]:
        """`[CLS] text [SEP]`, with `pair [SEP]` where that is not None, cut to `max_length` (longest first).

        The encodings carry `ids`, `type_ids` and `attention_mask`; offsets and tokens are left out for speed.
        """
        inputs = [text if pair is None else (text, pair) for text, pair in zip(texts, pairs, strict=True)]
        self.backend.enable_truncation(max_length, strategy="longest_first")
        try:
            return self.backend.encode_batch_fast(inputs)
        finally:
            self.backend.no_truncation()

    def tokens(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The tokens of ids."""
        return [self.backend.id_to_token(int(i)) or UNK for i in ids]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Readable text; special tokens stay visible."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def _require_special_tokens(self, path: Path | str) -> None:
        lacking = [token for token in SPECIAL_TOKENS if self.backend.token_to_id(token) is None]
        if lacking:
            raise ValueError(f"{path}: the vocabulary lacks {', '.join(lacking)}; BERT needs all of {SPECIAL_TOKENS}")


def _read_vocabulary(file: Path) -> dict[str, int]:
    try:
        # Not splitlines(): vocabularies hold tokens such as U+2028, which it takes for line ends.
        lines = file.read_text(encoding="utf-8").removesuffix("\n").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error})") from None
    vocabulary = {token: i for i, token in enumerate(lines)}
    if len(vocabulary) != len(lines):
        twice = next(token for i, token in enumerate(lines) if vocabulary[token] != i)
        raise ValueError(f"{file}: the token {twice!r} is there twice (again on line {vocabulary[twice] + 1})")
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
