"""Tags as labels of a model: made valid in one scheme, listed, numbered."""

import dataclasses
import difflib
import enum
from collections.abc import Mapping, Sequence

import numpy as np

from flaxbert.losses import IGNORE
from flaxbert.text.messages import MAX_SHOWN, quote_names, raise_problems
from flaxbert.text.tags import (
    OUTSIDE,
    EntitySpan,
    TagScheme,
    detect_scheme,
    encode_tags,
    entity_spans,
    parse_tag,
    repair_tags,
)
from flaxbert.text.windows import max_context_windows, sliding_windows
from flaxbert.tokenizer import CLS, SEP, WordPieceTokenizer
from train.data.examples import TaggedSequences
from train.data.tagged_sentences import TaggedSentence


class InvalidTags(enum.Enum):
    """What to do about a tag that cannot stand where it does, such as an I- that continues nothing under IOB2."""

    REPAIR = "repair"
    """Read it as CoNLL's script does (that I- begins an entity), and count it."""
    REFUSE = "refuse"
    """Stop, and show where they are."""


def convert_scheme(
    sentences: Sequence[TaggedSentence], scheme: TagScheme, *, written: TagScheme, invalid: InvalidTags
) -> tuple[list[TaggedSentence], int]:
    """The sentences with tags of `scheme`, and how many tags were invalid in the one they are written in.

    Raises:
        ValueError: there are such tags, and they are to be refused.
    """
    problems, result, count = [], [], 0
    for sentence in sentences:
        valid = repair_tags(sentence.tags, written)
        wrong = [i for i, (tag, other) in enumerate(zip(sentence.tags, valid, strict=True)) if tag != other]
        count += len(wrong)
        if wrong:
            i = wrong[0]
            before = f"after {sentence.tags[i - 1]}" if i else "at the beginning"
            what = f"{sentence.tags[i]} of {sentence.words[i]!r:.40}, word {i + 1}, {before}"
            problems.append(f"{sentence.source}: {what}, is not {written.name}")
        tags = encode_tags(entity_spans(valid), len(valid), scheme)
        result.append(dataclasses.replace(sentence, tags=tuple(tags)))
    if invalid is InvalidTags.REFUSE:
        raise_problems(
            problems, len(sentences), "Correct the tags, or have them read leniently: --task.invalid-tags repair."
        )
    return result, count


def scheme_of_sentences(sentences: Sequence[TaggedSentence]) -> TagScheme:
    """The scheme of the tags."""
    return detect_scheme(sentence.tags for sentence in sentences)


def infer_tags(sentences: Sequence[TaggedSentence], scheme: TagScheme) -> tuple[str, ...]:
    """O, then every tag that the scheme has for the types that occur, type by type.

    A type that occurs only in another file is missed, so write a known list of tags out instead.
    """
    kinds = sorted({parse_tag(tag)[1] for sentence in sentences for tag in sentence.tags} - {""})
    prefixes = "BIES" if scheme is TagScheme.BIOES else "BI"
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in prefixes))


def tag_ids(sentences: Sequence[TaggedSentence], labels: Sequence[str]) -> dict[str, int]:
    """The position of each label in `labels`.

    Raises:
        ValueError: labels that are no tags, the same twice, no O; tags of the sentences that are not there.
    """
    if len(set(labels)) != len(labels) or OUTSIDE not in labels:
        raise ValueError(f"labels must be distinct, and {OUTSIDE} one of them; got {quote_names(labels)}")
    for label in labels:
        parse_tag(label)
    ids = {label: i for i, label in enumerate(labels)}
    problems = []
    for sentence in sentences:
        unknown = next((tag for tag in sentence.tags if tag not in ids), None)
        if unknown is not None:
            near = difflib.get_close_matches(unknown[:80], labels) if len(problems) < MAX_SHOWN else []
            problems.append(f"{sentence.source}: tag {unknown[:80]!r}, near names: {quote_names(near)}")
    raise_problems(
        problems, len(sentences), f"Allowed tags: {quote_names(labels)}. Correct the rows or the labels given."
    )
    return ids


_NOWHERE = -1


class LabelledPieces(enum.Enum):
    """Which pieces of a word are learnt; what is predicted for the first is predicted for the word."""

    FIRST = "first"
    """The first: the others have no label, as in the paper."""
    ALL = "all"
    """Each: an entity is tagged from its first piece to its last."""


@dataclasses.dataclass(frozen=True)
class TokenLabelling:
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
class TaggedExamples:
    """Examples, and for each word of all sentences [W] the example and the position where its tag is predicted.

    Both are -1 for a word without pieces: blanks and control characters, which a tokenizer drops.
    """

    examples: TaggedSequences
    example: np.ndarray
    position: np.ndarray

    @property
    def silent(self) -> int:
        """Words without pieces."""
        return int((self.example == _NOWHERE).sum())

    def tags(
        self, predicted: Sequence[np.ndarray], sentences: Sequence[TaggedSentence], labels: Sequence[str]
    ) -> list[list]:
        """The tag of every word: of label ids [T] predicted for each example; O for a word without pieces."""
        found = [
            OUTSIDE if example == _NOWHERE else labels[predicted[example][position]]
            for example, position in zip(self.example.tolist(), self.position.tolist(), strict=True)
        ]
        ends = np.cumsum([len(sentence.words) for sentence in sentences]).tolist()
        return [found[end - len(sentence.words) : end] for sentence, end in zip(sentences, ends, strict=True)]


def encode_sentences(
    sentences: Sequence[TaggedSentence], tokenizer: WordPieceTokenizer, cut: TokenLabelling
) -> TaggedExamples:
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
    examples = TaggedSequences(ids, [np.zeros_like(row) for row in ids], labels)
    return TaggedExamples(examples, np.array(example), np.array(position))


def _labels(sentence: TaggedSentence, firsts: np.ndarray, counts: np.ndarray, cut: TokenLabelling) -> np.ndarray:
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
