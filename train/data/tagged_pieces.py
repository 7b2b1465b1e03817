"""Tagged sentences as word pieces, long ones in windows, and the way back from pieces to words."""

import dataclasses
import enum
from collections.abc import Mapping, Sequence

import numpy as np

from flaxbert.losses import IGNORE
from flaxbert.text.tags import OUTSIDE, EntitySpan, TagScheme, encode_tags, entity_spans
from flaxbert.text.windows import max_context_windows, sliding_windows
from flaxbert.tokenizer import CLS, SEP, WordPieceTokenizer
from train.data.examples import Tagged
from train.data.tagged import Sentence

_NOWHERE = -1


class LabelledPieces(enum.Enum):
    """Which pieces of a word are learnt; what is predicted for the first is predicted for the word."""

    FIRST = "first"
    """The first: the others have no label, as in the paper."""
    ALL = "all"
    """Each: an entity is tagged from its first piece to its last."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """How sentences become examples.

    `overlap` pieces are shared by neighbouring windows. Each piece is learnt, and predicted, in the window in which it
    has most context, and there alone.
    """

    ids: Mapping[str, int]  # of the tags
    scheme: TagScheme
    max_length: int
    overlap: int
    labelled: LabelledPieces


@dataclasses.dataclass(frozen=True)
class TaggedPieces:
    """Examples, and for each word of all sentences [W] the example and the position where its tag is predicted.

    Both are -1 for a word without pieces: blanks and control characters, which a tokenizer drops.
    """

    examples: Tagged
    example: np.ndarray
    position: np.ndarray

    @property
    def silent(self) -> int:
        """Words without pieces."""
        return int((self.example == _NOWHERE).sum())

    def tags(self, predicted: Sequence[np.ndarray], sentences: Sequence[Sentence], labels: Sequence[str]) -> list[list]:
        """The tag of every word: of label ids [T] predicted for each example; O for a word without pieces."""
        found = [
            OUTSIDE if example == _NOWHERE else labels[predicted[example][position]]
            for example, position in zip(self.example.tolist(), self.position.tolist(), strict=True)
        ]
        ends = np.cumsum([len(sentence.words) for sentence in sentences]).tolist()
        return [found[end - len(sentence.words) : end] for sentence, end in zip(sentences, ends, strict=True)]


def cut_sentences(sentences: Sequence[Sentence], tokenizer: WordPieceTokenizer, cut: Cut) -> TaggedPieces:
    """The examples of these sentences; one without any pieces has none."""
    words = list(dict.fromkeys(word for sentence in sentences for word in sentence.words))
    pieces = dict(zip(words, tokenizer.piece_ids(words), strict=True))  # each distinct word once
    around = [tokenizer.token_id(CLS)], [tokenizer.token_id(SEP)]
    ids, labels, example, position = [], [], [], []
    for sentence in sentences:
        parts = [pieces[word] for word in sentence.words]
        counts = np.array([len(part) for part in parts])
        firsts = np.cumsum(counts) - counts
        flat = np.array([number for part in parts for number in part], np.int32)
        if not len(flat):
            example += [_NOWHERE] * len(parts)
            position += [_NOWHERE] * len(parts)
            continue
        places = sliding_windows(len(flat), cut.max_length - 2, cut.overlap)
        owner = max_context_windows(places, len(flat))
        wanted = _labels(sentence, firsts, counts, cut)
        for number, (start, end) in enumerate(places):
            ids.append(np.concatenate([around[0], flat[start:end], around[1]]).astype(np.int32))
            own = np.where(owner[start:end] == number, wanted[start:end], IGNORE)
            labels.append(np.concatenate([[IGNORE], own, [IGNORE]]).astype(np.int32))
        for first, count in zip(firsts.tolist(), counts.tolist(), strict=True):
            if count:
                window = int(owner[first])
                example.append(len(ids) - len(places) + window)
                position.append(1 + first - places[window][0])
            else:
                example.append(_NOWHERE)
                position.append(_NOWHERE)
    examples = Tagged(ids, [np.zeros_like(row) for row in ids], labels)
    return TaggedPieces(examples, np.array(example), np.array(position))


def _labels(sentence: Sentence, firsts: np.ndarray, counts: np.ndarray, cut: Cut) -> np.ndarray:
    """The label of every piece of a sentence [P], -100 for those that are not learnt."""
    total = int(counts.sum())
    if cut.labelled is LabelledPieces.ALL:
        ends = firsts + counts
        found = [EntitySpan(int(firsts[a]), int(ends[b - 1]), kind) for a, b, kind in entity_spans(sentence.tags)]
        tags = encode_tags([span for span in found if span.start < span.end], total, cut.scheme)
        return np.array([cut.ids[tag] for tag in tags], np.int32)
    labels = np.full(total, IGNORE, np.int32)
    there = counts > 0
    labels[firsts[there]] = np.array([cut.ids[tag] for tag in sentence.tags])[there]
    return labels
