"""Pairs against the definition: what each may be, and shares and lengths as a plain implementation of it has them."""

import random

import numpy as np
import pytest

from tests.train import corpora
from train.data.pretraining.segments import RANDOM, DocumentSpan, NextSentencePairs, document_spans

TEXTS = corpora.documents(300)
STORE = corpora.store(TEXTS)
DOCUMENTS = np.arange(STORE.document_count)
LENGTH = 40


def pairs(seed, *, short=0.1, store=STORE, length=LENGTH):
    parts = document_spans(store, np.arange(store.document_count))
    made = NextSentencePairs(store, np.arange(store.document_count), max_length=length, short=short)
    return made([DocumentSpan(*part) for part in parts.tolist()], seed)


def plain(chance, *, short=0.1, texts=TEXTS, length=LENGTH):
    """The same on lists of words, a token at a time, as create_pretraining_data.py describes it."""
    found = []
    for number, text in enumerate(texts):
        sentences = [sentence.split() for sentence in text]
        target = length - 3
        if chance.random() < short:
            target = chance.randint(2, length - 3)
        chunk, i = [], 0
        while i < len(sentences):
            chunk.append(sentences[i])
            if i == len(sentences) - 1 or sum(map(len, chunk)) >= target:
                end = chance.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
                first = [word for sentence in chunk[:end] for word in sentence]
                second = []
                is_random = len(chunk) == 1 or chance.random() < 0.5
                if is_random:
                    others = [j for j in range(len(texts)) if j != number]
                    other = texts[chance.choice(others)]
                    for sentence in other[chance.randint(0, len(other) - 1) :]:
                        second += sentence.split()
                        if len(second) >= target - len(first):
                            break
                    i -= len(chunk) - end
                else:
                    second = [word for sentence in chunk[end:] for word in sentence]
                while len(first) + len(second) > length - 3:
                    longer = first if len(first) > len(second) else second
                    if chance.random() < 0.5:
                        del longer[0]
                    else:
                        longer.pop()
                found.append((len(first), len(second), is_random))
                chunk = []
            i += 1
    return np.array(found)


def described(examples):
    lengths = (examples.spans[:, 1] - examples.spans[:, 0]).reshape(-1, 2)
    return np.column_stack([lengths, examples.labels == RANDOM])


@pytest.mark.parametrize("short", [0.0, 0.1, 0.9])
def test_shares_and_lengths_are_those_of_the_definition(short):
    ours = [described(pairs(seed, short=short)) for seed in range(60)]
    theirs = [plain(random.Random(seed), short=short) for seed in range(60)]
    # Of every quantity the means of 60 epochs are compared, to four standard errors of their difference.
    quantities = {
        "pairs": len,
        "random segments": lambda found: found[:, 2].mean(),
        "first": lambda found: found[:, 0].mean(),
        "second": lambda found: found[:, 1].mean(),
        "second, if random": lambda found: found[found[:, 2] == 1, 1].mean(),
        "full": lambda found: (found[:, 0] + found[:, 1] == LENGTH - 3).mean(),
        "of one word": lambda found: (found[:, :2] == 1).mean(),
        "spread": lambda found: found[:, 0].std(),
    }
    for name, quantity in quantities.items():
        a, b = (np.array([quantity(found) for found in several], float) for several in (ours, theirs))
        error = np.sqrt(a.var() / len(a) + b.var() / len(b))
        assert abs(a.mean() - b.mean()) < 4 * error, (name, a.mean(), b.mean(), error)


def test_what_a_pair_is():
    starts, bounds = STORE.sentences, STORE.document_starts
    for seed in range(5):
        examples = pairs(seed)
        spans = examples.spans.reshape(-1, 2, 2)
        assert (np.diff(examples.firsts) == 2).all()
        assert (spans[:, :, 1] > spans[:, :, 0]).all()
        assert examples.lengths.max() <= LENGTH
        document = np.searchsorted(bounds, spans, side="right") - 1
        inside = np.searchsorted(bounds, spans[:, :, 1] - 1, side="right") - 1
        np.testing.assert_array_equal(document[:, :, 0], inside)  # a segment is of one document
        is_random = examples.labels == RANDOM
        assert (document[is_random, 0, 0] != document[is_random, 1, 0]).all()
        assert (document[~is_random, 0, 0] == document[~is_random, 1, 0]).all()
        # What follows follows at once, unless tokens were taken away: then both ends may have lost some.
        whole = ~is_random & (examples.lengths < LENGTH)
        np.testing.assert_array_equal(spans[whole, 0, 1], spans[whole, 1, 0])
        assert np.isin(spans[whole], starts).all()
        assert (spans[~is_random, 0, 1] <= spans[~is_random, 1, 0]).all()


def test_every_sentence_of_a_document_is_used():
    """Where nothing is cut away: sentences replaced by a random segment come again as the next first segment."""
    texts = corpora.documents(50, longest=5)
    store = corpora.store(texts)
    examples = pairs(0, store=store, length=300)
    spans = examples.spans.reshape(-1, 2, 2)
    ours = [spans[:, 0], spans[examples.labels != RANDOM, 1]]
    used = sorted((int(a), int(b)) for span in ours for a, b in span)
    assert [a for a, _ in used] == [0, *(b for _, b in used[:-1])] and used[-1][1] == len(store.tokens)


def test_chance_is_a_function_of_the_key():
    first, again, other = pairs(1), pairs(1), pairs(2)
    np.testing.assert_array_equal(first.spans, again.spans)
    np.testing.assert_array_equal(first.keys, again.keys)
    assert len(np.unique(np.concatenate([first.keys, other.keys]))) == len(first) + len(other)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="random segments from other documents, and there is only one"):
        NextSentencePairs(STORE, DOCUMENTS[:1], max_length=LENGTH, short=0.1)
    with pytest.raises(ValueError, match="max_length is 4; a pair needs at least 5 tokens"):
        NextSentencePairs(STORE, DOCUMENTS, max_length=4, short=0.1)


def test_random_segments_come_from_the_documents_given():
    made = NextSentencePairs(STORE, DOCUMENTS[:5], max_length=LENGTH, short=0.0)
    parts = document_spans(STORE, DOCUMENTS[:3])
    examples = made([DocumentSpan(*part) for part in parts.tolist()], 0)
    assert examples.spans.max() <= STORE.document_starts[5]


def test_tokens_are_taken_from_either_end_as_often():
    front = back = 0
    for seed in range(20):
        examples = pairs(seed)
        for start, end in examples.spans[(examples.lengths == LENGTH).repeat(2)]:
            front += start not in STORE.sentences
            back += end not in STORE.sentences
    assert front + back > 5000
    assert front / (front + back) == pytest.approx(0.5, abs=0.03)
