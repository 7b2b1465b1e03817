"""Causal language modelling: the tokens that are predicted, the loss against PyTorch, resuming, and what is refused."""

import collections
import contextlib
import dataclasses
import functools
import io
import math
import shutil
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest
import torch
import transformers

import flaxbert
from flaxbert import BertConfig
from flaxbert.losses import IGNORE
from tests.runs import made_once
from tests.train import corpora
from tests.train.test_loop import records, weights, with_run, with_task
from tests.trees import by_path, initial
from train.config import Config, Model, Run
from train.data.pretraining.preparation import Preparation, prepare_store
from train.distributed import HostShard, MeshShape, Placement
from train.loop import make_model, run
from train.optim import Optim, make_optimizer
from train.step import compile_step, create_state, state_shardings
from train.tasks.language_modelling import LanguageModelling

LENGTH, HELDOUT = 16, 0.2
SIZES = BertConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=LENGTH,
)
# The first two documents in one file, the others in another one.
DOCUMENTS = corpora.documents(40, longest=8)


def config_in(folder):
    for name, documents in (("a", DOCUMENTS[:2]), ("b", DOCUMENTS[2:])):
        (folder / f"{name}.txt").write_text("\n".join(corpora.lines(documents)))
    corpora.tokenizer().save(folder / "words", max_length=LENGTH)
    task = LanguageModelling(
        (str(folder / "a.txt"), str(folder / "b.txt")),
        tokenizer=folder / "words",
        max_length=LENGTH,
        heldout=HELDOUT,
    )
    settings = Run(folder=folder / "run", batch_size=16, steps=4, log_every=1, checkpoint_every=2)
    settings = dataclasses.replace(settings, evaluation_batch_size=8, gradient_accumulation_steps=2)
    return Config(task, settings, Model(sizes=SIZES, dropout=0.0), Optim(learning_rate=1e-2))


