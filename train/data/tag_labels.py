"""Tags as labels of a model: made valid in one scheme, listed, numbered."""

import dataclasses
import difflib
import enum
from collections.abc import Sequence

from flaxbert.text.messages import MAX_SHOWN, quote_names, raise_problems
from flaxbert.text.tags import OUTSIDE, TagScheme, detect_scheme, encode_tags, entity_spans, parse_tag, repair_tags
from train.data.tagged import Sentence


class InvalidTags(enum.Enum):
    """What to do about a tag that cannot stand where it does, such as an I- that continues nothing under IOB2."""

    REPAIR = "repair"
    """Read it as CoNLL's script does (that I- begins an entity), and count it."""
    REFUSE = "refuse"
    """Stop, and show where they are."""


def in_scheme(
    sentences: Sequence[Sentence], scheme: TagScheme, *, written: TagScheme, invalid: InvalidTags
) -> tuple[list[Sentence], int]:
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


def written_in(sentences: Sequence[Sentence]) -> TagScheme:
    """The scheme of the tags."""
    return detect_scheme(sentence.tags for sentence in sentences)


def infer_tags(sentences: Sequence[Sentence], scheme: TagScheme) -> tuple[str, ...]:
    """O, then every tag that the scheme has for the types that occur, type by type.

    A type that occurs only in another file is missed, so write a known list of tags out instead.
    """
    kinds = sorted({parse_tag(tag)[1] for sentence in sentences for tag in sentence.tags} - {""})
    prefixes = "BIES" if scheme is TagScheme.BIOES else "BI"
    return (OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in prefixes))


def tag_ids(sentences: Sequence[Sentence], labels: Sequence[str]) -> dict[str, int]:
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
