"""Turn tag probabilities of word pieces into entities, as the token-classification pipeline of `transformers` does."""

import dataclasses
import enum
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from flaxbert.text.pieces import TextPieces
from flaxbert.text.tags import OUTSIDE
from flaxbert.tokenizer import WordPieceTokenizer


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
class _TaggedWord:
    """The pieces `first` to `end` - 1 of a word (for SIMPLE one piece), and their tag."""

    first: int
    end: int
    tag: str
    score: float

    @property
    def prefix_and_type(self) -> tuple[str, str]:
        """Prefix and type of the tag; a tag without a prefix gives "I" and the whole tag."""
        prefix, dash, kind = self.tag.partition("-")
        return (prefix, kind) if dash and prefix in ("B", "I", "E", "S") else ("I", self.tag)


def aggregate_entities(
    probabilities: Iterable[np.ndarray],
    *,
    text: str,
    pieces: TextPieces,
    labels: Sequence[str],
    tokenizer: WordPieceTokenizer,
    strategy: Aggregation,
) -> list[Entity]:
    """Return the entities of a text.

    The result equals `transformers.pipeline("token-classification", aggregation_strategy=...)` for labels with B- and
    I- and for labels without prefix, with two differences. Words are those of the tokenizer; the pipeline compares the
    lengths of pieces and text, which splits words with combining accents, and for byte-level and Unigram vocabularies
    looks for blanks, which leaves punctuation in the word before it. E- and S- end an entity; the pipeline takes
    them for a part of the type.

    Args:
        probabilities: for each piece of the text those of all labels [N]; read one by one, because those of a long
            text take much memory together.
        text: the text that was tokenized.
        pieces: its pieces.
        labels: the label of each id.
        tokenizer: joins pieces to words.
        strategy: rule for words of several pieces.

    Raises:
        ValueError: there are more or fewer pieces than rows of probabilities, or another number of labels.
    """
    words = _tagged_words(iter(probabilities), pieces.words, labels, strategy)
    return [_entity(members, text, pieces, tokenizer, strategy) for members in _group_words(words)]


def _tagged_words(
    rows: Iterator[np.ndarray], words: np.ndarray, labels: Sequence[str], strategy: Aggregation
) -> Iterator[_TaggedWord]:
    """Yield the tag of each word; `words` [T] is the number of each piece's word."""
    is_first = np.diff(words, prepend=-1) != 0 if strategy is not Aggregation.SIMPLE else np.ones(len(words), bool)
    bounds = np.append(np.flatnonzero(is_first), len(words))
    for first, end in itertools.pairwise(bounds):
        own = list(itertools.islice(rows, end - first))
        if len(own) < end - first or len(own[0]) != len(labels):
            raise ValueError(
                f"{first + len(own)} rows of probabilities of {len(own[0]) if own else 0} labels; there are "
                f"{len(words)} pieces, {len(labels)} labels"
            )
        probabilities = _aggregate_pieces(np.stack(own), strategy)
        best = int(probabilities.argmax())
        yield _TaggedWord(int(first), int(end), labels[best], float(probabilities[best]))
    if next(rows, None) is not None:
        raise ValueError(f"more rows of probabilities than the {len(words)} pieces")


def _aggregate_pieces(probabilities: np.ndarray, strategy: Aggregation) -> np.ndarray:
    """Return the probabilities [N] of a word from those of its pieces [P, N]."""
    if strategy is Aggregation.AVERAGE:
        return probabilities.mean(axis=0)
    if strategy is Aggregation.MAX:
        return probabilities[probabilities.max(axis=1).argmax()]
    return probabilities[0]


def _group_words(words: Iterable[_TaggedWord]) -> Iterator[list[_TaggedWord]]:
    """Group neighbours of one type, unless a prefix ends the first or begins the second; leave out O."""
    group: list[_TaggedWord] = []
    for word in words:
        prefix, kind = word.prefix_and_type
        if group:
            previous_prefix, previous_kind = group[-1].prefix_and_type
            if kind != previous_kind or prefix not in "IE" or previous_prefix not in "BI":
                yield group
                group = []
        if word.tag != OUTSIDE:
            group.append(word)
    if group:
        yield group


def _entity(
    members: Sequence[_TaggedWord], text: str, pieces: TextPieces, tokenizer: WordPieceTokenizer, strategy: Aggregation
) -> Entity:
    first, end = members[0].first, members[-1].end
    tokens = tokenizer.tokens(pieces.ids[first:end])
    unknown = tokenizer.special_tokens.unknown
    # An unknown word is shown as it is written in the text.
    tokens = [
        text[start:stop] if token == unknown else token
        for token, (start, stop) in zip(tokens, pieces.offsets[first:end], strict=True)
    ]
    if strategy is not Aggregation.SIMPLE:
        tokens = [_join(tokens[word.first - first : word.end - first], tokenizer) for word in members]
    score = float(np.mean([member.score for member in members]))
    start, stop = int(pieces.offsets[first, 0]), int(pieces.offsets[end - 1, 1])
    return Entity(start, stop, members[0].prefix_and_type[1], score, _join(tokens, tokenizer))


def _join(tokens: list[str], tokenizer: WordPieceTokenizer) -> str:
    return tokenizer.backend.decoder.decode(tokens)
