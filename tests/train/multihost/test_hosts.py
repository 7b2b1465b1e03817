"""Runs of several processes, one per host, over the loopback network."""

import dataclasses
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.flags import with_devices
from tests.runs import made_once
from train.config import Config
from train.distributed import MeshShape
from train.ledger import read_ledger
from train.loop import make_setup, run
from train.multihost.hosts import SINGLE_HOST, HostGroup, Hosts
from train.multihost.joining import join_hosts
from train.state_check import CORRUPT_STATE

ROOT = Path(__file__).parents[3]
CACHE = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)
CONFIG = """
import pickle
from pathlib import Path
config = pickle.loads(Path(__file__).with_suffix(".pickle").read_bytes())
"""


def test_contradictory_flags_are_refused():
    for given, words in {
        ("coordinator",): "go together; not given: ['hosts.count', 'hosts.index']",
        ("count", "index"): "go together; not given: ['hosts.coordinator']",
        ("count",): "go together",
        ("coordinator", "detect"): "give hosts.detect, or hosts.coordinator, hosts.count and hosts.index; not both",
    }.items():
        values = {"coordinator": "a:1", "count": 2, "index": 0, "detect": True}
        with pytest.raises(ValueError, match=re.escape(words)):
            Hosts(**{name: values[name] for name in given})


@pytest.mark.parametrize("coordinator", ["10.0.0.1", ":80", "a:b", "a:0", "a:65536", "a:-1", "a: 80"])
def test_a_malformed_address_is_refused(coordinator):
    with pytest.raises(ValueError, match="must be HOST:PORT"):
        Hosts(coordinator=coordinator, count=2, index=0)


def test_addresses():
    assert Hosts(coordinator="node1:8476", count=2, index=0).address == ("node1", 8476)
    assert Hosts(coordinator="[::1]:65535", count=2, index=0).address == ("::1", 65535)


@pytest.mark.parametrize(
    ("count", "index", "words"),
    [(2, 2, "hosts.index is 2; allowed: 0 to 1"), (2, -1, "hosts.index is -1"), (0, 0, "hosts.count is 0")],
)
def test_numbers_out_of_range(count, index, words):
    with pytest.raises(ValueError, match=words):
        Hosts(coordinator="a:1", count=count, index=index)


def test_a_single_process_joins_nothing(monkeypatch):
    monkeypatch.setattr(socket, "socket", None)  # no network is touched
    for hosts in (Hosts(), Hosts(count=1), Hosts(coordinator="a:1", count=1, index=0)):
        assert join_hosts(hosts) is SINGLE_HOST


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("SLURM_STEP_NUM_TASKS", "4", "srun has started 4 of these processes"),
        ("OMPI_COMM_WORLD_SIZE", "2", "mpirun has started 2"),
        ("TPU_WORKER_HOSTNAMES", "a,b", "GKE has started 2"),
        ("PMI_SIZE", "2", r"mpiexec .* has started 2"),
        ("WORLD_SIZE", "8", "torchrun or accelerate has started 8"),
        ("MV2_COMM_WORLD_SIZE", "2", "mpirun_rsh .* has started 2"),
        ("JAX_NUM_PROCESSES", "2", "a launcher of jax has started 2"),
    ],
)
def test_processes_launched_together_must_be_told_to_join(monkeypatch, variable, value, words):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{words}.*give --hosts.*, or --hosts.count 1"):
        join_hosts(Hosts())
    assert join_hosts(Hosts(count=1)) is SINGLE_HOST
    for alone in ("1", "", "localhost"):
        monkeypatch.setenv(variable, alone)
        assert join_hosts(Hosts()) is SINGLE_HOST


def test_a_record_does_not_depend_on_the_hosts(masked_lm):
    stored = json.loads(masked_lm.to_json())
    many = dataclasses.replace(masked_lm, hosts=Hosts(coordinator="a:1", count=2, index=1))
    assert many.differences(json.dumps(stored)) == [] and many.common_to_hosts == masked_lm.common_to_hosts
    del stored["hosts"]  # of a run that began before there were hosts
    assert many.differences(json.dumps(stored)) == []


