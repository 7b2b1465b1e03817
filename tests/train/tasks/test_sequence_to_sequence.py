"""Sequence to sequence: batches of pairs, a run against PyTorch, resuming, pretrained models, and what is refused."""

import contextlib
import csv
import dataclasses
import functools
import io
import json
import logging
import random
import shutil
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest
import sacrebleu
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
from train.data.casing_pairs import main as write_casing_pairs
from train.data.examples import TargetSequences
from train.data.labelled_texts import Columns
from train.distributed import HostShard, MeshShape, Placement
from train.evaluate import compile_eval_step, evaluate
from train.flops import train_flops
from train.loop import make_model, run
from train.optim import Optim, make_optimizer
from train.step import compile_step, create_state, state_shardings
from train.tasks.sequence_to_sequence import SequenceToSequence

LENGTH, TARGET_LENGTH, WORDS = 12, 9, corpora.WORDS[:12]
TOKENIZER = corpora.tokenizer(WORDS)
SIZES = BertConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=LENGTH,
    initializer_range=0.3,  # so that generated texts differ
)


def pairs(count, seed):
    """Words, and a part of them in the opposite order: targets of 1 to 10 words, most of which end before the limit."""
    chance = random.Random(seed)
    sources = [chance.choices(WORDS, k=chance.randint(1, 10)) for _ in range(count)]
    return [(" ".join(words), " ".join(words[:0:-1] or words)) for words in sources]


SETS = {"train": pairs(40, 0), "dev": pairs(21, 1)}


def config_in(folder):
    for name, rows in SETS.items():
        (folder / f"{name}.tsv").write_text("".join("\t".join(row) + "\n" for row in [("source", "target"), *rows]))
    TOKENIZER.save(folder / "words", max_length=LENGTH)
    task = SequenceToSequence(
        train=str(folder / "train.tsv"),
        dev=str(folder / "dev.tsv"),
        tokenizer=folder / "words",
        max_length=LENGTH,
        max_target_length=TARGET_LENGTH,
    )
    settings = Run(folder=folder / "run", batch_size=16, steps=4, log_every=1, checkpoint_every=2)
    settings = dataclasses.replace(settings, evaluation_batch_size=8, gradient_accumulation_steps=2)
    return Config(task, settings, Model(sizes=SIZES, dropout=0.0, vocab_multiple=1), Optim(learning_rate=1e-2))


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

    return made_once(tmp_path_factory, "sequence_to_sequence", make)


