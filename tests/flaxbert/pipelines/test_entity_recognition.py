"""Entities equal transformers' pipeline; texts longer than the model are read in windows."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers

from flaxbert.pipelines import Aggregation, EntityRecognitionPipeline, batching, pipeline
from flaxbert.text.aggregation import aggregate_entities
from flaxbert.text.pieces import encode_texts
from flaxbert.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from tests.flaxbert.reference_folders import loaded, saved

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
SHORT = ["Angela Merkel met Barack Obama in Frankfurt-am-Main.", "Schartau's naïve cost: $3.50 (here)", "x"]
LONG = " ".join(f"{name} met Obama's antidisestablishmentarian in Gelsenkirchen," for name in ("Ann", "Bo", "Cy", "Di"))


def tagger(data_dir, folder, positions):
    names = dict(enumerate(LABELS))
    more = {"vocab_size": 28996, "id2label": names, "label2id": {name: i for i, name in names.items()}}
    saved("BertForTokenClassification", folder, data_dir / "tokenizers/bert-base-cased", positions, **more)
    return loaded("BertForTokenClassification", folder)


def as_reported(entities):
    return [(e.start, e.end, e.type, e.word) for e in entities], [e.score for e in entities]


def reference(model, tokenizer, strategy, text):
    pipe = transformers.pipeline(
        "token-classification", model=model, tokenizer=tokenizer, aggregation_strategy=strategy.value, device="cpu"
    )
    found = pipe(text)
    said = [(e["start"], e["end"], e["entity_group"], e["word"]) for e in found]
    return said, pytest.approx([float(e["score"]) for e in found], abs=2e-5)


@pytest.fixture(scope="module")
def small(data_dir, tmp_path_factory):
    """24 positions: transformers' model and tokenizer, and ours."""
    folder = tmp_path_factory.mktemp("small")
    return *tagger(data_dir, folder, 24), EntityRecognitionPipeline.from_pretrained(folder, batch_size=2)


@pytest.mark.parametrize("strategy", Aggregation)
def test_short_texts_equal_transformers(small, strategy):
    model, tokenizer, tag = small
    answers = (tag if strategy is tag.aggregation else dataclasses.replace(tag, aggregation=strategy))(SHORT)
    assert [answer.text for answer in answers] == SHORT
    for answer in answers:
        assert as_reported(answer.entities) == reference(model, tokenizer, strategy, answer.text)
    assert sum(len(answer.entities) for answer in answers) > 5


def test_windows_do_not_change_entities_of_a_model_without_context(data_dir, tmp_path):
    """Of a model that looks at nothing but a piece itself, a window more or less makes no difference."""
    model, tokenizer = tagger(data_dir, tmp_path, 128)
    with torch.no_grad():
        model.bert.embeddings.position_embeddings.weight.zero_()
        model.bert.encoder.layer[0].attention.output.dense.weight.zero_()
    model.save_pretrained(tmp_path)
    whole = EntityRecognitionPipeline.from_pretrained(tmp_path, batch_size=3, aggregation=Aggregation.AVERAGE)
    wanted = reference(model, tokenizer, Aggregation.AVERAGE, LONG)
    for tag in (whole, dataclasses.replace(whole, max_length=13)):
        (answer,) = tag([LONG])
        assert as_reported(answer.entities) == wanted and answer.entities[-1].end > len(LONG) - 20
    assert len(whole.tokenizer.piece_ids([LONG])[0]) > 50


def test_a_long_text_is_computed_in_blocks_of_few_windows(small, monkeypatch):
    """Otherwise the memory would hold the outputs of all windows of a text."""
    *_, tag = small
    wanted, blocks = tag([LONG]), []

    def compute(block, *arguments, **options):
        blocks.append(len(block))
        return batching.run_in_batches(block, *arguments, **options)

    monkeypatch.setattr(pipeline, "run_in_batches", compute)
    assert dataclasses.replace(tag, read_ahead=3)([LONG]) == wanted
    assert len(blocks) > 1 and max(blocks) == 3


@pytest.mark.parametrize(("max_length", "overlap"), [(24, 0), (24, 21), (15, None)])
def test_a_piece_takes_probabilities_from_the_window_with_most_context(small, max_length, overlap):
    model, _, tag = small
    tag = dataclasses.replace(tag, max_length=max_length, overlap=overlap)
    (whole,) = encode_texts(tag.tokenizer, [LONG])
    ids, room = whole.ids.tolist(), max_length - 2
    starts = [*range(0, len(ids) - room, room - (room // 4 if overlap is None else overlap)), len(ids) - room]
    cls, sep = tag.tokenizer.token_id("[CLS]"), tag.tokenizer.token_id("[SEP]")
    with torch.no_grad():
        rows = torch.tensor([[cls, *ids[start : start + room], sep] for start in starts])
        scores = model(rows).logits.softmax(-1).numpy()[:, 1:-1]
    pieces = []
    for place in range(len(ids)):
        context = [min(place - start, start + room - 1 - place) for start in starts]
        best = context.index(max(context))
        pieces.append(scores[best, place - starts[best]])
    how = {"labels": LABELS, "tokenizer": tag.tokenizer, "strategy": Aggregation.FIRST}
    wanted, sure = as_reported(aggregate_entities(np.stack(pieces), text=LONG, pieces=whole, **how))
    (answer,) = tag([LONG])
    assert as_reported(answer.entities) == (wanted, pytest.approx(sure, abs=2e-5)) and len(wanted) > 5


def test_an_entity_has_the_marks_that_the_tokenizer_strips():
    tokenizer = WordPieceTokenizer.from_tokens([*SPECIAL_TOKENS, "zoe", "met"], lowercase=True)
    text = "met Zoe\u0308"
    [pieces] = encode_texts(tokenizer, [text])
    options = {"labels": LABELS, "tokenizer": tokenizer, "strategy": Aggregation.FIRST}
    [entity] = aggregate_entities(np.eye(5)[[0, 1]], text=text, pieces=pieces, **options)
    assert text[entity.start : entity.end] == "Zoe\u0308"


def test_offsets_are_those_of_the_text(small):
    tag = small[2]
    text = "  Zoe\u0308\tfl\u00e4nge   \u6771\u4eac\U0001f600 Rome\n" * 5
    (answer,) = tag([text])
    assert answer.entities and answer.text == text
    for entity in answer.entities:
        assert text[entity.start : entity.end].strip() == text[entity.start : entity.end] != ""
    assert all(a.end <= b.start for a, b in zip(answer.entities, answer.entities[1:], strict=False))
    assert tag(["\u200b"])[0].entities == ()  # the tokenizer takes it away


@pytest.mark.parametrize(
    "options, said",
    [
        ({"overlap": 22}, "overlap is 22; allowed: 0 to 21"),
        ({"max_length": 10, "overlap": -1}, "overlap is -1; allowed: 0 to 7"),
        ({"aggregation": "first"}, "aggregation is 'first'; give one of Aggregation.SIMPLE, "),
    ],
)
def test_impossible_options(small, options, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(small[2], **options)
