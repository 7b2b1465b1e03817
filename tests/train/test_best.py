"""Which model a run ends with, when it stops, and several seeds in one command."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import statistics

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.train.test_loop import records, run_until, weights, with_run
from tests.train.test_preemption import exit_code_of
from train.checkpoint.folder import checkpoint_steps
from train.command import run_seeds
from train.ledger import read_ledger
from train.loop import run
from train.preemption import PREEMPTED
from train.report import Reporter

SLOWLY = {"epochs": 8, "evaluate_every": 3, "best": "loss"}


def evaluations(folder, name="dev"):
    return [(line["step"], line["loss"]) for line in records(folder, "eval") if line["name"] == name]


@pytest.fixture
def overfitting(classification, tmp_path):
    """Dev's labels are wrong, so that its loss rises as training goes on."""
    dev = tmp_path / "dev.tsv"
    swap = {"short": "long", "long": "short"}
    head, *lines = [line.split("\t") for line in dev.read_text().splitlines()]
    dev.write_text(
        "\n".join("\t".join(line) for line in [head, *([text, swap[label]] for text, label in lines)]) + "\n"
    )
    return with_run(classification, **SLOWLY)


def test_the_best_model_is_kept_and_training_stops(overfitting, tmp_path, capsys, caplog, monkeypatch):
    unbroken = run(with_run(overfitting, patience=2, checkpoint_every=4))  # some of them without a score
    assert "metric" not in caplog.text  # of which orbax would warn
    printed = capsys.readouterr().out
    *during, last = evaluations(unbroken)
    best = min(during, key=lambda found: found[1])
    assert last == best and best[0] < 24 - 6  # there was something to lose
    assert during[-1][0] == best[0] + 6 and f"stops at step {best[0] + 6}: no better loss on dev" in printed
    assert f"step {best[0]} had the best loss on dev" in printed
    assert evaluations(unbroken, "test")[-1][0] == best[0]
    # Stopped in between it ends the same, and started again it trains no further.
    run_until(with_run(overfitting, patience=2, checkpoint_every=4, folder=tmp_path / "broken"), 5, monkeypatch)
    broken = run(with_run(overfitting, patience=2, checkpoint_every=4, folder=tmp_path / "broken"))
    capsys.readouterr()
    again = run(with_run(overfitting, patience=2, checkpoint_every=4, folder=tmp_path / "broken"))
    assert "stops at step" in capsys.readouterr().out
    for folder in (broken, again):
        for name, values in weights(unbroken).items():
            np.testing.assert_array_equal(weights(folder)[name], values)
    # What was evaluated is what the task had announced.
    task = overfitting.task.prepare(overfitting)
    line = records(unbroken, "eval")[-1]
    assert line.keys() - {"kind", "step", "name", "time"} == set(task.metric_names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"best": "f2"}, "best is 'f2'; give one of the metrics of this task: loss, accuracy, macro_f1, f1, matthews"),
        ({"dev": None}, "best is 'loss', a metric of the dev set, but there is no dev set"),
        ({"evaluate_every": None}, "best is 'loss', but only the end is evaluated: give evaluate_every"),
        ({"best": None, "patience": 2}, "patience is 2, but best is not set: give the metric to watch"),
        ({"patience": 0}, "patience is 0; it must be at least 1"),
        ({"seeds": (1, 1)}, r"seeds is \(1, 1\); each must be given once"),
        ({"seeds": (-1,)}, "seed is -1; allowed"),
    ],
)
def test_what_makes_no_sense_is_told_before_anything_is_written(overfitting, changes, message):
    with pytest.raises(ValueError, match=message):
        task = {name: value for name, value in changes.items() if name == "dev"}
        config = with_run(overfitting, **{name: value for name, value in changes.items() if name != "dev"})
        run(dataclasses.replace(config, task=dataclasses.replace(config.task, **task)))
    assert not overfitting.run.folder.exists()


def test_several_seeds_of_which_the_second_is_interrupted(
    no_cache, classification, tmp_path, capsys, caplog, monkeypatch
):
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)  # `no_cache` puts it back
    config = with_run(classification, seeds=(3, 5))
    advance, steps = Reporter.advance, []

    def interrupted(self, step):
        advance(self, step)
        steps.append(step)
        if steps[-3:] == [1, 2, 3] and steps.count(1) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "advance", interrupted)
        assert exit_code_of(functools.partial(run_seeds, config)) == PREEMPTED
    assert checkpoint_steps(config.run.folder / "seed-3" / "checkpoints") == [6]
    assert checkpoint_steps(config.run.folder / "seed-5" / "checkpoints") in ([3], [4], [5])
    folder = run_seeds(config)
    assert "metric" not in caplog.text
    printed = capsys.readouterr().out
    finals = [evaluations(folder / f"seed-{seed}")[-1][1] for seed in (3, 5)]
    assert finals[0] != finals[1]
    mean, deviation = statistics.fmean(finals), statistics.stdev(finals)
    assert f"dev loss: {mean:.4f}, deviation {deviation:.4f}" in printed
    assert (
        f"| dev | loss | {mean:,.6g} | {deviation:,.6g} | {finals[0]:,.6g} | {finals[1]:,.6g} |"
        in (folder / "summary.md").read_text()
    )
    # One step for all of them, and it is kept.
    assert len(list((folder / "compiled").glob("jit_step-*-cache"))) == 1
    assert not list(folder.glob("seed-*/compiled"))
    assert json.loads((folder / "seed-5" / "run.json").read_text())["run"]["seed"] == 5
    shutil.copytree(folder / "compiled", tmp_path / "alone" / "compiled")  # a run of its own compiles the same
    alone = run(with_run(classification, seed=5, folder=tmp_path / "alone"))
    for name, values in weights(alone).items():
        np.testing.assert_array_equal(load_file(folder / "seed-5" / "model" / "model.safetensors")[name], values)
    assert read_ledger(alone)[-1].parameters == read_ledger(folder / "seed-5")[-1].parameters


def test_seeds_are_for_one_process(classification):
    hosts = dataclasses.replace(classification.hosts, coordinator="127.0.0.1:1", count=2, index=0)
    with pytest.raises(ValueError, match=r"seeds is \(1, 2\), which a single host runs one after another"):
        run_seeds(dataclasses.replace(with_run(classification, seeds=(1, 2)), hosts=hosts))
