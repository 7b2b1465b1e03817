"""Load, train and save tokenizers in BERT's file formats, with the `tokenizers` library."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer, models, normalizers, trainers

from flaxbert.families import BERT
from flaxbert.families.family import SpecialTokens
from flaxbert.files import atomic_write, path_inside
from flaxbert.tokenizer_classes import bert_backend
from flaxbert.tokenizer_files import TOKENIZER_FILES, tokenizer_folder
from flaxbert.tokenizer_folder import BERT_CLASS, BERT_CLASSES, read_tokenizer
from flaxbert.weights.sentence_transformers import transformer_folder

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = dataclasses.astuple(BERT.special_tokens)


class EncodedText(NamedTuple):
    """The ids and token types of a text or of a pair of texts, with special tokens."""

    ids: list[int]
    type_ids: list[int]


class PairTemplate(NamedTuple):
    """The special tokens around a pair of texts, and the token types of both texts."""

    before: EncodedText
    between: EncodedText
    after: EncodedText
    first_type: int
    second_type: int

    @property
    def size(self) -> int:
        """Number of special tokens; 3 for BERT."""
        return len(self.before.ids) + len(self.between.ids) + len(self.after.ids)


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
        if tokenizer.tokenizer_class in BERT_CLASSES:
            return tokenizer
        files = [path_inside(path if path.is_dir() else path.parent, name) for name in TOKENIZER_FILES]
        contents = {file.name: file.read_bytes() for file in files if file.is_file()}
        config = json.loads(contents.get("tokenizer_config.json", b"{}"))
        if not config.get("tokenizer_class"):  # the class was that of config.json, which is not a tokenizer file
            config["tokenizer_class"] = tokenizer.tokenizer_class
            contents["tokenizer_config.json"] = _json_text(config).encode()
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
        """Write files from which `AutoTokenizer` reads the same tokenizer; delete other tokenizer files of the folder.

        A tokenizer of BERT's class is written as tokenizer.json, tokenizer_config.json and vocab.txt. One of another
        class is written as the files that it was loaded from.

        Args:
            folder: created if it does not exist.
            max_length: length to which `transformers` truncates: the model's number of positions. Used for BERT's
                class; a smaller `max_length` of the tokenizer's own stays.

        Raises:
            ValueError: the tokenizer is of another class and was not loaded from a folder.
        """
        folder = Path(folder)
        contents = {name: text.encode() for name, text in self.file_contents(max_length=max_length).items()}
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with atomic_write(folder / name) as aside:
                aside.write_bytes(content)
        for name in set(TOKENIZER_FILES) - contents.keys():
            (folder / name).unlink(missing_ok=True)

    def file_contents(self, *, max_length: int | None) -> dict[str, str]:
        """Return the contents of the files that `save` writes, by name; without a vocab.txt that would change an id.

        Raises:
            ValueError: as `save`.
        """
        if self.source_files:
            return {name: content.decode() for name, content in self.source_files.items()}
        if not self.has_word_pieces or self.tokenizer_class not in BERT_CLASSES:
            raise ValueError(
                f"the tokenizer's model is {type(self.backend.model).__name__}; only WordPiece can be saved without "
                "the files of a folder: load the tokenizer with WordPieceTokenizer.load"
            )
        contents = {
            "tokenizer.json": self.backend.to_str(pretty=True),
            "tokenizer_config.json": _json_text(self._bert_config(max_length)),
        }
        ids = self.backend.get_vocab(with_added_tokens=False)
        lines = sorted(ids, key=ids.__getitem__)
        # A vocab.txt is read line by line, without white space at the end of a line.
        if all(ids[line] == i and line == line.rstrip() and "\n" not in line for i, line in enumerate(lines)):
            contents["vocab.txt"] = "".join(f"{line}\n" for line in lines)
        return contents

    def _bert_config(self, max_length: int | None) -> dict[str, object]:
        """Return tokenizer_config.json; transformers takes these settings and not those of tokenizer.json."""
        config: dict[str, object] = {"tokenizer_class": self.tokenizer_class, "do_lower_case": self.lowercase}
        normalizer = self.backend.normalizer
        if isinstance(normalizer, normalizers.BertNormalizer):
            if not normalizer.handle_chinese_chars:
                config["tokenize_chinese_chars"] = False
            if normalizer.strip_accents is not None:
                config["strip_accents"] = normalizer.strip_accents
        if self.truncation_side != "right":
            config["truncation_side"] = self.truncation_side
        if self.backend.encode_special_tokens:
            config["split_special_tokens"] = True
        if not self.uses_token_types:
            config["model_input_names"] = ["input_ids", "attention_mask"]
        lengths = [length for length in (max_length, self.max_length) if length is not None]
        if lengths:
            config["model_max_length"] = min(lengths)
        tokens = self.special_tokens
        return config | {
            "pad_token": tokens.pad,
            "unk_token": tokens.unknown,
            "cls_token": tokens.cls,
            "sep_token": tokens.sep,
            "mask_token": tokens.mask,
        }

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
        if encoding.n_sequences == 1:
            cls, sep = self.token_id(self.special_tokens.cls), self.token_id(self.special_tokens.sep)
            ids = [cls, *self._cut(pieces[0], max(0, max_length - 2)), sep]
            return EncodedText(ids, [0] * len(ids))
        template, (first, second) = self.pair_template, pieces
        lengths = longest_first(len(first), len(second), max(0, max_length - template.size))
        first, second = self._cut(first, lengths[0]), self._cut(second, lengths[1])
        before, between, after = template.before, template.between, template.after
        types = [
            *before.type_ids,
            *[template.first_type] * len(first),
            *between.type_ids,
            *[template.second_type] * len(second),
            *after.type_ids,
        ]
        return EncodedText([*before.ids, *first, *between.ids, *second, *after.ids], types)

    def _cut(self, ids: list[int], length: int) -> list[int]:
        return ids[:length] if self.truncation_side == "right" else ids[len(ids) - length :]

    def tokens(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return the tokens of ids; the unknown token for ids that the vocabulary lacks."""
        return [self.backend.id_to_token(int(i)) or self.special_tokens.unknown for i in ids]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of ids, special tokens included."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=False)


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Return the lengths of two texts that are cut to `room` tokens together, as the `tokenizers` library cuts them.

    Only the longer text is cut as long as it stays the longer one. If both are cut, each gets half, and of an odd
    number the longer one (the second of two equal ones) gets the larger half.
    """
    if first + second <= room:
        return first, second
    shorter, longer = sorted((first, second))
    if shorter <= room and max(shorter, room - shorter) + shorter <= room:
        longer = room - shorter
    else:
        shorter, longer = room // 2, room - room // 2
    return (longer, shorter) if first > second else (shorter, longer)


def _json_text(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"
