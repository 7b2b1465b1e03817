"""Starting from a model that has a head already: its labels keep their ids, or the head is new if that is asked for."""

import dataclasses

import numpy as np
import pytest

import flaxbert
from flaxbert import BertForMultipleChoice, BertForSequenceClassification, BertForTokenClassification
from tests.runs import SMALL
from tests.train.test_loop import with_run, with_task
from tests.trees import initial
from train.loop import make_setup, run
from train.multihost.hosts import SINGLE_HOST
from train.tasks.multiple_choice import MultipleChoice
from train.tasks.token_classification import TokenClassification


@pytest.fixture
def vocabulary(classification):
    return classification.task.tokenizer


def saved(folder, labels, cls=BertForSequenceClassification, **changes):
    """Save a model with these labels, and return its head's kernel."""
    model = cls(SMALL.replace(vocab_size=11, id2label=tuple(labels), **changes))
    params = initial(model, seed=1)
    flaxbert.save_pretrained(folder, model, params)
    return np.asarray(params["classifier"]["kernel"])


def starting_from(config, folder, **changes):
    return dataclasses.replace(config, model=dataclasses.replace(config.model, pretrained=folder, **changes))


def kernel(params):
    return np.asarray(params["classifier"]["kernel"])


def test_the_same_labels_keep_the_ids_of_the_model(classification, tmp_path):
    head = saved(tmp_path / "model", ["short", "long"])
    setup, params = make_setup(starting_from(classification, tmp_path / "model"), SINGLE_HOST)
    assert setup.task.config.id2label == ("short", "long") and setup.task.facts["head"] == "of the pretrained model"
    np.testing.assert_array_equal(kernel(params), head)
    first = setup.task.rows["train"][0].label
    labels = setup.task.train.examples.labels
    assert first == "short" and labels[0] == 0


def test_labels_given_in_another_order_are_refused(classification, tmp_path):
    saved(tmp_path / "model", ["short", "long"])
    config = starting_from(with_task(classification, labels=("long", "short")), tmp_path / "model")
    with pytest.raises(ValueError, match=r"in another order; leave --task.labels out.*--model.new-head"):
        config.task.prepare(config)
    config = starting_from(config, tmp_path / "model", new_head=True)
    assert config.task.prepare(config).config.id2label == ("long", "short")


@pytest.mark.parametrize("labels", [["negative", "positive"], ["long", "medium", "short"], ["LABEL_0"]])
def test_other_labels_need_a_new_head_that_is_asked_for(classification, tmp_path, labels):
    head = saved(tmp_path / "model", labels)
    config = starting_from(classification, tmp_path / "model")
    with pytest.raises(ValueError, match=r"has the labels .*, the data have .*: give --model.new-head"):
        make_setup(config, SINGLE_HOST)
    setup, params = make_setup(starting_from(config, tmp_path / "model", new_head=True), SINGLE_HOST)
    assert setup.task.config.id2label == ("long", "short") and setup.task.facts["head"] == "new"
    assert kernel(params).shape == (32, 2) and not np.array_equal(kernel(params), head)


def test_all_labels_of_the_model_keep_a_head_that_the_data_use_in_part(classification, tmp_path):
    head = saved(tmp_path / "model", ["medium", "short", "long"])
    config = starting_from(classification, tmp_path / "model")
    with pytest.raises(ValueError, match="or --task.labels medium short long, to keep the model's head"):
        make_setup(config, SINGLE_HOST)
    config = with_task(config, labels=("medium", "short", "long"))
    setup, params = make_setup(config, SINGLE_HOST)
    np.testing.assert_array_equal(kernel(params), head)


def test_labels_without_names_are_those_of_the_data_in_order(classification, tmp_path):
    head = saved(tmp_path / "model", ["LABEL_0", "LABEL_1"])
    setup, params = make_setup(starting_from(classification, tmp_path / "model"), SINGLE_HOST)
    assert setup.task.facts["head"] == "of the pretrained model, whose labels have no names: 'long', 'short'"
    np.testing.assert_array_equal(kernel(params), head)