class Recorded(HostGroup):
    """A host that finds what another has exchanged before it."""

    names = ("here", "there")

    def __init__(self, before=None):
        self.exchanged, self._before = [], iter(before) if before else None

    def exchange(self, value):
        self.exchanged.append(value)
        return [value] if self._before is None else [next(self._before), value]


@pytest.mark.parametrize("name", ["train", "dev", "test", "vocabulary"])
def test_hosts_with_as_many_but_other_rows_or_words_are_named(classification, tmp_path, name):
    first = Recorded()
    make_setup(classification, first)
    file = tmp_path / ("vocab.txt" if name == "vocabulary" else f"{name}.tsv")
    text = file.read_text()
    make_setup(classification, Recorded(first.exchanged))
    file.write_text(text.replace("alpha", "theta", 1))
    with pytest.raises(ValueError, match=rf"different data; .*(\n.*)*\n  {name}: [0-9a-f]{{64}} on host 1 \(there\), "):
        make_setup(classification, Recorded(first.exchanged))


# -- real runs -------------------------------------------------------------------------------------------


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def launch(config: Config, folder: Path, count: int, *, devices: int, flags=lambda _: (), environment=None, cwd=ROOT):
    """Start `count` processes with `devices` devices each; their output goes to `folder`.

    `flags`, `environment`: functions of the index; with the second, the processes are to find each other by it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.py").write_text(CONFIG)
    (folder / "config.pickle").write_bytes(pickle.dumps(config))
    port = free_port()
    surroundings = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": with_devices(devices),
        # What one test has compiled, another need not.
        **{name.upper(): str(jax.config.values[name]) for name in CACHE},
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    }
    processes = []
    for index in range(count):
        words = [sys.executable, "-m", "train", str(folder / "config.py"), *flags(index)]
        where = dict(surroundings)
        if environment is not None:
            words += ["--hosts.detect"]
            where |= environment(index, port)
        elif count > 1:
            words += ["--hosts.coordinator", f"127.0.0.1:{port}", "--hosts.count", str(count)]
            words += ["--hosts.index", str(index)]
        with (folder / f"out{index}").open("w") as out, (folder / f"err{index}").open("w") as err:
            processes.append(subprocess.Popen(words, cwd=cwd, env=where, stdout=out, stderr=err))
    return processes


def ended(processes, folder: Path):
    """Wait for the processes; return (exit code, stdout, stderr) of each."""
    codes = [process.wait(timeout=600) for process in processes]
    return [
        (code, (folder / f"out{index}").read_text(), (folder / f"err{index}").read_text())
        for index, code in enumerate(codes)
    ]


def train(config: Config, folder: Path, count: int, **how):
    """Run `count` processes until they finish, and return the lines that the first one printed."""
    found = ended(launch(config, folder, count, **how), folder)
    assert [code for code, *_ in found] == [0] * count, [errors for *_, errors in found]
    return [printed for _, printed, _ in found]


def changed(config: Config, *, run=None, **changes):
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **(run or {})), **changes)


def records(folder: Path, kind: str):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def losses(folder: Path):
    return {line["step"]: line["loss"] for line in records(folder, "train")}


def files_of(folder: Path):
    """Return the names of a run's files, without compiled programs and files named by time."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    return sorted(name for name in names if not name.startswith(("tensorboard/", "compiled", "checkpoints/")))


def assert_same_run(folder: Path, expected: Path, *, relative=1e-5):
    """Check that losses and model are equal up to rounding, and that the files are the same."""
    here, there = losses(folder), losses(expected)
    steps = here.keys() & there.keys()
    assert len(steps) >= 4
    for step in steps:
        assert here[step] == pytest.approx(there[step], rel=relative), step
    for found, wanted in zip(records(folder, "eval"), records(expected, "eval"), strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], rel=relative)
    ours, theirs = (load_file(place / "model" / "model.safetensors") for place in (folder, expected))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert files_of(folder) == files_of(expected)


