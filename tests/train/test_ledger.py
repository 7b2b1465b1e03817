"""The ledger: the same for every division of data and run, a chain that breaks, runs that go on, and the command."""

import dataclasses
import functools
import json
import re
import shutil

import numpy as np
import pytest

from train.checkpoint.manifest import change_manifest
from train.data.batches import PackedBatches
from train.data.examples import LabelledSequences
from train.distributed import WHOLE_BATCH, HostShard
from train.ledger import DigestedBatches, Ledger, LedgerLine, broken_line, compare, main, read_ledger
from train.loop import run
from train.multihost.hosts import HostGroup


def ledger_of(folder, steps, *, begun=0, every=10, parameters="p{}", data=lambda step: step * 2**100):
    """Write the ledger of a run; `parameters` and `data` give the digests after and of a step."""
    folder.mkdir(exist_ok=True)
    ledger = Ledger(folder, every=every, step=begun, parameters=parameters.format(begun))
    for step in range(begun + 1, steps + 1):
        ledger.add(data(step))
        if ledger.is_due(step) or step == steps:
            ledger.write(step, functools.partial(parameters.format, step))
    return read_ledger(folder)


class FirstOfTwo(HostGroup):
    """Host 0, whose other host has taken batches with these digests."""

    names = ("a", "b")

    def __init__(self, others):
        self.others = others

    def exchange(self, value):
        return [value, self.others if isinstance(value, int) else None]


class Arrays:
    """A train set of random arrays, of which a host builds its own rows."""

    def __init__(self, shard=WHOLE_BATCH, change=lambda values, index: values):
        self.shard, self.change = shard, change

    def __getitem__(self, index):
        draw = np.random.default_rng(index)
        whole = {"ids": draw.integers(0, 9, (8, 3)), "mask": np.ones((8, 3), np.int8), "label": np.arange(8.0)}
        return {name: self.change(values, index)[self.shard.rows(8)] for name, values in whole.items()}


def digest_of(train_set, *, steps=3, is_first_host=True):
    shard = getattr(train_set, "shard", WHOLE_BATCH)
    batches = DigestedBatches(train_set, shard, is_first_host)
    return sum(batches[index][1] for index in range(steps)) % 2**128


def test_the_digest_of_the_data_is_the_sum_over_hosts_and_sees_every_exchange():
    whole = digest_of(Arrays())
    for shards in ([(0,), (1,)], [(0, 3), (1, 2)], [(0,), (1,), (2,), (3,)]):
        count = sum(map(len, shards))
        assert sum(digest_of(Arrays(HostShard(own, count))) for own in shards) % 2**128 == whole

    def exchanged_rows(values, index):
        return values[[1, 0, *range(2, 8)]] if index == 1 else values

    def another_bit(values, index):
        return np.where(np.indices(values.shape)[0] == 5, values + (index == 2), values)

    assert len({whole, digest_of(Arrays(change=exchanged_rows)), digest_of(Arrays(change=another_bit))}) == 3
    exchanged_steps = {0: 1, 1: 0, 2: 2}
    batches = DigestedBatches(Arrays(), WHOLE_BATCH, True)
    moved = type("Moved", (), {"__getitem__": lambda _, index: batches.train_set[exchanged_steps[index]]})()
    assert digest_of(moved) != whole


def test_packed_batches_have_one_digest_for_every_mesh():
    ids = [np.arange(3 + number % 5, dtype=np.int32) for number in range(40)]
    examples = LabelledSequences(ids, [np.zeros_like(own) for own in ids], np.zeros(40, np.int64))
    found = set()
    for multiple, seed in ((1, 0), (8, 0), (1, 1)):
        batches = PackedBatches(
            examples, size=8, pad_id=0, max_length=16, seed=seed, total_steps=lambda _: 5, row_multiple=multiple
        )
        found.add((digest_of(batches, steps=5), seed))
        assert digest_of(batches, is_first_host=False) == 0
    assert len({digest for digest, _ in found}) == 2 == len(found)


def test_a_line_that_is_altered_left_out_or_added_breaks_the_chain(tmp_path):
    lines = ledger_of(tmp_path, 30)
    assert [line.step for line in lines] == [0, 10, 20, 30] and broken_line(lines) is None
    for name, value in (("step", 11), ("data", "0" * 32), ("parameters", "p11"), ("chain", "0" * 64)):
        altered = [lines[0], dataclasses.replace(lines[1], **{name: value}), *lines[2:]]
        assert broken_line(altered) == 2
    assert broken_line([lines[0], *lines[2:]]) == 2
    assert broken_line(lines[1:]) == 1
    assert broken_line([*lines, LedgerLine.after(lines[-1].chain, step=30, data="0", parameters="p")]) == 5
    assert broken_line(lines[:2]) is None


def test_the_digests_of_all_hosts_are_added(tmp_path):
    whole = ledger_of(tmp_path / "whole", 1)
    (tmp_path / "shared").mkdir()
    shared = Ledger(tmp_path / "shared", every=1, step=0, parameters="p0", host_group=FirstOfTwo(others=2**100 - 5))
    shared.add(5)
    shared.write(1, lambda: "p1")
    shared.write(1, pytest.fail)  # the line is there: nothing is digested again
    assert read_ledger(tmp_path / "shared") == whole