def predictions(folder):
    with (folder / "predictions_dev.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def labels_of(target):
    """The tokens that the decoder is to write, made without the code under test."""
    return [TOKENIZER.token_id(token) for token in [*target.split(), "[SEP]"]][: TARGET_LENGTH - 1]


@pytest.mark.filterwarnings("ignore:Version v4.12.0")
def test_a_run_against_pytorch(trained):
    """The exported model in `transformers`: its loss on dev, and the texts that it generates."""
    folder = trained.folder / "model"
    reference, report = transformers.EncoderDecoderModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokenizer, total, count, texts = transformers.AutoTokenizer.from_pretrained(folder), 0.0, 0, []
    for source, target in SETS["dev"]:
        ids, labels = tokenizer(source, return_tensors="pt").input_ids, torch.tensor([labels_of(target)])
        with torch.no_grad():
            total += float(reference(ids, labels=labels).loss) * labels.numel()
            texts.append(tokenizer.decode(reference.generate(ids)[0], skip_special_tokens=True))
        count += labels.numel()
    (evaluation,) = records(trained.folder, "eval")
    assert evaluation["loss"] == pytest.approx(total / count, rel=1e-5)
    assert evaluation["perplexity"] == pytest.approx(np.exp(total / count), rel=1e-5)
    rows, targets = predictions(trained.folder), [target for _, target in SETS["dev"]]
    assert [row["given"] for row in rows] == targets
    assert [row["predicted"] for row in rows] == texts and len({*texts}) > 2
    assert evaluation["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, [targets]).score)
    assert evaluation["exact_match"] == np.mean([text == target for text, target in zip(texts, targets, strict=True)])
    copied = sacrebleu.corpus_chrf([source for source, _ in SETS["dev"]], [targets]).score
    same = np.mean([source == target for source, target in SETS["dev"]])
    assert f"; of the sources as they are {same:.4f}, {copied:.2f}" in trained.printed and same > 0


@pytest.mark.slow  # test_loop.py resumes runs, of another task
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(trained, tmp_path):
    again = with_run(trained.config, folder=tmp_path / "again")
    shutil.copytree(trained.folder, again.run.folder, ignore=shutil.ignore_patterns("4", "model"))  # after step 2
    run(again)
    chex.assert_trees_all_equal(weights(again.run.folder), weights(trained.folder))


@pytest.mark.slow  # test_meshes.py trains on meshes
def test_eight_devices_train_as_one_device_does(trained):
    """The losses of the run, on eight devices in two accumulation steps, from one device at once."""
    config, placement = trained.config, Placement.of(MeshShape(), jax.devices()[:1])
    task = config.task.prepare(config)
    model = task.architecture(task.config, **config.model.attributes)
    optimizer = make_optimizer(config.optim, config.run.steps)
    shardings = state_shardings(model, optimizer, placement)
    step = compile_step(functools.partial(task.loss, model), optimizer, placement, shardings)
    state, losses = create_state(model, optimizer, shardings, seed=0), []
    for index in range(config.run.steps):
        state, metrics = step(state, placement.batch(task.train[index]), np.uint32(0))
        losses.append(float(metrics["loss"]))
    assert losses == pytest.approx([record["loss"] for record in records(trained.folder, "train")], rel=1e-5)


def test_the_first_examples_alone_are_generated(trained):
    """The loss is over all examples, the other metrics are over five; neither depends on the size of a batch."""
    config = with_run(with_task(trained.config, generated=5), evaluation_batch_size=16)
    task, placement = config.task.prepare(config), Placement.of(MeshShape())
    model, params = flaxbert.from_pretrained(trained.folder / "model")
    eval_step = compile_eval_step(functools.partial(task.eval_step, model), placement)
    found = evaluate(eval_step, params, task.evaluations["dev"], placement)
    (whole,) = records(trained.folder, "eval")
    assert found.means["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    rows = predictions(trained.folder)[:5]
    chrf = sacrebleu.corpus_chrf([row["predicted"] for row in rows], [[row["given"] for row in rows]]).score
    assert task.compute_metrics("dev", found, earlier={})["chrf"] == pytest.approx(chrf)


def test_batches(config):
    """There is one shape for each length, with every example once; hosts build the rows of one batch."""
    config = with_run(config, steps=10**6)  # so many that the compilation of several lengths pays
    task = config.task.prepare(config)
    halves = [config.task.prepare(config, host_shard=HostShard((i,), 2)).train for i in (0, 1)]
    shapes, seen = set(), []
    for index in range(task.steps_per_epoch):
        batch = task.train[index]
        for name, values in batch.items():
            np.testing.assert_array_equal(np.concatenate([half[index][name] for half in halves]), values)
        ids, labels = batch["input_ids"], batch["labels"]
        shapes.add((ids.shape[1], labels.shape[1]))
        seen += [
            (TOKENIZER.decode(row[mask > 0][1:-1]), target[target != IGNORE].tolist())
            for row, mask, target in zip(ids, batch["attention_mask"], labels, strict=True)
            if mask.any()
        ]
        counts = task.token_counts(batch)
        assert counts.tokens == (batch["attention_mask"].sum() + (labels != IGNORE).sum())
    assert sorted(seen) == sorted((source, labels_of(target)) for source, target in SETS["train"])
    assert 1 < len(shapes) <= len(task.train.lengths)
    assert tuple(map(max, zip(*shapes, strict=True))) == (LENGTH, TARGET_LENGTH - 1)
    assert task.facts[f"train targets cut at {TARGET_LENGTH} tokens"] == sum(
        len(target.split()) > TARGET_LENGTH - 2 for _, target in SETS["train"]
    )


def test_a_long_target_widens_the_batches_of_its_length_and_of_longer_ones():
    ids, labels = ([np.ones(length, np.int32) for length in lengths] for lengths in ((9, 2, 1), (1, 6, 3)))
    examples = TargetSequences(ids, ids, labels, (10, 40))
    shapes = []
    for member in (0, 1, 2):
        batch = examples.batch(np.array([member]), size=1, pad_id=0, lengths=(4, 8, 10))
        shapes.append((batch["input_ids"].shape[1], batch["labels"].shape[1]))
    assert shapes == [(10, 8), (4, 8), (4, 4)]


def test_the_formula_of_flops_is_what_xla_counts(config):
    sizes = SIZES.replace(hidden_size=128, intermediate_size=512, num_hidden_layers=3, max_position_embeddings=64)
    given = dataclasses.replace(config, model=Model(sizes=sizes, scan=False, vocab_multiple=1))
    task = given.task.prepare(given)
    batch = {"attention_mask": np.ones((8, 48), np.int32), "labels": np.ones((8, 40), np.int32)}
    model = task.architecture(task.config, scan=False)
    forward = jax.jit(lambda params, ids, labels: model.apply({"params": params}, ids, decoder_input_ids=labels).logits)
    lowered = forward.lower(model.parameter_shapes(), batch["attention_mask"], batch["labels"])
    flops = train_flops(task.config, **dataclasses.asdict(task.token_counts(batch))) / 3
    assert 1.0 < lowered.cost_analysis()["flops"] / flops < 1.1


def test_a_pretrained_encoder_becomes_both(config, trained, tmp_path, caplog):
    encoder = flaxbert.BertForMaskedLM(SIZES.replace(vocab_size=TOKENIZER.vocab_size))
    params = initial(encoder, seed=1)
    flaxbert.save_pretrained(tmp_path / "encoder", encoder, params)
    TOKENIZER.save(tmp_path / "encoder", max_length=LENGTH)
    given = dataclasses.replace(
        with_task(config, tokenizer=None, tied=True), model=Model(pretrained=tmp_path / "encoder", dropout=0.3)
    )
    task = given.task.prepare(given)
    with caplog.at_level(logging.WARNING):
        model, loaded = make_model(given, task, Placement.of(given.mesh))
    assert "crossattention.self.query.weight" in caplog.text
    assert (model.decoder_start_token_id, model.pad_token_id) == (TOKENIZER.token_id("[CLS]"), 0)
    assert {model.encoder.config.hidden_dropout_prob, model.decoder.config.hidden_dropout_prob} == {0.3}
    word = loaded["encoder"]["embeddings"]["word"]["embedding"][: TOKENIZER.vocab_size]
    np.testing.assert_array_equal(word, params["bert"]["embeddings"]["word"]["embedding"])
    assert loaded["decoder"]["bert"]["layers"].keys() == {"cross_attention", "cross_attention_norm"}

    # A finished run is trained further, from its own start token.
    folder = shutil.copytree(trained.folder / "model", tmp_path / "pair")
    keys = json.loads((folder / "config.json").read_text()) | {"decoder_start_token_id": 7}
    (folder / "config.json").write_text(json.dumps(keys))
    former = dataclasses.replace(with_task(given, tied=False), model=Model(pretrained=folder))
    model, loaded = make_model(former, former.task.prepare(former), Placement.of(given.mesh))
    assert model.decoder_start_token_id == 7
    wanted = by_path(flaxbert.from_pretrained(folder)[1])
    for path, values in by_path(loaded).items():
        np.testing.assert_array_equal(values[: len(wanted[path])], wanted[path], err_msg=path)
    former = with_task(former, tied=True)
    with pytest.raises(ValueError, match="tied is True, but the model of .* is the opposite; give --task.no-tied"):
        make_model(former, former.task.prepare(former), Placement.of(given.mesh))


def test_a_vocabulary_is_learned_and_says_what_it_cannot_spell(config):
    learned = with_task(config, tokenizer=None, vocab_size=20)
    task = learned.task.prepare(learned)
    assert task.facts["vocabulary"] == task.config.vocab_size == task.tokenizer.vocab_size > 20
    (config.run.folder.parent / "dev.tsv").write_text("source\ttarget\nw1 w2\tw2 w1\nw1\tW1\nw3\tw3 ✓\n")
    assert config.task.prepare(config).facts["dev targets that the vocabulary cannot spell"] == 2


def test_the_files_of_the_run(trained):
    keys = json.loads((trained.folder / "model" / "generation_config.json").read_text())
    special = [TOKENIZER.token_id(token) for token in ("[CLS]", "[SEP]", "[PAD]")]
    assert list(keys.values()) == [special[0], special[1], TARGET_LENGTH - 1, special[2]]
    assert json.loads((trained.folder / "config.json").read_text())["model_type"] == "encoder-decoder"
    with pytest.raises(ValueError, match="of an encoder-decoder.* give the folder `model` that the finished run"):
        flaxbert.from_pretrained(trained.folder)
    assert "EncoderDecoderModel, " in (trained.folder / "summary.md").read_text()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"columns": Columns("source", "target", "label")}, "columns.label is 'label'; there are no labels"),
        ({"columns": Columns("source", "aim", "")}, "'aim' must be there, for one use each"),
        ({"columns": Columns("source", "", "")}, "source.tsv:2: one text|train.tsv:2: one text"),
        ({"generated": 0}, "generated is 0; it must be at least 1, or None"),
        ({"max_target_length": 13}, "max_target_length is 13; allowed: 3 to the model's number of positions, 12"),
    ],
)
def test_settings_that_cannot_be(config, changes, error):
    with pytest.raises(ValueError, match=error):
        given = with_task(config, **changes)
        given.task.prepare(given)


