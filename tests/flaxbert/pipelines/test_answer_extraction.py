"""Question answering equals an exhaustive search over the spans that transformers' model scores."""

import dataclasses

import numpy as np
import pytest
import torch

import flaxbert
from flaxbert.pipelines import QuestionAnsweringPipeline
from tests.flaxbert.reference_folders import loaded, saved

QUESTION = "Where is it?"
SHORT = "The caf\u00e9  is in Rome, not there."
LONG = "The caf\u00e9 was never open on Sundays.\nIts owner, Ann, sold it; the new one lives in Rome. " * 3


@pytest.fixture(scope="module")
def models(data_dir, tmp_path_factory):
    """24 positions: transformers' model and tokenizer, and ours."""
    folder = tmp_path_factory.mktemp("answers")
    saved("BertForQuestionAnswering", folder, data_dir / "tokenizers" / "bert-base-uncased")
    model, tokenizer = loaded("BertForQuestionAnswering", folder)
    return model, tokenizer, QuestionAnsweringPipeline.from_pretrained(folder, batch_size=3)


def searched(model, tokenizer, context, overlap, max_answer=30):
    """Every span of every window that has most context for its start, best first: score, start, end; the null score."""
    inputs = tokenizer(
        QUESTION,
        context,
        truncation="only_second",
        max_length=24,
        stride=overlap,
        padding=True,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_tensors="pt",
    )
    offsets = inputs.pop("offset_mapping").numpy()
    count = len(inputs.pop("overflow_to_sample_mapping"))
    windows = [[i for i, of in enumerate(inputs.sequence_ids(number)) if of == 1] for number in range(count)]
    with torch.no_grad():
        out = model(**inputs)
    starts, ends = out.start_logits.double().numpy(), out.end_logits.double().numpy()
    shown = {}  # character at which a token starts: window with most context, run_squad's measure of it
    for number, places in enumerate(windows):
        for i in places:
            context_here = min(i - places[0], places[-1] - i) + 0.01 * len(places)
            shown.setdefault(offsets[number, i, 0], []).append((-context_here, number))
    spans = []
    for number, places in enumerate(windows):
        for i in places:
            if min(shown[offsets[number, i, 0]])[1] == number:
                pairs = ((i, j) for j in places if i <= j < i + max_answer)
                spans += [(starts[number, i] + ends[number, j], *offsets[number, [i, j], [0, 1]]) for i, j in pairs]
    return sorted(spans, reverse=True), min(starts[:, 0] + ends[:, 0])


@pytest.mark.parametrize(("context", "overlap"), [(SHORT, 4), (LONG, 4), (LONG, 12), (LONG, 0)])
def test_answers_equal_an_exhaustive_search(models, context, overlap):
    model, tokenizer, answer = models
    # Every start is paired with every end, so that nothing but the rules of run_squad decides.
    answer = dataclasses.replace(answer, n_best=200, top_k=10, overlap=overlap, max_query=8)
    spans, null = searched(model, tokenizer, context, overlap)
    wanted = {}
    for score, start, end in spans:
        wanted.setdefault(context[start:end], (start, end, score))
    (found,) = answer([(QUESTION, context)])
    texts = list(wanted)[:10]
    assert [candidate.text for candidate in found.candidates] == texts
    assert [(c.start, c.end) for c in found.candidates] == [wanted[text][:2] for text in texts]
    scores = np.array([score for _, _, score in wanted.values()][:200])
    chances = np.exp(scores - scores[0]) / np.exp(scores - scores[0]).sum()
    np.testing.assert_allclose([c.probability for c in found.candidates], chances[:10], rtol=1e-3, atol=1e-6)
    assert (found.text, found.start, found.end) == (texts[0], *wanted[texts[0]][:2])
    assert found.probability == found.candidates[0].probability
    assert found.null_odds == pytest.approx(null - scores[0], abs=1e-3)
    assert all(context[c.start : c.end] == c.text for c in found.candidates)


def test_max_answer_limits_the_length(models):
    model, tokenizer, answer = models
    answer = dataclasses.replace(answer, n_best=24, top_k=1, overlap=4, max_query=8, max_answer=2)
    (found,) = answer([(QUESTION, LONG)])
    score, start, end = searched(model, tokenizer, LONG, 4, max_answer=2)[0][0]
    assert (found.text, found.start, found.end) == (LONG[start:end], start, end) and len(found.candidates) == 1
    (longer,) = dataclasses.replace(answer, max_answer=30)([(QUESTION, LONG)])
    assert longer.text != found.text


def test_no_answer(models):
    answer = models[2]
    pair = (QUESTION, LONG)
    (always,) = answer([pair])
    below, above = (dataclasses.replace(answer, null_threshold=always.null_odds + by) for by in (-0.1, 0.1))
    (none,), (some,) = below([pair]), above([pair])
    assert (none.text, none.start, none.end) == ("", 0, 0) and none.probability > 0
    assert some.text == always.text and some.null_odds == none.null_odds == always.null_odds
    assert "" not in [candidate.text for candidate in always.candidates]
    every = dataclasses.replace(below, top_k=20)([pair])[0].candidates
    assert none.probability + sum(c.probability for c in every if c.text) == pytest.approx(1)
    (empty,) = answer([(QUESTION, "\u200b")])  # which the tokenizer takes away
    assert (empty.text, empty.probability, empty.candidates) == ("", 0.0, ())


def test_questions_share_batches_and_contexts(models):
    answer = models[2]
    pairs = [
        (QUESTION, LONG),
        ("Who?", LONG),
        ("Who sold it, and to whom, and why on a Sunday?", SHORT),
        ("When?", "x"),
    ]
    together = answer(pairs)
    for pair, found in zip(pairs, together, strict=True):
        (alone,) = answer([pair])
        assert (alone.text, alone.start, alone.end) == (found.text, found.start, found.end)
        assert found.probability == pytest.approx(alone.probability, abs=1e-5)
    assert together[3].text == "x" and together[3].probability == 1


@pytest.mark.parametrize(
    "options, said",
    [
        ({"top_k": 0}, "top_k is 0"),
        ({"n_best": 0}, "n_best is 0"),
        ({"max_answer": 1.5}, "max_answer is 1.5"),
        ({"max_query": 21}, "max_query is 21; allowed: 1 to 20"),
        ({"step": 3, "overlap": 3}, "exactly one of step"),
        ({"overlap": 13}, "overlap is 13; allowed: 0 to 12"),
        ({"null_threshold": float("nan")}, "null_threshold is nan; it must be a number, or None"),
        ({"null_threshold": "x"}, "null_threshold is 'x'; it must be a number, or None"),
    ],
)
def test_impossible_options(models, options, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(models[2], **options)


def test_invalid_questions(models):
    answer = models[2]
    with pytest.raises(TypeError, match=r"texts\[1\] is 'Why\?'; expected a pair of a question and its context"):
        answer([(QUESTION, SHORT), "Why?"])
    with pytest.raises(ValueError, match=r"texts\[0\]\[1\] is empty"):
        answer([(QUESTION, " ")])
    model = flaxbert.BertForQuestionAnswering(answer.model.config.replace(type_vocab_size=1))
    with pytest.raises(ValueError, match="one token type; questions and their contexts need two"):
        QuestionAnsweringPipeline(model, {}, answer.tokenizer)
    assert dataclasses.replace(answer, max_length=5)([(QUESTION, SHORT)])[0].text in SHORT
