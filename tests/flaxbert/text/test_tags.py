"""Entity tags, sliding windows, and entities from tag probabilities, compared with seqeval and transformers."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertConfig, BertForTokenClassification, pipeline

from flaxbert.text.aggregation import Aggregation, aggregate_entities
from flaxbert.text.pieces import encode_texts
from flaxbert.text.tags import (
    EntitySpan,
    TagScheme,
    detect_scheme,
    encode_tags,
    entity_spans,
    parse_tag,
    repair_tags,
    strict_entity_spans,
)
from flaxbert.text.windows import max_context_windows, sliding_windows
from flaxbert.tokenizer import WordPieceTokenizer

KINDS = ("PER", "LOC", "creative-work")


@st.composite
def sentences(draw):
    """Entities of a sentence, and its length."""
    found, place = [], 0
    for gap, length, kind in draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.sampled_from(KINDS)))):
        found.append(EntitySpan(place + gap, place + gap + length, kind))
        place = found[-1].end
    return found, place + draw(st.integers(0, 2))


any_tags = st.lists(st.sampled_from(["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in KINDS[:2])]))


@given(sentences(), st.sampled_from(TagScheme))
@settings(deadline=None)
def test_tags_of_entities_are_read_back(sentence, scheme):
    found, length = sentence
    tags = encode_tags(found, length, scheme)
    assert len(tags) == length
    assert entity_spans(tags) == found
    assert strict_entity_spans(tags, scheme) == found
    assert repair_tags(tags, scheme) == tags


@given(any_tags, st.sampled_from(TagScheme))
@settings(deadline=None)
def test_repaired_tags_are_valid_and_have_the_same_entities(tags, scheme):
    valid = repair_tags(tags, scheme)
    assert entity_spans(valid) == entity_spans(tags) == strict_entity_spans(valid, scheme)


@given(st.lists(sentences(), min_size=1), st.sampled_from(TagScheme))
@settings(deadline=None)
def test_detect_scheme(found, scheme):
    tags = [encode_tags(*sentence, scheme) for sentence in found]
    # Without any entity nothing tells.
    assert detect_scheme(tags) is (scheme if any(entities for entities, _ in found) else TagScheme.IOB2)


def test_lenient_and_strict_reading():
    stray = ["I-PER", "O", "B-LOC", "I-PER"]
    assert entity_spans(stray) == [EntitySpan(0, 1, "PER"), EntitySpan(2, 3, "LOC"), EntitySpan(3, 4, "PER")]
    assert strict_entity_spans(stray, TagScheme.IOB2) == [EntitySpan(2, 3, "LOC")]
    assert strict_entity_spans(["I-PER", "I-PER", "B-PER", "I-LOC"], TagScheme.IOB1) == [
        EntitySpan(0, 2, "PER"),
        EntitySpan(2, 3, "PER"),
        EntitySpan(3, 4, "LOC"),
    ]
    unfinished = ["B-PER", "I-PER", "O", "S-LOC"]
    assert strict_entity_spans(unfinished, TagScheme.BIOES) == [EntitySpan(3, 4, "LOC")]
    assert repair_tags(unfinished, TagScheme.BIOES) == ["B-PER", "E-PER", "O", "S-LOC"]
    assert detect_scheme([["B-PER", "O"], ["I-PER"]]) is TagScheme.IOB2  # its I- is an error
    with pytest.raises(ValueError, match="a tag with E-, which IOB2 does not have: B-PER E-PER"):
        strict_entity_spans(["B-PER", "E-PER"], TagScheme.IOB2)


@pytest.mark.parametrize("tag", ["", "o", "PER", "B", "B-", "X-PER", "L-PER", "b-PER", "B-a b", "-100"])
def test_invalid_tags(tag):
    with pytest.raises(ValueError, match="is no tag; allowed: O, and B-"):
        parse_tag(tag)


def test_entities_that_cannot_be_encoded():
    for found in ([EntitySpan(0, 2, "A"), EntitySpan(1, 3, "A")], [EntitySpan(1, 1, "A")], [EntitySpan(2, 4, "A")]):
        with pytest.raises(ValueError, match="does not fit into 3 words"):
            encode_tags(found, 3, TagScheme.IOB2)


@given(st.integers(1, 100), st.integers(1, 30), st.data())
@settings(deadline=None)
def test_windows_cover_a_text_and_max_context_follows_run_squad(length, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    places = sliding_windows(length, size, overlap)
    owner = max_context_windows(places, length)
    assert all(end - start == min(size, length) for start, end in places)
    assert all(before[1] - after[0] >= overlap for before, after in zip(places, places[1:], strict=False))
    context = np.array([[min(i - a, b - 1 - i) for a, b in places] for i in range(length)])
    assert owner.tolist() == [int(row.argmax()) for row in context]
    assert (context.max(axis=1) >= 0).all() and {*owner.tolist()} == {*range(len(places))}


def test_memory_of_max_context_windows_does_not_grow_with_their_number():
    spans = sliding_windows(100_000, 100, 50)
    tracemalloc.start()
    owner = max_context_windows(spans, 100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(spans) == 1999 and owner[-1] == 1998 and (np.diff(owner) >= 0).all()
    assert peak < 3e6  # 2 arrays of 100,000 numbers


def test_overlap_without_a_step_is_refused():
    with pytest.raises(ValueError, match="windows of 4 positions can't share 4; allowed: 0 to 3"):
        sliding_windows(9, 4, 4)


# Against transformers' pipeline.

TEXTS = (
    "Angela Merkel met Barack Obama in Frankfurt-am-Main, didn't she? Yes!",
    "Unbelievably, Schartau's naïve 東京 😀 antidisestablishmentarianism cost $3.50 (e.g. here).",
)
LABELS = {
    "prefixed": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
    "plain": ("O", "PER", "LOC"),
}


@pytest.fixture(scope="module")
def saved(data_dir, tmp_path_factory):
    """Small random models whose probabilities differ a lot from piece to piece, by the kind of their labels."""
    source = data_dir / "tokenizers" / "bert-base-cased"
    tokenizer, folders = AutoTokenizer.from_pretrained(source), {}
    for kind, labels in LABELS.items():
        torch.manual_seed(1)
        size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        model = BertForTokenClassification(
            BertConfig(vocab_size=len(tokenizer), **size, id2label=dict(enumerate(labels)))
        )
        with torch.no_grad():
            model.classifier.weight.normal_(0.0, 0.5)
        folders[kind] = tmp_path_factory.mktemp(kind)
        model.save_pretrained(folders[kind])
        tokenizer.save_pretrained(folders[kind])
    return folders


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("strategy", Aggregation)
def test_aggregated_entities_equal_transformers(saved, kind, strategy):
    folder, labels = saved[kind], LABELS[kind]
    reference = pipeline("token-classification", str(folder), aggregation_strategy=strategy.value, device="cpu")
    tokenizer = WordPieceTokenizer.load(folder)
    count = 0
    for text in TEXTS:
        with torch.no_grad():
            logits = reference.model(**reference.tokenizer(text, return_tensors="pt")).logits[0, 1:-1]
        found = aggregate_entities(
            logits.softmax(-1).numpy(),
            text=text,
            pieces=encode_texts(tokenizer, [text])[0],
            labels=labels,
            tokenizer=tokenizer,
            strategy=strategy,
        )
        expected = reference(text)
        assert [(e.start, e.end, e.type, e.word) for e in found] == [
            (e["start"], e["end"], e["entity_group"], e["word"]) for e in expected
        ]
        assert [e.score for e in found] == pytest.approx([float(e["score"]) for e in expected], rel=1e-5)
        count += len(found)
    assert count > 10


def test_aggregated_entities_of_bioes_labels(data_dir):
    tokenizer = WordPieceTokenizer.load(data_dir / "tokenizers" / "bert-base-cased")
    text, labels = "Paris Berlin New York Rome is", ("O", "S-LOC", "B-LOC", "E-LOC")
    (pieces,) = encode_texts(tokenizer, [text])
    how = {"text": text, "pieces": pieces, "labels": labels, "tokenizer": tokenizer, "strategy": Aggregation.FIRST}
    found = aggregate_entities(np.eye(4, dtype=np.float32)[[1, 1, 2, 3, 3, 0]], **how)
    assert [dataclasses.astuple(e) for e in found] == [
        (0, 5, "LOC", 1.0, "Paris"),
        (6, 12, "LOC", 1.0, "Berlin"),
        (13, 21, "LOC", 1.0, "New York"),
        (22, 26, "LOC", 1.0, "Rome"),  # after an E- nothing goes on
    ]
    with pytest.raises(ValueError, match="4 rows of probabilities of 0 labels; there are 6 pieces, 4 labels"):
        aggregate_entities(np.eye(4), **how)
    with pytest.raises(ValueError, match="1 rows of probabilities of 3 labels; there are 6 pieces, 4 labels"):
        aggregate_entities(np.eye(3)[[0, 1, 2, 0, 1, 2]], **how)
    with pytest.raises(ValueError, match="more rows of probabilities than the 6 pieces"):
        aggregate_entities(np.eye(4)[[0, 1, 2, 3, 0, 1, 2]], **how)
