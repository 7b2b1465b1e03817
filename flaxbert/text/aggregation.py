"""Turn tag probabilities of word pieces into entities, as the token-classification pipeline of `transformers` does."""

import dataclasses
import enum
import itertools
from collections.abc import Sequence

import numpy as np
from tokenizers import Encoding

from flaxbert.text.tags import OUTSIDE
from flaxbert.tokenizer import UNK, WordPieceTokenizer


class Aggregation(enum.Enum):
    """Rule that chooses the tag of a word from the probabilities of its pieces."""

    SIMPLE = "simple"
    """Each piece keeps its own tag; an entity may be a part of a word."""
    FIRST = "first"
    """Tag of the first piece."""
    AVERAGE = "average"
    """Tag with the highest mean probability."""
    MAX = "max"
    """Tag of the piece with the highest probability."""


@dataclasses.dataclass(frozen=True)
class Entity:
    """Entity text[start:end] with its type; `score` is the mean probability of its tags.

    `word` is decoded from the pieces: lower-cased if the tokenizer lower-cases, with spaces around punctuation.
    """

    start: int
    end: int
    type: str
    score: float
    word: str


@dataclasses.dataclass(frozen=True)
class _TaggedSpan:
    """Characters `start` to `end` of a piece or word, and its tag."""

    start: int
    end: int
    tag: str
    score: float
    word: str

    @property
    def prefix_and_type(self) -> tuple[str, str]:
        """Prefix and type of the tag; a tag without a prefix gives "I" and the whole tag."""
        prefix, dash, kind = self.tag.partition("-")
        return (prefix, kind) if dash and prefix in ("B", "I", "E", "S") else ("I", self.tag)


def aggregate_entities(
    probabilities: np.ndarray,
    *,
    text: str,
    encoding: Encoding,
    labels: Sequence[str],
    tokenizer: WordPieceTokenizer,
    strategy: Aggregation,
) -> list[Entity]:
    """Return the entities of a text.

    The result equals `transformers.pipeline("token-classification", aggregation_strategy=...)` for labels with B- and
    I- and for labels without prefix, with two differences. Words are those of the tokenizer; the pipeline compares the
    lengths of pieces and text, which splits words with combining accents. E- and S- end an entity; the pipeline takes
    them for a part of the type.

    Args:
        probabilities: for each piece, without [CLS] and [SEP], and each label [T, N].
        text: the text that was tokenized.
        encoding: its pieces, from `WordPieceTokenizer.encode_pieces`.
        labels: the label of each id.
        tokenizer: joins pieces to words.
        strategy: rule for words of several pieces.

    Raises:
        ValueError: `probabilities` has another shape.
    """
    if probabilities.shape != (len(encoding.ids), len(labels)):
        expected = f"{len(encoding.ids)} pieces, {len(labels)} labels"
        raise ValueError(f"probabilities have shape {probabilities.shape}; there are {expected}")
    offsets = encoding.offsets
    unknown = tokenizer.token_id(UNK)
    # An unknown word is shown as it is written in the text.
    tokens = [
        text[start:end] if token_id == unknown else token
        for token_id, token, (start, end) in zip(encoding.ids, encoding.tokens, offsets, strict=True)
    ]
    tagged = []
    for pieces in _group_pieces(encoding.word_ids, strategy):
        word_probabilities = _aggregate_pieces(probabilities[pieces], strategy)
        best = int(word_probabilities.argmax())
        first, last = pieces[0], pieces[-1]
        word = tokens[first] if strategy is Aggregation.SIMPLE else _join([tokens[i] for i in pieces], tokenizer)
        score = float(word_probabilities[best])
        tagged.append(_TaggedSpan(offsets[first][0], offsets[last][1], labels[best], score, word))
    return [_entity(members, tokenizer) for members in _group_spans(tagged) if members[0].tag != OUTSIDE]


def _group_pieces(word_ids: Sequence[int | None], strategy: Aggregation) -> list[list[int]]:
    """Return the indices of each word's pieces; for SIMPLE every piece is a group."""
    pieces = range(len(word_ids))
    if strategy is Aggregation.SIMPLE:
        return [[i] for i in pieces]
    return [list(members) for _, members in itertools.groupby(pieces, key=lambda i: word_ids[i])]


def _aggregate_pieces(probabilities: np.ndarray, strategy: Aggregation) -> np.ndarray:
    """Return the probabilities [N] of a word from those of its pieces [P, N]."""
    if strategy is Aggregation.AVERAGE:
        return probabilities.mean(axis=0)
    if strategy is Aggregation.MAX:
        return probabilities[probabilities.max(axis=1).argmax()]
    return probabilities[0]


def _group_spans(tagged: Sequence[_TaggedSpan]) -> list[list[_TaggedSpan]]:
    """Group neighbours of one type, unless a prefix ends the first or begins the second."""
    groups: list[list[_TaggedSpan]] = []
    previous_prefix, previous_type = "", ""
    for span in tagged:
        prefix, kind = span.prefix_and_type
        if groups and kind == previous_type and prefix in "IE" and previous_prefix in "BI":
            groups[-1].append(span)
        else:
            groups.append([span])
        previous_prefix, previous_type = prefix, kind
    return groups


def _entity(members: Sequence[_TaggedSpan], tokenizer: WordPieceTokenizer) -> Entity:
    score = float(np.mean([member.score for member in members]))
    word = _join([member.word for member in members], tokenizer)
    return Entity(members[0].start, members[-1].end, members[0].prefix_and_type[1], score, word)


def _join(tokens: list[str], tokenizer: WordPieceTokenizer) -> str:
    return tokenizer.backend.decoder.decode(tokens)
