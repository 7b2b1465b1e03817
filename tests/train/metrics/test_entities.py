"""Scores of entities, against seqeval's and against a definition written out."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import scheme as schemes
from seqeval.metrics import sequence_labeling, v1

from flaxbert.text.tags import TagScheme
from train.metrics.entities import entity_scores

KINDS = ("LOC", "PER", "creative-work")


def values(score):
    return [score.precision, score.recall, score.f1, score.support]


# seqeval's readers of tags. What it knows as IOBES is BIOES.
STRICT = {TagScheme.IOB1: schemes.IOB1, TagScheme.IOB2: schemes.IOB2, TagScheme.BIOES: schemes.IOBES}


@given(st.data(), st.sampled_from([None, *STRICT]))
@settings(deadline=None, max_examples=300)
def test_scores_equal_those_of_seqeval(data, scheme):
    prefixes = "BIES" if scheme in (None, TagScheme.BIOES) else "BI"
    tag = st.sampled_from(["O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in KINDS)])
    pairs = data.draw(st.lists(st.lists(st.tuples(tag, tag), min_size=1, max_size=7), min_size=1, max_size=4))
    both = [[[pair[side] for pair in sentence] for sentence in pairs] for side in (0, 1)]
    found = entity_scores(*both, scheme=scheme)
    how = {"zero_division": 0}
    if scheme is None:
        score = sequence_labeling.precision_recall_fscore_support
    else:
        score, how["scheme"] = v1.precision_recall_fscore_support, STRICT[scheme]
    assert values(found.overall) == pytest.approx(list(score(*both, average="micro", **how)))
    types = zip(*score(*both, average=None, **how), strict=True)
    assert [values(score) for score in found.types.values()] == [pytest.approx(list(row)) for row in types]


def entities(tags, allowed):
    """Every run of words of one type, wherever `allowed` lets one begin, stay together and end."""
    padded = ["O", *tags, "O"]
    found = set()
    for start, end in itertools.combinations(range(1, len(padded)), 2):
        inner = padded[start:end]
        kinds = {tag[2:] for tag in inner}
        if "O" in inner or len(kinds) > 1:
            continue
        (kind,) = kinds
        before, after = padded[start - 1], padded[end]
        if allowed("".join(tag[0] for tag in inner), before, after, kind):
            found.add((start, end, kind))
    return found


def lenient(prefixes, before, after, kind):
    begins = prefixes[0] in "BS" or before[0] in "OES" or before[2:] != kind
    one = not set(prefixes[1:]) & set("BS") and not set(prefixes[:-1]) & set("ES")
    return begins and one and (after[0] in "OBS" or prefixes[-1] in "ES" or after[2:] != kind)


def iob2(prefixes, before, after, kind):
    return prefixes == "B" + "I" * (len(prefixes) - 1) and not (after[0] == "I" and after[2:] == kind)


def bioes(prefixes, before, after, kind):
    return prefixes == "S" or prefixes == "B" + "I" * (len(prefixes) - 2) + "E"


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_scores_equal_those_of_the_definition(data):
    scheme, prefixes, allowed = data.draw(
        st.sampled_from([(None, "BIES", lenient), (TagScheme.IOB2, "BI", iob2), (TagScheme.BIOES, "BIES", bioes)])
    )
    tag = st.sampled_from(["O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in KINDS[:2])])
    pairs = data.draw(st.lists(st.lists(st.tuples(tag, tag), max_size=7), max_size=4))
    given_tags, predicted = ([[pair[side] for pair in sentence] for sentence in pairs] for side in (0, 1))
    found = entity_scores(given_tags, predicted, scheme=scheme)
    sets = [(entities(a, allowed), entities(b, allowed)) for a, b in zip(given_tags, predicted, strict=True)]
    for kind in (None, *KINDS[:2]):
        chosen = [[{e for e in one if kind in (None, e[2])} for one in pair] for pair in sets]
        expected = [sum(len(a) for a, _ in chosen), sum(len(b) for _, b in chosen), sum(len(a & b) for a, b in chosen)]
        score = found.overall if kind is None else found.types.get(kind)
        assert ([score.support, score.predicted, score.correct] if score else [0, 0, 0]) == expected


def test_what_cannot_be_compared():
    for predicted in ([["O"]], [["O"], ["O", "O", "O"]]):
        with pytest.raises(ValueError, match="differ in the number of sentences, or in the tags of a sentence"):
            entity_scores([["O"], ["O", "O"]], predicted)
