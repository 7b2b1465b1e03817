"""The speed benchmark: equal losses in both frameworks, the check of losses, and the results."""

import dataclasses
import json

import numpy as np
import pytest

from flaxbert import BertConfig
from train.benchmark import speed
from train.benchmark.implementations import TorchImplementation
from train.benchmark.speed import Benchmark, main, measure, take_turns
from train.benchmark.workload import Workload, labels_of_all_positions

WORK = Workload(
    "small",
    BertConfig(vocab_size=100, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48),
    rows=4,
    length=32,
    dtype="float32",
    fill=0.75,
)


def test_a_batch():
    batch = WORK.batch(0)
    assert batch["attention_mask"].sum(axis=1).tolist() == [24] * 4
    assert (batch["masked_lm_positions"] < 24).all() and batch["masked_lm_labels"].shape == (4, 4)
    assert set(batch["token_type_ids"][0, :24]) == {0, 1} and not batch["token_type_ids"][:, 24:].any()
    labels = labels_of_all_positions(batch)
    assert (labels != -100).sum() == 16
    np.testing.assert_array_equal(np.flatnonzero(labels[1] != -100), batch["masked_lm_positions"][1])


def test_flops_are_those_of_real_tokens():
    width, inner, layers, vocab = 24, 48, 2, 100
    blocks = 96 * layers * (8 * width**2 + 4 * width * inner + 4 * width * 24)
    head = 16 * 2 * (width**2 + width * vocab)
    assert WORK.flops(training=False) == pytest.approx(blocks + head)
    assert WORK.flops(training=True) == pytest.approx(3 * (blocks + head))


def test_losses_that_differ_end_it(monkeypatch):
    monkeypatch.setattr(TorchImplementation, "loss", lambda self: 3.0)
    with pytest.raises(ValueError, match="the losses differ by more than 0.0001: flaxbert"):
        measure(WORK, Benchmark(peers=("sdpa",)))


@dataclasses.dataclass
class CountingImplementation:
    """Takes turns without computing."""

    name: str
    seconds: float = 1.0
    calls: list = dataclasses.field(default_factory=list)

    def prepare(self, kind):
        self.calls.append(kind)

    def run(self, kind, steps):
        self.calls.append(steps)
        return self.seconds * steps


def test_turns_alternate_and_last_as_long():
    fast, slow = CountingImplementation("fast"), CountingImplementation("slow")
    fast.seconds, slow.seconds = 0.1, 3.0
    times = take_turns([fast, slow], "train", rounds=3, seconds=2.0)
    np.testing.assert_allclose(times, [[0.1] * 3, [3.0] * 3])
    assert fast.calls == ["train", 1, 1, 20, 1, 20, 1, 20] and slow.calls == ["train", 1, 1, 1, 1, 1, 1, 1]


def test_what_was_measured_is_kept_when_a_later_one_fails(tmp_path, monkeypatch, capsys):
    def first_alone(work, settings, real=measure):
        if work.rows == 3:
            raise ValueError("the losses differ")
        return real(work, settings)

    rows = (2, 3)
    monkeypatch.setattr(speed, "workloads", lambda settings: [dataclasses.replace(WORK, rows=n) for n in rows])
    monkeypatch.setattr(speed, "measure", first_alone)
    file = tmp_path / "speed.json"
    how = ["--kinds", "forward", "--peers", "sdpa", "--rounds", "1", "--seconds", "0.01"]
    assert main([*how, "--json", str(file)]) == 1
    shown = capsys.readouterr()
    assert "| small | 2 x 32, float32 | forward | transformers, sdpa |" in shown.out
    assert shown.err.splitlines()[-1] == "error: the losses differ"
    record = json.loads(file.read_text())
    assert {"jax", "torch", "device", "date"} <= record["environment"].keys() and len(record["results"]) == 2


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--rows", "0"], "rows is 0; it must be at least 1"),
        (["--lengths", "1024"], "allowed are 16 to 512"),
        (["--fill", "2"], "fill is 2.0"),
        (["--sizes", "huge"], "huge"),
    ],
)
def test_mistakes(flags, error, capsys):
    with pytest.raises(SystemExit) as ended:
        main(flags)
    assert ended.value.code == 2
    assert error in " ".join(capsys.readouterr().err.replace("│", " ").split())
