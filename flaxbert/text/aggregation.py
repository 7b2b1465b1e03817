"""Entities in a text, of the probabilities of its word pieces, as `transformers`' token-classification pipeline."""

import dataclasses
import enum
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flaxbert.text.tags import OUTSIDE

if TYPE_CHECKING:
    from tokenizers import Encoding

    from flaxbert.tokenizer import WordPieceTokenizer


class Aggregation(enum.Enum):
    """How the pieces of a word agree on a tag."""

    SIMPLE = "simple"
    """They need not: each piece has its own, and an entity may be part of a word."""
    FIRST = "first"
    """That of the first piece."""
    AVERAGE = "average"
    """The likeliest by the mean of their probabilities."""
    MAX = "max"
    """That of the piece which is surest of its own."""


@dataclasses.dataclass(frozen=True)
class Entity:
    """An entity in a text: characters `start` up to `end`, its type, and how sure its tags are (their mean).

    `word` is read from the pieces: in lower case where the tokenizer is, blanks around punctuation.
    """

    start: int
    end: int
    type: str
    score: float
    word: str


@dataclasses.dataclass(frozen=True)
class _Tagged:
    """A piece or a word, and its tag."""

    start: int
    end: int
    tag: str
    score: float
    word: str

    @property
    def parts(self) -> tuple[str, str]:
        """Prefix and type; of a label without prefix, "I" and the whole label."""
        prefix, dash, kind = self.tag.partition("-")
        return (prefix, kind) if dash and prefix in ("B", "I", "E", "S") else ("I", self.tag)


def aggregate_entities(
    probabilities: np.ndarray,
    *,
    text: str,
    encoding: "Encoding",
    labels: Sequence[str],
    tokenizer: "WordPieceTokenizer",
    strategy: Aggregation,
) -> list[Entity]:
    """The entities of a text.

    Equal to `transformers.pipeline("token-classification", aggregation_strategy=...)` for labels with B- and I-, and
    for those without prefix. Two differences: what a word is, says the tokenizer, where the pipeline compares lengths
    of pieces and text (a word with a combining accent is torn apart there); and E- and S- end an entity, while there
    they are part of its type.

    Args:
        probabilities: of the labels, for each piece [T, N]; [CLS] and [SEP] left out.
        text: what was tokenized.
        encoding: its pieces, from `WordPieceTokenizer.encode_pieces`.
        labels: the label of each id.
        tokenizer: joins pieces to words.
        strategy: how the pieces of a word agree.

    Raises:
        ValueError: the shape of the probabilities is not that of pieces and labels.
    """
    if probabilities.shape != (len(encoding.ids), len(labels)):
        what = f"{len(encoding.ids)} pieces, {len(labels)} labels"
        raise ValueError(f"probabilities have shape {probabilities.shape}; there are {what}")
    offsets = encoding.offsets
    unknown = tokenizer.token_id("[UNK]")
    # An unknown word is shown as it is written.
    tokens = [
        text[start:end] if number == unknown else token
        for number, token, (start, end) in zip(encoding.ids, encoding.tokens, offsets, strict=True)
    ]
    tagged = []
    for pieces in _words(encoding.word_ids, strategy):
        row = _agreed(probabilities[pieces], strategy)
        best = int(row.argmax())
        first, last = pieces[0], pieces[-1]
        word = tokens[first] if strategy is Aggregation.SIMPLE else _joined([tokens[i] for i in pieces], tokenizer)
        tagged.append(_Tagged(offsets[first][0], offsets[last][1], labels[best], float(row[best]), word))
    return [_entity(members, tokenizer) for members in _grouped(tagged) if members[0].tag != OUTSIDE]


def _words(word_ids: Sequence[int | None], strategy: Aggregation) -> list[list[int]]:
    """The pieces of each word; each piece by itself for SIMPLE."""
    pieces = range(len(word_ids))
    if strategy is Aggregation.SIMPLE:
        return [[i] for i in pieces]
    return [list(members) for _, members in itertools.groupby(pieces, key=lambda i: word_ids[i])]


def _agreed(rows: np.ndarray, strategy: Aggregation) -> np.ndarray:
    """The probabilities [N] that stand for a word's pieces [P, N]."""
    if strategy is Aggregation.AVERAGE:
        return rows.mean(axis=0)
    return rows[rows.max(axis=1).argmax()] if strategy is Aggregation.MAX else rows[0]


def _grouped(tagged: Sequence[_Tagged]) -> list[list[_Tagged]]:
    """Neighbours of one type together, unless a prefix says that the first has ended or the second begins."""
    groups: list[list[_Tagged]] = []
    for item in tagged:
        before, here = groups[-1][-1].parts if groups else ("", ""), item.parts
        if groups and here[1] == before[1] and here[0] in "IE" and before[0] in "BI":
            groups[-1].append(item)
        else:
            groups.append([item])
    return groups


def _entity(members: Sequence[_Tagged], tokenizer: "WordPieceTokenizer") -> Entity:
    score = float(np.mean([member.score for member in members]))
    word = _joined([member.word for member in members], tokenizer)
    return Entity(members[0].start, members[-1].end, members[0].parts[1], score, word)


def _joined(tokens: list[str], tokenizer: "WordPieceTokenizer") -> str:
    return tokenizer.backend.decoder.decode(tokens)
