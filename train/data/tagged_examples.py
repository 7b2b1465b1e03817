"""From tagged sentences to examples: tags in one scheme as class ids, words as pieces, long sentences in windows."""

import copy
import dataclasses
import enum
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from flaxbert.losses import IGNORE
from flaxbert.text.messages import MAX_SHOWN, quote_names
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
from flaxbert.tokenizer import WordPieceTokenizer
from train.data.bad_rows import SKIP_REMEDY, BadRow, ReadRows, with_other_name
from train.data.examples import TaggedSequences
from train.data.tagged_sentences import TaggedSentence

_NO_PIECES = -1


class InvalidTags(enum.Enum):
    """Treatment of a tag that its scheme does not allow there, such as an I- that continues nothing in IOB2."""

    REPAIR = "repair"
    """Read it as CoNLL's script does (that I- begins an entity), and count it."""
    REFUSE = "refuse"
    """Refuse the file, and show where such tags are."""


class LabelledPieces(enum.Enum):
    """The pieces of a word that are trained on; the prediction for the first is the word's."""

    FIRST = "first"
    """The first: the others have no label, as in the paper."""
    ALL = "all"
    """Each: an entity is tagged from its first piece to its last."""


@dataclasses.dataclass(frozen=True)
class TokenLabelling:
    """Settings of the conversion from sentences to examples.

    Each piece is trained on and predicted in only one window, that in which it has most context.
    """

    ids: Mapping[str, int]  # the class id of each tag
    scheme: TagScheme
    max_length: int  # tokens of a window at most, with [CLS] and [SEP]
    overlap: int  # pieces that neighbouring windows of a sentence share
    labelled: LabelledPieces


@dataclasses.dataclass(frozen=True)
class TaggedExamples:
    """Examples, and the position at which the tag of each word is predicted.

    Attributes:
        example: the index of the example of each word of all sentences [W].
        position: the position of the word's first piece in the example [W]. Both are -1 for a word without pieces:
            blanks and control characters, which the tokenizer drops.
    """

    examples: TaggedSequences
    example: np.ndarray
    position: np.ndarray

    @property
    def words_without_pieces(self) -> int:
        """The number of words without pieces."""
        return int((self.example == _NO_PIECES).sum())

    def tags(
        self, predicted: Sequence[np.ndarray], sentences: Sequence[TaggedSentence], labels: Sequence[str]
    ) -> list[list[str]]:
        """Return the tags of the words of each sentence.

        A word without pieces has the tag O, or I- between two words of one entity, so that it does not split it.

        Args:
            predicted: class ids of each example [T].
            labels: the tag of each class id.
        """
        tags = [
            OUTSIDE if example == _NO_PIECES else labels[int(predicted[example][position])]
            for example, position in zip(self.example.tolist(), self.position.tolist(), strict=True)
        ]
        ends = np.cumsum([len(sentence.words) for sentence in sentences]).tolist()
        split = [(end - len(sentence.words), end) for sentence, end in zip(sentences, ends, strict=True)]
        without_pieces = self.example == _NO_PIECES
        return [_continue_entities(tags[start:end], without_pieces[start:end]) for start, end in split]


def _continue_entities(tags: list[str], without_pieces: np.ndarray) -> list[str]:
    """Return the tags of a sentence with I- for words without pieces between two words of one entity."""
    with_pieces = np.flatnonzero(~without_pieces).tolist()
    for before, after in itertools.pairwise(with_pieces):
        if after - before > 1:
            first, second = parse_tag(tags[before]), parse_tag(tags[after])
            if first.type == second.type and first.prefix in "BI" and second.prefix in "IE":
                tags[before + 1 : after] = [f"I-{first.type}"] * (after - before - 1)
    return tags


def scheme_of_sentences(sentences: Sequence[TaggedSentence]) -> TagScheme:
    """Return the scheme in which the tags are written."""
    return detect_scheme(sentence.tags for sentence in sentences)


def convert_scheme(
    sentences: Sequence[TaggedSentence], scheme: TagScheme, *, written: TagScheme, invalid: InvalidTags
) -> tuple[ReadRows[TaggedSentence], int]:
    """Return (sentences with tags of `scheme`, number of tags that the scheme `written` does not allow there)."""
    sentences = sentences if isinstance(sentences, ReadRows) else ReadRows(sentences)
    if invalid is InvalidTags.REFUSE:
        remedy = f"Correct the tags, have them read leniently: --task.invalid-tags repair, {SKIP_REMEDY}"
        sentences = sentences.without(_invalid_tags(sentences, written), remedy)
    result, count = copy.copy(sentences), 0
    for number, sentence in enumerate(sentences):
        valid = repair_tags(sentence.tags, written)
        count += sum(tag != other for tag, other in zip(sentence.tags, valid, strict=True))
        tags = encode_tags(entity_spans(valid), len(valid), scheme)
        result[number] = dataclasses.replace(sentence, tags=tuple(tags))
    return result, count


def _invalid_tags(sentences: Sequence[TaggedSentence], scheme: TagScheme) -> list[BadRow]:
    """Return the sentences with a tag that the scheme does not allow there."""
    bad = []
    for sentence in sentences:
        pairs = enumerate(zip(sentence.tags, repair_tags(sentence.tags, scheme), strict=True))
        i = next((i for i, (tag, other) in pairs if tag != other), None)
        if i is not None:
            before = f"after {sentence.tags[i - 1]}" if i else "at the beginning"
            found = f"{sentence.tags[i]} of {sentence.words[i]!r:.40}, word {i + 1}, {before}"
            bad.append(BadRow(sentence.source, f"{found}, is not {scheme.name}"))
    return bad


