"""Scores of entities, against seqeval's own and against a definition written out."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxbert.tagging import Scheme
from train.metrics.entities import entity_scores

KINDS = ("LOC", "PER", "creative-work")

# Of seqeval 1.2.2, for random tags `g` and `p` (lists of lists):
#   seqeval.metrics.sequence_labeling.precision_recall_fscore_support(g, p, average="micro", zero_division=0)
#   seqeval.metrics.v1.precision_recall_fscore_support(g, p, average="micro", zero_division=0, scheme=...)
# and the same with average=None: precision, recall, F1 and support of all, then of each type.
GOLDEN = [
    (
        None,
        "O B-LOC I-PER O O B-LOC B-creative-work I-PER|O B-creative-work O B-creative-work|I-PER B-PER|O I-PER O I-PER",
        "O B-LOC I-PER O O B-PER I-PER I-PER|O B-PER I-PER B-creative-work|I-PER B-PER|O I-PER O I-PER",
        [0.7777777777777778, 0.6363636363636364, 0.7000000000000001, 11],
        [(1.0, 0.5, 0.6666666666666666, 2), (0.7142857142857143, 0.8333333333333334, 0.7692307692307692, 6)]
        + [(1.0, 0.3333333333333333, 0.5, 3)],
    ),
    (
        Scheme.BIOES,
        "E-PER I-PER S-creative-work O E-PER E-creative-work S-PER|O O B-PER O O E-LOC|I-LOC",
        "E-PER I-PER B-PER S-PER B-PER E-creative-work S-PER|S-creative-work I-PER S-PER O O E-LOC|E-PER",
        [0.25, 0.5, 0.3333333333333333, 2],
        [(0.3333333333333333, 1.0, 0.5, 1), (0.0, 0.0, 0.0, 1)],
    ),
    (
        Scheme.IOB2,
        "I-creative-work O B-creative-work B-PER O B-PER I-PER|I-PER B-PER|O I-PER I-PER B-PER",
        "I-creative-work O B-creative-work B-PER O B-PER O|I-PER B-PER|B-PER I-creative-work I-PER B-PER",
        [0.6666666666666666, 0.8, 0.7272727272727272, 5],
        [(0.6, 0.75, 0.6666666666666665, 4), (1.0, 1.0, 1.0, 1)],
    ),
    (
        Scheme.IOB1,
        "O B-LOC B-PER I-creative-work I-creative-work|O I-creative-work I-PER B-LOC B-PER O"
        "|I-creative-work B-PER I-creative-work O O",
        "O B-PER B-PER I-creative-work O|O I-creative-work I-PER B-creative-work B-PER O"
        "|B-creative-work B-PER I-creative-work O O",
        [0.6, 0.6, 0.6, 5],
        [(0.5, 1.0, 0.6666666666666666, 1), (0.6666666666666666, 0.5, 0.5714285714285715, 4)],
    ),
    (
        Scheme.IOB1,  # what it makes of a B- that should not be there
        "O B-LOC I-LOC O|I-PER B-PER B-LOC O",
        "O O I-LOC O|I-PER B-PER I-LOC O",
        [0.5, 1.0, 0.6666666666666666, 2],
        [(0.5, 1.0, 0.6666666666666666, 1), (0.5, 1.0, 0.6666666666666666, 1)],
    ),
]


def values(score):
    return [score.precision, score.recall, score.f1, score.given]


@pytest.mark.parametrize(("scheme", "given_tags", "predicted", "overall", "types"), GOLDEN)
def test_scores_equal_those_of_seqeval(scheme, given_tags, predicted, overall, types):
    both = ([line.split() for line in text.split("|")] for text in (given_tags, predicted))
    found = entity_scores(*both, scheme=scheme)
    assert values(found.overall) == pytest.approx(overall)
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
        st.sampled_from([(None, "BIES", lenient), (Scheme.IOB2, "BI", iob2), (Scheme.BIOES, "BIES", bioes)])
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
        assert ([score.given, score.predicted, score.right] if score else [0, 0, 0]) == expected


def test_what_cannot_be_compared():
    for predicted in ([["O"]], [["O"], ["O", "O", "O"]]):
        with pytest.raises(ValueError, match="differ in the number of sentences, or of the tags of one"):
            entity_scores([["O"], ["O", "O"]], predicted)