def test_a_regression_keeps_a_head_of_one_output(classification, tmp_path):
    for name in ("train", "dev", "test"):
        path = tmp_path / f"{name}.tsv"
        path.write_text(path.read_text().replace("short", "0.5").replace("long", "2.5"))
    head = saved(tmp_path / "model", ["score"])
    config = starting_from(with_task(classification, problem_type="regression"), tmp_path / "model")
    _, params = make_setup(config, SINGLE_HOST)
    np.testing.assert_array_equal(kernel(params), head)
    saved(tmp_path / "model", ["a", "b"])
    with pytest.raises(ValueError, match="has 2 labels, a regression has one output: give --model.new-head"):
        make_setup(config, SINGLE_HOST)


def test_a_head_of_another_kind_is_not_taken(classification, tmp_path, vocabulary):
    """The heads of sequences, tokens and choices have the same names in a checkpoint."""
    head = saved(tmp_path / "model", ["long", "short"], BertForTokenClassification)
    setup, params = make_setup(starting_from(classification, tmp_path / "model"), SINGLE_HOST)
    assert setup.task.facts["head"] == "new" and not np.array_equal(kernel(params), head)
    head = saved(tmp_path / "one", ["score"])
    (tmp_path / "c.jsonl").write_text('{"premise": "alpha", "choice1": "beta", "choice2": "zeta", "label": 0}\n' * 8)
    task = MultipleChoice(train=str(tmp_path / "c.jsonl"), tokenizer=vocabulary, max_length=16)
    choice = starting_from(dataclasses.replace(classification, task=task), tmp_path / "one")
    _, params = make_setup(choice, SINGLE_HOST)
    assert kernel(params).shape == head.shape and not np.array_equal(kernel(params), head)
    head = saved(tmp_path / "choice", ["LABEL_0", "LABEL_1"], BertForMultipleChoice)
    _, params = make_setup(starting_from(choice, tmp_path / "choice"), SINGLE_HOST)
    np.testing.assert_array_equal(kernel(params), head)


def test_a_tagger_keeps_the_ids_of_its_tags(classification, tmp_path, vocabulary):
    tags = ["O", "I-X", "B-X"]
    head = saved(tmp_path / "model", tags, BertForTokenClassification)
    (tmp_path / "tags.conll").write_text("alpha B-X\nbeta I-X\ngamma O\n\n" * 8)
    task = TokenClassification(train=str(tmp_path / "tags.conll"), tokenizer=vocabulary, max_length=16)
    config = starting_from(dataclasses.replace(classification, task=task), tmp_path / "model")
    setup, params = make_setup(config, SINGLE_HOST)
    assert setup.task.config.id2label == tuple(tags)
    np.testing.assert_array_equal(kernel(params), head)
    saved(tmp_path / "model", ["O", "B-Y", "I-Y"], BertForTokenClassification)
    with pytest.raises(ValueError, match="give --model.new-head"):
        make_setup(config, SINGLE_HOST)


def test_a_run_keeps_its_labels_when_it_is_resumed(classification, tmp_path):
    """A run of a former version may have other ids than those of the model that it began with."""
    saved(tmp_path / "model", ["short", "long"])
    config = starting_from(classification, tmp_path / "model")
    folder = run(with_run(config, epochs=None, steps=1))
    described = (folder / "config.json").read_text()
    assert '"0": "short"' in described
    (folder / "config.json").write_text(
        described.replace('"0": "short"', '"0": "long"').replace('"1": "long"', '"1": "short"')
    )
    assert config.task.prepare(config).config.id2label == ("long", "short")


def test_vectors_without_names_have_the_labels_of_the_model_in_its_order(classification, tmp_path):
    head = saved(tmp_path / "model", ["joy", "anger", "fear"], problem_type="multi_label_classification")
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "alpha", "labels": [1, 0, 1]}\n{"text": "beta", "labels": [0, 1, 0]}\n' * 8)
    config = with_task(classification, train=str(path), dev=None, test=None, problem_type="multi_label_classification")
    setup, params = make_setup(starting_from(config, tmp_path / "model"), SINGLE_HOST)
    assert setup.task.config.id2label == ("joy", "anger", "fear")
    assert setup.task.facts["head"].endswith("labels in their order name the data's: 'joy', 'anger', 'fear'")
    assert setup.task.rows["train"][0].label == "joy,fear"
    np.testing.assert_array_equal(kernel(params), head)
    saved(tmp_path / "other", ["joy", "anger"], problem_type="multi_label_classification")
    with pytest.raises(ValueError, match="give --model.new-head"):
        make_setup(starting_from(config, tmp_path / "other"), SINGLE_HOST)
