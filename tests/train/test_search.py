"""Search for length configurations: evolution, a search that goes on, its front, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

import flaxbert
from flaxbert import BertConfig, length_adaptive
from tests.trees import initial
from train.length_adaptation import LengthAdaptation
from train.search import __main__ as command
from train.search.evolution import (
    Configuration,
    Measurement,
    Space,
    constant_ratios,
    evolve,
    pareto_front,
    smallest_configuration,
)
from train.search.measure import Record
from train.search.run import run_search
from train.search.settings import Search, SearchConfig
from train.tasks.sequence_classification import SequenceClassification

SIZES = BertConfig.tiny(num_hidden_layers=4)
LENGTH = 64
SMALLEST = smallest_configuration(4, LENGTH, length_drop=0.3)


def flops(configuration):
    return length_adaptive.flops(SIZES, LENGTH, configuration.lengths, configuration.layers)


FULL = Configuration((0, 1, 2, 3), (LENGTH,) * 4)
SPACE = Space(4, LENGTH, flops, flops(SMALLEST), flops(FULL))


def stand_in(configuration):
    """A score that tokens of late layers raise more than those of early ones, and layers left out lower."""
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    score = np.sum(weights * np.sqrt(np.array(configuration.lengths) / LENGTH)) - (4 - len(configuration.layers))
    return Measurement(float(score), flops(configuration), flops(configuration))


def test_evolution_is_reproducible_and_keeps_its_limits():
    settings = Search(iterations=6, mutations=10, crossovers=10, population=5)
    measured = evolve(settings, SPACE, SMALLEST, stand_in)
    assert measured == evolve(settings, SPACE, SMALLEST, stand_in)
    assert list(measured) != list(evolve(dataclasses.replace(settings, seed=1), SPACE, SMALLEST, stand_in))
    assert len(measured) == 2 + 5 + 6 * 20 and list(measured)[:2] == [FULL, SMALLEST]
    for one in measured:
        assert SPACE.allows(one) and list(one.lengths) == sorted(one.lengths, reverse=True) and one.lengths[0] <= LENGTH
        assert one.layers == FULL.layers
    longer = evolve(dataclasses.replace(settings, iterations=7), SPACE, SMALLEST, stand_in)
    assert list(longer)[: len(measured)] == list(measured)


def test_a_front_has_what_no_other_configuration_dominates():
    settings = Search(iterations=20, mutations=10, crossovers=10)
    measured = evolve(settings, SPACE, SMALLEST, stand_in)
    front = pareto_front(measured)
    for found in measured.values():
        assert any(one.cost <= found.cost and one.score >= found.score for one in front.values())
    generator = np.random.default_rng(0)
    randomly = [tuple(sorted(generator.integers(2, LENGTH + 1, 4).tolist(), reverse=True)) for _ in range(500)]
    others = [
        stand_in(one) for one in (Configuration(FULL.layers, lengths) for lengths in randomly) if SPACE.allows(one)
    ]
    better = [one for one in others if max(f.score for f in front.values() if f.cost <= one.cost) < one.score]
    assert len(others) > 100 and len(better) <= 0.05 * len(others)


def test_layers_are_left_out_if_that_is_asked_for():
    settings = Search(iterations=4, layers=True, min_flops=0.01, population=3)
    measured = evolve(settings, dataclasses.replace(SPACE, least=0.0), SMALLEST, stand_in)
    assert len({one.layers for one in measured}) > 4 and all(one.layers for one in measured)


def test_constant_ratios_are_spaced_evenly():
    tokens = [sum(one.lengths) for one in constant_ratios(SPACE, SMALLEST, 3)]
    np.testing.assert_allclose(
        np.diff([sum(SMALLEST.lengths), *tokens, 4 * LENGTH]), (256 - sum(SMALLEST.lengths)) / 4, atol=6
    )


@pytest.fixture
def searched(classification):
    """A search on the model of `classification`, which is not trained, and has large weights."""
    task = classification.task.prepare(classification)
    model = task.architecture(task.config.replace(initializer_range=0.5))
    params = initial(model, seed=3)
    flaxbert.save_pretrained(classification.run.folder / "model", model, params)
    task.tokenizer.save(classification.run.folder / "model", max_length=32)
    search = Search(metric="loss", iterations=1, population=1, mutations=1, crossovers=1, points=(0.9,))
    adaptation = LengthAdaptation(length_drop=0.5)
    return SearchConfig(**{**vars(classification), "search": search, "length_adaptation": adaptation})


def test_a_search_goes_on_as_if_it_had_not_been_interrupted(searched, monkeypatch, tmp_path, capsys):
    front = json.loads(run_search(searched).read_text())
    other = dataclasses.replace(searched, search=dataclasses.replace(searched.search, folder=tmp_path / "broken"))
    add, added = Record.add, []

    def interrupted(self, *arguments):
        add(self, *arguments)
        added.append(arguments)
        if len(added) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Record, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_search(other)
    assert json.loads(run_search(other).read_text()) == front
    count = len(added)
    assert count == len({arguments[0] for arguments in added}) > 2
    run_search(other)
    assert len(added) == count  # nothing is measured again
    assert (tmp_path / "broken" / "front.png").stat().st_size > 10_000
    full, point = front["points"]["full"], front["points"]["90%"]
    length = front["length"]
    assert full["length_config"] == [length] * 2 and point["flops_share"] <= 0.9
    for entry in (full, point):  # the head has two products more: 2 x (32 x 32 + 32 x 2)
        assert entry["compiled_flops"] - entry["flops"] == 2 * (32 * 32 + 32 * 2)
    metrics = [entry["metrics"]["loss"] for entry in front["front"]]
    assert metrics == sorted(metrics, reverse=True)
    assert "| full |" in (printed := capsys.readouterr().out)
    assert ("no point 90%: the cheapest configuration has" in printed) == ("90%" not in front["points"])


@pytest.mark.slow
def test_a_search_by_latency_measures_seconds_and_chooses_by_them(searched, capsys):
    search = dataclasses.replace(searched.search, cost="latency", points=(0.5, 0.9))
    front = json.loads(run_search(dataclasses.replace(searched, search=search)).read_text())
    shares = [entry["time_share"] for entry in front["front"]]
    assert shares == sorted(shares) and min(entry["seconds"] for entry in front["front"]) > 0
    assert front["points"]["full"]["time_share"] == 1
    for name, share in (("50%", 0.5), ("90%", 0.9)):
        if name in front["points"]:
            assert front["points"][name]["time_share"] <= share
    losses = [entry["metrics"]["loss"] for entry in front["front"]]
    assert losses == sorted(losses, reverse=True)
    assert " ms, " in capsys.readouterr().out
    with pytest.raises(ValueError, match="another search, which differs in cost"):
        run_search(searched)


def test_what_cannot_be_searched_is_refused(searched, capsys, tmp_path):
    def refused(message, search=None, **changes):
        changed = dataclasses.replace(
            searched, search=dataclasses.replace(searched.search, **(search or {})), **changes
        )
        with pytest.raises((ValueError, OSError), match=message):
            run_search(changed)

    refused("no such model; train it first", {"model": tmp_path / "none"})
    refused("give --search.metric, one of loss, accuracy", {"metric": "f2"})
    refused("give --task.dev", task=dataclasses.replace(searched.task, dev=None))
    folder = tmp_path / "search"
    folder.mkdir()
    (folder / "search.json").write_text(json.dumps({"subject": {}, "measured": []}))
    refused("measurements of another search, which differs in .*length", {"folder": folder})
    for changes in ({"min_flops": 1.0}, {"points": (1.5,)}, {"iterations": -1}, {"mutation_probability": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(changes))} is"):
            Search(**changes)
    assert command.main(["none.py"]) == 2 and "no such config" in capsys.readouterr().err


def test_dev_rows_are_spaced_evenly(classification):
    task = dataclasses.replace(classification.task, dev_rows=3)
    rows = task.prepare(dataclasses.replace(classification, task=task)).rows
    whole = classification.task.prepare(classification).rows
    assert rows["dev"] == [whole["dev"][index] for index in (0, 2, 5)] and rows["test"] == whole["test"]
    with pytest.raises(ValueError, match="dev_rows is 0; it must be at least 1"):
        SequenceClassification(train="a.tsv", dev_rows=0)
