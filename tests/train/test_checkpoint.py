"""Checkpoints: which are kept, which are verified, what becomes of damaged ones."""

import asyncio
import gc
import json
import os
import resource
import shutil
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from train.checkpoint.__main__ import main
from train.checkpoint.folder import checkpoint_steps
from train.checkpoint.store import Checkpoints
from train.step import TrainState


def state_of(step):
    """A state of a few kilobytes whose numbers depend on the step."""
    numbers = np.random.default_rng(step).standard_normal((2, 64, 16)).astype(np.float32)
    params = {"kernel": jnp.asarray(numbers[0]), "bias": jnp.asarray(numbers[0, 0])}
    return TrainState(jnp.int32(step), params, {"moments": jnp.asarray(numbers[1])})


def restored(checkpoints, step=None):
    state = state_of(0)
    one = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), state)
    return checkpoints.restore(jax.eval_shape(lambda: state), one, step=step)


def write(folder, steps, *, scores=(), **settings):
    settings = {"keep": 9, "scored": bool(scores)} | settings
    with Checkpoints(folder, **settings) as checkpoints:
        for step, score in zip(steps, scores or [None] * len(steps), strict=True):
            checkpoints.save(state_of(step), step, score=score)
    return folder


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Checkpoints of the steps 6, 12 and 18, of which 6 is the best; no test may change them."""
    return write(tmp_path_factory.mktemp("three") / "checkpoints", [6, 12, 18], scores=[0.9, 0.1, 0.2])


@pytest.fixture
def copied(three, tmp_path):
    return shutil.copytree(three, tmp_path / "checkpoints")


def assert_state(found, step):
    jax.tree.map(np.testing.assert_array_equal, found, state_of(step))


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def largest_file(folder):
    return max(files_of(folder), key=lambda file: file.stat().st_size)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"keep": 1}, [5]),
        ({"keep": 2}, [4, 5]),
        ({"keep": 1, "keep_every": 2}, [2, 4, 5]),
        ({"keep": 1, "scores": [0.5, 0.7, 0.7, 0.1, 0.2]}, [2, 5]),
        ({"keep": 1, "scores": [float("-inf"), float("nan"), None, 0.1, float("inf")]}, [4, 5]),
    ],
)
def test_which_checkpoints_are_kept(tmp_path, settings, kept):
    assert checkpoint_steps(write(tmp_path, [1, 2, 3, 4, 5], **settings)) == kept


def test_scores_that_are_not_finite_choose_no_best(tmp_path):
    folder = write(tmp_path, [1, 2], scores=[float("-inf"), float("nan")])
    with Checkpoints(folder, keep=2, scored=True) as checkpoints:
        assert checkpoints.best is None and checkpoints.intact_best() is None and checkpoints.latest == 2


def test_a_manifest_holds_facts_and_digests(tmp_path):
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state_of(3), 3, facts={"epoch": 1, "batch": 2})
    manifest = json.loads((tmp_path / "3" / "manifest.json").read_text())
    assert (manifest["step"], manifest["epoch"], manifest["batch"], manifest["score"]) == (3, 1, 2, None)
    names = {path.relative_to(tmp_path / "3").as_posix() for path in files_of(tmp_path / "3")}
    assert manifest["files"].keys() == names - {"manifest.json"}


def flip_a_bit(folder):
    file = largest_file(folder)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(folder):
    file = largest_file(folder)
    os.truncate(file, file.stat().st_size // 2)


def link(folder):
    file = largest_file(folder)
    shutil.move(file, folder.parent / "elsewhere")
    file.symlink_to(folder.parent / "elsewhere")


def make_pipe(folder):
    largest_file(folder).unlink()
    os.mkfifo(largest_file(folder).with_name("pipe"))


DAMAGE = {
    "bit": (flip_a_bit, "altered; its content does not match the digest in the manifest"),
    "cut": (cut, "bytes instead of"),
    "deleted": (lambda folder: largest_file(folder).unlink(), "missing"),
    "added": (lambda folder: (folder / "default" / "more").write_text("x"), "more: not listed in the manifest"),
    "link": (link, "a link or a special file"),
    "pipe": (make_pipe, "a link or a special file"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json: missing"),
    "empty": (lambda folder: shutil.rmtree(folder / "default"), "missing"),
    "manifest": (
        lambda folder: (folder / "manifest.json").write_text((folder / "manifest.json").read_text().replace("9", "8")),
        "manifest.json: altered",
    ),
    "not JSON": (lambda folder: (folder / "manifest.json").write_bytes(b"\xff{"), "manifest.json: not a JSON file"),
    "other step": (
        lambda folder: shutil.copy(folder.parent / "6" / "manifest.json", folder), "of step 6, in the folder of another"
    ),
    "a file": (lambda folder: (shutil.rmtree(folder), folder.write_text("x")), "manifest.json: missing"),
    "linked folder": (
        lambda folder: (folder.rename(folder.parent / "real"), folder.symlink_to(folder.parent / "real")),
        "a link, which no checkpoint is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside(copied, caplog, capsys, kind):
    change, problem = DAMAGE[kind]
    change(copied / "18")
    assert main(["verify", str(copied)]) == 1
    printed = capsys.readouterr().out
    assert "6: intact\n12: intact\n18: damaged: " in printed and problem in printed
    assert main(["verify", str(copied / "12")]) == 0 and capsys.readouterr().out == f"{copied / '12'}: intact\n"
    with Checkpoints(copied, keep=3) as checkpoints:
        assert checkpoints.latest == 12
        assert_state(restored(checkpoints), 12)
    (warning,) = caplog.messages
    assert f"step 18 is damaged, and set aside as {copied / '18.damaged'}: {copied / '18'}" in warning
    assert problem in warning
    assert checkpoint_steps(copied) == [6, 12] and os.path.lexists(copied / "18.damaged")
    assert main(["verify", str(copied)]) == 0
    assert "18.damaged: set aside by a run" in capsys.readouterr().out


def test_hidden_files_of_others_are_no_damage(copied):
    (copied / "18" / "default" / ".nfs000001").write_text("")
    assert main(["verify", str(copied)]) == 0


def test_a_damaged_best_checkpoint_is_not_used(copied, caplog):
    with Checkpoints(copied, keep=3, scored=True) as checkpoints:
        assert checkpoints.best == 6
    flip_a_bit(copied / "6")
    with Checkpoints(copied, keep=3, scored=True) as checkpoints:
        assert checkpoints.best == 18
        flip_a_bit(copied / "18")  # after it was verified: not until it is read again
    flip_a_bit(copied / "12")
    with pytest.raises(ValueError, match=r"no checkpoint is left that is not damaged \(12.damaged, 18.damaged, 6.dam"):
        Checkpoints(copied, keep=3, scored=True)
    with pytest.raises(ValueError, match="no checkpoint is left that is not damaged"):  # at every start
        Checkpoints(copied, keep=3, scored=True)
    shutil.rmtree(copied)
    with Checkpoints(copied, keep=3) as checkpoints:
        assert checkpoints.latest is None


def test_a_best_checkpoint_that_is_damaged_after_it_was_written(tmp_path, caplog):
    with Checkpoints(tmp_path, keep=3, scored=True) as checkpoints:
        for step, score in ((1, 0.9), (2, 0.5), (3, 0.1)):
            checkpoints.save(state_of(step), step, score=score)
        checkpoints.wait()
        flip_a_bit(tmp_path / "1")
        assert checkpoints.intact_best() == 2
        assert_state(restored(checkpoints, 2), 2)
    assert "step 1 is damaged" in caplog.text


def test_a_second_damaged_checkpoint_of_a_step_keeps_the_first(copied):
    for name in ("18.damaged", "18.damaged-2"):
        flip_a_bit(copied / "18")
        with Checkpoints(copied, keep=3) as checkpoints:
            checkpoints.save(state_of(18), 18)
        assert (copied / name).is_dir()


def test_what_a_killed_run_left_is_deleted(copied):
    for name in ("20.partial", "4.deleted", "24.orbax-checkpoint-tmp", "24.orbax-checkpoint-tmp-1700000000"):
        shutil.copytree(copied / "6", copied / name)
    (copied / "notes").mkdir()
    with Checkpoints(copied, keep=3) as checkpoints:
        assert checkpoints.latest == 18
    assert sorted(path.name for path in copied.iterdir()) == ["12", "18", "6", "notes"]


def test_a_checkpoint_without_access_is_not_set_aside(copied, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "file")

    monkeypatch.setattr("train.checkpoint.manifest._digest", refuse)  # root may read everything
    with pytest.raises(PermissionError):
        Checkpoints(copied, keep=3)
    assert checkpoint_steps(copied) == [6, 12, 18]


def test_arguments_of_the_command(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2 and "holds no checkpoint" in capsys.readouterr().err
    assert main(["--help"]) == 0 and "usage: python -m train.checkpoint" in capsys.readouterr().out
    assert main(["check", str(tmp_path)]) == 2 and "usage: python -m train.checkpoint" in capsys.readouterr().err


def test_the_memory_of_a_saved_state_may_be_donated(tmp_path):
    step = jax.jit(lambda state: jax.tree.map(lambda array: array * 0, state), donate_argnums=0)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        state = state_of(3)
        checkpoints.save(state, 3)
        step(state)
        checkpoints.wait()
        assert_state(restored(checkpoints), 3)


def test_a_full_disk_is_reported_and_leaves_nothing(copied, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with Checkpoints(copied, keep=1) as checkpoints:
        monkeypatch.setattr("train.checkpoint.store.write_manifest", fail)
        checkpoints.save(state_of(20), 20)
        with pytest.raises(OSError, match="checkpoint of step 20 cannot be written: .*No space left on device"):
            while True:
                checkpoints.check()
        assert checkpoints.latest == 18
    assert sorted(path.name for path in Path(copied).iterdir()) == ["12", "18", "6"]


def test_what_orbax_writes_after_a_failure_is_deleted_at_the_end(tmp_path, monkeypatch):
    late = threading.Timer(0.3, lambda: (tmp_path / "1.partial" / "default").mkdir(parents=True))

    def fail(*_):
        late.start()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("train.checkpoint.arrays.CheckpointArrays.start_writing", fail)
    with pytest.raises(OSError, match="step 1 cannot be written"), Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(state_of(1), 1)
    late.join()
    assert list(tmp_path.iterdir()) == []


def test_writes_that_fail_print_no_stack_traces(tmp_path, monkeypatch, capfd):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    numbers = np.random.default_rng(0).standard_normal((20, 256, 256)).astype(np.float32)
    state = TrainState(jnp.int32(1), {str(index): jnp.asarray(own) for index, own in enumerate(numbers)}, {})
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))  # as a full disk, in the middle of a file
            checkpoints.save(state, 1)
            with pytest.raises(OSError, match="checkpoint of step 1 cannot be written: File too large"):
                checkpoints.wait()
            time.sleep(0.2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError("another"), object=None))
    assert [str(own.exc_value) for own in printed] == ["another"]
    assert "Traceback" not in capfd.readouterr().err


def test_errors_that_orbax_leaves_in_futures_are_not_logged(tmp_path, caplog):
    loop = asyncio.new_event_loop()
    with Checkpoints(tmp_path, keep=1):
        loop.create_future().set_exception(ValueError("of a write beside a failed one"))
        gc.collect()
    loop.close()
    assert not caplog.records


@pytest.mark.parametrize("is_made_again", [False, True])
def test_a_folder_that_is_gone_is_noticed_at_once(copied, is_made_again):
    with Checkpoints(copied, keep=1) as checkpoints:
        checkpoints.check()
        shutil.rmtree(copied)
        if is_made_again:  # as a write in the background does
            copied.mkdir()
        with pytest.raises(OSError, match="the checkpoints are gone; put them back"):
            checkpoints.check()
        shutil.rmtree(copied, ignore_errors=True)
        copied.write_text("")
        with pytest.raises(OSError, match="step 20 cannot be written"):
            checkpoints.save(state_of(20), 20)