@pytest.fixture(scope="session")
def two_hosts(finished, tmp_path_factory):
    """The run of `finished` by two processes that share the parameters; no test may change it."""

    def make(place: Path) -> SimpleNamespace:
        task = dataclasses.replace(finished.config.task, tokenizer=finished.folder / "tokenizer")
        how = {"folder": place / "run", "log_every": 1}
        config = changed(finished.config, task=task, mesh=MeshShape(fsdp=4), run=how)
        printed = train(config, place, 2, devices=2)
        return SimpleNamespace(config=config, folder=place / "run", printed=printed)

    return made_once(tmp_path_factory, "two_hosts", make)


def test_two_processes_train_as_one_does(two_hosts, finished):
    assert_same_run(two_hosts.folder, finished.folder)
    ours, theirs = read_ledger(two_hosts.folder), read_ledger(finished.folder)
    assert [(line.step, line.data) for line in ours] == [(line.step, line.data) for line in theirs]
    assert ours[0].parameters == theirs[0].parameters  # the later ones differ by rounding


def test_only_the_first_host_prints(two_hosts, finished):
    first, second = two_hosts.printed
    assert "on 4 cpu device(s) (fsdp 4) of 2 hosts" in first
    filled = [re.search(r"the \[MASK\] statement  ->  .*", text)[0] for text in (first, finished.printed)]
    assert filled[0] == filled[1]
    assert [line for line in second.splitlines() if "connected peer ranks" not in line] == []


@pytest.mark.slow
def test_a_run_is_resumed_with_another_number_of_processes(two_hosts, tmp_path):
    """Resume a run of two processes with one, on another mesh."""
    folder = tmp_path / "run"
    shutil.copytree(two_hosts.folder, folder, ignore=shutil.ignore_patterns("12"))  # the last checkpoint
    before = losses(folder)
    run(changed(two_hosts.config, mesh=MeshShape(), run={"folder": folder}))
    after = losses(folder)
    assert after.keys() == before.keys()
    assert [after[step] for step in range(1, 7)] == [before[step] for step in range(1, 7)]
    for step in range(7, 13):
        assert after[step] == pytest.approx(before[step], rel=1e-5)


def test_settings_that_differ_are_named(masked_lm, tmp_path):
    other = lambda index: ("--optim.learning-rate", "0.5") if index else ()  # noqa: E731
    for code, _, errors in ended(launch(masked_lm, tmp_path, 2, devices=1, flags=other), tmp_path):
        assert code == 2
        assert re.search(r"optim.learning_rate: 0.5 on host 1 \(\S+\), 0.001 on host 0", errors)
    assert not masked_lm.run.folder.exists()


def test_a_batch_with_fewer_rows_than_hosts_is_refused(masked_lm, tmp_path):
    config = changed(masked_lm, run={"batch_size": 1})
    for code, _, errors in ended(launch(config, tmp_path, 2, devices=1), tmp_path):
        assert code == 2
        assert "batch_size is 1, which does not divide over 2 devices; use a multiple of 2\n" in errors
    assert not masked_lm.run.folder.exists()


def test_a_file_that_is_missing_on_one_host_is_named(masked_lm, tmp_path):
    """Each host looks for the file in its own working folder."""
    config = changed(masked_lm, task=dataclasses.replace(masked_lm.task, text="text.txt"))
    (tmp_path / "empty").mkdir()
    found = []
    port = free_port()
    for index, cwd in enumerate((tmp_path, tmp_path / "empty")):
        place = tmp_path / f"host{index}"
        where = ("--hosts.coordinator", f"127.0.0.1:{port}", "--hosts.count", "2", "--hosts.index", str(index))
        found += launch(config, place, 1, devices=1, flags=lambda _, where=where: where, cwd=cwd)
    assert [process.wait(timeout=600) for process in found] == [2, 2]
    missing = "text.txt: no such file or folder"
    assert f"error: {missing}" in (tmp_path / "host1" / "err0").read_text()
    stopped = rf"stopped: host 1 \(\S+\) failed: {missing}"
    assert re.search(stopped, (tmp_path / "host0" / "err0").read_text())
    assert not masked_lm.run.folder.exists()