def infer_tags(sentences: Sequence[TaggedSentence], scheme: TagScheme) -> tuple[str, ...]:
    """Return the tags that a data set declares if they are in the scheme, else those of the types that occur.

    These are O, then every tag that the scheme has for each type. A type that occurs only in another file is missed:
    give a known list of tags instead.
    """
    declared = sentences.classes if isinstance(sentences, ReadRows) else ()
    if OUTSIDE in declared and {tag for sentence in sentences for tag in sentence.tags} <= set(declared):
        return declared
    kinds = sorted({parse_tag(tag)[1] for sentence in sentences for tag in sentence.tags} - {""})
    prefixes = "BIES" if scheme is TagScheme.BIOES else "BI"
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in prefixes))


def tag_ids(sentences: Sequence[TaggedSentence], labels: Sequence[str]) -> dict[str, int]:
    """Return the index of each tag in `labels`; raise a ValueError for labels that are no tags, and other tags."""
    if len(set(labels)) != len(labels) or OUTSIDE not in labels:
        raise ValueError(f"labels must be distinct, and {OUTSIDE} one of them; got {quote_names(labels)}")
    for label in labels:
        parse_tag(label)
    ReadRows(sentences).without(*_with_other_tags(sentences, labels))
    return {label: i for i, label in enumerate(labels)}


def without_other_tags(sentences: ReadRows[TaggedSentence], labels: Sequence[str]) -> ReadRows[TaggedSentence]:
    """Return the sentences whose tags are all in `labels`; the others are bad rows (see `BadRowList.add`)."""
    return sentences.without(*_with_other_tags(sentences, labels))


def _with_other_tags(sentences: Sequence[TaggedSentence], labels: Sequence[str]) -> tuple[list[BadRow], str]:
    """Return (sentences with a tag that is not in `labels`, the end of an error about them)."""
    bad = []
    for sentence in sentences:
        other = next((tag for tag in sentence.tags if tag not in labels), None)
        if other is not None:
            bad.append(with_other_name(sentence.source, "tag", other, labels, shown=len(bad) < MAX_SHOWN))
    training = "give all tags: --task.labels (without a value: those of the training data)"
    return bad, f"Allowed tags: {quote_names(labels)}. Correct these rows, {training}, {SKIP_REMEDY}"


def encode_sentences(
    sentences: Sequence[TaggedSentence], tokenizer: WordPieceTokenizer, labelling: TokenLabelling
) -> TaggedExamples:
    """Return the examples of the sentences; a sentence without any pieces has none.

    A word has the pieces that it has in running text: after the first word of a sentence those with a blank before it,
    which a byte-level vocabulary tells apart from those without.
    """
    distinct = list(dict.fromkeys(word for sentence in sentences for word in _spaced_words(sentence)))
    pieces = dict(zip(distinct, tokenizer.piece_ids(distinct), strict=True))
    special_tokens = tokenizer.special_tokens
    cls, sep = [tokenizer.token_id(special_tokens.cls)], [tokenizer.token_id(special_tokens.sep)]
    ids, labels, example, position = [], [], [], []
    for sentence in sentences:
        word_pieces = [pieces[word] for word in _spaced_words(sentence)]
        counts = np.array([len(own) for own in word_pieces])
        firsts = np.cumsum(counts) - counts
        flat = np.array([number for own in word_pieces for number in own], np.int32)
        if not len(flat):
            example += [_NO_PIECES] * len(counts)
            position += [_NO_PIECES] * len(counts)
            continue
        windows = sliding_windows(len(flat), labelling.max_length - 2, labelling.overlap)
        window_of_piece = max_context_windows(windows, len(flat))
        piece_labels = _piece_labels(sentence, firsts, counts, labelling)
        for number, (start, end) in enumerate(windows):
            ids.append(np.concatenate([cls, flat[start:end], sep]).astype(np.int32))
            own = np.where(window_of_piece[start:end] == number, piece_labels[start:end], IGNORE)
            labels.append(np.concatenate([[IGNORE], own, [IGNORE]]).astype(np.int32))
        for first, count in zip(firsts.tolist(), counts.tolist(), strict=True):
            window = int(window_of_piece[first]) if count else None
            example.append(_NO_PIECES if window is None else len(ids) - len(windows) + window)
            position.append(_NO_PIECES if window is None else 1 + first - windows[window][0])
    examples = TaggedSequences(ids, [np.zeros_like(sequence) for sequence in ids], labels)
    return TaggedExamples(examples, np.array(example), np.array(position))


def _spaced_words(sentence: TaggedSentence) -> list[str]:
    return [word if i == 0 else f" {word}" for i, word in enumerate(sentence.words)]


def _piece_labels(
    sentence: TaggedSentence, firsts: np.ndarray, counts: np.ndarray, labelling: TokenLabelling
) -> np.ndarray:
    """Return the class id of each piece of a sentence, -100 for pieces that are not trained on."""
    total = int(counts.sum())
    if labelling.labelled is LabelledPieces.ALL:
        ends = firsts + counts
        found = [EntitySpan(int(firsts[a]), int(ends[b - 1]), kind) for a, b, kind in entity_spans(sentence.tags)]
        tags = encode_tags([span for span in found if span.start < span.end], total, labelling.scheme)
        return np.array([labelling.ids[tag] for tag in tags], np.int32)
    labels = np.full(total, IGNORE, np.int32)
    has_pieces = counts > 0
    labels[firsts[has_pieces]] = np.array([labelling.ids[tag] for tag in sentence.tags])[has_pieces]
    return labels