def test_a_run_goes_on_after_its_line_whatever_a_kill_has_left(tmp_path):
    wanted = ledger_of(tmp_path / "unbroken", 30)
    ledger_of(tmp_path / "run", 20)
    file = tmp_path / "run" / "ledger.jsonl"
    file.write_text(file.read_text() + '{"step": 30, "da')  # killed while it wrote
    assert [line.step for line in read_ledger(tmp_path / "run")] == [0, 10, 20]
    assert ledger_of(tmp_path / "run", 30, begun=10) == wanted


def test_a_run_that_begins_anew_after_steps_says_so(tmp_path, caplog):
    ledger_of(tmp_path, 0)
    ledger_of(tmp_path, 20)
    assert not caplog.records
    ledger_of(tmp_path, 10)
    (record,) = caplog.records
    assert "the run had come to step 20, and no checkpoint of it is there: it begins anew" in record.getMessage()


def test_other_parameters_or_a_missing_line_are_refused(tmp_path):
    ledger_of(tmp_path, 20)
    before = (tmp_path / "ledger.jsonl").read_text()
    with pytest.raises(ValueError, match=r"ledger.jsonl: the parameters of the checkpoint of step 10 are not those"):
        ledger_of(tmp_path, 20, begun=10, parameters="q{}")
    with pytest.raises(ValueError, match=r"ledger.jsonl: has no line of step 15, .* delete the file"):
        ledger_of(tmp_path, 20, begun=15)
    assert (tmp_path / "ledger.jsonl").read_text() == before
    (tmp_path / "ledger.jsonl").write_text(before.replace("p20", "p21"))
    with pytest.raises(ValueError, match=r"ledger.jsonl: line 3 is altered, .* then a new one begins at step 10"):
        ledger_of(tmp_path, 20, begun=10)


def test_runs_are_compared_at_the_steps_that_both_have(tmp_path, caplog):
    first = ledger_of(tmp_path / "a", 40)
    assert compare(first, ledger_of(tmp_path / "b", 35, every=5)) == (
        "equal up to step 30, at all 4 steps that both ledgers have",
        True,
    )
    late = ledger_of(tmp_path / "late", 40, begun=20)
    unknown = "; the data before step 20 was not compared"
    assert compare(first, late) == (f"equal up to step 40, at all 3 steps that both ledgers have{unknown}", True)
    assert f"{tmp_path / 'late' / 'ledger.jsonl'} is missing: a new ledger begins at step 20" in caplog.text
    assert caplog.text.count("is missing") == 1
    other_data = ledger_of(tmp_path / "c", 40, data=lambda step: step * 2**100 + (step == 25))
    assert compare(first, other_data) == ("first difference at step 30, in data; equal up to step 20", False)
    both = ledger_of(tmp_path / "d", 40, parameters="q{}", data=lambda step: step)
    assert compare(first, both) == ("first difference at step 0, in parameters; no step is equal", False)
    assert compare(first[1:2], first[2:]) == ("no step has a line in both ledgers", False)


def test_command(tmp_path, capsys):
    ledger_of(tmp_path / "a", 20)
    ledger_of(tmp_path / "b", 20, parameters="{}")
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert main(["compare", a, a]) == 0 and main(["compare", a, b]) == 1 and main(["verify", a]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "equal up to step 20, at all 3 steps that both ledgers have",
        "first difference at step 0, in parameters; no step is equal",
        f"{a}: 3 lines, from step 0 to step 20, each follows on the one before",
    ]
    for wrong in ([], ["compare", a], ["verify", a, b], ["verify", str(tmp_path)]):
        assert main(wrong) == 2
    assert main(["--help"]) == 0
    file = tmp_path / "b" / "ledger.jsonl"
    for text in (file.read_text().replace('"10"', '"11"'), '{"step": 1}\n', "[]\n", "\xff\n", ""):
        file.write_text(text)
        assert main(["verify", b]) == 1 and main(["compare", a, b]) == 2


def test_a_run_is_not_resumed_with_other_parameters_than_its_ledger_has(finished, tmp_path):
    assert [line.step for line in read_ledger(finished.folder)] == [0, 6, 12]
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns("12"))  # the last checkpoint
    lines = read_ledger(folder)
    other = LedgerLine.after(lines[0].chain, step=6, data=lines[1].data, parameters=lines[2].parameters)
    text = "".join(json.dumps(vars(line)) + "\n" for line in (lines[0], other))
    (folder / "ledger.jsonl").write_text(text)
    record = (folder / "metrics.jsonl").read_text()
    config = dataclasses.replace(finished.config, run=dataclasses.replace(finished.config.run, folder=folder))
    with pytest.raises(ValueError, match=re.escape(f"and {lines[2].parameters} in the ledger; put back")):
        run(config)
    assert (folder / "ledger.jsonl").read_text() == text and (folder / "metrics.jsonl").read_text() == record
    # Without the ledger, the manifest shows that a checkpoint is of another run.
    (folder / "ledger.jsonl").unlink()
    settings = json.loads(config.to_json())
    settings["run"]["seed"] = 5
    change_manifest(folder / "checkpoints" / "6", {"config": settings})
    with pytest.raises(ValueError, match=r"checkpoints/6: of a run with other settings;(.|\n)*run.seed: 5 -> 0"):
        run(config)
    assert not (folder / "ledger.jsonl").exists()
