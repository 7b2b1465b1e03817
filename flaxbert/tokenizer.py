"""Load, train and save tokenizers in BERT's file formats, with the `tokenizers` library."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Encoding, Tokenizer, models, normalizers, trainers

from flaxbert.encoded_text import EncodedText, PairTemplate, join_pair, longest_first, truncate
from flaxbert.families import BERT
from flaxbert.families.family import SpecialTokens
from flaxbert.files import path_inside
from flaxbert.tokenizer_classes import bert_backend
from flaxbert.tokenizer_files import TOKENIZER_FILES, tokenizer_folder
from flaxbert.tokenizer_folder import BERT_CLASS, BERT_CLASSES, read_tokenizer
from flaxbert.tokenizer_saving import json_text, save_tokenizer
from flaxbert.weights.sentence_transformers import transformer_folder

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = dataclasses.astuple(BERT.special_tokens)


@dataclasses.dataclass(frozen=True)
class WordPieceTokenizer:
    """Tokenizer that encodes `[CLS] a [SEP]` and `[CLS] a [SEP] b [SEP]`, with BERT's word pieces or another model.

    One tokenizer may be used by several threads.

    Attributes:
        backend: the tokenizer of the `tokenizers` library, without truncation and padding.
        special_tokens: the special tokens by their roles; BERT's are `[CLS]` and so on.
        tokenizer_class: the class of transformers that reads the saved tokenizer.
        truncation_side: the end of a long text that is cut off, "right" or "left".
        max_length: the largest number of tokens that the tokenizer's folder allows, or None.
        uses_token_types: False if the second text of a pair has the token type of the first.
        source_files: the contents, by name, of the files that a tokenizer of a class other than BERT's was loaded
            from. Not compared.
    """

    backend: Tokenizer
    special_tokens: SpecialTokens = BERT.special_tokens
    tokenizer_class: str = BERT_CLASS
    truncation_side: str = "right"
    max_length: int | None = None
    uses_token_types: bool = True
    source_files: Mapping[str, bytes] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def load(cls, path: str | Path, *, lowercase: bool | None = None) -> "WordPieceTokenizer":
        """Load the tokenizer of a model folder or of a vocabulary file, with the ids of transformers' `AutoTokenizer`.

        The arguments and errors are those of `tokenizer_folder.read_tokenizer`. In the folder of a training run, or of
        sentence-transformers, the tokenizer may be in a folder below.
        """
        path = Path(path)
        path = tokenizer_folder(transformer_folder(path)) if path.is_dir() else path
        tokenizer = cls(**vars(read_tokenizer(path, lowercase=lowercase)))
        if tokenizer.uses_bert_class:
            return tokenizer
        files = [path_inside(path if path.is_dir() else path.parent, name) for name in TOKENIZER_FILES]
        contents = {file.name: file.read_bytes() for file in files if file.is_file()}
        config = json.loads(contents.get("tokenizer_config.json", b"{}"))
        if not config.get("tokenizer_class"):  # the class was that of config.json, which is not a tokenizer file
            config["tokenizer_class"] = tokenizer.tokenizer_class
            contents["tokenizer_config.json"] = json_text(config).encode()
        return dataclasses.replace(tokenizer, source_files=contents)

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
        special = {token: i for i, token in enumerate(SPECIAL_TOKENS)}
        backend = bert_backend(special, lowercase=lowercase, chinese_characters=chinese_characters)
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            special_tokens=list(SPECIAL_TOKENS),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        pieces = sorted(set(backend.get_vocab()) - set(SPECIAL_TOKENS))  # the library's order varies between calls
        vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *pieces))}
        return cls(bert_backend(vocabulary, lowercase=lowercase, chinese_characters=chinese_characters))

    @classmethod
    def from_tokens(cls, tokens: Sequence[str], *, lowercase: bool) -> "WordPieceTokenizer":
        """Build a tokenizer from a vocabulary: all tokens, special ones included, in the order of their ids.

        Raises:
            ValueError: a special token is missing.
        """
        return cls(bert_backend({token: i for i, token in enumerate(tokens)}, lowercase=lowercase))

    def save(self, folder: str | Path, *, max_length: int) -> None:
        """Write files from which `AutoTokenizer` reads the same tokenizer; see `tokenizer_saving.save_tokenizer`."""
        save_tokenizer(self, Path(folder), max_length=max_length)

    @property
    def uses_bert_class(self) -> bool:
        """True if the class of transformers that reads the saved tokenizer is BERT's, or one that builds the same."""
        return self.tokenizer_class in BERT_CLASSES

    @property
    def lowercase(self) -> bool:
        """True if BERT's normaliser lower-cases texts."""
        normalizer = self.backend.normalizer
        return isinstance(normalizer, normalizers.BertNormalizer) and normalizer.lowercase

    def with_lowercase(self) -> "WordPieceTokenizer":
        """Return a tokenizer that lower-cases texts before all else that this one does."""
        backend = Tokenizer.from_str(self.backend.to_str())
        backend.encode_special_tokens = self.backend.encode_special_tokens
        present = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *present])
        return dataclasses.replace(self, backend=backend)

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

    @functools.cached_property
    def pair_template(self) -> PairTemplate:
        """The special tokens around a pair of texts."""
        encoding = self.backend.encode("a", "a")
        sequences, types = encoding.sequence_ids, self._type_ids(encoding)
        first, second = sequences.index(0), sequences.index(1)
        first_end = second - sequences[first:second].count(None)
        second_end = len(sequences) - sequences[second:].count(None)
        special = (slice(0, first), slice(first_end, second), slice(second_end, None))
        return PairTemplate(
            *(EncodedText(encoding.ids[tokens], types[tokens]) for tokens in special),
            first_type=types[first],
            second_type=types[second],
        )

    def _type_ids(self, encoding: Encoding) -> list[int]:
        return encoding.type_ids if self.uses_token_types else [0] * len(encoding)

    def piece_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens and not truncated."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_pieces(self, texts: Sequence[str]) -> list[Encoding]:
        """Return encodings with `ids`, `tokens`, `word_ids` and `offsets`, without special tokens and not truncated.

        `offsets` are the start and end of each piece, in characters of the text.
        """
        return self.backend.encode_batch(list(texts), add_special_tokens=False)

    def encode(self, texts: Sequence[str], pairs: Sequence[str | None], *, max_length: int) -> list[EncodedText]:
        """Encode `[CLS] text [SEP]`, followed by `pair [SEP]` where the pair is not None.

        Texts are truncated to `max_length` tokens together, the longer one of a pair first.
        """
        inputs = [text if pair is None else (text, pair) for text, pair in zip(texts, pairs, strict=True)]
        # Not backend.enable_truncation: its length would hold for other threads, too.
        return [
            EncodedText(found.ids, self._type_ids(found))
            if len(found) <= max_length
            else self._cut_to(found, max_length)
            for found in self.backend.encode_batch_fast(inputs)
        ]

    def _cut_to(self, encoding: Encoding, max_length: int) -> EncodedText:
        """Truncate a text, or a pair, that is longer than `max_length`."""
        pieces: tuple[list[int], list[int]] = ([], [])
        for token_id, sequence in zip(encoding.ids, encoding.sequence_ids, strict=True):
            if sequence is not None:  # else a special token of the template
                pieces[sequence].append(token_id)
        side = self.truncation_side
        if encoding.n_sequences == 1:
            cls, sep = self.token_id(self.special_tokens.cls), self.token_id(self.special_tokens.sep)
            ids = [cls, *truncate(pieces[0], max(0, max_length - 2), side=side), sep]
            return EncodedText(ids, [0] * len(ids))
        template, (first, second) = self.pair_template, pieces
        lengths = longest_first(len(first), len(second), max(0, max_length - template.size))
        first, second = truncate(first, lengths[0], side=side), truncate(second, lengths[1], side=side)
        return join_pair(template, first, second)

    def tokens(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return the tokens of ids; the unknown token for ids that the vocabulary lacks."""
        return [self.backend.id_to_token(int(i)) or self.special_tokens.unknown for i in ids]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids, special tokens included."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)