def test_no_coordinator(masked_lm, tmp_path):
    where = ("--hosts.coordinator", f"127.0.0.1:{free_port()}", "--hosts.count", "2", "--hosts.index", "1")
    flags = lambda _: (*where, "--hosts.timeout", "1")  # noqa: E731
    ((code, printed, errors),) = ended(launch(masked_lm, tmp_path, 1, devices=1, flags=flags), tmp_path)
    assert (code, printed) == (2, "") and errors.count("\n") == 1
    assert errors.startswith(f"error: host 0 was not reached at {where[1]} within 1 s")


def killed(config: Config, place: Path, count: int, victim: int, *, after: str, kept: str = ""):
    """Kill one process of a run; return what the others print, and the seconds until they ended.

    It is killed after this was printed, and when this checkpoint has been written, which goes on beside the steps.
    """
    processes = launch(config, place, count, devices=4 // count)
    try:
        checkpoint = config.run.folder / "checkpoints" / kept
        while not (re.search(after, (place / "out0").read_text()) and (not kept or checkpoint.is_dir())):
            assert all(process.poll() is None for process in processes), (place / "err0").read_text()
            time.sleep(0.1)
        processes[victim].kill()
        start = time.monotonic()
        found = ended(processes, place)
    finally:
        for process in processes:
            process.kill()
    del found[victim]
    return found, time.monotonic() - start


FLIP = """
import jax
from tests.faults.flip import with_flipped_bit
from train.state_check import StateCheck
run = StateCheck.run
def with_flip(self, train_step, step, state, *arguments):
    if step == 6 and jax.process_index() == 1:
        head = state.params["predictions"]
        bias = with_flipped_bit(head["bias"], 30, jax.local_devices()[1])
        state = state.replace(params={**state.params, "predictions": {**head, "bias": bias}})
    return run(self, train_step, step, state, *arguments)
StateCheck.run = with_flip
"""


@pytest.mark.slow  # test_state_check.py flips bits in one process
def test_a_bit_that_flips_on_one_host_ends_all(masked_lm, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.train.multihost.test_hosts.CONFIG", CONFIG + FLIP)
    config = changed(masked_lm, run={"verify_every": 4})
    found = ended(launch(config, tmp_path, 2, devices=2), tmp_path)
    assert [code for code, *_ in found] == [CORRUPT_STATE] * 2
    for *_, errors in found:
        place = r"params/predictions/bias on cpu device \d+ of host 1 \(\S+\): after step 6"
        assert re.search(rf"stopped: (host \d \(\S+\) failed: )?{place} not equal to the copies", errors), errors
    assert list((config.run.folder / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_the_other(two_hosts, tmp_path, victim):
    config = changed(two_hosts.config, run={"folder": tmp_path / "run"})
    ((code, _, errors),), seconds = killed(config, tmp_path, 2, victim, after="of 2 hosts")  # training begins
    assert code == 3, errors
    assert f"stopped: host {victim} ({socket.gethostname()}) was lost: its connection closed;" in errors
    assert seconds < 30


# -- the bigger part -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(finished, tmp_path_factory):
    """A run of twenty steps by one process with four devices."""
    place = tmp_path_factory.mktemp("alone")
    task = dataclasses.replace(finished.config.task, tokenizer=finished.folder / "tokenizer")
    how = {"folder": place / "run", "steps": 20, "log_every": 1, "checkpoint_every": 10, "evaluate_every": 10}
    config = changed(finished.config, task=task, run=how)
    train(config, place, 1, devices=4)
    return SimpleNamespace(config=config, folder=place / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "mesh", "gradient_accumulation_steps"),
    [
        (2, MeshShape(data=4), 1),
        (4, MeshShape(data=4), 1),
        (4, MeshShape(data=2, fsdp=2), 1),
        (4, MeshShape(fsdp=4), 2),
        (2, MeshShape(data=2, tensor=2), 1),
        (4, MeshShape(data=2, tensor=2), 2),  # two hosts take the same rows
        (2, MeshShape(tensor=4), 1),  # all do
    ],
)
def test_twenty_steps_of_two_and_four_processes(alone, tmp_path, count, mesh, gradient_accumulation_steps):
    config = changed(
        alone.config,
        mesh=mesh,
        run={"folder": tmp_path / "run", "gradient_accumulation_steps": gradient_accumulation_steps},
    )
    other = {}
    if gradient_accumulation_steps > 1:  # dropout draws anew for each; so without it
        other = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    if mesh.tensor > 2:
        other = {"num_attention_heads": mesh.tensor}
    if other:
        model = dataclasses.replace(config.model, sizes=config.model.sizes.replace(**other))
        config = changed(config, model=model)
        expected = tmp_path / "expected"
        train(changed(config, mesh=MeshShape(), run={"folder": expected / "run"}), expected, 1, devices=4)
        train(config, tmp_path, count, devices=4 // count)
        assert_same_run(tmp_path / "run", expected / "run")
    else:
        train(config, tmp_path, count, devices=4 // count)
        assert_same_run(tmp_path / "run", alone.folder)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_classification_by_several_processes(classification, tmp_path, count, packed):
    task = dataclasses.replace(classification.task, packed=packed)
    how = {"log_every": 1, "gradient_accumulation_steps": 1}
    config = changed(classification, task=task, run=how | {"folder": tmp_path / "one" / "run"})
    train(config, tmp_path / "one", 1, devices=4)
    many = changed(config, mesh=MeshShape(data=2, fsdp=2), run={"folder": tmp_path / "many" / "run"})
    train(many, tmp_path / "many", count, devices=4 // count)
    assert_same_run(tmp_path / "many" / "run", tmp_path / "one" / "run")
    for name in ("dev", "test"):
        here, there = ((tmp_path / which / "run" / f"predictions_{name}.tsv").read_text() for which in ("many", "one"))
        assert here == there


@pytest.mark.slow
@pytest.mark.parametrize(("before", "victim", "after"), [(1, 0, 4), (2, 0, 1), (4, 0, 2), (4, 3, 2), (2, 1, 4)])
def test_a_killed_run_is_resumed_with_any_number_of_processes(alone, tmp_path, before, victim, after):
    config = changed(alone.config, mesh=MeshShape(fsdp=4), run={"folder": tmp_path / "run"})
    found, seconds = killed(config, tmp_path, before, victim, after=r"step +13/", kept="10")
    for code, _, errors in found:
        assert code == 3, errors
        assert f"stopped: host {victim} ({socket.gethostname()}) was lost: its connection closed;" in errors
    assert seconds < 30
    train(changed(config, mesh=MeshShape(data=2, fsdp=2)), tmp_path, after, devices=4 // after)
    assert "resumed from step 10" in (tmp_path / "out0").read_text()
    assert_same_run(tmp_path / "run", alone.folder)


@pytest.mark.slow
def test_hosts_started_by_slurm(alone, tmp_path):
    def slurm(index, port):
        return {
            "SLURM_JOB_ID": "7",
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": "2",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_PROCID": str(index),
            "SLURM_LOCALID": str(index),
            "JAX_COORDINATOR_PORT": str(port),
        }

    train(changed(alone.config, run={"folder": tmp_path / "run"}), tmp_path, 2, devices=2, environment=slurm)
    assert_same_run(tmp_path / "run", alone.folder)
