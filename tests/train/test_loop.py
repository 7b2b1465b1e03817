import dataclasses
import functools
import json
import re
import shutil

import chex
import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer, BertForMaskedLM, BertForSequenceClassification

import flaxbert
from tests.trees import initial
from train.checkpoint.manifest import change_manifest
from train.data.batches import PaddedBatches
from train.distributed import MeshShape
from train.ledger import read_ledger
from train.loop import run
from train.report import Reporter
from train.tasks.task import TokenCounts


def with_run(config, **changes):
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **changes))


def records(folder, kind):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def run_until(config, step, monkeypatch):
    """Runs a config and ends it as Ctrl-C would, once this step is reported."""
    advance = Reporter.advance

    def interrupted(self, number):
        advance(self, number)
        if number == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "advance", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(config)


def test_masked_lm_run_leaves_a_model_that_transformers_loads(finished):
    folder = finished.folder
    assert re.search(r"the \[MASK\] statement  ->  \S+ \d+%", finished.printed)
    assert f"on {len(jax.devices())} cpu device(s)" in finished.printed
    assert sorted(p.name for p in (folder / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    for name in ("run.json", "summary.md", "loss.png", "metrics.jsonl", "tensorboard"):
        assert (folder / name).exists(), name

    reference, report = BertForMaskedLM.from_pretrained(folder / "model", output_loading_info=True)
    assert not any(report.values())
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    inputs = tokenizer(["the while [MASK] repeats", "a"], padding=True, return_tensors="np")
    with torch.no_grad():
        expected = reference(**{name: torch.tensor(value) for name, value in inputs.items()}).logits.numpy()
    model, params = flaxbert.from_pretrained(folder / "model")
    ours = model.apply({"params": params}, **{name: np.asarray(value, np.int32) for name, value in inputs.items()})
    np.testing.assert_allclose(ours.logits, expected, atol=1e-5)


def test_metrics_of_a_run(finished):
    folder = finished.folder
    train = records(folder, "train")
    assert [record["step"] for record in train] == [1, 4, 8, 12]
    for record in train:
        assert {"loss", "learning_rate", "gradient_norm", "tokens_per_second", "eta_seconds"} <= record.keys()
        assert record["tokens_per_second"] > 0
    assert train[0]["learning_rate"] == 0.0  # warmup starts from nothing
    assert train[-1]["loss"] < train[0]["loss"]
    (evaluation,) = records(folder, "eval")
    assert evaluation["step"] == 12 and 0 <= evaluation["masked_lm_accuracy"] <= 1


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(finished, monkeypatch, tmp_path):
    unbroken = finished.folder
    broken = with_run(finished.config, folder=tmp_path / "broken")
    # The same vocabulary: learning it twice may differ in ties (see WordPieceTokenizer.train).
    broken = dataclasses.replace(broken, task=dataclasses.replace(broken.task, tokenizer=unbroken / "tokenizer"))
    run_until(broken, 9, monkeypatch)
    assert [p.name for p in (tmp_path / "broken" / "checkpoints").iterdir()] == ["6"]
    run(broken)
    chex.assert_trees_all_equal(weights(tmp_path / "broken"), weights(unbroken))
    assert [r["step"] for r in records(tmp_path / "broken", "train")] == [1, 4, 8, 12]
    losses = [[r["loss"] for r in records(f, "train")] for f in (unbroken, tmp_path / "broken")]
    assert losses[0] == losses[1]
    assert read_ledger(tmp_path / "broken") == read_ledger(unbroken)


@pytest.mark.slow  # half a minute; test_meshes.py trains on meshes, test_hosts.py goes on with other processes
def test_a_run_goes_on_on_another_mesh(finished, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns("12"))  # the last checkpoint
    mesh = MeshShape(fsdp=2, tensor=2)
    run(dataclasses.replace(with_run(finished.config, folder=folder), mesh=mesh))
    printed = capsys.readouterr().out
    assert "on 8 cpu device(s) (data 2 x fsdp 2 x tensor 2)" in printed and "resumed from step 6" in printed
    found, wanted = ({r["step"]: r["loss"] for r in records(f, "train")} for f in (folder, finished.folder))
    assert [found[step] for step in (8, 12)] == pytest.approx([wanted[step] for step in (8, 12)], rel=1e-5)
    wrong = dataclasses.replace(finished.config, mesh=MeshShape(fsdp=16))
    with pytest.raises(ValueError, match="fsdp 16 x tensor 1 does not fit: there are 8 devices"):
        run(wrong)


def test_a_run_started_again_keeps_its_vocabulary_and_trains_no_further(masked_lm):
    folder = run(masked_lm)
    before, evaluated = weights(folder), records(folder, "eval")
    vocabulary = (folder / "model" / "vocab.txt").read_text()
    run(masked_lm)
    chex.assert_trees_all_equal(weights(folder), before)
    assert (folder / "model" / "vocab.txt").read_text() == vocabulary
    assert records(folder, "eval")[-1]["loss"] == evaluated[-1]["loss"]
    run(with_run(masked_lm, log_every=1))  # what changes no result may change


def test_a_folder_of_another_run_is_refused(finished):
    before = weights(finished.folder)
    with pytest.raises(ValueError, match=r"other settings(?s:.*)run\.steps: 12 -> 20"):
        run(with_run(finished.config, steps=20))
    chex.assert_trees_all_equal(weights(finished.folder), before)


def with_task(config, **changes):
    return dataclasses.replace(config, task=dataclasses.replace(config.task, **changes))


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_classification_run(classification, packed):
    folder = run(with_run(with_task(classification, packed=packed), epochs=30.0, evaluate_every=30))
    names = {record["name"] for record in records(folder, "eval")}
    assert names == {"dev", "test"}
    dev = [r for r in records(folder, "eval") if r["name"] == "dev"]
    assert [r["step"] for r in dev] == [30, 60, 90]
    assert dev[-1]["accuracy"] > dev[0]["accuracy"] or dev[-1]["accuracy"] == 1.0
    reference = BertForSequenceClassification.from_pretrained(folder / "model")
    assert reference.config.id2label == {0: "long", 1: "short"}

    lines = [line.split("\t") for line in (folder / "predictions_test.tsv").read_text().splitlines()]
    assert lines[0] == ["row", "given", "predicted", "probability"] and len(lines) == 6
    test = [r for r in records(folder, "eval") if r["name"] == "test"][-1]
    right = sum(given == predicted for _, given, predicted, _ in lines[1:])
    assert right / 5 == pytest.approx(test["accuracy"])


def test_an_epoch_of_packed_batches_is_one_of_padded_ones(classification):
    sums, work = [], []
    for packed in (False, True):
        task = with_task(classification, packed=packed).task.prepare(classification)
        model = task.architecture(task.config)
        params = initial(model)
        loss = jax.jit(functools.partial(task.loss, model, key=None))
        batches = [task.train[i] for i in range(task.steps_per_epoch)]
        sums.append(jax.tree.map(lambda *x: sum(x), *[loss(params, batch) for batch in batches]))
        work.append(sum(map(task.token_counts, batches), start=TokenCounts()))
    assert sums[0].weight == sums[1].weight == 22
    assert float(sums[1].sum) == pytest.approx(float(sums[0].sum), rel=1e-6)
    assert work[0] == work[1]


@pytest.mark.slow
def test_packed_rows_that_fill_up_a_batch_for_more_devices_change_nothing(classification):
    task = with_task(classification, packed=True).task.prepare(classification)
    model = task.architecture(task.config)
    params = initial(model)
    loss_of = jax.jit(functools.partial(task.loss, model))
    found = []
    for devices in (1, 8):
        batch = dataclasses.replace(task.train, row_multiple=devices)[1]
        loss = loss_of(params, batch, jax.random.key(5))  # dropout, too, is that of the same rows
        found.append((len(batch["input_ids"]), float(loss.sum), float(loss.weight)))
    (few, total, weight), (many, *others) = found
    assert few < many == 8 and weight == 7  # 22 examples in three batches
    assert others == [pytest.approx(total, rel=1e-6), weight]


@pytest.mark.slow
def test_evaluation_does_not_depend_on_the_batch_size(classification):
    results = []
    for size in (8, 16):
        folder = run(with_run(classification, folder=classification.run.folder / str(size), evaluation_batch_size=size))
        results.append({r["name"]: (r["loss"], r["accuracy"]) for r in records(folder, "eval")})
    for name, (loss, accuracy) in results[0].items():
        assert results[1][name] == (pytest.approx(loss, rel=1e-6), accuracy)


def test_fine_tuning_starts_from_a_pretrained_folder(classification, finished, tmp_path, caplog):
    model = dataclasses.replace(classification.model, pretrained=finished.folder / "model")
    task = dataclasses.replace(classification.task, tokenizer=None)
    tuned = with_run(dataclasses.replace(classification, model=model, task=task), folder=tmp_path / "tuned")
    run(dataclasses.replace(tuned, optim=dataclasses.replace(tuned.optim, learning_rate=0.0)))
    assert "classifier.weight" in caplog.text and "cls.predictions.bias" in caplog.text
    before, after = weights(finished.folder), weights(tmp_path / "tuned")
    shared = before.keys() & after.keys()
    assert len(shared) > 30
    chex.assert_trees_all_equal({n: before[n] for n in shared}, {n: after[n] for n in shared})


def test_a_loss_that_is_not_finite_stops_the_run(finished, tmp_path):
    poisoned = tmp_path / "poisoned"
    shutil.copytree(finished.folder / "model", poisoned)
    tensors = weights(finished.folder)
    tensors["cls.predictions.bias"][:] = np.nan
    save_file(tensors, poisoned / "model.safetensors")
    model = dataclasses.replace(finished.config.model, pretrained=poisoned)
    config = dataclasses.replace(finished.config, model=model)
    words = r"3 updates in a row .* steps 1 to 3: loss nan.* not finite: predictions/bias\..* no checkpoint"
    with pytest.raises(FloatingPointError, match=words):
        run(with_run(config, folder=tmp_path / "run", checkpoint_every=1))
    assert not (tmp_path / "run" / "model").exists()
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_updates_that_are_not_finite_are_skipped_counted_and_never_saved(classification, monkeypatch, capsys):
    damaged = {2: 0, 4: 7, 5: 3}  # the row of these batches whose weight is not a number
    arrays = PaddedBatches.__getitem__

    def with_damage(self, index):
        batch = arrays(self, index)
        for row in (damaged[index],) if index in damaged else ():
            batch["weight"][row] = np.nan
        return batch

    monkeypatch.setattr(PaddedBatches, "__getitem__", with_damage)
    config = with_run(classification, epochs=3.0, checkpoint_every=1, keep=9, log_every=1)
    folder = run(config)
    assert sorted(int(path.name) for path in (folder / "checkpoints").iterdir()) == [1, 2, 4, 7, 8, 9]
    skipped = records(folder, "skipped")
    assert [line["step"] for line in skipped] == [3, 5, 6]
    members = classification.task.prepare(config).train.members
    assert [line["rows"] for line in skipped] == [list(members(step - 1)) for step in (3, 5, 6)]
    printed = capsys.readouterr().out
    assert "update skipped: loss nan, gradient norm nan; batch 1 of epoch 1, rows " in printed
    assert "| skipped updates | 3 |" in (folder / "summary.md").read_text()
    # The schedule counts the updates that were applied.
    rates = [line["learning_rate"] for line in records(folder, "train")]
    assert rates[3] == rates[2] and rates[4] == rates[5] == rates[6] and rates[6] > rates[7] > rates[8]


def test_a_checkpoint_of_another_shape_is_refused(masked_lm):
    folder = run(masked_lm)
    (folder / "run.json").unlink()  # or the settings themselves would be refused
    sizes = masked_lm.model.sizes.replace(hidden_size=48)
    wider = dataclasses.replace(masked_lm, model=dataclasses.replace(masked_lm.model, sizes=sizes))
    with pytest.raises(ValueError, match="checkpoints/12: of a run with other settings;"):
        run(wider)
    change_manifest(folder / "checkpoints" / "12", {"config": None})  # as in those of former versions
    with pytest.raises(ValueError, match="the checkpoint does not fit this model"):
        run(wider)


@pytest.mark.slow
def test_scan_and_unrolled_train_alike(finished, tmp_path):
    config = finished.config
    unrolled = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, scan=False),
        task=dataclasses.replace(config.task, tokenizer=finished.folder / "tokenizer"),
        run=dataclasses.replace(config.run, folder=tmp_path / "unrolled"),
    )
    run(unrolled)
    for one, other in zip(records(finished.folder, "train"), records(tmp_path / "unrolled", "train"), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