def test_a_family_without_a_decoder_is_named(config):
    sizes = flaxbert.DistilBertConfig.tiny(vocab_size=60, max_position_embeddings=12)
    given = dataclasses.replace(config, model=dataclasses.replace(config.model, sizes=sizes))
    with pytest.raises(ValueError, match="'distilbert' has no model for causal language modelling here"):
        given.task.prepare(given)


def test_pairs_of_casing(tmp_path, capsys):
    (tmp_path / "text.txt").write_text(
        "“Mr. O'Brien wasn't twenty-one,” said _she_. He -- the boy -- laughed! and no capital here.\nYes.\n"
    )
    assert write_casing_pairs([str(tmp_path / "text.txt"), "--output", str(tmp_path / "pairs.tsv")]) == 0
    assert "2 sentences" in capsys.readouterr().out
    assert (tmp_path / "pairs.tsv").read_text() == (
        "source\ttarget\n"
        "mr o'brien wasn't twenty-one said she\tMr. O'Brien wasn't twenty-one,” said _she_.\n"
        "he the boy laughed\tHe -- the boy -- laughed!\n"
    )
    assert write_casing_pairs([str(tmp_path / "no.txt"), "--output", str(tmp_path / "pairs.tsv")]) == 2
    assert "no.txt" in capsys.readouterr().err
