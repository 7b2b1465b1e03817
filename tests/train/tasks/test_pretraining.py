"""The task: what it trains on and measures, on packed rows and on others, and what it refuses."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from flaxbert import BertConfig, BertForMaskedLM, BertForPreTraining, losses
from flaxbert.losses import IGNORE
from tests.train import corpora
from tests.train.test_loop import run_until
from tests.trees import initial
from train.config import Config, Model, Run
from train.data.pretraining.datasets import Segments, Stage
from train.data.pretraining.preparation import Preparation, prepare_store
from train.evaluate import Evaluation
from train.loop import run
from train.optim import Optim
from train.tasks.pretraining import Pretraining, pretraining_logits

SIZES = BertConfig(
    vocab_size=205,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=40,
)


@pytest.fixture
def config(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n".join(corpora.lines(corpora.documents(120))))
    corpora.tokenizer().save(tmp_path / "words", max_length=40)
    store = tmp_path / "store"
    prepare_store(Preparation((str(text),), store, tokenizer=tmp_path / "words", workers=1, lines="sentences"))
    settings = Run(folder=tmp_path / "run", batch_size=8, steps=6, log_every=2)
    model = Model(sizes=SIZES, dropout=0.0)
    return Config(Pretraining(str(store), max_length=32), settings, model, Optim(learning_rate=1e-3))


def changed(config, **changes):
    return dataclasses.replace(config, task=dataclasses.replace(config.task, **changes))


def parameters(task, **how):
    model = task.architecture(task.config, **how)
    return model, initial(model)


def per_example(scores, params, batch, segments):
    """{unmasked tokens: (masked-LM loss, next-sentence loss)} of each example."""
    words, pairs = scores(params, dict(batch))
    of_words, of_pairs = jax.jit(losses.masked_lm), jax.jit(losses.next_sentence)
    found = {}
    for row in range(len(segments)):
        for slot in range(segments[row].max()):
            here = segments[row] == slot + 1
            ids, labels = batch["input_ids"][row].copy(), batch["masked_lm_labels"][row]
            mine = (labels != IGNORE) & here[batch["masked_lm_positions"][row]]
            ids[batch["masked_lm_positions"][row][mine]] = labels[mine]
            loss = of_words(words[row][None], np.where(mine, labels, IGNORE)[None])
            assert mine.sum() == round(0.15 * here.sum()) or here.sum() < 10
            label, scores = (batch["next_sentence_labels"], pairs)
            label, scores = (label[row, slot], scores[row, slot]) if label.ndim == 2 else (label[row], scores[row])
            pair = of_pairs(scores[None], np.array([label]))
            found[ids[here].tobytes()] = np.array([loss.mean, pair.mean])
    return found


def test_packed_rows_give_every_example_the_loss_that_it_has_alone(config):
    alone = config.task.prepare(config)
    packed = changed(config, row_length=64).task.prepare(config)
    model, params = parameters(alone)
    single, shared = {}, {}
    scores = [jax.jit(lambda p, b, task=task: pretraining_logits(model, p, b, None)) for task in (alone, packed)]
    for i in range(4):
        batch = packed.train[i]
        shared |= per_example(scores[1], params, batch, batch["segment_ids"])
    for i in range(alone.steps_per_epoch):
        batch = alone.train[i]
        single |= per_example(scores[0], params, batch, batch["attention_mask"])
    assert len(shared) > 60 and len(set(shared) & set(single)) > 0.95 * len(shared)
    for example in set(shared) & set(single):
        np.testing.assert_allclose(shared[example], single[example], atol=1e-5)
    # And the loss trained on is the mean over the examples' predictions, plus that over pairs.
    batch = packed.train[0]
    words, pairs = pretraining_logits(model, params, batch, None)
    loss = packed.loss(model, params, batch, None)
    assert loss.weight.tolist() == [
        (batch["masked_lm_labels"] != IGNORE).sum(),
        (batch["next_sentence_labels"] != IGNORE).sum(),
    ]
    wanted = losses.masked_lm(words, batch["masked_lm_labels"]).mean
    wanted += losses.next_sentence(pairs, batch["next_sentence_labels"]).mean
    np.testing.assert_allclose(loss.mean, wanted, rtol=1e-6)


def test_work_counts_examples_not_rows(config):
    for row_length in (None, 64):
        task = changed(config, row_length=row_length).task.prepare(config)
        batch = task.train[0]
        segments = batch["attention_mask"] if row_length is None else batch["segment_ids"]
        sizes = [(row == s).sum() for row in segments for s in range(1, row.max() + 1)]
        work = task.token_counts(batch)
        assert (work.tokens, work.squares) == (sum(sizes), sum(n * n for n in sizes))
        assert work.predictions == (batch["masked_lm_labels"] != IGNORE).sum() and work.pooled == 0


@pytest.mark.parametrize("segments", list(Segments))
@pytest.mark.parametrize("row_length", [None, 64])
def test_a_train_spec_is_what_the_data_would_say(config, segments, row_length):
    given = changed(config, segments=segments, row_length=row_length, whole_words=True)
    spec, task = given.task.train_spec(given), given.task.prepare(given)
    batch = task.train[0]
    shapes = [{name: (v.shape, v.dtype) for name, v in given.items()} for given in (spec.batch, batch)]
    assert shapes[0] == shapes[1]
    assert spec.config == task.config
    assert task.architecture is spec.architecture
    assert task.architecture is (BertForPreTraining if segments is Segments.NEXT_SENTENCE else BertForMaskedLM)


@pytest.mark.parametrize("row_length", [pytest.param(None, marks=pytest.mark.slow), 64])
def test_a_run(config, row_length, capsys):
    given = changed(config, row_length=row_length, prompts=("w1 [MASK] w2",))
    folder = run(given)
    summary = (folder / "summary.md").read_text()
    names = ("masked_lm_loss", "masked_lm_accuracy", "next_sentence_loss", "next_sentence_accuracy", "perplexity")
    assert all(name in summary for name in names)
    (first, *_) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert first["loss"] == pytest.approx(first["masked_lm_loss"] + first["next_sentence_loss"], rel=1e-5)
    shown = capsys.readouterr().out
    assert "below the unigram entropy" in shown and "w1 [MASK] w2  ->  w" in shown
    model, _ = BertForPreTraining.from_pretrained(folder / "model")
    assert model.config.vocab_size == 205


def test_what_an_evaluation_tells(config):
    task = config.task.prepare(config)
    model, params = parameters(task)
    batches = list(task.evaluations["dev"])
    measure = jax.jit(lambda batch: task.eval_step(model, params, batch).metrics)
    scores = jax.jit(lambda batch: pretraining_logits(model, params, batch, None))
    found = [measure(dict(batch)) for batch in batches]
    means = {n: sum(float(f[n].sum) for f in found) / sum(float(f[n].weight) for f in found) for n in found[0]}
    right = total = 0
    for batch in batches:
        words, _ = scores(dict(batch))
        counted = batch["masked_lm_labels"] != IGNORE
        right += (np.argmax(words, axis=-1) == batch["masked_lm_labels"])[counted].sum()
        total += counted.sum()
    assert means["masked_lm_accuracy"] == pytest.approx(right / total)
    assert means["masked_lm_loss"] == pytest.approx(math.log(205), abs=0.1)  # nothing is learnt yet
    derived = task.compute_metrics("dev", Evaluation(means, []), earlier={})
    assert derived["perplexity"] == pytest.approx(math.exp(means["masked_lm_loss"]))
    assert derived["loss"] == pytest.approx(means["masked_lm_loss"] + means["next_sentence_loss"])


def test_text_itself_is_tokenised_as_in_a_store(config, tmp_path):
    itself = changed(config, text=str(tmp_path / "text.txt"), tokenizer=tmp_path / "words")
    ours, theirs = itself.task.prepare(itself), config.task.prepare(config)
    for name, values in theirs.train[0].items():
        np.testing.assert_array_equal(ours.train[0][name], values)
    assert ours.facts == theirs.facts


def test_a_store_made_with_another_tokenizer(config, tmp_path):
    corpora.tokenizer(corpora.WORDS[::-1]).save(tmp_path / "other", max_length=40)
    other = changed(config, tokenizer=tmp_path / "other")
    with pytest.raises(ValueError, match="made with a vocabulary of 205 tokens, another than that of .*other"):
        other.task.prepare(other)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"row_length": 31}, "row_length is 31; examples have up to 32 tokens"),
        ({"short": 1.0}, "short is 1.0; it must be at least 0 and less than 1"),
        ({"copies": 0}, "copies is 0; it must be at least 1"),
        ({"masking_rate": 1.0}, "the masking rate is 1.0"),
        ({"max_predictions": 0}, "max_predictions is 0"),
        ({"heldout": 0.0}, "heldout is 0.0; it must lie between 0 and 1"),
        ({"max_length": 41}, "max_length is 41; allowed: 3 to the model's number of positions, 40"),
        ({"prompts": ("no mask",)}, "the prompt 'no mask' must hold"),
        ({"text": "nowhere"}, "nowhere: no such file or folder"),
    ],
)
def test_settings_that_cannot_be(config, changes, error):
    with pytest.raises((ValueError, FileNotFoundError), match=error):
        changed(config, **changes).task.prepare(config)


def test_texts_that_are_too_small(config, tmp_path):
    def given(text, **changes):
        (tmp_path / "small.txt").write_text(text)
        small = changed(config, text=str(tmp_path / "small.txt"), tokenizer=tmp_path / "words", **changes)
        return small.task.prepare(small)

    with pytest.raises(ValueError, match="holds no text"):
        given(" \n\n")
    with pytest.raises(ValueError, match="the text has 1 documents; 4 are needed at least.*blank lines"):
        given("w1 w2. w3")
    with pytest.raises(ValueError, match="the text has 3 documents; 4 are needed at least"):
        given("w1 w2\n\nw3\n\nw4")
    for segments in (Segments.STREAM, Segments.FULL_SENTENCES):
        batch = given("w1\n\nw3", segments=segments).train[0]
        assert batch["input_ids"].shape == (8, 32)
    batch = given("w1\n\nw2\n\nw3\n\nw4").train[0]  # documents of a word
    assert (batch["next_sentence_labels"] == 1).all()


def staged(config, *stages, steps=40):
    return dataclasses.replace(changed(config, stages=stages), run=dataclasses.replace(config.run, steps=steps))


def test_stages_of_smaller_batches_show_the_same_rows_in_the_same_order(config):
    plain = config.task.prepare(config).train
    rows = {name: np.concatenate([plain[i][name] for i in range(12)]) for name in plain[0]}
    given = staged(config, Stage(5, batch_size=24), Stage(2, batch_size=16))
    train = given.task.prepare(given).train
    found = [train[i] for i in range(7 + 3)]
    assert [len(batch["input_ids"]) for batch in found] == [24] * 5 + [16] * 2 + [8] * 3
    for name, values in rows.items():
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in found])[: 12 * 8], values)


def test_stages_of_shorter_examples_go_on_at_the_same_place(config):
    given = staged(config, Stage(10, batch_size=16, max_length=16))
    task = given.task.prepare(given)
    short, full = task.train._stages
    assert task.train[9]["input_ids"].shape == (16, 16) and task.train[10]["input_ids"].shape == (8, 32)
    share = 160 / short.rows_of_epoch
    assert 0 < share < 1 and full.first_row / full.rows_of_epoch == pytest.approx(share, abs=1 / full.rows_of_epoch)
    np.testing.assert_array_equal(task.train[10]["input_ids"], full[0]["input_ids"])
    assert task.steps_per_epoch == -(-full.rows_of_epoch // 8)
    packed = staged(changed(config, row_length=64), Stage(2, max_length=16, row_length=32), Stage(2, max_length=16))
    train = packed.task.prepare(packed).train
    assert [train[i]["input_ids"].shape[1] for i in (0, 2, 4)] == [32, 64, 64]


@pytest.mark.slow
def test_a_run_in_stages_goes_on_as_it_would_have(config, monkeypatch):
    given = staged(config, Stage(2, batch_size=16, max_length=16), steps=5)
    given = dataclasses.replace(given, run=dataclasses.replace(given.run, checkpoint_every=1, log_every=1))
    whole = run(given)
    again = dataclasses.replace(given, run=dataclasses.replace(given.run, folder=given.run.folder.with_name("again")))
    run_until(again, 4, monkeypatch)
    run(again)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (whole, again.run.folder)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("stages", "error"),
    [
        ([{"steps": 40}], "the stages take 40 steps, and run.steps is 40; give --run.steps above 40"),
        ([{"steps": 1, "max_length": 33}], "max_length of stage 0 is 33; allowed: up to max_length of the run, 32"),
        ([{"steps": 0}], "steps of a stage is 0; it must be at least 1"),
        ([{"steps": 1, "batch_size": 12}], "batch_size of stage 0 is 12, which does not divide over 8 devices"),
    ],
)
def test_stages_that_cannot_be(config, stages, error):
    with pytest.raises(ValueError, match=error):
        given = staged(config, *(Stage(**stage) for stage in stages))
        given.task.prepare(given)
