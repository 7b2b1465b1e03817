import numpy as np
import pytest

from tests.train import corpora
from train.data.pretraining.segments import DocumentSpan, FullSentenceExamples, StreamExamples, document_spans

TEXTS = corpora.documents(60)
STORE = corpora.store(TEXTS)


def made(kind, length, order=None):
    parts = document_spans(STORE, np.arange(STORE.document_count))
    parts = parts if order is None else parts[order]
    return kind(STORE, max_length=length)([DocumentSpan(*part) for part in parts.tolist()], 7), parts


def of_example(examples, number):
    return examples.spans[examples.firsts[number] : examples.firsts[number + 1]].tolist()


@pytest.mark.parametrize("kind", [FullSentenceExamples, StreamExamples])
@pytest.mark.parametrize("length", [3, 10, 64, 100_000])
def test_every_token_once_in_order(kind, length):
    order = np.random.default_rng(0).permutation(STORE.document_count)
    examples, parts = made(kind, length, order)
    tokens = np.concatenate([np.arange(a, b) for a, b in examples.spans])
    starts = STORE.sentences
    np.testing.assert_array_equal(tokens, np.concatenate([np.arange(starts[a], starts[b]) for _, a, b in parts]))
    assert examples.lengths.max() <= length and (examples.labels == 0).all()


def test_full_sentences_are_whole_and_as_many_as_fit():
    examples, _ = made(FullSentenceExamples, 64)
    ends = STORE.document_starts
    assert np.isin(examples.spans, STORE.sentences).all()  # none is longer than 62 words
    for number in range(len(examples) - 1):
        spans, following = of_example(examples, number), of_example(examples, number + 1)
        for (_, end), (start, _) in zip(spans[:-1], spans[1:], strict=True):
            assert end in ends and start in ends  # [SEP] stands between documents
        start = following[0][0]
        sentence = STORE.sentences[np.searchsorted(STORE.sentences, start) + 1] - start
        room = 64 - examples.lengths[number] - (1 if start in ends else 0)
        assert sentence > room


def test_a_sentence_that_is_too_long_is_cut():
    store = corpora.store([[" ".join(corpora.WORDS), "w1 w2 w3"]])
    examples = FullSentenceExamples(store, max_length=52)([DocumentSpan(0, 0, 2)], 0)
    assert examples.spans.tolist() == [[0, 50], [50, 100], [100, 150], [150, 200], [200, 203]]


def test_a_stream_is_full():
    examples, _ = made(StreamExamples, 64)
    assert set(examples.lengths[:-1].tolist()) <= {63, 64}
    assert (examples.lengths[:-1] == 64).mean() > 0.9


@pytest.mark.parametrize("kind", [FullSentenceExamples, StreamExamples])
def test_a_row_without_room(kind):
    with pytest.raises(ValueError, match="max_length is 2; an example needs at least 3 tokens"):
        kind(STORE, max_length=2)