@pytest.fixture
def config(tmp_path):
    return config_in(tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A finished run, which no test may change."""

    def make(folder):
        config = config_in(folder)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            run(config)
        return SimpleNamespace(config=config, folder=config.run.folder, printed=printed.getvalue())

    return made_once(tmp_path_factory, "language_model", make)


def stream_of(documents):
    """The tokens of documents, [SEP] after each, made without the code under test."""
    tokenizer = corpora.tokenizer()
    return [i for text in documents for i in [*tokenizer.piece_ids([" ".join(text)])[0], tokenizer.token_id("[SEP]")]]


def cut(stream):
    """The tokens that each row predicts."""
    return [tuple(stream[i : i + LENGTH - 1]) for i in range(0, len(stream), LENGTH - 1)]


def targets(batches):
    """What each row of some batches predicts, and the number of rows that are padding."""
    rows = [tuple(row[row != IGNORE].tolist()) for batch in batches for row in batch["labels"][:, 1:]]
    return [row for row in rows if row], rows.count(())


def test_every_token_is_predicted_once_in_an_epoch(config):
    task, stream = config.task.prepare(config), stream_of(DOCUMENTS)
    held_out = round(HELDOUT * len(stream))
    wanted = {"train": cut(stream[:-held_out]), "dev": cut(stream[-held_out:])}
    epochs = [[task.train[i + task.steps_per_epoch * epoch] for i in range(task.steps_per_epoch)] for epoch in (0, 1)]
    first, padding = targets(epochs[0])
    assert collections.Counter(first) == collections.Counter(wanted["train"]) and len(first) > 20
    assert padding == task.steps_per_epoch * 16 - len(first) > 0
    second, _ = targets(epochs[1])
    assert second != first and sorted(second) == sorted(first)
    assert sorted(targets(task.evaluations["dev"])[0]) == sorted(wanted["dev"])
    for batch in epochs[0]:
        counted = batch["labels"] != IGNORE
        np.testing.assert_array_equal(batch["attention_mask"], counted)
        np.testing.assert_array_equal(batch["input_ids"][counted], batch["labels"][counted])
        assert (batch["input_ids"][counted[:, 0], 0] == corpora.tokenizer().token_id("[CLS]")).all()
        assert task.token_counts(batch).predictions == sum(map(len, targets([batch])[0]))
    assert task.facts["train tokens"] + task.facts["dev tokens"] == len(stream)


def test_a_batch_depends_on_seed_and_index_alone(config):
    whole = config.task.prepare(config).train
    halves = [config.task.prepare(config, host_shard=HostShard((i,), 2)).train for i in (0, 1)]
    for index in (5, 0):
        rows = np.concatenate([half[index]["input_ids"] for half in halves])
        np.testing.assert_array_equal(rows, whole[index]["input_ids"])
    other = with_run(config, seed=1)
    assert (other.task.prepare(other).train[0]["input_ids"] != whole[0]["input_ids"]).any()


def test_a_run_against_pytorch(trained):
    """The exported model in `transformers`, and its loss over the tokens that the run held out."""
    folder = trained.folder / "model"
    reference, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(reference) is transformers.BertLMHeadModel and not any(report.values())
    assert reference.config.is_decoder and reference.config.architectures == ["BertLMHeadModel"]
    stream = stream_of(DOCUMENTS)
    total = count = 0
    model, params = flaxbert.from_pretrained(folder)
    for predicted in cut(stream[-round(HELDOUT * len(stream)) :]):
        ids = torch.tensor([[corpora.tokenizer().token_id("[CLS]"), *predicted]])
        with torch.no_grad():
            logits = reference(ids).logits
        if not count:
            ours = model.apply({"params": params}, ids.numpy().astype(np.int32)).logits
            np.testing.assert_allclose(ours, logits.numpy(), atol=1e-5)
        log_probabilities = torch.log_softmax(logits[0, :-1].double(), dim=-1)
        total -= sum(float(log_probabilities[i, token]) for i, token in enumerate(predicted))
        count += len(predicted)
    (evaluation,) = records(trained.folder, "eval")
    assert evaluation["loss"] == pytest.approx(total / count, rel=1e-5)
    assert evaluation["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    losses = [record["loss"] for record in records(trained.folder, "train")]
    assert losses[0] == pytest.approx(math.log(corpora.tokenizer().vocab_size), abs=0.2)
    assert "the unigram entropy of" in trained.printed and "perplexity" in trained.printed


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(trained, tmp_path):
    again = with_run(trained.config, folder=tmp_path / "again")
    shutil.copytree(trained.folder, again.run.folder, ignore=shutil.ignore_patterns("4", "model"))  # after step 2
    run(again)
    chex.assert_trees_all_equal(weights(again.run.folder), weights(trained.folder))


@pytest.mark.slow  # test_meshes.py trains on meshes
def test_eight_devices_and_a_scan_train_as_one_device_does(trained):
    """The losses of the run, on eight devices in two accumulation steps, from separate layers on one device at once."""
    config, placement = trained.config, Placement.of(MeshShape(), jax.devices()[:1])
    task = config.task.prepare(config)
    model = task.architecture(task.config, **(config.model.attributes | {"scan": False}))
    optimizer = make_optimizer(config.optim, config.run.steps)
    shardings = state_shardings(model, optimizer, placement)
    step = compile_step(functools.partial(task.loss, model), optimizer, placement, shardings)
    state, losses = create_state(model, optimizer, shardings, seed=0), []
    for index in range(config.run.steps):
        state, metrics = step(state, placement.batch(task.train[index]), np.uint32(0))
        losses.append(float(metrics["loss"]))
    assert losses == pytest.approx([record["loss"] for record in records(trained.folder, "train")], rel=1e-5)


def test_a_pretrained_encoder_becomes_a_decoder(config, tmp_path):
    sizes = SIZES.replace(vocab_size=corpora.tokenizer().vocab_size)
    encoder = flaxbert.BertForMaskedLM(sizes)
    params = initial(encoder, seed=1)
    flaxbert.save_pretrained(tmp_path / "encoder", encoder, params)
    corpora.tokenizer().save(tmp_path / "encoder", max_length=LENGTH)
    given = dataclasses.replace(with_task(config, tokenizer=None), model=Model(pretrained=tmp_path / "encoder"))
    task = given.task.prepare(given)
    assert task.config.is_decoder and "is_decoder is set" in task.facts["attention"]
    model, loaded = make_model(given, task, Placement.of(given.mesh))
    assert type(model) is flaxbert.BertLMHeadModel
    assert by_path(loaded).keys() == by_path(params).keys()
    for path, values in by_path(params).items():
        np.testing.assert_array_equal(by_path(loaded)[path][: len(values)], values, err_msg=path)
    assert "attention" not in config.task.prepare(config).facts


def test_text_to_evaluate_on_and_stores(config, tmp_path):
    separate = with_task(config, text=config.task.text[1:], dev=config.task.text[:1])
    task = separate.task.prepare(separate)
    assert sorted(targets(task.evaluations["dev"])[0]) == sorted(cut(stream_of(DOCUMENTS[:2])))
    assert task.facts["train tokens"] == len(stream_of(DOCUMENTS[2:])) and task.digests.keys() == {"text", "dev"}
    store = tmp_path / "store"
    prepare_store(Preparation(separate.task.text, store, tokenizer=tmp_path / "words", workers=1))
    stored = with_task(separate, text=(str(store),), tokenizer=None)
    assert stored.task.prepare(stored).digests == task.digests
    both = with_task(config, text=(str(store), *config.task.text))
    with pytest.raises(ValueError, match="store is a token store beside other texts; give one store"):
        both.task.prepare(both)


@pytest.mark.parametrize("heldout", [0.01, 0.99])
def test_a_text_of_one_token(config, tmp_path, heldout):
    (tmp_path / "one.txt").write_text("w1")
    small = with_task(config, text=(str(tmp_path / "one.txt"),), heldout=heldout)
    task = small.task.prepare(small)
    separator = corpora.tokenizer().token_id("[SEP]")
    assert targets([task.train[0]])[0] == cut(corpora.tokenizer().piece_ids(["w1"])[0])
    assert targets(task.evaluations["dev"])[0] == [(separator,)]


def test_a_vocabulary_is_learned_from_the_text(config):
    learned = with_task(config, tokenizer=None, vocab_size=100)
    task = learned.task.prepare(learned)
    assert task.facts["vocabulary"] == task.config.vocab_size == 100


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"text": ()}, "no text was given; give --task.text"),
        ({"text": ("nowhere.txt",)}, "nowhere.txt: no such file or folder"),
        ({"heldout": 0.0}, "heldout is 0.0; it must lie between 0 and 1"),
        ({"heldout": 1.0}, "heldout is 1.0; it must lie between 0 and 1"),
        ({"max_length": LENGTH + 1}, "max_length is 17; allowed: 3 to the model's number of positions, 16"),
    ],
)
def test_settings_that_cannot_be(config, changes, error):
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        given = with_task(config, **changes)
        given.task.prepare(given)


@pytest.mark.parametrize(
    ("sizes", "error"),
    [
        (SIZES.replace(is_decoder=True, add_cross_attention=True), "add_cross_attention is true.*no encoder"),
    ],
)
def test_models_that_are_no_causal_language_models(config, sizes, error):
    given = dataclasses.replace(config, model=Model(sizes=sizes))
    with pytest.raises(ValueError, match=error):
        given.task.prepare(given)
